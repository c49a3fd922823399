"""`make zoo-report`: measures the zoo's models and shows their clips, as a page, as a contact sheet and as scores."""

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.utils import logging as diffusers_logging
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from unreel.clips import data_uri
from unreel.files import whole, write_text
from unreel.records import Score
from unreel.scores import interval, write_scores
from unreel.zoo.readings import (
    CLIPS,
    HARDER_SOURCES,
    LONG,
    PIXART,
    SENSES,
    STILLS,
    T2I,
    T2V,
    TWO_SENSES,
    Reading,
    Settings,
    Source,
    Zoo,
    prompt,
    read,
    take_readings,
    to_scores,
)
from unreel.zoo.store import MODELS
from unreel.zoo.words import SUBJECTS, candidates
from unreel.zoo.world import NUM_FRAMES, Spec, held_out

SOURCES = {(s.t2i, s.t2v, s.split): s for s in (STILLS, CLIPS, T2I, PIXART, *T2V, *LONG, TWO_SENSES, *HARDER_SOURCES)}
# The least accuracy asked of each source of clips, by what the judge reads in them.
BARS: Mapping[Source, Mapping[str, float]] = {
    STILLS: {"subject": 0.98, "style": 0.99, "scene": 0.98},
    CLIPS: {"motion": 0.98},
    T2I: {"subject": 0.92, "style": 0.96, "scene": 0.95},
    PIXART: {"subject": 0.90, "style": 0.95, "scene": 0.93},
    T2V[0]: {"subject": 0.87, "style": 0.92, "motion": 0.80},
    T2V[1]: {"subject": 0.87, "style": 0.92, "motion": 0.85},
    T2V[2]: {"subject": 0.85, "style": 0.92, "motion": 0.80},
    TWO_SENSES: {name.split(" (")[0]: 0.88 for name in SENSES},
    **{s: {"motion": 0.95 if s.t2v == "drawn" or s.split == "unsaid" else 0.80} for s in HARDER_SOURCES},
}
LONG_MAY_LOSE = 0.04  # what a prompt of 20 words and more may cost, against a short one on the same specs and seeds


def title(score: Score) -> str:
    """What people call the source of a score."""
    return SOURCES[score.t2i, score.t2v, score.split].title


def bar(score: Score, scores: Sequence[Score]) -> float | None:
    """The least accuracy that is asked of one of the scores, if any is: of the models, by the first judge."""
    source = SOURCES[score.t2i, score.t2v, score.split]
    if source in LONG and score.metric.removesuffix("_accuracy") in source.kinds:
        short = {(s.t2v, s.metric): s.value for s in scores if s.split == "held_out"}
        return short[score.t2v, score.metric] - LONG_MAY_LOSE
    return BARS.get(source, {}).get(score.metric.removesuffix("_accuracy"))


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
    font, row_px = ImageFont.load_default(size=13), edge + 40
    widths = [30 + 4 * edge if len(reading.clips[0]) > 1 else 190 + edge for reading in sheet]
    *lefts, right = accumulate(widths, initial=240)
    page = Image.new("RGB", (right, row_px * len(prompts) + 40), "white")
    draw = ImageDraw.Draw(page)
    for i, text in enumerate(prompts):
        draw.text((16, 36 + i * row_px), "\n".join(textwrap.wrap(text, 30)), "#222222", font, spacing=5)
    for left, reading in zip(lefts, sheet, strict=True):
        draw.text((left, 10), reading.source.title, "#666666", font)
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
    sheet = [read(zoo, source, specs, seed, max(settings.batch // 2, 1)) for source in (CLIPS, T2I, PIXART, *T2V)]
    prompts = [prompt(spec, seed + i) for i, spec in enumerate(specs)]
    write_scores(output / "scores.jsonl", scores)
    with whole(output / "contact_sheet.png") as aside:
        draw_contact_sheet(prompts, sheet).save(aside)
    folder = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=folder, autoescape=True, undefined=StrictUndefined).get_template("scorecard.html.j2")
    accuracies = [(score, bar(score, scores)) for score in scores if score.stderr is not None]
    met = [score.value >= least for score, least in accuracies if least is not None]
    alone = [score for score in scores if score.metric == "seconds_per_clip"]
    show: dict[str, Any] = {"title": title, "data_uri": data_uri, "num_frames": NUM_FRAMES, "interval": interval}
    show |= {"met": sum(met), "asked": len(met), "accuracies": accuracies, "alone": alone}
    confused = [reading for reading in readings if reading.source in (T2I, PIXART, *T2V)]
    page = template.render(settings=settings, confused=confused, prompts=prompts, sheet=sheet, **show)
    write_text(output / "report.html", page)
    print_scores(accuracies, alone)
    for path in (output / name for name in ("scores.jsonl", "contact_sheet.png", "report.html")):
        Console().print(str(path), soft_wrap=True, highlight=False)


def print_scores(accuracies: Sequence[tuple[Score, float | None]], alone: Sequence[Score]) -> None:
    """Accuracies beside their bars, and how long one clip takes."""
    console, table = Console(), Table("clips", "what", "accuracy", "95 %", "n", "bar", "")
    for score, least in accuracies:
        verdict = "" if least is None else "[green]met" if score.value >= least else "[red]not met"
        low, high = interval(score) or (score.value, score.value)
        numbers = f"{score.value:.1%}", f"{low:.1%} to {high:.1%}", str(score.n)
        bar_text = "" if least is None else f"{least:.1%}"
        table.add_row(title(score), score.metric.removesuffix("_accuracy"), *numbers, bar_text, verdict)
    console.print(table)
    for score in alone:
        console.print(f"{title(score)}, one rendered alone: {score.value:.2f} s", highlight=False)


if __name__ == "__main__":
    main()
