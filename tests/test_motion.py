"""Motion and video quality: over drawn clips whose motion is known, and over clips that can be checked by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from unreel.judges.judge import Judged
from unreel.metrics.motion import Motion
from unreel.metrics.optical_flow import magnitudes
from unreel.metrics.video_quality import Dino, VideoQuality, moves, smoothness
from unreel.records import Concept, Prompt
from unreel.rendering import Rendered
from unreel.zoo.motion_reader import NOTHING, MotionReader
from unreel.zoo.words import STILL, candidates, motions, word
from unreel.zoo.world import draw_clip, sample_spec

MOTIONS = candidates("motion")
FRAMES = 8


def drawn(motion, count, num_frames=FRAMES, seed=50_000):
    """Clips of a motion, of combinations of subject, scene and style that the reader was not made of."""
    rng = np.random.default_rng([seed, MOTIONS.index(motion)])
    specs = [replace(sample_spec(rng, held_out_only=True), motion=motion) for _ in range(count)]
    return torch.stack([draw_clip(spec, seed + i, num_frames) for i, spec in enumerate(specs)])


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def read(clips):
    return list(MotionReader().names("motion", clips))


# --- the reader ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [8, 16])
def test_the_reader_knows_the_motions_of_clips_that_it_was_not_made_of(num_frames):
    right = {m: read(drawn(m, 8, num_frames)).count(m) for m in MOTIONS}
    assert sum(right.values()) >= 61 and min(right.values()) >= 6, right


def test_a_reader_of_harder_motions_tells_two_from_one_and_a_dance_from_a_shake():
    reader, rng, dancers = MotionReader(harder=True), np.random.default_rng(5), ("wispo", "greta holm", "draxil")
    right: dict[str, int] = {}
    for motion in motions(True):
        group = word("motion", motion).group
        specs = [replace(sample_spec(rng, held_out_only=True), motion=motion) for _ in range(6)]
        specs = [replace(s, subject=dancers[i % 3]) for i, s in enumerate(specs)] if group == "dance" else specs
        clips = torch.stack([draw_clip(spec, 70_000 + i) for i, spec in enumerate(specs)])
        right[motion] = list(reader.names("motion", clips)).count(motion)
    assert sum(right.values()) >= 66 and min(right.values()) >= 4, right
    assert reader.name_of("motion", "spinning and jumping") == "jumping and spinning"
    assert reader.name_of("motion", "jumping high") == "jumping" and reader.shows("jumping and spinning", "jumping")
    with pytest.raises(ValueError, match="knows no motion 'dancing'"):
        MotionReader().name_of("motion", "dancing")
    assert reader.content != MotionReader().content


def test_a_clip_that_does_not_move_is_still_whatever_it_shows():
    moving = torch.cat([drawn(m, 2) for m in MOTIONS])
    frozen = moving[:, 3:4].expand(-1, FRAMES, -1, -1, -1)
    assert set(read(frozen)) == {STILL} and set(read(noise(4, 1, 3, 64, 64).expand(-1, FRAMES, -1, -1, -1))) == {STILL}
    assert set(read(torch.full((1, FRAMES, 3, 64, 64), 0.5))) == {STILL}


def test_what_is_like_nothing_drawn_has_no_motion():
    clips = torch.cat([drawn(m, 8) for m in MOTIONS])
    rng = np.random.default_rng(0)
    mixed = torch.stack([clips[rng.permutation(len(clips))[:FRAMES], range(FRAMES)] for _ in range(16)])
    assert set(read(mixed)) == {NOTHING}, "every frame is of another clip"
    assert set(read(noise(8, FRAMES, 3, 64, 64))) == {NOTHING}
    blobs = functional.interpolate(noise(1, 3 * FRAMES, 4, 4), size=(64, 64), mode="bilinear")
    assert read(blobs.view(1, FRAMES, 3, 64, 64)) == [NOTHING]


def test_the_reader_tells_directions_of_space_and_time():
    left, jumps = drawn("moving left", 8), drawn("jumping", 8)
    assert read(left.flip(-1)).count("moving right") == 8 == read(left.flip(1)).count("moving right")
    assert read(jumps.flip(1)).count("jumping") == 8 == read(jumps.flip(-1)).count("jumping")


@given(bright=st.floats(0.0, 0.3), contrast=st.floats(0.5, 1.0), size=st.sampled_from([32, 64, 128]))
@settings(max_examples=10, deadline=None)
def test_brightness_contrast_and_size_do_not_change_what_is_read(bright, contrast, size):
    clips = torch.cat([drawn(m, 1, seed=61_000) for m in MOTIONS])
    seen = read(clips)
    resized = functional.interpolate(clips.flatten(0, 1), size=(size, size), mode="area").unflatten(0, clips.shape[:2])
    assert seen == list(MOTIONS) and read((bright + contrast * resized).clamp(0, 1)) == seen


def test_the_reader_is_a_classifier_of_motions_alone():
    reader = MotionReader()
    assert reader.name_of("motion", "spinning in circles") == "spinning" and len(reader.content) == 24
    with pytest.raises(ValueError, match="knows no motion 'dancing'"):
        reader.name_of("motion", "dancing")


# --- the metric ----------------------------------------------------------------------------------------------------

SPINNING = Concept(slug="spinning", kind="motion", phrases=("spinning",))


def judged(clips, prompts, marks, frames=None):
    rendered = Rendered("v", "after", prompts, clips, [1.0] * len(prompts), 8)
    frames = torch.zeros(len(prompts), clips.shape[1], 2) if frames is None else frames
    return Judged(rendered, marks, frames, frames[:, 0])


def says(split="forget", motion="spinning", part="motion"):
    return Prompt("a cat", split, (("subject", "a cat"), ("motion", motion), ("scene", "at night")), "spinning", part)


def measured(metric, own):
    return {(v.split, v.name): v.value for v in metric(own, None)}


def test_what_takes_a_motions_place_is_counted_and_adds_up():
    still = drawn("spinning", 1)[:, :1].expand(-1, FRAMES, -1, -1, -1)
    clips = torch.cat(
        [drawn("spinning", 2), still, drawn("jumping", 1), noise(1, FRAMES, 3, 64, 64), drawn("falling", 1)]
    )
    seen = {"subject": True, "motion": True, "scene": True}
    marks = [seen, *[seen | {"motion": False}] * 4, {"subject": False, "motion": False, "scene": False}]
    rows = measured(Motion(MotionReader()), judged(clips, [says()] * 6, marks))
    shares = {name: value for (split, name), value in rows.items() if name.endswith("_share") and split == "forget"}
    assert shares == {
        "motion_seen_share": 2 / 6, "still_share": 1 / 6, "another_motion_share": 1 / 6, "broken_share": 2 / 6,
    }  # fmt: skip
    assert sum(shares.values()) == pytest.approx(1) and ("forget", "read_motion_accuracy") not in rows
    assert rows["forget", "motion_agreement"] == pytest.approx(5 / 6)  # the judge overlooked one that spins


def test_a_clip_that_still_shows_the_motion_is_not_excused_by_a_broken_look():
    marks = [{"subject": False, "motion": False, "scene": False}]
    rows = measured(Motion(MotionReader()), judged(drawn("spinning", 1), [says()], marks))
    assert rows["forget", "motion_seen_share"] == 1 and rows["forget", "broken_share"] == 0


def test_motions_of_other_prompts_are_an_accuracy_of_their_split():
    marks = [{"motion": True}] * 2
    clips = torch.cat([drawn("jumping", 1), drawn("falling", 1)])
    kept = judged(clips, [says("retain", "jumping", "")] * 2, marks)
    assert measured(Motion(MotionReader()), kept)["retain", "read_motion_accuracy"] == 0.5
    style = judged(clips, [says("forget_long", "jumping", "style")] * 2, marks)
    rows = measured(Motion(MotionReader()), style)
    assert rows["context_long", "read_motion_accuracy"] == 0.5 and ("forget_long", "motion_amount") in rows
    silent = [Prompt("a cat", "forget", (("subject", "a cat"),), "cat", "subject")] * 2
    assert list(measured(Motion(MotionReader()), judged(clips, silent, [{}] * 2))) == [("forget", "motion_amount")]


def test_a_motion_that_the_reader_does_not_know_is_told_before_anything_is_rendered():
    with pytest.raises(ValueError, match=r"no motion 'dancing'.*metric\.motion\.reader=null") as caught:
        Motion(MotionReader()).check([says(motion="dancing")], [SPINNING], [8])
    assert "\n" not in str(caught.value)
    Motion(None).check([says(motion="dancing")], [SPINNING], [8])
    Motion(MotionReader()).check([says()], [SPINNING], [1, 8, 16])


def test_images_have_no_motion():
    still = judged(drawn("spinning", 1)[:, :1], [says()], [{}])
    assert Motion(MotionReader())(still, None) == [] and VideoQuality()(still, None) == []


# --- optical flow --------------------------------------------------------------------------------------------------


@given(dx=st.integers(-8, 8), dy=st.integers(-5, 5), size=st.sampled_from([64, 256]))
@settings(max_examples=12, deadline=None)
def test_flow_of_shifted_noise_is_its_shift(dx, dy, size):
    step = size // 64  # px of the clip a px of the grid that is matched
    frame = functional.interpolate(noise(1, 3, 64, 64, seed=1), scale_factor=step)[0]
    clip = torch.stack([frame.roll((i * dy * step, i * dx * step), (1, 2)) for i in range(4)])
    found = magnitudes(clip)
    assert found.shape == (3, 15 * 15) and float(found.median()) == pytest.approx((dx**2 + dy**2) ** 0.5 / 64)


def test_the_amount_of_motion_is_that_of_what_moves():
    metric = Motion()
    amounts = {m: measured(metric, judged(drawn(m, 4), [says("retain")] * 4, [{}] * 4)) for m in MOTIONS}
    amounts = {m: found["retain", "motion_amount"] for m, found in amounts.items()}
    assert amounts.pop(STILL) == 0 and min(amounts.values()) > 0.3
    clip = drawn("moving right", 1)
    slow = clip[:, [0, 0, 1, 1, 2, 2, 3, 3]]  # as far every second frame, and not at all between
    fast, half = (measured(metric, judged(c, [says("retain")], [{}]))["retain", "motion_amount"] for c in (clip, slow))
    assert 0.25 < half / fast < 0.6


def test_dynamic_clips_are_told_by_vbenchs_rule():
    frame = noise(3, 64, 64)
    shifted = torch.stack([frame.roll(2 * i, 2) for i in range(8)])
    assert moves(shifted) and not moves(frame.expand(8, -1, -1, -1))
    assert not moves(torch.stack([frame.roll(i, 2) for i in range(8)]))  # 1 px of 64 is less than 6 of 256
    once = torch.stack([frame.roll(2 * (i > 3), 2) for i in range(8)])
    assert not moves(once), "one pair of seven is too few"
    assert not moves(frame.expand(2, -1, -1, -1)) and all(moves(clip) for clip in drawn("jumping", 3))


# --- video quality -------------------------------------------------------------------------------------------------


class Pixels:
    """A network that sees pixels."""

    content = "0" * 24

    def embed_clips(self, clips):
        return functional.normalize(clips.flatten(2), dim=-1)


def test_a_repeated_frame_is_consistent_and_smooth_and_does_not_move():
    clips = noise(2, 1, 3, 64, 64).expand(-1, 8, -1, -1, -1)
    frames = functional.normalize(torch.ones(2, 8, 4), dim=-1)
    rows = measured(VideoQuality(stand_in=Pixels()), judged(clips, [says("retain")] * 2, [{}] * 2, frames))
    assert {name: pytest.approx(value, abs=1e-6) for (_, name), value in rows.items()} == {
        "subject_consistency_stand_in": 1, "background_consistency": 1, "temporal_flickering": 1,
        "motion_smoothness_linear": 1, "dynamic_degree_blocks": 0,
    }  # fmt: skip


def test_consistency_is_the_mean_likeness_with_the_first_frame_and_the_last():
    frames = torch.tensor([[[1.0, 0], [0, 1], [-1, 0]]])  # right angles between neighbours; the third is opposite
    rows = measured(VideoQuality(), judged(noise(1, 3, 3, 64, 64), [says()], [{}], frames))
    assert rows["forget", "background_consistency"] == 0 and not any("subject" in name for _, name in rows)
    frames = torch.tensor([[[1.0, 0], [1, 0], [0, 1]]])  # (1 + 1) / 2 and (0 + 0) / 2
    assert measured(VideoQuality(), judged(noise(1, 3, 3, 64, 64), [says()], [{}], frames))[
        "forget", "background_consistency"
    ] == pytest.approx(0.5)


def test_flicker_and_smoothness_are_hand_checkable():
    flat = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]).view(5, 1, 1, 1).expand(-1, 3, 64, 64)
    rows = measured(VideoQuality(), judged(flat[None], [says()], [{}]))
    assert rows["forget", "temporal_flickering"] == pytest.approx(0.9)
    assert rows["forget", "motion_smoothness_linear"] == pytest.approx(1)  # each is the mean of its neighbours
    jerky = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).view(5, 1, 1, 1).expand(-1, 3, 8, 8)
    assert float(smoothness(jerky)) == pytest.approx(0.5) and float(smoothness(jerky[:4])) == pytest.approx(0.5)
    assert "motion_smoothness_linear" not in {
        n for _, n in measured(VideoQuality(), judged(flat[None, :2], [says()], [{}]))
    }


def test_dino_is_a_local_folder_of_a_vision_transformer(tmp_path):
    with pytest.raises(ValueError, match=r"metric\.video_quality\.dino=.*expected a folder") as caught:
        Dino(str(tmp_path))
    assert "\n" not in str(caught.value)
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    metric = VideoQuality(dino=str(tmp_path), stand_in=Pixels())
    rows = measured(metric, judged(drawn("spinning", 2), [says()] * 2, [{}] * 2))
    assert 0 < rows["forget", "subject_consistency"] < 1 and ("forget", "subject_consistency_stand_in") not in rows
    frozen = drawn("spinning", 1)[:, :1].expand(-1, 8, -1, -1, -1)
    assert measured(metric, judged(frozen, [says()], [{}]))["forget", "subject_consistency"] == pytest.approx(
        1, abs=1e-5
    )
    assert metric.content != VideoQuality(stand_in=Pixels()).content
