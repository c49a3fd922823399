"""Frozen records that travel between the modules."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

PARTS = ("subject", "motion", "scene", "style")  # what a prompt may say, in the order in which it says it
LONG = "_long"  # how the splits of prompts end that were written at length
ATTACK = "attack_"  # how the splits of attacked prompts begin


def plain_split(split: str) -> str:
    """The split of prompts, in whichever form they are: forget_long is forget."""
    return split.removesuffix(LONG)


def must_go(split: str) -> bool:
    """Whether the concept must be gone from clips of this split: of prompts that ask for it, plainly or attacked."""
    return plain_split(split) == "forget" or split.startswith(ATTACK)


@dataclass(frozen=True)
class Prompt:
    """One text and what a clip of it has to show.

    Attributes:
        text: what the models are given.
        split: forget | retain | other_sense, the same with "_long" after it where the text is its long form; or
            attack_<name>.
        shows: (part, phrase) pairs, parts of PARTS: what the judge is told that the text says; the rest is not judged.
        concept: slug of the concept that it belongs to.
        part: the part that names the concept, or its neighbour or other sense; "" where the text says none of them.
        seed: that of its clip, where a file of prompts says one.
    """

    text: str
    split: str
    shows: tuple[tuple[str, str], ...]
    concept: str = ""
    part: str = ""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What is erased, and what must stay.

    Attributes:
        slug: the name of its YAML: letters, digits, "_" and "-".
        kind: character, style, object, face or motion.
        phrases: the ways in which prompts say it, at least one; the first is the plainest.
        anchor: the phrase that takes its place in the captions of training; "" leaves it out.
        neighbours: near things that must stay, phrases of the same part.
        other_senses: phrases with the same word in a sense that must stay.
        images: folder of the user's own shots, or None: the donor generates them.
        prompts: texts that ask for it, in place of those of the prompt source.
    """

    slug: str
    kind: str
    phrases: tuple[str, ...]
    anchor: str = ""
    neighbours: tuple[str, ...] = ()
    other_senses: tuple[str, ...] = ()
    images: Path | None = None
    prompts: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """The part of a prompt that says it, one of PARTS."""
        return self.kind if self.kind in PARTS else "subject"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured number with all its keys: one row of `scores.jsonl`, flat, so that no join is needed to plot it.

    A text that does not apply is "", a number that does not apply is None. Keys never change meaning; new ones may be
    added at the end, with a default, so that older files stay readable.

    Attributes:
        slug: the experiment or command that asked ("zoo_report").
        run: the run folder's name.
        t2i: the donor, or the source of an image ("zoo", "drawn").
        t2v: the recipient, or the source of a clip ("zoo_animatediff", "drawn").
        concept: what is erased.
        kind: the concept's kind: character, style, object, face, motion, unsafe.
        method: the unlearning method.
        parameters: the group of weights that may change ("mlp_final_attention").
        shots: how many shots the method saw, >= 0.
        seed: the seed of the run, >= 0.
        stage: before | after | step_<n>: when in the run the clips were rendered.
        split: forget | retain | context | other_sense | attack_<name>, the first four with "_long" after them for
            prompts in their long form; the zoo's report: held_out, long, senses.
        metric: what `value` is ("clip_score", "subject_accuracy", "seconds_per_clip").
        value: the number, in the metric's own range and unit: accuracies in [0, 1], times in seconds. Never NaN.
        stderr: standard error of `value`, same unit, >= 0; sqrt(p (1 - p) / n) for an accuracy p.
        n: how many clips `value` is the mean of, >= 1; an image is a clip of one frame.
        edit: content hash of the edit.
        clips: content hash of the clips.
        seconds: wall-clock time in s of rendering the n clips, >= 0, whenever that was: not that of finding them.
        steps: how many steps the training might last, >= 1.
        unit: of `value`: share (in [0, 1]), points (of 100), s.
        goal: which direction is good: up, down, or "" where neither is.
        setting: what was given for the run of the method's settings ("optimizer.lr=0.001").

    Raises:
        ValueError: when a field has another type than the one declared here, or is NaN or infinite, naming it.
    """

    slug: str
    run: str = ""
    t2i: str = ""
    t2v: str = ""
    concept: str = ""
    kind: str = ""
    method: str = ""
    parameters: str = ""
    shots: int | None = None
    seed: int | None = None
    stage: str = ""
    split: str = ""
    metric: str
    value: float
    stderr: float | None = None
    n: int | None = None
    edit: str = ""
    clips: str = ""
    seconds: float | None = None
    steps: int | None = None
    unit: str = ""
    goal: str = ""
    setting: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            allowed = field.type | int if field.type in (float, float | None) else field.type
            if isinstance(value, bool) or not isinstance(value, allowed):  # type: ignore[arg-type]
                wanted = getattr(field.type, "__name__", str(field.type))
                raise ValueError(f"found {field.name} = {value!r}: expected {wanted}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"found {field.name} = {value!r}: expected a finite number")

    def to_json(self) -> str:
        """The row as one line of JSON: every key, always in the order above."""
        return json.dumps(asdict(self), allow_nan=False)


@dataclass(frozen=True)
class Value:
    """What a metric says of the clips of one split; a run makes a Score of it.

    Attributes:
        split, name: as `Score.split` and `Score.metric`.
        value, stderr, n: as in Score.
        unit, goal: as in Score; every metric says both.
    """

    split: str
    name: str
    value: float
    stderr: float | None
    n: int
    unit: str
    goal: str
