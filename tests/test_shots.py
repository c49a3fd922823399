"""Shots: the user's images of every sort, the cache, and batches that depend on seed and step alone."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_model
from unreel.batches import Batches, BatchSizes
from unreel.cache import TensorCache
from unreel.captions import TrainingCaptions
from unreel.concepts import to_concept
from unreel.images import shot_files
from unreel.shots import Shots, pixels_of
from unreel.vocabulary import TEMPLATES, Surroundings

VOCABULARY = {
    "subject": ["a cat", "a dog", "a car", "a fish", "an owl"],
    "scene": ["on the beach", "at night", "in the snow", "in the city"],
    "style": ["as a pencil sketch", "as pixel art"],
}


def make_shots(folder, shots=2, images=None, seed=0, slug="drum"):
    concept = to_concept(slug, {"name": slug, "kind": "object", "images": str(images) if images else None})
    captions = [TrainingCaptions(concept, Surroundings(VOCABULARY, [concept], False))]
    return Shots(captions, shots, seed, TensorCache(folder))


def sizes(**changes):
    return BatchSizes(**dict(steps=4, epochs=None, batch=2, pairs=1, retain=4) | changes)


def make_batches(folder, model, **options):
    shots = make_shots(folder, **options)
    shots.make(model)
    return Batches(model, shots.captions, shots, sizes(), shots.seed)


def test_generated_shots_are_made_once_and_are_the_same_from_the_cache(tmp_path):
    first, donor = make_shots(tmp_path), small_model(layers=2)
    first.make(donor)
    donor.render = None  # a second generation would fail
    again = make_shots(tmp_path)
    again.make(donor)
    assert first.all_pixels().shape == (2, 1, 3, 32, 32) and first.latents[0].shape == (2, 4, 16, 16)
    assert torch.equal(first.latents[0], again.latents[0]) and torch.equal(first.all_pixels(), again.all_pixels())


def test_shots_do_not_depend_on_which_others_were_there_before(tmp_path):
    donor = small_model(layers=2)
    few, more, at_once = make_shots(tmp_path / "a", 1), make_shots(tmp_path / "a", 3), make_shots(tmp_path / "b", 3)
    for shots in (few, more, at_once):
        shots.make(donor)
    assert torch.equal(more.latents[0], at_once.latents[0]) and torch.equal(more.latents[0][:1], few.latents[0])


def test_other_seeds_and_other_donors_have_other_shots(tmp_path):
    shots = [make_shots(tmp_path), make_shots(tmp_path, seed=1), make_shots(tmp_path)]
    for some, donor in zip(
        shots, (small_model(layers=2), small_model(layers=2), small_model(layers=2, seed=9)), strict=True
    ):
        some.make(donor)
    assert not torch.equal(shots[0].latents[0], shots[1].latents[0])
    assert not torch.equal(shots[0].latents[0], shots[2].latents[0])


def test_zero_shots_are_gaussian_latents_without_an_image(tmp_path):
    shots = make_shots(tmp_path, shots=0)
    shots.make(small_model(layers=2))
    assert shots.all_pixels().shape[0] == 0
    assert abs(float(shots.latents[0].std()) - 1) < 0.1


def test_a_batch_depends_on_seed_and_step_alone(tmp_path):
    one, other = (make_batches(tmp_path, small_model(layers=2)) for _ in range(2))
    one.batch(0)
    a, b = one.batch(3), other.batch(3)
    assert a.forget == b.forget and a.retain == b.retain and torch.equal(a.noise, b.noise)
    assert one.batch(2).forget != a.forget
    assert all("drum" in text for text in a.forget) and not any("drum" in text for text in a.anchors + a.retain)


def test_captions_say_what_a_shot_shows_or_the_name_alone(tmp_path):
    """Of the donor's shots all that they were made from, of a user's images, which show who knows what, the name."""
    surroundings = [phrase for phrases in VOCABULARY.values() for phrase in phrases]
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    model = small_model(layers=2)
    shown, own = make_batches(tmp_path, model), make_batches(tmp_path, model, images=tmp_path)
    bare = Batches(model, shown.captions, shown.shots, sizes(captions="bare"), 0)
    for step in range(4):
        said = {name: each.batch(step) for name, each in {"shown": shown, "own": own, "bare": bare}.items()}
        assert any(phrase in said["shown"].forget[0] for phrase in surroundings)
        for name in ("own", "bare"):
            pairs = zip(said[name].forget[:2], said[name].anchors[:2], strict=True)
            for named, anchored in pairs:
                assert "a drum" in named and named.replace("a drum", "something") == anchored
                assert not any(phrase in named for phrase in surroundings)
    with pytest.raises(ValueError, match=r"(?s)captions.*'shown' or 'bare'.*'all'"):
        sizes(captions="all")


def test_no_template_is_one_that_the_evaluation_says():
    concept = to_concept("drum", {"name": "drum", "kind": "object"})
    surroundings = Surroundings(VOCABULARY, [concept], False)
    captions = TrainingCaptions(concept, surroundings, ["A picture of a drum"])
    texts = {captions.bare_pair(np.random.default_rng(i))[0] for i in range(200)}
    assert "a picture of a drum" not in texts and "a photo of a drum" in texts
    every = [form.format("a drum") for form in TEMPLATES["subject"]]
    with pytest.raises(ValueError, match="drum: the evaluation's prompts are all templates"):
        TrainingCaptions(concept, surroundings, every)


@pytest.mark.parametrize(("changes", "steps"), [(dict(steps=None, epochs=5), 5), (dict(steps=7), 7)])
def test_epochs_are_rounds_through_the_shots(changes, steps):
    assert sizes(**changes).most_steps(concepts=1, shots=2) == steps


def test_a_method_without_shots_has_captions_alone(tmp_path):
    batches = Batches(small_model(layers=2), make_shots(tmp_path).captions, None, sizes(), 0)
    batch = batches.batch(0)
    assert batch.latents.shape == (0, 4, 16, 16) and len(batch.forget) == 3 and len(batch.retain) == 4


def test_several_processes_share_out_a_batch_without_losing_or_repeating_anything(tmp_path):
    batches = make_batches(tmp_path, small_model(layers=2))
    whole, parts = batches.batch(0), [batches.batch(0).share(rank, 2) for rank in (0, 1)]
    assert sorted(parts[0].forget + parts[1].forget) == sorted(whole.forget)
    assert sorted(parts[0].retain + parts[1].retain) == sorted(whole.retain)
    assert torch.equal(torch.cat([part.latents for part in parts]), whole.latents)


def read(path):
    """The one frame of an image, (3, 32, 32) in [-1, 1]."""
    return pixels_of(path, small_model(layers=1))[0]


def picture(path, mode="RGB", size=(40, 20), **save):
    image = Image.fromarray(np.full((size[1], size[0], 3), (200, 40, 40), np.uint8)).convert(mode)
    image.save(path, **save)


def test_images_of_every_sort_become_square_rgb(tmp_path):
    picture(tmp_path / "a.jpg", "CMYK")
    picture(tmp_path / "b.png", "P")
    picture(tmp_path / "c.png", "L")
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(tmp_path / "d.png")
    pixels = [read(path) for path in shot_files(tmp_path)]
    assert all(p.shape == (3, 32, 32) and p.min() >= -1 and p.max() <= 1 for p in pixels)
    assert pixels[0][0].mean() > pixels[0][1].mean() + 0.5  # red stays red
    assert torch.equal(pixels[3], torch.ones(3, 32, 32))  # transparent is white


def test_an_exif_rotated_image_is_turned_upright(tmp_path):
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 16))  # white above
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    pixels = read(tmp_path / "a.png")
    assert pixels[:, :16].max() < -0.9 and pixels[:, 16:].min() > 0.9


def test_what_is_no_image_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"no image")
    picture(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    for name in ("a.png", "b.png"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            read(tmp_path / name)
    picture(tmp_path / "c.png")
    monkeypatch.setattr("unreel.images._MOST_PIXELS", 100)
    with pytest.raises(ValueError, match=r"c\.png has 40 x 20 px"):
        read(tmp_path / "c.png")


@pytest.mark.parametrize("shots", [-1, 1.5, True])
def test_a_number_of_shots_that_is_none_is_refused(tmp_path, shots):
    with pytest.raises(ValueError, match=f"shots={shots}"):
        make_shots(tmp_path, shots=shots)


def test_a_folder_without_enough_images_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        make_shots(tmp_path, images=tmp_path / "nowhere")
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(ValueError, match="has no image"):
        make_shots(tmp_path, images=folder)
    picture(folder / "a.png")
    with pytest.raises(ValueError, match="has 1 images: expected shots=2"):
        make_shots(tmp_path, images=folder)
    shots = make_shots(tmp_path, shots=1, images=folder)
    shots.make(small_model(layers=2))
    assert shots.latents[0].shape == (1, 4, 16, 16)


def test_sixteen_bits_of_grey_keep_their_greys(tmp_path):
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "grey.png")
    assert read(tmp_path / "grey.png").mean().item() == pytest.approx(0, abs=0.01)


def test_some_captions_are_said_at_length_and_say_the_same(tmp_path):
    (captions,) = make_shots(tmp_path).captions
    rng = np.random.default_rng(0)
    pairs = [captions.pair(rng, long=0.5) for _ in range(200)]
    long = [pair for pair in pairs if len(pair[0].split()) > 24]
    assert 60 < len(long) < 140
    for named, anchored in long:
        assert "drum" not in anchored and re.sub(r"\b(a|the|one) drum\b", "something", named) == anchored
    kept = captions.retain(np.random.default_rng(1), 100, long=1.0)
    assert "" in kept and not any("drum" in text for text in kept)
    assert all(len(text.split()) > 24 for text in kept if text)
    with pytest.raises(ValueError, match="long"):
        sizes(long=1.5)
