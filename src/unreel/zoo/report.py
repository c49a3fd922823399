"""`make zoo-report`: renders the zoo's models on held-out combinations, scores them with the judge and shows the clips.

Every metric is an accuracy: the share of clips in which the judge sees what the prompt says. Every sample has a seed of
its own, so that results do not depend on the batch size.
"""

import argparse
import base64
import io
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

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

from unreel.records import Score
from unreel.scores import write_scores
from unreel.zoo.captions import caption
from unreel.zoo.judges import Judge
from unreel.zoo.store import MODELS, load_animatediff, load_t2i, verified
from unreel.zoo.words import KINDS, SUBJECTS, candidates
from unreel.zoo.world import NUM_FRAMES, Spec, draw_clip, draw_still, held_out, sample_spec

Render = Callable[[Sequence[Spec], Sequence[int]], Tensor]  # specs, seeds -> clips (B, F, C, H, W) in [0, 1]

# The least accuracy asked of each source of clips, by what the judge reads in them.
BARS: dict[str, dict[str, float]] = {
    "drawn": {"subject": 0.95, "style": 0.99, "scene": 0.97, "motion": 0.97},
    "zoo": {"subject": 0.75, "style": 0.90, "scene": 0.90},
    "zoo_animatediff": {"subject": 0.70, "style": 0.85, "motion": 0.65},
}
STILL_KINDS = ("subject", "style", "scene")  # what a single frame shows
TITLES = {
    ("drawn", ""): "Drawn frames",
    ("", "drawn"): "Drawn clips",
    ("zoo", ""): "T2I images",
    ("", "zoo_animatediff"): "AnimateDiff clips",
}


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
    return lambda specs, seeds: torch.stack([draw(*pair) for pair in zip(specs, seeds, strict=True)]).view(
        len(specs), -1, 3, 64, 64
    )


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
        self.options = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance, "output_type": "pt"}

    def _run(
        self, pipeline: Any, specs: Sequence[Spec], seeds: Sequence[int], kinds: Sequence[str], **more: int
    ) -> Any:
        prompts = [prompt(spec, seed, kinds) for spec, seed in zip(specs, seeds, strict=True)]
        return pipeline(prompts, generator=[torch.Generator().manual_seed(s) for s in seeds], **self.options, **more)

    def images(self, specs: Sequence[Spec], seeds: Sequence[int]) -> Tensor:
        return self._run(self.t2i, specs, seeds, STILL_KINDS).images[:, None].float()

    def clips(self, specs: Sequence[Spec], seeds: Sequence[int]) -> Tensor:
        return self._run(self.animatediff, specs, seeds, KINDS, num_frames=NUM_FRAMES).frames.float()


@dataclass(frozen=True)
class Reading:
    """What the judge saw in one source's clips: `seen[kind][i]` belongs to `specs[i]`; `seconds` is rendering alone."""

    t2i: str
    t2v: str
    specs: list[Spec]
    seen: dict[str, list[str]]
    seconds: float

    def scores(self, seed: int) -> list[Score]:
        """One accuracy a kind."""
        shares = {
            k: np.mean([n == getattr(s, k) for n, s in zip(self.seen[k], self.specs, strict=True)]) for k in self.seen
        }
        count, source = len(self.specs), (self.t2i, self.t2v)
        return [_score(source, seed, f"{kind}_accuracy", float(p), count, self.seconds) for kind, p in shares.items()]

    def confusions(self, worst: int = 10) -> list[dict[str, Any]]:
        """The subjects recognised least often, the worst first, with the names they were taken for."""
        pairs = list(zip([spec.subject for spec in self.specs], self.seen["subject"], strict=True))
        rows = []
        for name in dict(pairs):
            seen = Counter(other for subject, other in pairs if subject == name)
            wrong = [(other, times) for other, times in seen.most_common() if other != name]
            rows.append({"name": name, "share": seen[name] / seen.total(), "n": seen.total(), "wrong": wrong})
        return sorted(rows, key=lambda row: (row["share"], -row["n"], row["name"]))[:worst]


def _score(source: tuple[str, str], seed: int, metric: str, value: float, n: int, seconds: float) -> Score:
    stderr = (value * (1 - value) / n) ** 0.5 if metric.endswith("_accuracy") else None
    keys: dict[str, Any] = {
        "slug": "zoo_report",
        "t2i": source[0],
        "t2v": source[1],
        "stage": "before",
        "split": "held_out",
    }
    return Score(**keys, seed=seed, metric=metric, value=value, stderr=stderr, n=n, seconds=round(seconds, 3))


def take_readings(zoo: Zoo, settings: Settings) -> list[Reading]:
    """Renders and judges the four sources on the same held-out specs; sample i has the seed `settings.seed + i`."""
    rng = np.random.default_rng([settings.seed, 5])
    every = [sample_spec(rng, held_out_only=True) for _ in range(max(settings.images, settings.clips, settings.drawn))]
    renders: list[tuple[Render, tuple[str, ...], int, int]] = [
        (drawn(draw_still), STILL_KINDS, settings.drawn, settings.batch),
        (drawn(draw_clip), ("motion",), settings.drawn, settings.batch),
        (zoo.images, STILL_KINDS, settings.images, settings.batch),
        (zoo.clips, ("subject", "style", "motion", "scene"), settings.clips, max(settings.batch // 2, 1)),
    ]
    readings = []
    for source, (render, kinds, count, batch) in zip(TITLES, renders, strict=True):
        reading = Reading(*source, every[:count], {kind: [] for kind in kinds}, 0.0)
        seconds = 0.0
        for start in track(range(0, count, batch), f"{TITLES[source]:<18}"):
            specs, began = reading.specs[start : start + batch], time.perf_counter()
            clips = render(specs, [settings.seed + start + i for i in range(len(specs))])
            seconds += time.perf_counter() - began
            for kind in kinds:
                reading.seen[kind].extend(zoo.judge.names(kind, clips))
        readings.append(Reading(*source, reading.specs, reading.seen, seconds))
    return readings


def all_scores(zoo: Zoo, settings: Settings, readings: list[Reading]) -> list[Score]:
    """The accuracies of the readings, and the seconds of one AnimateDiff clip rendered alone."""
    spec, began = readings[-1].specs[0], time.perf_counter()
    zoo.clips([spec], [settings.seed])
    seconds = time.perf_counter() - began
    scores = [score for reading in readings for score in reading.scores(settings.seed)]
    return [*scores, _score(("", "zoo_animatediff"), settings.seed, "seconds_per_clip", round(seconds, 3), 1, seconds)]


def measure(settings: Settings, models: Path = MODELS) -> list[Score]:
    """All scores of the report.

    Raises:
        ValueError: for a missing or damaged model file, naming it.
    """
    zoo = Zoo(models, settings)
    return all_scores(zoo, settings, take_readings(zoo, settings))


class Picture(NamedTuple):
    """A clip of the contact sheet, uint8 (F, H, W, C), and each word that the judge saw: whether it is right."""

    title: str
    frames: np.ndarray
    marks: dict[str, bool]

    def data_uri(self) -> str:
        first, *others = [Image.fromarray(frame) for frame in self.frames]
        first.save(
            data := io.BytesIO(), "webp", lossless=True, save_all=True, append_images=others, duration=125, loop=0
        )
        return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


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


def contact_rows(zoo: Zoo, settings: Settings) -> list[tuple[str, list[Picture]]]:
    """The contact sheet: a prompt, and what it says drawn, as a T2I image and as an AnimateDiff clip."""
    specs = contact_specs(settings.seed)
    seeds = [settings.seed + 1_000_000 + i for i in range(len(specs))]
    columns: dict[str, tuple[Render, tuple[str, ...]]] = {
        "Drawn": (drawn(draw_clip), KINDS),
        "T2I": (zoo.images, STILL_KINDS),
        "AnimateDiff": (zoo.clips, KINDS),
    }
    rows: list[tuple[str, list[Picture]]] = [(prompt(spec, seed), []) for spec, seed in zip(specs, seeds, strict=True)]
    for title, (render, kinds) in columns.items():
        starts = range(0, len(specs), batch := max(settings.batch // 2, 1))
        parts = [render(specs[i : i + batch], seeds[i : i + batch]) for i in track(starts, f"Sheet: {title:<11}")]
        seen = [zoo.judge.names(kind, torch.cat(parts)) for kind in kinds]
        for (_, pictures), spec, clip, *names in zip(rows, specs, torch.cat(parts), *seen, strict=True):
            frames = (clip * 255).round().byte().permute(0, 2, 3, 1).numpy()
            pictures.append(
                Picture(title, frames, {n: n == getattr(spec, k) for n, k in zip(names, kinds, strict=True)})
            )
    return rows


def draw_contact_sheet(
    rows: list[tuple[str, list[Picture]]], frames: Sequence[int] = (0, 2, 5, 7), edge: int = 112
) -> Image.Image:
    """The contact sheet on one page: four frames of every clip, the judge's words below, green or red."""
    font, row_px, lefts = ImageFont.load_default(size=13), edge + 40, (240, 250 + 4 * edge, 440 + 5 * edge)
    sheet = Image.new("RGB", (lefts[-1] + 4 * edge + 20, row_px * len(rows) + 40), "white")
    draw = ImageDraw.Draw(sheet)
    for top, (text, pictures) in zip(range(36, sheet.height, row_px), rows, strict=False):
        draw.text((16, top), "\n".join(textwrap.wrap(text, 30)), "#222222", font, spacing=5)
        for left, picture in zip(lefts, pictures, strict=True):
            draw.text((left, 10), picture.title, "#666666", font)
            for i, frame in enumerate(picture.frames[list(frames)] if len(picture.frames) > 1 else picture.frames):
                sheet.paste(
                    Image.fromarray(frame).resize((edge, edge), Image.Resampling.NEAREST), (left + i * edge, top)
                )
            x = float(left)
            for name, right in picture.marks.items():
                word = name if right else f"×{name}"
                draw.text((x, top + edge + 4), word, "#1a7f37" if right else "#cf222e", font)
                x += font.getlength(word) + 10
    return sheet


def table_rows(scores: list[Score]) -> list[dict[str, Any]]:
    """Every accuracy beside its bar; `met` is None where no bar is set."""
    rows = []
    for score in scores:
        if score.stderr is not None:
            kind = score.metric.removesuffix("_accuracy")
            bar = BARS[score.t2v or score.t2i].get(kind)
            numbers = {
                "value": score.value,
                "margin": 1.96 * score.stderr,
                "n": score.n,
                "bar": bar,
                "seconds": score.seconds,
            }
            met = None if bar is None else score.value >= bar
            rows.append({"title": TITLES[score.t2i, score.t2v], "kind": kind, **numbers, "met": met})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        "unreel.zoo.report", description="Renders, scores and shows the models of the zoo."
    )
    for field in fields(Settings):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help=f"default {field.default}")  # type: ignore[arg-type]
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
    scores, sheet = all_scores(zoo, settings, readings), contact_rows(zoo, settings)
    write_scores(output / "scores.jsonl", scores)
    draw_contact_sheet(sheet).save(output / "contact_sheet.png")
    rows, alone = table_rows(scores), scores[-1].value
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    confusions = {TITLES[r.t2i, r.t2v]: r.confusions() for r in readings[2:]}
    page = templates.get_template("report.html.j2").render(
        rows=rows, alone=alone, sheet=sheet, confusions=confusions, settings=settings, num_frames=NUM_FRAMES
    )
    (output / "report.html").write_text(page, encoding="utf-8")
    table = Table("clips", "what", "accuracy", "± 95 %", "n", "bar", "")
    for row in rows:
        verdict = {True: "[green]met", False: "[red]not met", None: ""}[row["met"]]
        bar = "" if row["bar"] is None else f"{row['bar']:.0%}"
        table.add_row(
            row["title"], row["kind"], f"{row['value']:.1%}", f"{row['margin']:.1%}", str(row["n"]), bar, verdict
        )
    console = Console()
    console.print(table, f"one AnimateDiff clip alone: {alone:.2f} s ({NUM_FRAMES} frames, {settings.steps} steps)")
    for name in ("scores.jsonl", "contact_sheet.png", "report.html"):
        console.print(str(output / name), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
