"""The page of one run, report.html: self-contained, with strips of its clips beside it."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from unreel.attacking import Broken
from unreel.clips import STRIP_FRAMES, data_uri, stacked, strip
from unreel.figures import svg_uri
from unreel.files import whole, write_text
from unreel.judges.judge import Judged
from unreel.metrics.frame_accuracy import by_frame
from unreel.records import LONG, Score
from unreel.rendering import Rendered
from unreel.runs import Run
from unreel.scores import interval

SPLITS = {
    "forget": "What must be gone",
    "context": "What the same prompts say besides it",
    "retain": "What must stay",
    "other_sense": "The other sense, which must stay",
}
SPLITS |= {f"{split}{LONG}": f"{title}, asked for at length" for split, title in SPLITS.items()}
BROUGHT_BACK = "Can it be brought back?"


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) pairs of all that a run logged in its CSV files, over resumptions."""
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("logs-*/metrics.csv"), key=lambda p: int(p.parent.name.rpartition("-")[2])):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        curves.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}


def _figure(panels: dict[str, dict[str, list[tuple[int, float]]]], along: str = "step") -> str:
    """Panels of curves along steps or frames as one SVG data URI, readable on light and on dark pages."""
    shown = {title: lines for title, lines in panels.items() if any(lines.values())}
    if not shown:
        return ""
    figure, axes = plt.subplots(1, len(shown), figsize=(4.4 * len(shown), 2.9), squeeze=False, layout="constrained")
    for axis, (title, lines) in zip(axes[0], shown.items(), strict=True):
        for name, points in lines.items():
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else "", linewidth=1.4)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(along, fontsize=9)
        if along == "frame":
            axis.set_ylim(-0.04, 1.04)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if sum(bool(points) for points in lines.values()) > 1:
            axis.legend(fontsize=8, frameon=False)
    return svg_uri(figure)


def curves_of(folder: Path) -> str:
    """Loss, guard rails and scores over the steps, as one picture; "" when nothing was logged."""
    curves = read_curves(folder)

    def take(prefix: str, names: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
        return {name: curves.get(f"{prefix}/{name}", []) for name in names}

    accuracies = {}
    for name, points in curves.items():
        of, metric = name.rsplit("/", 1)  # of: split/recipient/concept
        wanted = {"forget": "concept_accuracy", "retain": "accuracy"}.get(of.split("/")[0])
        if metric == wanted and of.count("/") == 2 and len(points) > 1:
            accuracies[of] = points
    return _figure(
        {
            "loss": take("train", ("loss",)),
            "embeddings: distance": take("train", ("anchor", "retain")),
            "donor: evidence left, drift": take("donor", ("evidence", "drift")),
            "accuracy": accuracies,
        }
    )


def frame_curves(looks: Mapping[tuple[str, str], Judged]) -> str:
    """What each frame shows of what is asked for, before and after, a panel a split; "" where frames say nothing."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for (stage, recipient), judged in looks.items():
        concepts = dict.fromkeys(prompt.concept for prompt in judged.rendered.prompts)
        looked = stage in ("before", "after") and bool(judged.frame_marks)  # images have one frame
        own = [part for concept in concepts for part in judged.splits(concept)] if looked else []
        for split in dict.fromkeys(part.split for part in own):
            shown = torch.cat([by_frame(part) for part in own if part.split == split])
            if len(shown):
                lines = panels.setdefault(split.replace("_", " "), {})
                lines[f"{stage}, {recipient}"] = list(enumerate(shown.mean(0).tolist(), start=1))
    return _figure(panels, "frame")


def score_rows(scores: list[Score]) -> list[dict[str, Any]]:
    """One row a recipient, concept, split and metric: before, after, and what is left of it."""
    found = {(s.t2v, s.concept, s.split, s.metric, s.stage): s for s in scores}
    rows = []
    for t2v, concept, split, metric in dict.fromkeys(key[:4] for key in found):
        before, after = (found.get((t2v, concept, split, metric, stage)) for stage in ("before", "after"))
        share = after.value / before.value if before and after and before.value else None
        in_percent = metric.endswith("accuracy") or any(s.unit == "share" for s in (before, after) if s)
        rows.append(
            {"t2v": t2v, "concept": concept, "split": split, "metric": metric, "before": before, "after": after,
             "percent": in_percent, "share": share, "n": next(s.n for s in (after, before) if s)}
        )  # fmt: skip
    order = list(SPLITS)
    return sorted(rows, key=lambda r: (r["t2v"], r["concept"], order.index(r["split"]) if r["split"] in order else 9))


def doubts(scores: Sequence[Score]) -> list[str]:
    """Why a run may have forgotten nothing, a sentence for each concept and recipient of which that is to be said."""
    found = {(s.t2v, s.concept, s.stage): s for s in scores if (s.split, s.metric) == ("forget", "concept_accuracy")}
    said = []
    for t2v, concept in dict.fromkeys(key[:2] for key in found):
        before, after = (found.get((t2v, concept, stage)) for stage in ("before", "after"))
        if before is None or after is None:
            continue
        if before.clips == after.clips:
            said.append(f"{t2v} makes the same clips of {concept} after the edit as before it, to the last pixel.")
        elif not before.value:
            said.append(f"The judge saw {concept} in no clip of {t2v} before the edit: there was nothing to forget.")
        elif after.value >= before.value:
            said.append(
                f"The judge sees {concept} in as many clips of {t2v} after the edit as before it:"
                f" {after.value:.0%} and {before.value:.0%}."
            )
    return said


def bounds(score: Score, percent: bool) -> str:
    """The 95 % interval of a score as text, "" without one; as many digits as it takes to tell its ends apart."""
    found, factor = interval(score), 100 if percent else 1
    if found is None:
        return ""
    low, high = (factor * bound for bound in found)
    digits = 0 if high - low >= 2 else 1
    return f"{low:.{digits}f}–{high:.{digits}f}" if f"{low:.{digits}f}" != f"{high:.{digits}f}" else ""


def write_strips(folder: Path, before: Rendered, after: Rendered) -> None:
    """For each concept and split one PNG: a row a prompt, before on the left, after on the right, and their texts."""
    for concept in dict.fromkeys(prompt.concept for prompt in before.prompts):
        for split in dict.fromkeys(prompt.split for prompt in before.prompts):
            if places := before.places(split, concept):
                rows = [strip([before.clips[i], after.clips[i]]) for i in places]
                page = stacked(rows)
                texts = PngInfo()
                texts.add_itxt("prompts", json.dumps([before.prompts[i].text for i in places]))
                texts.add_itxt("frames", str(min(STRIP_FRAMES, len(before.clips[places[0]]))))
                with whole(folder / "clips" / f"{before.recipient}_{concept}_{split}.png") as aside:
                    page.save(aside, pnginfo=texts)


def _attacked(looks: dict[tuple[str, str], Judged], broken: Sequence[Broken]) -> dict[str, list[dict[str, Any]]]:
    """Attack -> its cards: one attacked prompt each, with clips of the plain one beside those of the attacked one."""
    cards: dict[str, list[dict[str, Any]]] = {}
    for one in broken:
        sides = {}
        for stage, judged in (("before", one.before), ("after", one.after)):
            own = looks[stage, one.recipient].splits(one.concept)
            sides[stage] = next(look for look in own if look.split == "forget"), judged
        for i, of in enumerate(one.of):
            clips = []
            for title, stage, which, k in (
                ("plain, before", "before", 0, of), ("plain, after", "after", 0, of),
                ("attacked, before", "before", 1, i), ("attacked, after", "after", 1, i),
            ):  # fmt: skip
                judged = sides[stage][which]
                seen = judged.marks[k].get(judged.rendered.prompts[k].part)
                uri = data_uri(judged.rendered.clips[k], judged.rendered.fps)
                clips.append({"uri": uri, "title": title, "seen": seen, "bad": bool(seen) and stage == "after"})
            said = {"plain": ("after", 0, of), "attacked": ("after", 1, i), "control": ("before", 1, i)}
            texts = {name: sides[stage][which].rendered.prompts[k].text for name, (stage, which, k) in said.items()}
            cards.setdefault(one.attack, []).append({"t2v": one.recipient, **texts, "clips": clips})
    return cards


def write_report(
    run: Run,
    looks: dict[tuple[str, str], Judged],
    scores: list[Score],
    facts: dict[str, Any],
    shots: Sequence[Tensor] = (),
    broken: Sequence[Broken] = (),
) -> Path:
    """Writes `report.html` and the strips.

    Args:
        run: the run folder.
        looks: (stage, recipient) -> clips and what the judge saw in them.
        scores: all rows of the run.
        facts: what was trained: tensors, parameters, of, steps, best_step, stopped.
        shots: what the training saw of the concept, (F, 3, H, W) in [0, 1] each.
        broken: what attacks did.
    """
    recipients = list(dict.fromkeys(recipient for _, recipient in looks))
    gallery = []
    for recipient in recipients:
        before, after = looks["before", recipient], looks["after", recipient]
        write_strips(run.folder, before.rendered, after.rendered)
        for i, prompt in enumerate(before.rendered.prompts):
            gallery.append(
                {"t2v": recipient, "prompt": prompt, "seen": (before.marks[i], after.marks[i]),
                 "clips": [data_uri(side.rendered.clips[i], side.rendered.fps) for side in (before, after)]}
            )  # fmt: skip
    for one in broken:
        write_strips(run.folder, replace(one.before.rendered, prompts=one.after.rendered.prompts), one.after.rendered)
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template("page.html.j2").render(
        run=run, rows=score_rows(scores), gallery=gallery, splits=SPLITS, bounds=bounds, facts=facts,
        doubts=doubts(scores), curves=curves_of(run.folder), frames=frame_curves(looks),
        provenance=run.provenance, shots=[data_uri(clip) for clip in shots], recipients=recipients,
        attacks=_attacked(looks, broken), brought_back=BROUGHT_BACK,
    )  # fmt: skip
    write_text(run.folder / "report.html", page)
    return run.folder / "report.html"
