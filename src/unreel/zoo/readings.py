"""What `make zoo-report` measures: every model of the zoo renders held-out combinations, and the judge reads the clips.

Every metric is an accuracy: the share of clips in which the judge sees what the prompt says. Every sample has a seed of
its own, so that results do not depend on the batch size.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from unreel.models.animatediff import AnimateDiff
from unreel.models.latte import Latte
from unreel.models.model import Model
from unreel.models.modelscope import ModelScope
from unreel.models.pixart import PixArt
from unreel.models.stable_diffusion import StableDiffusion
from unreel.records import Score
from unreel.zoo.captions import caption
from unreel.zoo.cnn_judge import PARTS, CnnJudge
from unreel.zoo.judge import ZooJudge
from unreel.zoo.store import verified
from unreel.zoo.words import HARDER, IMPLIED, KINDS, STILL, SUBJECTS
from unreel.zoo.world import NUM_FRAMES, Spec, draw_clip, draw_still, held_out, possible, sample_spec

Specs = Sequence[Spec]
Seeds = Sequence[int]
Render = Callable[[Specs, Seeds], Tensor]  # specs, seeds -> clips (B, F, C, H, W) in [0, 1]
STILL_KINDS = ("subject", "style", "scene")  # what a single frame shows
SENSES = [word.name for word in SUBJECTS if word.group == "sense"]


@dataclass(frozen=True)
class Source:
    """Where clips come from.

    Attributes:
        title: for people.
        t2i, t2v: for scores; one of them is "".
        kinds: what the judge reads in them.
        split: held_out, or what is special about the prompts: long (20 words and more), senses (words with two), or
            one of HARDER_SPLITS, whose motions the second judge of motion reads.
    """

    title: str
    t2i: str = ""
    t2v: str = ""
    kinds: tuple[str, ...] = KINDS
    split: str = "held_out"


STILLS, CLIPS = Source("Drawn frames", t2i="drawn", kinds=STILL_KINDS), Source("Drawn clips", t2v="drawn")
T2I = Source("T2I images", t2i="zoo", kinds=STILL_KINDS)
PIXART = Source("PixArt images", t2i="zoo_pixart", kinds=STILL_KINDS)
T2V = [
    Source("AnimateDiff clips", t2v="zoo_animatediff"),
    Source("UNet3D clips", t2v="zoo_unet3d"),
    Source("Latte clips", t2v="zoo_latte"),
]
LONG = [
    replace(source, title=f"{source.title}, long prompts", split="long", kinds=("subject", "style")) for source in T2V
]
TWO_SENSES = replace(T2I, title="T2I images, words with two senses", split="senses", kinds=("subject",))
HARDER_SPLITS = {
    "two": "two motions at once", "dance": "a dance", "implied": "a motion that only the subject's name says",
    "unsaid": "stillness where no motion is said",
}  # fmt: skip
HARDER_SOURCES = [
    replace(source, title=f"{source.title}, {HARDER_SPLITS[split]}", split=split, kinds=("motion",))
    for source in (CLIPS, T2V[1])  # of the models, UNet3D alone has seen such motions
    for split in HARDER_SPLITS
]


@dataclass(frozen=True)
class Settings:
    """How much is rendered, and how: the options of the command line. ValueError for a number that is too small."""

    images: int = 224
    clips: int = 120
    harder: int = 60
    drawn: int = 1000
    steps: int = 20
    guidance: float = 4.0
    batch: int = 16
    seed: int = 90_001

    def __post_init__(self) -> None:
        for name in ("images", "clips", "harder", "drawn", "steps", "batch", "seed"):
            if getattr(self, name) < (least := 0 if name == "seed" else 1):
                raise ValueError(f"found --{name} {getattr(self, name)}: expected {least} or more")


def prompt(spec: Spec, seed: int, kinds: Sequence[str] = KINDS, long: bool = False) -> str:
    """A caption of `spec` that states exactly `kinds`; the seed chooses the wording."""
    rng = np.random.default_rng([seed, 11])
    while (said := caption(spec, rng, long, states=frozenset(kinds))).states != set(kinds):
        pass
    return said.text


def _drawn(draw: Callable[[Spec, int], Tensor], specs: Specs, seeds: Seeds) -> Tensor:
    """`draw_still` or `draw_clip` over a batch; a still is a clip of one frame."""
    pixels = torch.stack([draw(spec, seed) for spec, seed in zip(specs, seeds, strict=True)])
    return pixels if pixels.ndim == 5 else pixels[:, None]


class Zoo:
    """The loaded models: `render(source)` makes clips from specs and seeds, `judge` and `second` read them.

    Raises:
        ValueError: for a missing or damaged model file, naming it.
    """

    def __init__(self, models: Path, settings: Settings) -> None:
        judge, tokenizer = verified("judge", models), verified("t2i", models) / "tokenizer"
        self.judge = ZooJudge.from_folders(judge, verified("motion_judge", models), tokenizer)
        self.verb_judge = ZooJudge.from_folders(judge, verified("verb_judge", models), tokenizer)
        self.second = CnnJudge.from_folder(verified("cnn_judge", models))
        how: dict[str, Any] = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance}
        t2i, pixart, clips = verified("t2i", models), verified("pixart", models), {**how, "num_frames": NUM_FRAMES}
        self.models: dict[str, Model] = {
            "zoo": StableDiffusion(t2i, **how),
            "zoo_pixart": PixArt(pixart, **how),
            "zoo_animatediff": AnimateDiff(t2i, verified("motion_adapter", models), **clips),
            "zoo_unet3d": ModelScope(t2i, verified("unet3d", models), **clips),
            "zoo_latte": Latte(pixart, verified("latte", models), **clips),
        }

    def render(self, source: Source) -> Render:
        """A function from specs and seeds to clips."""
        if "drawn" in (source.t2i, source.t2v):
            return partial(_drawn, draw_clip if source.t2v else draw_still)
        return partial(self._rendered, source)

    def _rendered(self, source: Source, specs: Specs, seeds: Seeds) -> Tensor:
        says_motion = source.t2v and source.split not in ("implied", "unsaid")
        kinds, long = KINDS if says_motion else STILL_KINDS, source.split == "long"
        prompts = [prompt(spec, seed, kinds, long) for spec, seed in zip(specs, seeds, strict=True)]
        return self.models[source.t2v or source.t2i].render(prompts, seeds)


@dataclass(frozen=True)
class Reading:
    """Clips of one source and what the judge saw: `clips[i]`, `seeds[i]` and `seen[kind][i]` belong to `specs[i]`.

    `second` is what the second judge saw, of the kinds that it reads. `clips` are uint8 (F, H, W, C) each, `seconds` is
    the time of rendering alone.
    """

    source: Source
    specs: Specs
    seeds: Seeds
    clips: list[np.ndarray]
    seen: dict[str, list[str]]
    second: dict[str, list[str]]
    seconds: float

    def marks(self, i: int) -> list[tuple[str, bool]]:
        """What was seen in clip i, and whether it is right."""
        return [(names[i], names[i] == getattr(self.specs[i], kind)) for kind, names in self.seen.items()]

    def scores(self) -> list[Score]:
        """One accuracy a kind; of words with two senses, one a word."""
        right = {kind: [dict(self.marks(i))[n] for i, n in enumerate(names)] for kind, names in self.seen.items()}
        if self.source.split == "senses":
            words = [spec.subject.split(" (")[0] for spec in self.specs]
            seen = right["subject"]
            right = {w: [s for s, other in zip(seen, words, strict=True) if other == w] for w in dict.fromkeys(words)}
        else:
            for kind, names in self.second.items():
                both = zip(names, self.seen[kind], self.specs, strict=True)
                marks = [(name == getattr(spec, kind), name == other) for name, other, spec in both]
                right |= {f"second_{kind}": [m[0] for m in marks], f"{kind}_agreement": [m[1] for m in marks]}
        shares = {what: (sum(marks) / len(marks), len(marks)) for what, marks in right.items()}
        called = {what: what if what.endswith("agreement") else f"{what}_accuracy" for what in shares}
        return [self.score(called[what], p, (p * (1 - p) / n) ** 0.5, n) for what, (p, n) in shares.items()]

    def score(self, metric: str, value: float, stderr: float | None, n: int) -> Score:
        """A row of `scores.jsonl`."""
        source, seconds = self.source, round(self.seconds * n / len(self.specs), 3)
        return Score(slug="zoo_report", t2i=source.t2i, t2v=source.t2v, stage="before", split=source.split,
                     metric=metric, value=value, stderr=stderr, n=n, seed=self.seeds[0], seconds=seconds)  # fmt: skip

    def confusions(self, worst: int = 10) -> list[dict[str, Any]]:
        """The subjects recognised least often, the worst first, with the names they were taken for."""
        pairs = list(zip([spec.subject for spec in self.specs], self.seen["subject"], strict=True))
        rows: list[dict[str, Any]] = []
        for name in dict(pairs):
            seen = Counter(other for subject, other in pairs if subject == name)
            wrong = [(other, times) for other, times in seen.most_common() if other != name]
            rows.append({"name": name, "share": seen[name] / seen.total(), "n": seen.total(), "wrong": wrong})
        return sorted(rows, key=lambda row: (row["share"], -row["n"], row["name"]))[:worst]


def read(zoo: Zoo, source: Source, specs: Specs, seed: int, batch: int, kinds: Sequence[str] = ()) -> Reading:
    """Renders `specs` from one source, sample i with the seed `seed + i`, and asks the judges for `kinds`."""
    render, kinds = zoo.render(source), kinds or source.kinds
    judge = zoo.verb_judge if source.split in HARDER_SPLITS else zoo.judge
    second = {kind: list[str]() for kind in kinds if kind in PARTS}
    reading = Reading(source, specs, range(seed, seed + len(specs)), [], {kind: [] for kind in kinds}, second, 0.0)
    seconds = 0.0
    for start in track(range(0, len(specs), batch), f"{source.title} × {len(specs)}".ljust(40)):
        began = time.perf_counter()
        clips = render(specs[start : start + batch], reading.seeds[start : start + batch])
        seconds += time.perf_counter() - began
        reading.clips.extend((clips * 255).round().byte().permute(0, 1, 3, 4, 2).numpy())
        for kind in kinds:
            reading.seen[kind].extend(judge.names(kind, clips))
            if kind in second:
                second[kind].extend(zoo.second.names(kind, clips))
    return replace(reading, seconds=seconds)


def harder_specs(split: str, count: int, seed: int) -> list[Spec]:
    """Held-out specs of one of HARDER_SPLITS: of its motions, and of subjects that have them."""
    rng = np.random.default_rng([seed, 7, list(HARDER_SPLITS).index(split)])
    specs: list[Spec] = []
    while len(specs) < count:
        drawn = sample_spec(rng, held_out_only=True)
        if split == "implied":
            subject = str(rng.choice(list(IMPLIED)))
            drawn = replace(drawn, subject=subject, motion=IMPLIED[subject])
        elif split == "unsaid":
            drawn = replace(drawn, motion=STILL)
        else:
            drawn = replace(drawn, motion=str(rng.choice([w.name for w in HARDER if w.group == split])))
        if held_out(drawn) and possible(drawn) and (split != "unsaid" or drawn.subject not in IMPLIED):
            specs.append(drawn)
    return specs


def take_readings(zoo: Zoo, settings: Settings) -> list[Reading]:
    """Renders and judges all sources, on the same held-out specs; others for two senses and harder motions."""
    rng, half = np.random.default_rng([settings.seed, 5]), max(settings.batch // 2, 1)
    every = [sample_spec(rng, held_out_only=True) for _ in range(max(settings.images, settings.clips, settings.drawn))]
    rng = np.random.default_rng([settings.seed, 6])
    drawn = (sample_spec(rng, held_out_only=True) for _ in iter(int, 1))
    senses = [next(spec for spec in drawn if spec.subject == SENSES[i % len(SENSES)]) for i in range(settings.images)]
    return [
        read(zoo, STILLS, every[: settings.drawn], settings.seed, settings.batch),
        read(zoo, CLIPS, every[: settings.drawn], settings.seed, settings.batch, ("motion",)),
        *(read(zoo, source, every[: settings.images], settings.seed, settings.batch) for source in (T2I, PIXART)),
        *(read(zoo, source, every[: settings.clips], settings.seed, half) for source in (*T2V, *LONG)),
        read(zoo, TWO_SENSES, senses, settings.seed, settings.batch),
        *(
            read(zoo, source, harder_specs(source.split, settings.harder, settings.seed), settings.seed, half)
            for source in HARDER_SOURCES
        ),
    ]


def to_scores(zoo: Zoo, readings: list[Reading]) -> list[Score]:
    """The accuracies of the readings; last, the seconds of one clip of each video model that is rendered alone."""
    accuracies, alone = [score for reading in readings for score in reading.scores()], []
    for reading in readings:
        if reading.source in T2V:
            one = read(zoo, reading.source, reading.specs[:1], reading.seeds[0], 1)
            alone.append(one.score("seconds_per_clip", round(one.seconds, 3), None, 1))
    return accuracies + alone
