"""Tables over many runs: what a sweep's experiment folder holds.

forget     concept accuracy on forget prompts, after, in [0, 1]
retain, context, other sense     accuracy after over accuracy before, means over runs; 1 is untouched
transfer gap     forget in clips minus forget in images of the same edit: what does not carry over to video

Intervals are 95 %, over runs: 1.96 standard errors of the mean, and of the ratio of means (Cochran, "Sampling
Techniques", 1977, eq. 6.13).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from hydra.core.utils import JobReturn, JobStatus
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


def finished_scores(runs: Iterable[Path]) -> list[Score]:
    """The rows of those run folders whose run has finished."""
    scores: list[Score] = []
    for run in sorted(runs):
        status = run / "status.json"
        if status.is_file() and json.loads(status.read_text())["status"] == "done":
            scores += read_scores(run / "scores.jsonl")
    return scores


def pairs(scores: Sequence[Score], column: str) -> np.ndarray:
    """(n, 2): a column's values before and after, a row for each run, concept and recipient that has both."""
    split, metric = COLUMNS[column]
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for s in scores:
        if (s.split, s.metric) == (split, metric):
            found.setdefault((s.run, s.concept, s.t2v), {})[s.stage] = s.value
    both = [(values["before"], values["after"]) for values in found.values() if {"before", "after"} <= values.keys()]
    return np.array(both).reshape(-1, 2)


def estimate(values: np.ndarray, relative: bool) -> tuple[float, float] | None:
    """What is left of `pairs`, and half its 95 % interval (NaN of one run); None when nothing was there before."""
    before, after = values.T
    if not len(values) or (relative and not before.any()):
        return None
    scale = before.mean() if relative else 1.0
    value = after.mean() / scale
    residuals = after - value * before if relative else after - value
    n = len(values)
    half = 1.96 * float((residuals**2).sum() / (n * (n - 1))) ** 0.5 / scale if n > 1 else float("nan")
    return float(value), float(half)


def in_images(scores: Sequence[Score], images: str) -> dict[tuple[str, str], float]:
    """(run, concept) -> forget in the images of the recipient `images`."""
    split, metric = COLUMNS["forget"]
    found = [s for s in scores if (s.t2v, s.stage, s.split, s.metric) == (images, "after", split, metric)]
    return {(s.run, s.concept): s.value for s in found}


def gap(scores: Sequence[Score], still: Mapping[tuple[str, str], float]) -> str:
    """The transfer gap of a set of runs, as text; `still` is what `in_images` found."""
    split, metric = COLUMNS["forget"]
    clips = [s for s in scores if (s.stage, s.split, s.metric) == ("after", split, metric)]
    gaps = np.array([s.value - still[s.run, s.concept] for s in clips if (s.run, s.concept) in still])
    if not len(gaps):
        return "–"
    half = f" ± {1.96 * gaps.std(ddof=1) / len(gaps) ** 0.5:.1%}" if len(gaps) > 1 else ""
    return f"**{gaps.mean():+.1%}**{half}"


def cells(scores: Sequence[Score], still: Mapping[tuple[str, str], float] | None = None) -> dict[str, str]:
    """One row of the table: what a set of runs did, as text; the transfer gap, where images of the runs are known."""
    row = {"transfer gap": gap(scores, still)} if still else {}
    for column in COLUMNS:
        values = pairs(scores, column)
        found = estimate(values, relative=column != "forget")
        if found is None:
            row[column] = "–" if not len(values) else "0 before"
            continue
        row[column] = f"**{found[0]:.1%}**" + (f" ± {found[1]:.1%}" if np.isfinite(found[1]) else "")
        row[column] += f" ({values[:, 0].mean():.1%} before)"
    return row


def markdown(
    scores: Sequence[Score],
    by: Callable[[Score], tuple[str, ...]],
    names: Sequence[str],
    still: Mapping[tuple[str, str], float] | None = None,
) -> str:
    """A table with one row for each value of `by`, whose parts are called `names`; `still` as in `cells`."""
    groups: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        groups.setdefault(by(score), []).append(score)
    columns = [*COLUMNS, *(["transfer gap"] if still else [])]
    head = [*names, *columns, "runs"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for group, rows in sorted(groups.items()):
        row = cells(rows, still)
        lines.append(" | ".join([*group, *(row[column] for column in columns), str(len({s.run for s in rows}))]))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def groups_of(scores: Sequence[Score]) -> dict[str, str]:
    """Run -> what is erased in it: a kind, a word with two senses, or several concepts at once."""
    concepts: dict[str, set[str]] = {}
    for s in scores:
        concepts.setdefault(s.run, set()).add(s.concept)
    senses = {s.run for s in scores if s.split == "other_sense"}
    kinds = {s.run: "word with two senses" if s.run in senses else s.kind for s in scores}
    return {run: kinds[run] if len(names) == 1 else f"{len(names)} concepts" for run, names in concepts.items()}


def draw(scores: Sequence[Score], path: Path, bars: Mapping[str, float]) -> None:
    """Forget against retain, a point a run and concept, one colour a method; bars are dotted."""
    figure, axis = plt.subplots(figsize=(6, 4.4), layout="constrained")
    for method in sorted({s.method for s in scores}):
        own = [s for s in scores if s.method == method]
        forget, retain = pairs(own, "forget"), pairs(own, "retain")
        known = retain[:, 0] > 0 if len(forget) == len(retain) else np.zeros(0, bool)
        axis.scatter(forget[: len(known)][known, 1], retain[known, 1] / retain[known, 0], label=method, alpha=0.6)
    for column, line in (("forget", axis.axvline), ("retain", axis.axhline)):
        if column in bars:
            line(bars[column], color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlabel="concept still seen (lower is better)", ylabel="retained accuracy of before (higher is better)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    with whole(path) as aside:
        figure.savefig(aside, dpi=150)
    plt.close(figure)


def write_tables(runs: Iterable[Path], folder: Path, bars: Mapping[str, float], images: str = "") -> None:
    """Writes `scores.jsonl`, `table.md` and `forget_retain.png` of all finished runs to an experiment's folder.

    Args:
        runs: run folders.
        folder: of the experiment.
        bars: column -> what is asked of it: at most, of forget and the gap; at least, of the others.
        images: the recipient whose clips are the donor's images, for the transfer gap.

    Raises:
        ValueError: when no run has finished.
    """
    scores = finished_scores(runs)
    if not scores:
        raise ValueError(f"no finished run to put into {folder}: expected at least one")
    groups = groups_of(scores)
    write_scores(folder / "scores.jsonl", scores)
    asked = ", ".join(
        f"{column} {'≤' if column in ('forget', 'transfer gap') else '≥'} {bar:.0%}" for column, bar in bars.items()
    )
    singles = [s for s in scores if groups[s.run] == s.kind]
    text = f"After the edit, ± 95 % over runs{f'; asked: {asked}' if asked else ''}\n\n"
    still = in_images(scores, images)
    text += markdown(singles, lambda s: (s.method, s.t2v), ("all single concepts", "clips"), still)
    text += "\nBy what is erased\n\n"
    text += markdown(scores, lambda s: (s.method, groups[s.run], s.t2v), ("method", "erased", "clips"), still)
    text += "\nBy concept\n\n"
    text += markdown(
        scores, lambda s: (s.method, groups[s.run], s.concept, s.t2v), ("method", "erased", "concept", "clips"), still
    )
    write_text(folder / "table.md", text)
    draw(scores, folder / "forget_retain.png", bars)


class WriteTables(Callback):
    """Hydra callback: at the end of a sweep, the tables of its own runs.

    Args:
        folder: of the experiment, e.g. experiments/claims.
        bars, images: as in `write_tables`.
    """

    def __init__(self, folder: str, bars: Mapping[str, float] | None = None, images: str = "") -> None:
        self.folder, self.bars, self.images = Path(folder), bars or {}, images

    def _list(self, config: DictConfig) -> Path:
        return Path(config.runs) / config.slug / f"{self.folder.name}.runs"

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        write_text(self._list(config), "")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: object) -> None:
        """Runs in the worker, so that the list is a file: one line a run, appended."""
        if job_return.status == JobStatus.COMPLETED:
            with self._list(config).open("a") as file:
                file.write(f"{job_return.return_value}\n")

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        write_tables(map(Path, self._list(config).read_text().splitlines()), self.folder, self.bars, self.images)
