"""`make zoo-report`: renders the zoo's models on held-out combinations, scores them with the judge and shows the clips.

Every metric is an accuracy: the share of clips in which the judge sees what the prompt says. Every sample has a seed of
its own, so that results do not depend on the batch size.
"""

import argparse
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers.utils import logging as transformers_logging

from unreel.clips import data_uri
from unreel.files import whole, write_text
from unreel.records import Score
from unreel.scores import write_scores
from unreel.zoo.captions import caption
from unreel.zoo.judges import Judge
from unreel.zoo.store import MODELS, load_animatediff, load_t2i, verified
from unreel.zoo.words import KINDS, SUBJECTS, candidates
from unreel.zoo.world import NUM_FRAMES, Spec, draw_clip, draw_still, held_out, sample_spec

Specs = Sequence[Spec]
Seeds = Sequence[int]
Render = Callable[[Specs, Seeds], Tensor]  # specs, seeds -> clips (B, F, C, H, W) in [0, 1]

# The least accuracy asked of each source of clips, by what the judge reads in them.
BARS: dict[str, dict[str, float]] = {
    "drawn": {"subject": 0.95, "style": 0.99, "scene": 0.97, "motion": 0.97},
    "zoo": {"subject": 0.75, "style": 0.90, "scene": 0.90},
    "zoo_animatediff": {"subject": 0.70, "style": 0.85, "motion": 0.65},
}
STILL_KINDS = ("subject", "style", "scene")  # what a single frame shows
DRAWN_STILLS, DRAWN_CLIPS, T2I, T2V = ("drawn", ""), ("", "drawn"), ("zoo", ""), ("", "zoo_animatediff")  # (t2i, t2v)
TITLES = {DRAWN_STILLS: "Drawn frames", DRAWN_CLIPS: "Drawn clips", T2I: "T2I images", T2V: "AnimateDiff clips"}


@dataclass(frozen=True)
class Settings:
    """How much is rendered, and how: the options of the command line. ValueError for a number that is too small."""

    images: int = 224
    clips: int = 120
    drawn: int = 1000
    steps: int = 20
    guidance: float = 4.0
    batch: int = 16
    seed: int = 90_001

    def __post_init__(self) -> None:
        for name, least in {"images": 1, "clips": 1, "drawn": 1, "steps": 1, "batch": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"found --{name} {getattr(self, name)}: expected {least} or more")


def prompt(spec: Spec, seed: int, kinds: Sequence[str] = KINDS) -> str:
    """A short caption of `spec` that states exactly `kinds`; the seed chooses the wording."""
    rng = np.random.default_rng([seed, 11])
    while (said := caption(spec, rng, states=frozenset(kinds))).states != set(kinds):
        pass
    return said.text


def drawn(draw: Callable[[Spec, int], Tensor]) -> Render:
    """`draw_still` or `draw_clip` over a batch; a still is a clip of one frame."""

    def render(specs: Specs, seeds: Seeds) -> Tensor:
        pixels = torch.stack([draw(spec, seed) for spec, seed in zip(specs, seeds, strict=True)])
        return pixels if pixels.ndim == 5 else pixels[:, None]

    return render


class Zoo:
    """The loaded models: functions from specs and seeds to clips, and the judge.

    Raises:
        ValueError: for a missing or damaged model file, naming it.
    """

    def __init__(self, models: Path, settings: Settings) -> None:
        folders = verified("judge", models), verified("motion_judge", models), verified("t2i", models) / "tokenizer"
        self.judge = Judge.from_folders(*folders)
        self.t2i, self.animatediff = load_t2i(models), load_animatediff(models)
        self.t2i.set_progress_bar_config(disable=True)
        self.animatediff.set_progress_bar_config(disable=True)
        self.renders: dict[tuple[str, str], Render] = {
            DRAWN_STILLS: drawn(draw_still), DRAWN_CLIPS: drawn(draw_clip), T2I: self.images, T2V: self.clips,
        }  # fmt: skip
        self.options = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance, "output_type": "pt"}

    def _run(self, pipeline: Any, specs: Specs, seeds: Seeds, kinds: Sequence[str], **more: int) -> Any:
        prompts = [prompt(spec, seed, kinds) for spec, seed in zip(specs, seeds, strict=True)]
        return pipeline(prompts, generator=[torch.Generator().manual_seed(s) for s in seeds], **self.options, **more)

    def images(self, specs: Specs, seeds: Seeds) -> Tensor:
        return self._run(self.t2i, specs, seeds, STILL_KINDS).images[:, None].float()

    def clips(self, specs: Specs, seeds: Seeds) -> Tensor:
        return self._run(self.animatediff, specs, seeds, KINDS, num_frames=NUM_FRAMES).frames.float()


@dataclass(frozen=True)
class Reading:
    """Clips of one source and what the judge saw: `clips[i]`, `seeds[i]` and `seen[kind][i]` belong to `specs[i]`.

    `source` is (t2i, t2v) of the scores, `clips` uint8 (F, H, W, C) each, `seconds` the time of rendering alone.
    """

    source: tuple[str, str]
    specs: Specs
    seeds: Seeds
    clips: list[np.ndarray]
    seen: dict[str, list[str]]
    seconds: float

    def marks(self, i: int) -> list[tuple[str, bool]]:
        """What was seen in clip i, and whether it is right."""
        return [(names[i], names[i] == getattr(self.specs[i], kind)) for kind, names in self.seen.items()]

    def scores(self) -> list[Score]:
        """One accuracy a kind."""
        marks, n, rows = [self.marks(i) for i in range(len(self.specs))], len(self.specs), []
        for kind, of_kind in zip(self.seen, zip(*marks, strict=True), strict=True):
            p = sum(right for _, right in of_kind) / n
            rows.append(_score(self, f"{kind}_accuracy", p, (p * (1 - p) / n) ** 0.5))
        return rows

    def confusions(self, worst: int = 10) -> list[dict[str, Any]]:
        """The subjects recognised least often, the worst first, with the names they were taken for."""
        pairs = list(zip([spec.subject for spec in self.specs], self.seen["subject"], strict=True))
        rows: list[dict[str, Any]] = []
        for name in dict(pairs):
            seen = Counter(other for subject, other in pairs if subject == name)
            wrong = [(other, times) for other, times in seen.most_common() if other != name]
            rows.append({"name": name, "share": seen[name] / seen.total(), "n": seen.total(), "wrong": wrong})
        return sorted(rows, key=lambda row: (row["share"], -row["n"], row["name"]))[:worst]


def _score(reading: Reading, metric: str, value: float, stderr: float | None) -> Score:
    base = Score(slug="zoo_report", stage="before", split="held_out", metric=metric, value=value, stderr=stderr)
    (t2i, t2v), seconds = reading.source, round(reading.seconds, 3)
    return replace(base, t2i=t2i, t2v=t2v, seed=reading.seeds[0], n=len(reading.specs), seconds=seconds)


def read(zoo: Zoo, source: tuple[str, str], specs: Specs, seed: int, batch: int, kinds: Sequence[str] = ()) -> Reading:
    """Renders `specs` from one source, sample i with the seed `seed + i`, and asks the judge for `kinds`."""
    render, kinds = zoo.renders[source], kinds or (KINDS if source[1] else STILL_KINDS)
    reading = Reading(source, specs, range(seed, seed + len(specs)), [], {kind: [] for kind in kinds}, 0.0)
    seconds = 0.0
    for start in track(range(0, len(specs), batch), f"{TITLES[source]} × {len(specs)}".ljust(24)):
        began = time.perf_counter()
        clips = render(specs[start : start + batch], reading.seeds[start : start + batch])
        seconds += time.perf_counter() - began
        reading.clips.extend((clips * 255).round().byte().permute(0, 1, 3, 4, 2).numpy())
        for kind in kinds:
            reading.seen[kind].extend(zoo.judge.names(kind, clips))
    return replace(reading, seconds=seconds)


def take_readings(zoo: Zoo, settings: Settings) -> list[Reading]:
    """Renders and judges the four sources on the same held-out specs."""
    rng, half = np.random.default_rng([settings.seed, 5]), max(settings.batch // 2, 1)
    every = [sample_spec(rng, held_out_only=True) for _ in range(max(settings.images, settings.clips, settings.drawn))]
    return [
        read(zoo, DRAWN_STILLS, every[: settings.drawn], settings.seed, settings.batch),
        read(zoo, DRAWN_CLIPS, every[: settings.drawn], settings.seed, settings.batch, ("motion",)),
        read(zoo, T2I, every[: settings.images], settings.seed, settings.batch),
        read(zoo, T2V, every[: settings.clips], settings.seed, half),
    ]


def to_scores(zoo: Zoo, readings: list[Reading]) -> list[Score]:
    """The accuracies of the readings; last, the seconds of one AnimateDiff clip that is rendered alone."""
    alone = read(zoo, T2V, readings[-1].specs[:1], readings[-1].seeds[0], 1)
    accuracies = [score for reading in readings for score in reading.scores()]
    return [*accuracies, _score(alone, "seconds_per_clip", round(alone.seconds, 3), None)]


def measure(settings: Settings, models: Path = MODELS) -> list[Score]:
    """All scores of the report. ValueError for a missing or damaged model file, naming it."""
    zoo = Zoo(models, settings)
    return to_scores(zoo, take_readings(zoo, settings))


def bar(score: Score) -> float | None:
    """The least accuracy that is asked of a score's source, if any is."""
    return BARS[score.t2v or score.t2i].get(score.metric.removesuffix("_accuracy"))


def contact_specs(seed: int, count: int = 16) -> list[Spec]:
    """Held-out specs of different subjects that go through all styles, all motions and all groups of subjects."""
    rng = np.random.default_rng([seed, 8])
    groups, styles, motions = list(dict.fromkeys(w.group for w in SUBJECTS)), candidates("style"), candidates("motion")
    specs: list[Spec] = []
    for i in range(count):
        group, used = groups[(i + i // len(motions)) % len(groups)], {spec.subject for spec in specs}
        names = [word.name for word in SUBJECTS if word.group == group and word.name not in used]
        pairs = [(name, scene) for name in names for scene in candidates("scene")]
        choices = [Spec(*pair, styles[i % len(styles)], motions[i % len(motions)]) for pair in pairs]
        choices = [spec for spec in choices if held_out(spec)]
        specs.append(choices[int(rng.integers(len(choices)))])
    return specs


def draw_contact_sheet(prompts: list[str], sheet: list[Reading], edge: int = 112) -> Image.Image:
    """The contact sheet on one page: four frames of every clip, the judge's words below, green or red."""
    font, row_px, lefts = ImageFont.load_default(size=13), edge + 40, (240, 270 + 4 * edge, 460 + 5 * edge)
    page = Image.new("RGB", (lefts[-1] + 4 * edge + 30, row_px * len(prompts) + 40), "white")
    draw = ImageDraw.Draw(page)
    for i, text in enumerate(prompts):
        draw.text((16, 36 + i * row_px), "\n".join(textwrap.wrap(text, 30)), "#222222", font, spacing=5)
    for left, reading in zip(lefts, sheet, strict=True):
        draw.text((left, 10), TITLES[reading.source], "#666666", font)
        for i, clip in enumerate(reading.clips):
            top, x = 36 + i * row_px, float(left)
            for place, frame in enumerate(clip[[0, 2, 5, 7]] if len(clip) > 1 else clip):
                shown = Image.fromarray(frame).resize((edge, edge), Image.Resampling.NEAREST)
                page.paste(shown, (left + place * (edge + 3), top))
            for name, right in reading.marks(i):
                word = name if right else f"x {name}"
                draw.text((x, top + edge + 4), word, "#1a7f37" if right else "#cf222e", font)
                x += font.getlength(word) + 12
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description="Renders, scores and shows the models of the zoo.")
    for field in fields(Settings):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help=f"default {field.default}")
    parser.add_argument("--output", type=Path, default=Path("runs/zoo_report"), help="folder of the report")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the models")
    options = vars(parser.parse_args())
    output, models = options.pop("output"), options.pop("models")
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        settings = Settings(**options)
        zoo = Zoo(models, settings)
    except ValueError as error:
        sys.exit(f"zoo-report: {error}")
    readings = take_readings(zoo, settings)
    scores, specs, seed = to_scores(zoo, readings), contact_specs(settings.seed), settings.seed + 50_000
    sheet = [read(zoo, source, specs, seed, max(settings.batch // 2, 1)) for source in (DRAWN_CLIPS, T2I, T2V)]
    prompts = [prompt(spec, seed + i) for i, spec in enumerate(specs)]
    write_scores(output / "scores.jsonl", scores)
    with whole(output / "contact_sheet.png") as aside:
        draw_contact_sheet(prompts, sheet).save(aside)
    folder = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=folder, autoescape=True, undefined=StrictUndefined).get_template("report.html.j2")
    show: dict[str, Any] = {"bar": bar, "data_uri": data_uri, "titles": TITLES, "num_frames": NUM_FRAMES}
    page = template.render(settings=settings, scores=scores, readings=readings, prompts=prompts, sheet=sheet, **show)
    write_text(output / "report.html", page)
    print_scores(scores, [output / name for name in ("scores.jsonl", "contact_sheet.png", "report.html")])


def print_scores(scores: list[Score], paths: list[Path]) -> None:
    """Accuracies beside their bars, and where to look."""
    console, table = Console(), Table("clips", "what", "accuracy", "± 95 %", "n", "bar", "")
    for score in scores:
        least = bar(score)
        if score.stderr is not None:
            verdict = "" if least is None else "[green]met" if score.value >= least else "[red]not met"
            numbers = f"{score.value:.1%}", f"{1.96 * score.stderr:.1%}", str(score.n), f"{least:.0%}" if least else ""
            table.add_row(TITLES[score.t2i, score.t2v], score.metric.removesuffix("_accuracy"), *numbers, verdict)
    console.print(table, f"one AnimateDiff clip rendered alone: {scores[-1].value:.2f} s")
    for path in paths:
        console.print(str(path), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
