"""Tables over many runs: what a sweep's experiment folder holds.

forget     concept accuracy on forget prompts, before and after, in [0, 1]
retain, context, other sense     accuracy after over accuracy before, pooled over concepts and seeds
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from unreel.files import whole, write_text
from unreel.records import Score
from unreel.scores import read_scores, write_scores

# column -> (split, metric); all but the first are shown relative to before
COLUMNS = {
    "forget": ("forget", "concept_accuracy"),
    "context": ("context", "context_accuracy"),
    "retain": ("retain", "accuracy"),
    "other sense": ("other_sense", "concept_accuracy"),
}


def finished_scores(folder: Path) -> list[Score]:
    """The rows of all finished runs in a folder of runs."""
    scores: list[Score] = []
    for path in sorted(folder.glob("*/status.json")):
        if json.loads(path.read_text())["status"] == "done":
            scores += read_scores(path.with_name("scores.jsonl"))
    return scores


def _pooled(scores: Sequence[Score], column: str, stage: str) -> tuple[float, float, int] | None:
    """Mean over runs, 1.96 standard errors over runs (0 of one run), and the number of runs; None without a row."""
    split, metric = COLUMNS[column]
    values = [s.value for s in scores if (s.split, s.metric, s.stage) == (split, metric, stage)]
    if not values:
        return None
    mean, n = sum(values) / len(values), len(values)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    return mean, 1.96 * (variance / n) ** 0.5, n


def cells(scores: Sequence[Score]) -> dict[str, str]:
    """One row of the table: what a set of runs did, as text."""
    row = {}
    for column in COLUMNS:
        before, after = _pooled(scores, column, "before"), _pooled(scores, column, "after")
        if before is None or after is None:
            row[column] = "–"
        elif column == "forget":
            row[column] = f"{before[0]:.1%} → **{after[0]:.1%}** ± {after[1]:.1%}"
        else:
            row[column] = f"**{after[0] / before[0]:.1%}** of {before[0]:.1%}" if before[0] else "0 before"
    return row


def markdown(scores: Sequence[Score], by: Callable[[Score], tuple[str, ...]], names: Sequence[str]) -> str:
    """A table with one row for each value of `by`, whose parts are called `names`."""
    groups: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        groups.setdefault(by(score), []).append(score)
    head = [*names, *COLUMNS, "runs"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for group, rows in sorted(groups.items()):
        runs = len({(s.run, s.concept) for s in rows})
        lines.append(" | ".join([*group, *cells(rows).values(), str(runs)]))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def draw(scores: Sequence[Score], path: Path) -> None:
    """Forget against retain, a point a run and concept, one colour a method."""
    figure, axis = plt.subplots(figsize=(6, 4.4), layout="constrained")
    for method in sorted({s.method for s in scores}):
        points: dict[tuple[str, ...], dict[tuple[str, str, str], float]] = {}
        for s in scores:
            if s.method == method:
                points.setdefault((s.run, s.concept, s.t2v), {})[s.split, s.metric, s.stage] = s.value
        xy = [
            (
                p["forget", "concept_accuracy", "after"],
                p["retain", "accuracy", "after"] / p["retain", "accuracy", "before"],
            )
            for p in points.values()
            if p.get(("retain", "accuracy", "before"))
        ]
        axis.scatter(*zip(*xy, strict=True), label=method, alpha=0.7)
    axis.axvline(0.10, color="grey", linewidth=0.8, linestyle=":")
    axis.axhline(0.93, color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlabel="concept still seen (lower is better)", ylabel="retained accuracy of before (higher is better)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    with whole(path) as aside:
        figure.savefig(aside, dpi=150)
    plt.close(figure)


def write_tables(runs: Path, folder: Path) -> None:
    """Writes `scores.jsonl`, `table.md` and `forget_retain.png` of all finished runs to an experiment's folder."""
    scores = finished_scores(runs)
    if not scores:
        raise ValueError(f"{runs} has no finished run: expected the folder of a sweep")
    write_scores(folder / "scores.jsonl", scores)
    text = "By kind\n\n" + markdown(scores, lambda s: (s.method, s.kind, s.t2v), ("method", "kind", "clips"))
    text += "\nBy concept\n\n" + markdown(
        scores, lambda s: (s.method, s.concept, s.t2v), ("method", "concept", "clips")
    )
    write_text(folder / "table.md", text)
    draw(scores, folder / "forget_retain.png")


class WriteTables(Callback):
    """Hydra callback: at the end of a sweep, its tables.

    Args:
        folder: of the experiment, e.g. experiments/claims.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        write_tables(Path(config.runs) / config.slug, self.folder)
