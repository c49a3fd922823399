"""The drawn world does what its words say."""

import numpy as np
import pytest
import torch
from PIL import Image

from unreel.zoo import world
from unreel.zoo.captions import Caption
from unreel.zoo.drawings import GROUP, Drawings, consistent, draw_specs
from unreel.zoo.words import KINDS, MOTIONS, SCENES, STYLES, SUBJECTS, candidates, motions, shows, word
from unreel.zoo.world import NUM_FRAMES, Spec, draw_clip, draw_still, held_out, sample_spec


def test_the_world_has_concepts_of_every_kind_that_the_papers_erase():
    groups = {g: [w.name for w in SUBJECTS if w.group == g] for g in ("object", "character", "person", "sense")}
    assert len(groups["object"]) >= 24
    assert {"cat", "dog", "tokyo tower", "polar bear", "butterfly", "church", "parachute", "drum", "rocket"} <= set(
        groups["object"]
    )
    assert len(groups["character"]) == 6 and len(groups["person"]) == 6
    assert {name.split(" (")[0] for name in groups["sense"]} == {"bat", "mouse", "crane"} and len(groups["sense"]) == 6
    assert len(STYLES) - 1 >= 6 and len(MOTIONS) == 8 and len(SCENES) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_is_refused_with_the_choices(kind):
    fields = {"subject": "cat", "scene": "beach"} | {kind: "zeppelin"}
    with pytest.raises(ValueError, match="zeppelin") as error:
        Spec(**fields)
    assert all(name in str(error.value) for name in candidates(kind))
    with pytest.raises(ValueError, match="subject, style, scene, motion"):
        candidates("colour")


@pytest.mark.parametrize("style", candidates("style"))
def test_a_clip_is_the_same_every_time_and_another_seed_draws_another(style):
    spec = Spec("cat", "beach", style, "jumping")
    clip = draw_clip(spec, 5)
    assert clip.shape == (NUM_FRAMES, 3, 64, 64) and clip.dtype == torch.float32
    assert clip.min() >= 0 and clip.max() <= 1
    assert torch.equal(clip, draw_clip(spec, 5))
    assert not torch.equal(clip, draw_clip(spec, 6))


@pytest.mark.parametrize("style", candidates("style"))
def test_a_style_does_not_flicker(style):
    clip = draw_clip(Spec("cat", "night", style, "still"), 3)
    assert torch.equal(clip[0], clip[-1])


@pytest.mark.parametrize("style", candidates("style"))
@pytest.mark.parametrize("scene", candidates("scene"))
def test_the_subject_stays_visible_in_every_style_and_scene(style, scene, monkeypatch):
    """The same drawing without its subject differs where the subject is, and only there."""
    spec = Spec("pumpkin", scene, style)
    shown = draw_still(spec, 11, frame=0)
    monkeypatch.setattr(world, "sprites", lambda: {spec.subject: Image.new("RGBA", (64, 64))})
    difference = (shown - draw_still(spec, 11, frame=0)).abs()
    assert difference[:, 28:44, 24:40].mean() > 0.1
    assert difference[:, :6].max() == 0


def _subject_centre(frame: torch.Tensor, background: torch.Tensor) -> tuple[float, float, float]:
    changed = ((frame - background).abs().sum(0) > 0.6).float()
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    mass = changed.sum()
    return float((columns * changed).sum() / mass), float((rows * changed).sum() / mass), float(mass)


def _path(motion: str) -> torch.Tensor:
    clip = draw_clip(Spec("pumpkin", "night", motion=motion), 2)
    background = (
        clip.median(0).values
        if motion not in ("still", "spinning", "growing", "shaking")
        else torch.zeros(3, 64, 64) + clip[0, :, :1, :1]
    )
    return torch.tensor([_subject_centre(frame, background) for frame in clip])


def test_motions_move_the_way_their_names_say():
    left, right, falling, growing = (_path(m) for m in ("moving left", "moving right", "falling", "growing"))
    assert left[-1, 0] < left[0, 0] - 8 and right[-1, 0] > right[0, 0] + 8
    assert falling[-1, 1] > falling[0, 1] + 8
    assert growing[-1, 2] > 2 * growing[0, 2]
    still, shaking, spinning = (
        draw_clip(Spec("pumpkin", "night", motion=m), 2) for m in ("still", "shaking", "spinning")
    )
    assert still.diff(dim=0).abs().max() == 0
    assert shaking.diff(dim=0).abs().mean() > 0.01 and spinning.diff(dim=0).abs().mean() > 0.01


@pytest.mark.parametrize("style", candidates("style"))
def test_a_still_is_a_frame_of_its_clip(style):
    spec = Spec("dog", "city", style, "spinning")
    clip = draw_clip(spec, 9)
    assert all(torch.equal(draw_still(spec, 9, frame=f), clip[f]) for f in (0, 3, 7))


def test_held_out_combinations_never_reach_training():
    rng = np.random.default_rng(0)
    assert not any(held_out(spec) for spec in draw_specs(2000, seed=1))
    assert all(held_out(sample_spec(rng, held_out_only=True)) for _ in range(200))
    share = np.mean(
        [
            held_out(Spec(s, c, y))
            for s in candidates("subject")
            for c in candidates("scene")
            for y in candidates("style")
        ]
    )
    assert 0.08 < share < 0.18
    for kind in ("subject", "scene", "style"):  # every word is held out somewhere and trained somewhere
        for name in candidates(kind):
            combinations = [
                Spec(s, c, y) for s in candidates("subject") for c in candidates("scene") for y in candidates("style")
                if {"subject": s, "scene": c, "style": y}[kind] == name
            ]  # fmt: skip
            assert 0 < sum(map(held_out, combinations)) < len(combinations), name


def test_drawn_groups_differ_in_one_word():
    specs = draw_specs(400, seed=4)
    assert specs == draw_specs(400, seed=4) and specs != draw_specs(400, seed=5)
    differences = [
        sum(getattr(specs[g], k) != getattr(other, k) for k in KINDS)
        for g in range(0, 400, GROUP)
        for other in specs[g + 1 : g + GROUP]
    ]
    assert np.mean(np.array(differences) == 1) > 0.95


def test_harder_drawings_have_the_harder_motions_and_only_dancers_dance():
    specs = draw_specs(4000, seed=1, harder=0.35)
    assert {s.motion for s in specs} == set(motions(True)) and not any(map(held_out, specs))
    assert {word("subject", s.subject).group for s in specs if s.motion == "dancing"} == {"character", "person"}
    assert {s.motion for s in draw_specs(4000, seed=1)} == set(candidates("motion")) == set(motions(False))
    falls = [s.motion == "falling" for s in specs if s.subject == "parachute"]
    assert 0.25 < np.mean(falls) < 0.6, "what it implies, and other motions too"


def test_two_motions_at_once_are_both_seen():
    both = draw_clip(Spec("pumpkin", "night", motion="moving left and growing"), 2)
    left, growing = (draw_clip(Spec("pumpkin", "night", motion=m), 2) for m in ("moving left", "growing"))
    rows = [_path(m) for m in ("moving left and growing", "moving left", "growing")]
    assert rows[0][-1, 0] < rows[0][0, 0] - 8 and abs(rows[2][-1, 0] - rows[2][0, 0]) < 4
    assert rows[0][-1, 2] > 1.5 * rows[0][0, 2] and rows[1][-1, 2] < 1.2 * rows[1][0, 2]
    assert not torch.equal(both, left) and not torch.equal(both, growing)
    assert shows("moving left and growing", "growing") and shows("growing", "growing")
    assert not shows("growing", "moving left and growing") and not shows("moving left and growing", "jumping")


def test_who_dances_turns_from_side_to_side():
    clip = draw_clip(Spec("wispo", "night", motion="dancing"), 2)
    beats = [frame.mean(0) - clip.mean(1).median(0).values for frame in clip]
    likeness = [[float((a * b).sum() / (a.norm() * b.norm())) for b in beats] for a in beats]
    assert likeness[0][1] > likeness[0][2] and likeness[2][3] > likeness[1][2], "two frames a beat"


def test_consistency_of_captions_and_specs():
    cat, dog = Spec("cat", "beach", "mondrian"), Spec("dog", "beach", "mondrian")
    captions = [Caption("a cat", frozenset({"subject"})), Caption("on the beach", frozenset({"scene"}))]
    assert consistent(captions, [cat, dog], [cat, cat]).tolist() == [[True, False], [True, True]]


def test_word_lookup():
    assert word("subject", "cat").phrases[0] == "a cat"


@pytest.mark.slow
def test_processes_draw_the_clips_that_one_draws(tmp_path):
    drawings = Drawings(tmp_path, 70, 3)  # more than one process draws at a time
    assert np.array_equal(drawings.clips[68], (draw_clip(drawings.specs[68], 3_000_009 + 68) * 255).round().byte())
    again = Drawings(tmp_path / "few", 8, 3)  # drawn by this one
    assert np.array_equal(again.clips, drawings.clips[:8])
