"""Metrics: against torchmetrics on the same open_clip model, and on numbers that can be checked by hand."""

from dataclasses import replace
from types import SimpleNamespace

import open_clip
import pytest
import torch
from torchmetrics.functional.multimodal import clip_score
from torchvision.transforms.functional import to_pil_image

from unreel.judges.judge import Classifier, Judged
from unreel.judges.open_clip import OpenClipJudge
from unreel.metrics.accuracy import Accuracy
from unreel.metrics.clip_score import ClipScore
from unreel.metrics.frame_accuracy import FrameAccuracy
from unreel.metrics.second_judge import SecondJudge
from unreel.metrics.ssim import Ssim
from unreel.metrics.temporal_consistency import TemporalConsistency
from unreel.page import frame_curves
from unreel.records import Concept, Prompt
from unreel.rendering import Rendered

PROMPTS = [
    Prompt("a cat in the style of van gogh", "forget", (("subject", "a cat"), ("style", "van gogh")), "s", "style"),
    Prompt("a dog in the style of van gogh", "forget", (("subject", "a dog"), ("style", "van gogh")), "s", "style"),
    Prompt("a dog in pencil", "retain", (("subject", "a dog"), ("style", "pencil")), "s", "style"),
]


@pytest.fixture
def judge(judge_folder):
    return OpenClipJudge(f"local-dir:{judge_folder}", None, {"subject": ["a bus"]}, PROMPTS)


@pytest.fixture
def rendered():
    clips = torch.rand(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Rendered("animatediff", "before", PROMPTS, (clips * 255).round() / 255, [1.0] * 3, 8)


def by_key(values):
    return {(value.split, value.name): (value.value, value.stderr, value.n) for value in values}


def test_clip_score_is_that_of_torchmetrics(judge, judge_folder, rendered):
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{judge_folder}")
    model.eval()

    def processor(images=None, text=None, **_):
        if images is not None:
            return {"pixel_values": torch.stack([transform(to_pil_image(image)) for image in images])}
        ids = open_clip.get_tokenizer(f"local-dir:{judge_folder}")(text)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    class Adapted(torch.nn.Module):
        config = SimpleNamespace()

        def get_image_features(self, pixels):
            return model.encode_image(pixels)

        def get_text_features(self, ids, _):
            return model.encode_text(ids)

    (retain,) = [own for own in Judged.of(judge, rendered).splits("s") if own.split == "retain"]
    value, _, n = by_key(ClipScore()(retain, None))["retain", "clip_score"]
    frames = list(rendered.clips[2])
    with torch.inference_mode():
        each = [clip_score(f, PROMPTS[2].text, lambda: (Adapted(), processor)) for f in frames]
    assert n == 1 and value == pytest.approx(float(sum(each)) / len(each), abs=1e-3) and value > 0


def test_temporal_consistency_of_a_still_clip_is_100_and_of_an_image_nothing(judge, rendered):
    still = Rendered("v", "after", PROMPTS, rendered.clips[:, :1].expand(-1, 2, -1, -1, -1), [1.0] * 3, 8)
    for own in Judged.of(judge, still).splits("s"):
        assert by_key(TemporalConsistency()(own, None))[own.split, "temporal_consistency"][0] == pytest.approx(
            100, abs=1e-3
        )
    moving = Judged.of(judge, rendered).splits("s")[0]
    assert by_key(TemporalConsistency()(moving, None))["forget", "temporal_consistency"][0] < 99.99
    image = Judged.of(judge, Rendered("v", "after", PROMPTS, rendered.clips[:, :1], [1.0] * 3, 8)).splits("s")[0]
    assert TemporalConsistency()(image, None) == []


def test_accuracy_tells_the_concept_from_what_surrounds_it(rendered):
    marks = [{"subject": True, "style": False}, {"subject": False, "style": True}, {"subject": True, "style": False}]
    judged = Judged(rendered, marks, torch.zeros(3, 2, 1), torch.zeros(3, 1))
    rows = {key: row for own in judged.splits("s") for key, row in by_key(Accuracy()(own, None)).items()}
    assert {key: row[0] for key, row in rows.items()} == {
        ("forget", "concept_accuracy"): 0.5, ("context", "context_accuracy"): 0.5,
        ("retain", "concept_accuracy"): 0.0, ("retain", "accuracy"): 0.5,
    }  # fmt: skip
    assert rows["forget", "concept_accuracy"][1:] == (pytest.approx((0.25 / 2) ** 0.5), 2)


def test_n_counts_the_clips_that_say_what_is_measured():
    far = Prompt("a bus in pencil", "retain", (("subject", "a bus"), ("style", "pencil")), "s", "")
    rendered = Rendered("v", "after", [PROMPTS[2], far], torch.zeros(2, 1, 3, 8, 8), [1.0] * 2, 8)
    marks = [{"subject": True, "style": False}, {"subject": True, "style": True}]
    rows = by_key(Accuracy()(Judged(rendered, marks, torch.zeros(2, 1, 1), torch.zeros(2, 1)), None))
    assert rows["retain", "concept_accuracy"] == (0.0, 0.0, 1)  # only the first says a neighbour
    assert rows["retain", "accuracy"] == (0.75, pytest.approx((0.75 * 0.25 / 2) ** 0.5), 2)


class Fixed(Classifier):
    """Names every clip as it is told to."""

    parts, content = ("subject", "style"), "0" * 24

    def __init__(self, **seen):
        self.seen = seen

    def name_of(self, part, phrase):
        if phrase == "a ghost":
            raise ValueError("no ghost")
        return phrase

    def names(self, part, clips, frames=None):
        return self.seen[part][: len(clips)]


def test_a_second_judge_reads_the_same_clips_and_says_how_far_both_agree(rendered):
    marks = [{"subject": True, "style": False}, {"subject": False, "style": True}, {"subject": True, "style": False}]
    judged = Judged(rendered, marks, torch.zeros(3, 2, 1), torch.zeros(3, 1))
    second = SecondJudge(Fixed(subject=["a cat", "a dog"], style=["van gogh", "pencil"]))
    forget = next(own for own in judged.splits("s") if own.split == "forget")
    rows = {key: row[0] for key, row in by_key(second(forget, None)).items()}
    # it sees both subjects, and van gogh in the first clip; the judge saw one subject, and van gogh in the second
    assert rows == {
        ("forget", "second_concept_accuracy"): 0.5, ("context", "second_context_accuracy"): 1.0,
        ("forget", "agreement"): 0.25,
    }  # fmt: skip
    ghost = [Prompt("a ghost", "forget", (("subject", "a ghost"),), "s", "subject")]
    with pytest.raises(ValueError, match="no ghost"):
        second.check(ghost, [], [2])


def test_a_second_judge_leaves_out_what_it_cannot_read(rendered):
    jumps = [Prompt("it jumps", "forget", (("motion", "jumping"),), "s", "motion")] * 3
    judged = Judged(replace(rendered, prompts=jumps), [{"motion": True}] * 3, torch.zeros(3, 2, 1), torch.zeros(3, 1))
    jumping = Concept(slug="s", kind="motion", phrases=("jumping",))
    second = SecondJudge(Fixed())
    second.check(jumps, [jumping], [2])
    assert second(judged, None) == []


def test_ssim_is_one_of_the_same_clip_and_less_of_another(judge, rendered):
    generator = torch.Generator().manual_seed(1)
    same = Judged.of(judge, rendered)
    noisy = replace(rendered, clips=(rendered.clips + 0.2 * torch.randn(rendered.clips.shape, generator=generator)))
    (one,), (less,) = (Ssim()(Judged.of(judge, each).splits("s")[1], same.splits("s")[1]) for each in (rendered, noisy))
    assert one.value == pytest.approx(1, abs=1e-4) and 0.1 < less.value < 0.95
    assert (less.name, less.goal, less.n) == ("ssim", "up", 1) and Ssim()(same, None) == []


def test_the_judge_sees_what_it_is_shown_more_of(judge, rendered):
    """Marks follow the nearest phrase: here every clip looks exactly like its own subject."""
    texts = judge.embed_texts([f"a picture of {dict(p.shows)['subject']}" for p in PROMPTS])
    judge.embed_clips = lambda clips: texts[:, None].expand(-1, clips.shape[1], -1)
    judged = Judged.of(judge, rendered)
    assert [marks["subject"] for marks in judged.marks] == [True] * 3
    assert judged.splits("s")[1].rendered.prompts == [PROMPTS[2]] and judged.splits("other") == []


def test_all_phrases_of_a_concept_are_one_thing_to_the_judge(judge_folder, rendered):
    bat = Concept(slug="bat", kind="object", phrases=("a dog", "a hound"), other_senses=("a cat", "a kitten"))
    judge = OpenClipJudge(f"local-dir:{judge_folder}", None, {"subject": ["a bus", "a kitten"]}, PROMPTS, [bat])
    assert list(judge.candidates["subject"]) == ["a bus", "a cat", "a dog"]
    texts = judge.embed_texts([f"a picture of {phrase}" for phrase in ("a kitten", "a hound", "a hound")])
    judge.embed_clips = lambda clips: texts[:, None].expand(-1, clips.shape[1], -1)
    marks = Judged.of(judge, rendered).marks
    assert [mark["subject"] for mark in marks] == [True, True, True]


def test_the_worst_frame_is_where_a_concept_comes_back(rendered):
    """Three clips of four frames: never, only in the last frame, always."""
    prompts = [PROMPTS[0]] * 3
    shown = [[False] * 4, [False, False, False, True], [True] * 4]
    frame_marks = [{"subject": [True, False, True, True], "style": style} for style in shown]
    clips = rendered.clips[:, :1].expand(-1, 4, -1, -1, -1)
    judged = Judged(
        replace(rendered, prompts=prompts, clips=clips), [{}] * 3, torch.zeros(3, 4, 1), torch.zeros(3, 1), frame_marks
    )
    rows = {key: row[0] for key, row in by_key(FrameAccuracy()(judged, None)).items()}
    assert rows == {
        ("forget", "first_frame_accuracy"): pytest.approx(1 / 3),
        ("forget", "last_frame_accuracy"): pytest.approx(2 / 3),
        ("forget", "worst_frame_accuracy"): pytest.approx(2 / 3),
    }
    kept = replace(judged, rendered=replace(judged.rendered, prompts=[replace(p, split="retain") for p in prompts]))
    rows = by_key(FrameAccuracy()(kept, None))
    # subject and style; the worst frames show none, none (the second) and one of two
    assert rows["retain", "worst_frame_accuracy"][0] == pytest.approx((0 + 0 + 0.5) / 3)
    assert rows["retain", "last_frame_accuracy"][0] == pytest.approx((0.5 + 1 + 1) / 3)
    motion = [replace(p, part="motion") for p in prompts]
    assert FrameAccuracy()(replace(judged, rendered=replace(judged.rendered, prompts=motion)), None) == []


def test_every_frame_is_judged_alone(judge, rendered):
    judged = Judged.of(judge, rendered)
    assert [{part: len(m) for part, m in marks.items()} for marks in judged.frame_marks] == [
        {"subject": 2, "style": 2}
    ] * 3
    alone = replace(rendered, clips=rendered.clips[:, 1:])
    last = [{part: marks[1] for part, marks in own.items()} for own in judged.frame_marks]
    assert Judged.of(judge, alone).marks == last
    (forget, retain) = judged.splits("s")
    assert [*forget.frame_marks, *retain.frame_marks] == judged.frame_marks


def test_the_page_draws_what_each_frame_shows(judge, rendered):
    looks = {(stage, "v"): Judged.of(judge, rendered) for stage in ("before", "step_5", "after")}
    assert frame_curves(looks).startswith("data:image/svg+xml;base64,")
    still = Judged.of(judge, replace(rendered, clips=rendered.clips[:, :1]))
    assert frame_curves({("before", "v"): still, ("after", "v"): still}) == ""


def test_prompts_in_their_long_form_are_splits_of_their_own(rendered):
    long = [replace(p, split=f"{p.split}_long") for p in PROMPTS]
    marks = [{"subject": True, "style": True}, {"subject": True, "style": False}, {"subject": True, "style": True}]
    judged = Judged(replace(rendered, prompts=long), marks, torch.zeros(3, 2, 1), torch.zeros(3, 1))
    values = [value for own in judged.splits("s") for value in Accuracy()(own, None)]
    assert {(v.split, v.name, v.value, v.goal) for v in values} == {
        ("forget_long", "concept_accuracy", 0.5, "down"), ("context_long", "context_accuracy", 1.0, "up"),
        ("retain_long", "concept_accuracy", 1.0, "up"), ("retain_long", "accuracy", 1.0, "up"),
    }  # fmt: skip
