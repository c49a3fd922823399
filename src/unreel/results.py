"""What an experiment's folder holds: the tables and figures of many runs, and those of a search."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unreel.columns import column_of
from unreel.figures import attacks, lines_or_bars, pareto, save, scatter
from unreel.files import write_text
from unreel.records import Score
from unreel.scores import write_scores
from unreel.tables import (
    columns_of,
    differing_in,
    groups_of,
    in_images,
    left,
    markdown,
    pooled,
    smallest_difference,
)


def write_tables(
    scores: Sequence[Score], folder: Path, bars: Mapping[str, float], images: str = "", by: str = ""
) -> None:
    """Writes `scores.jsonl`, `table.md` and figures of many runs to an experiment's folder.

    Args:
        scores: of all runs.
        folder: of the experiment.
        bars: column -> what is asked of it: at most, of forget, attacks and the gap's size; at least, of the others.
        images: the recipient whose clips are the donor's images, for the transfer gap.
        by: what the runs differ in: a key of scores (shots, parameters, steps, t2v), or concepts: how many in one edit.
    """
    groups = groups_of(scores)
    write_scores(folder / "scores.jsonl", scores)
    still = in_images(scores, images)
    asked = ", ".join(f"{_asked_of(name)} {bar:.0%}" for name, bar in bars.items() if still or name != "transfer gap")
    singles = [s for s in scores if groups[s.run] == s.kind]
    text = f"After the edit, ± 95 % over seeds{f'; asked: {asked}' if asked else ''}\n\n"
    if over := pooled(scores):
        text += f"Means over {' and '.join(over)} wherever a table has no column of it\n\n"
    text += markdown(singles, lambda s: (s.method, s.t2v), ("all single concepts", "clips"), still)
    text += told(singles)
    if by:
        differ = differing_in(scores, by)
        text += f"\nBy {by}\n\n"
        text += markdown(scores, lambda s: (s.method, differ[s.run, s.t2v], s.t2v), ("method", by, "clips"), still)
        save(lines_or_bars(scores, differ, by), folder / f"{by}.png")
    text += "\nBy what is erased\n\n"
    text += markdown(scores, lambda s: (s.method, groups[s.run], s.t2v), ("method", "erased", "clips"), still)
    text += "\nBy concept\n\n"
    text += markdown(
        scores, lambda s: (s.method, groups[s.run], s.concept, s.t2v), ("method", "erased", "concept", "clips"), still
    )
    write_text(folder / "table.md", text)
    save(scatter(scores, bars), folder / "forget_retain.png")
    if any(column.startswith("attack ") for column in columns_of(scores)):
        save(attacks(scores, bars), folder / "attacks.png")


def _asked_of(column: str) -> str:
    """A column, and whether its bar is the most or the least."""
    if column == "transfer gap":
        return "size of the transfer gap ≤"
    return f"{column} {'≤' if column_of(column).down else '≥'}"


def told(scores: Sequence[Score]) -> str:
    """For each recipient the smallest differences between methods that the seeds can show, as text."""
    lines = []
    for t2v in sorted({s.t2v for s in scores}):
        here = [s for s in scores if s.t2v == t2v]
        rows = [[s for s in here if s.method == method] for method in dict.fromkeys(s.method for s in here)]
        found = {column: smallest_difference(rows, column) for column in columns_of(here)}
        said = [f"{column} {value:.1%}" for column, value in found.items() if not math.isnan(value)]
        lines += [f"- {t2v}: {', '.join(said)}"] if len(rows) > 1 and said else []
    head = "\nThe smallest differences between two methods that these seeds can show (95 %, pooled variance):\n\n"
    return head + "\n".join(lines) + "\n" if lines else ""


def write_search(
    records: Sequence[Mapping[str, Any]], scores: Sequence[Score], folder: Path, bars: Mapping[str, float]
) -> None:
    """The same of a search, whose runs are no repetitions of each other: one row a trial.

    Args:
        records: of the jobs, as `record_job` writes them.
        scores, folder, bars: as in `write_tables`.
    """
    write_scores(folder / "scores.jsonl", scores)
    save(scatter(scores, bars), folder / "forget_retain.png")
    write_text(folder / "table.md", trials(records, scores))


def trials(records: Sequence[Mapping[str, Any]], scores: Sequence[Score]) -> str:
    """A table of a search: what the trials differ in, and what each forgot and kept; * is the Pareto front."""
    given = [{key: value for key, _, value in (o.partition("=") for o in r["overrides"])} for r in records]
    keys = [key for key in dict.fromkeys(key for own in given for key in own) if len({g.get(key) for g in given}) > 1]
    rows = []
    for record, choices in zip(records, given, strict=True):
        name = Path(record["folder"]).name
        if own := [s for s in scores if s.run == name]:
            cells = [*(_rounded(choices.get(key, "")) for key in keys), f"`{name.rpartition('-')[2]}`"]
            rows.append((left(own, "forget"), left(own, "retain"), " | ".join(cells)))
    front = pareto(np.array([row[:2] for row in rows if not math.isnan(row[1])]).reshape(-1, 2)).tolist()
    lines = [
        f"| {f:.1%} | {'–' if math.isnan(r) else f'{r:.1%}'} | {'*' if [f, r] in front else ''} | {cells} |"
        for f, r, cells in sorted(rows)
    ]
    header = ["forget", "retain", "front", *(f"`{key}`" for key in keys), "run ends in"]
    return "\n".join([f"| {' | '.join(header)} |", "| --- " * len(header) + "|", *lines, ""])


def _rounded(value: str) -> str:
    """A number to three digits, which `config.yaml` has in full; all else as code."""
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return f"`{value}`"
