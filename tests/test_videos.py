"""A user's clips: decoded whole, cut to what a model wants, and refused in one line where they will not do."""

import subprocess

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from conftest import configured
from test_shots import make_batches, make_shots
from unreel.clips import write_mp4
from unreel.door import questions_of
from unreel.images import shot_files
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion
from unreel.shots import pixels_of
from unreel.training import opened
from unreel.videos import DEMUXERS, check_clip, read_clip
from unreel.zoo.world import Spec, draw_clip


def ffmpeg(*arguments):
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def bars(path, seconds=2, rate=24, size="48x32"):
    """A moving test picture with a counter."""
    ffmpeg("-f", "lavfi", "-i", f"testsrc=duration={seconds}:size={size}:rate={rate}", path)
    return path


def clips_in(folder, count=4, seconds=2):
    folder.mkdir()
    return [bars(folder / f"{i}.mp4", seconds=seconds + i) for i in range(count)]


def test_a_clip_of_the_models_own_length_is_read_frame_for_frame(tmp_path):
    drawn = draw_clip(Spec("cat", "beach", motion="moving left"), 3)
    found = read_clip(write_mp4(drawn, tmp_path / "a.mp4", fps=8), 64, frames=8, fps=8)
    own = (drawn.permute(0, 2, 3, 1) * 255).numpy()
    distances = [[np.abs(f.astype(float) - o).mean() for o in own] for f in found]
    assert np.argmin(distances, axis=1).tolist() == list(range(8))
    assert max(np.diag(distances)) < 12


@pytest.mark.parametrize("suffix", sorted(DEMUXERS))
def test_every_container_is_read(tmp_path, suffix):
    found = read_clip(bars(tmp_path / f"a{suffix}"), 32, frames=8, fps=8)
    assert found.shape == (8, 32, 32, 3) and found.dtype == np.uint8
    assert len({frame.tobytes() for frame in found}) == 8  # the counter runs


def test_the_middle_of_a_long_clip_is_read_at_the_models_rate_and_the_whole_of_a_short_one(tmp_path):
    """A clip that brightens evenly: which seconds are read can be seen."""
    ramp = np.repeat(np.linspace(0, 250, 80).astype(np.uint8), 32 * 32 * 3).reshape(80, 32, 32, 3)
    imageio.imwrite(tmp_path / "a.mp4", ramp, fps=8, codec="libx264", output_params=["-crf", "1"])
    middle = read_clip(tmp_path / "a.mp4", 32, frames=8, fps=8).mean((1, 2, 3))  # 1 of 10 s
    assert abs(middle.mean() - 125) < 8 and middle[-1] - middle[0] == pytest.approx(7 * 250 / 79, abs=6)
    whole = read_clip(tmp_path / "a.mp4", 32, frames=5, fps=1).mean((1, 2, 3))  # 5 of 10 s
    assert whole[-1] - whole[0] == pytest.approx(4 * 8 * 250 / 79, abs=20)
    stretched = read_clip(tmp_path / "a.mp4", 32, frames=20, fps=1).mean((1, 2, 3))  # more than there is: all of it
    assert stretched[0] < 12 and stretched[-1] > 238 and (np.diff(stretched) > 0).all()


def test_a_wide_clip_is_cut_to_a_square_about_its_middle(tmp_path):
    wide = np.zeros((6, 40, 120, 3), np.uint8)
    wide[:, :, 40:80] = 240
    wide[:, ::2, :, 0] += np.arange(6, dtype=np.uint8)[:, None, None]  # it moves a little
    imageio.imwrite(tmp_path / "a.mp4", wide, fps=8, macro_block_size=1)
    assert read_clip(tmp_path / "a.mp4", 32, 6, 8)[:, 4:-4, 4:-4].min() > 200


def odd_files(folder):
    """name -> what is said of it."""
    bars(folder / "whole.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "broken.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:3000])
    (folder / "junk.webm").write_text("no video")
    (folder / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:2,\n{folder / 'whole.mp4'}\n")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=2", folder / "audio.mp4")
    for name in ("one.mp4", "one.gif"):
        ffmpeg("-f", "lavfi", "-i", "testsrc=duration=1:size=32x32", "-frames:v", 1, folder / name)
    ffmpeg("-f", "lavfi", "-i", "testsrc=duration=600:size=32x32:rate=1", folder / "long.webm")
    (folder / "whole.mp4").unlink()
    return {
        "empty.mp4": "is empty", "broken.mp4": "cannot be read as a video", "junk.webm": "cannot be read as a video",
        "playlist.mp4": "cannot be read as a video", "audio.mp4": "it has no picture", "one.mp4": "one picture alone",
        "one.gif": "one picture alone", "long.webm": "lasts 600 s: expected at most 60 s",
    }  # fmt: skip


def test_what_is_no_clip_ends_in_one_line_that_names_it(tmp_path):
    for name, said in odd_files(tmp_path).items():
        with pytest.raises(ValueError) as found:
            check_clip(tmp_path / name)
        assert name in str(found.value) and said in str(found.value) and "\n" not in str(found.value)


def test_odd_clips_are_refused_when_the_shots_are_named_before_any_model(tmp_path):
    for name in odd_files(tmp_path):
        alone = tmp_path / name.replace(".", "_")
        alone.mkdir()
        (tmp_path / name).rename(alone / name)
        with pytest.raises(ValueError, match=name):
            make_shots(tmp_path / "cache", shots=1, images=alone)


def test_a_folder_of_clips_and_images_is_refused(tmp_path):
    folder = tmp_path / "mixed"
    clips_in(folder, 1)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    with pytest.raises(ValueError, match="mixed has images and clips"):
        shot_files(folder)
    with pytest.raises(ValueError, match=r"other has 1 clips: expected shots=2"):
        clips_in(tmp_path / "other", 1)
        make_shots(tmp_path / "cache", shots=2, images=tmp_path / "other")


@pytest.mark.parametrize("family", [ModelScope, AnimateDiff])
def test_a_video_donors_shots_are_clips_its_own_or_the_users(tmp_path, family):
    model = family.tiny()
    clips_in(tmp_path / "clips", 2)
    own, given = make_shots(tmp_path / "cache"), make_shots(tmp_path / "cache", images=tmp_path / "clips")
    for shots in (own, given):
        shots.make(model)
        assert shots.all_pixels().shape == (2, model.num_frames, 3, 32, 32)
        assert shots.latents[0].shape == (2, *model.latent_shape)
        assert shots.all_pixels().min() >= 0 and shots.all_pixels().max() <= 1
    model.render = model.encode_pixels = None  # a second making would fail
    again = make_shots(tmp_path / "cache", images=tmp_path / "clips")
    again.make(model)
    assert torch.equal(again.latents[0], given.latents[0])
    batch = make_batches(tmp_path / "cache", model, images=tmp_path / "clips").batch(0)
    assert batch.latents.shape == (2, *model.latent_shape)


def test_an_image_stands_still_for_a_video_donor_and_a_clip_gives_an_image_donor_its_middle(tmp_path):
    Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / "a.png")
    still = pixels_of(tmp_path / "a.png", ModelScope.tiny())
    assert still.shape == (3, 3, 32, 32) and torch.equal(still[0], still[2])
    drawn = draw_clip(Spec("cat", "beach", motion="moving left"), 3)
    write_mp4(drawn, tmp_path / "a.mp4", fps=8)
    middle = pixels_of(tmp_path / "a.mp4", StableDiffusion.tiny())[0]
    small = torch.nn.functional.interpolate(drawn * 2 - 1, (32, 32), mode="area")
    nearest = int((small - middle).abs().mean((1, 2, 3)).argmin())
    assert nearest in (3, 4)


@pytest.mark.parametrize(("suffix", "rate"), [(".mp4", 2), (".gif", 2), (".gif", 1)])
def test_slow_clips_and_those_that_rest_in_their_middle_are_clips(tmp_path, suffix, rate):
    path = bars(tmp_path / f"a{suffix}", seconds=6, rate=rate)
    check_clip(path)
    assert read_clip(path, 32, 1, 1).shape == (1, 32, 32, 3)
    assert len({frame.tobytes() for frame in read_clip(path, 32, 6, 1)}) > 3
    rests = np.zeros((60, 32, 32, 3), np.uint8)
    rests[:4, 8:16] = rests[-4:, 16:24] = 255
    imageio.imwrite(tmp_path / "b.mp4", rests, fps=8)
    check_clip(tmp_path / "b.mp4")


def test_a_method_that_learns_from_clips_takes_no_images(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    config = configured(
        "train",
        [
            "method=motion_contrast",
            "concept=spinning",
            "t2i=zoo_unet3d",
            f"images={tmp_path}",
            "shots=1",
            "logger=none",
        ],
    )
    with pytest.raises(ValueError, match=r"a\.png is an image: method motion_contrast learns from clips"):
        opened(config, questions_of(config))
