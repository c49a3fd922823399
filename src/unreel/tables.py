"""Tables over many runs: what a sweep's experiment folder holds; their columns are those of `columns`.

Intervals are 95 %, over seeds, by Student's t: of the mean, and of the ratio of means (Cochran, "Sampling Techniques",
1977, eq. 6.13). A draw is the mean over all runs of one seed: they share what the seed decides, and the concepts were
chosen, not drawn, so that to count every run would make the intervals too narrow. One seed has no interval.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from unreel.columns import ALWAYS, COLUMNS, KEYS, column_of
from unreel.records import ATTACK, Score
from unreel.scores import read_scores
from unreel.status import read_status


def finished_scores(runs: Iterable[Path]) -> list[Score]:
    """The rows of those run folders whose run has finished."""
    scores: list[Score] = []
    for run in sorted(runs):
        status = read_status(run)
        if status is not None and status.status == "done":
            scores += read_scores(run / "scores.jsonl")
    return scores


def by_run(scores: Sequence[Score], column: str) -> dict[tuple[str, str], tuple[float, float]]:
    """(run, recipient) -> a column's values before and after, means over the run's concepts that have both.

    Of a column that is not relative, what was never measured before is NaN.
    """
    asked = column_of(column)
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for s in scores:
        if (s.split, s.metric) == (asked.split, asked.metric):
            found.setdefault((s.run, s.t2v), {}).setdefault(s.concept, {})[s.stage] = s.value
    means = {}
    for key, concepts in found.items():
        needed = {"before", "after"} if asked.relative else {"after"}
        both = [(v.get("before", math.nan), v["after"]) for v in concepts.values() if needed <= v.keys()]
        if both:
            before, after = np.mean(both, axis=0)
            means[key] = float(before), float(after)
    return means


def seed_means(scores: Sequence[Score], values: Mapping[tuple[str, str], Any]) -> np.ndarray:
    """(n, ...): the means over all runs and recipients of each seed, of (run, recipient) -> value or values."""
    seeds, found = {s.run: s.seed for s in scores}, defaultdict(list)
    for (run, _), value in values.items():
        found[seeds[run]].append(value)
    return np.array([np.mean(own, axis=0) for own in found.values()])


def pairs(scores: Sequence[Score], column: str) -> np.ndarray:
    """(n, 2): a column's values before and after, a row for each seed."""
    return seed_means(scores, by_run(scores, column)).reshape(-1, 2)


def overall(scores: Sequence[Score]) -> tuple[float, float] | None:
    """Harmonic mean of what is forgotten and kept, and half its 95 % interval over seeds; None where it is unknown."""
    values = []
    for seed in dict.fromkeys(s.seed for s in scores):
        own = [s for s in scores if s.seed == seed]
        parts = [1 - left(own, "forget"), *(min(left(own, name), 1.0) for name in ("context", "retain"))]
        if not any(map(math.isnan, parts)):
            values.append(len(parts) / sum(1 / part for part in parts) if min(parts) > 0 else 0.0)
    return (float(np.mean(values)), half_interval(np.array(values) - np.mean(values))) if values else None


def columns_of(scores: Sequence[Score]) -> list[str]:
    """The columns of a table of these scores."""
    measured = {(s.split, s.metric) for s in scores}
    plain = [name for name, c in COLUMNS.items() if name in ALWAYS or (c.split, c.metric) in measured]
    attacks = sorted(of for of, metric in measured if of.startswith(ATTACK) and metric == "concept_accuracy")
    return plain + [split.replace(ATTACK, "attack ", 1) for split in attacks]


def estimated(scores: Sequence[Score], column: str) -> tuple[float, float] | None:
    """A column's value, and half its 95 % interval (NaN of one seed); None where it cannot be told."""
    return estimate(pairs(scores, column), column_of(column).relative)


def estimate(values: np.ndarray, relative: bool) -> tuple[float, float] | None:
    """What is left of `pairs`, and half its 95 % interval (NaN of one seed); None when nothing was there before."""
    before, after = values.T
    if not len(values) or (relative and not before.any()):
        return None
    scale = before.mean() if relative else 1.0
    value = after.mean() / scale
    residuals = after - value * before if relative else after - value
    return float(value), half_interval(residuals) / float(scale)


def half_interval(residuals: np.ndarray) -> float:
    """Half the 95 % interval of a mean, by Student's t, from its residuals (n,); NaN of one."""
    n = len(residuals)
    if n < 2:
        return float("nan")
    return float(t.ppf(0.975, n - 1) * ((residuals**2).sum() / (n * (n - 1))) ** 0.5)


def smallest_difference(rows: Iterable[Sequence[Score]], column: str) -> float:
    """Between two rows of a table, what its seeds can just tell at 95 %; NaN where no row has several seeds.

        t sqrt(2 mean_r SE_r^2), SE_r the standard error over the n_r seeds of row r, t of sum_r (n_r - 1) degrees

    Two means of independent draws with a pooled variance; rows that share prompts and noise may be told apart earlier.
    """
    squares, degrees = [], 0
    for own in rows:
        n, found = len(pairs(own, column)), estimated(own, column)
        if n > 1 and found is not None:
            squares.append((found[1] / float(t.ppf(0.975, n - 1))) ** 2)
            degrees += n - 1
    return float(t.ppf(0.975, degrees) * math.sqrt(2 * float(np.mean(squares)))) if squares else math.nan


def left(scores: Sequence[Score], column: str) -> float:
    """What is left of one column; NaN where that cannot be told."""
    found = estimated(scores, column)
    return found[0] if found else float("nan")


def in_images(scores: Sequence[Score], images: str) -> dict[tuple[str, str], float]:
    """(run, concept) -> forget in the images of the recipient `images`."""
    found = [s for s in _forget_after(scores) if s.t2v == images]
    return {(s.run, s.concept): s.value for s in found}


def _forget_after(scores: Sequence[Score]) -> list[Score]:
    asked = COLUMNS["forget"]
    return [s for s in scores if (s.stage, s.split, s.metric) == ("after", asked.split, asked.metric)]


def gap(scores: Sequence[Score], still: Mapping[tuple[str, str], float]) -> str:
    """The transfer gap of a set of runs, as text; `still` is what `in_images` found."""
    own = defaultdict(list)
    for s in _forget_after(scores):
        if (s.run, s.concept) in still:
            own[s.run, s.t2v].append(still[s.run, s.concept] - s.value)
    gaps = seed_means(scores, {key: np.mean(of_run) for key, of_run in own.items()})
    if not len(gaps):
        return "–"
    half = f" ± {half_interval(gaps - gaps.mean()):.1%}" if len(gaps) > 1 else ""
    return f"**{gaps.mean():+.1%}**{half}"


def cells(scores: Sequence[Score], still: Mapping[tuple[str, str], float] | None = None) -> dict[str, str]:
    """One row of the table: what a set of runs did, as text; the transfer gap, where images of the runs are known."""
    row = {"transfer gap": gap(scores, still)} if still else {}
    for column in columns_of(scores):
        values = pairs(scores, column)
        asked = column_of(column)
        found = estimate(values, asked.relative)
        if found is None:
            row[column] = "–" if not len(values) else "0 before"
            continue
        row[column] = f"**{found[0]:.1%}**" + (f" ± {found[1]:.1%}" if np.isfinite(found[1]) else "")
        row[column] += f" ({values[:, 0].mean():{asked.form}} before)" if np.isfinite(values[:, 0]).all() else ""
    found = overall(scores)
    row["overall"] = "–" if found is None else f"**{found[0]:.1%}**"
    row["overall"] += f" ± {found[1]:.1%}" if found and np.isfinite(found[1]) else ""
    return row


def natural(text: str) -> tuple[float, str]:
    """Sorts numbers as numbers, before all else."""
    return (float(text), "") if text.replace(".", "", 1).isdigit() else (math.inf, text)


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
    columns = [*columns_of(scores), "overall", *(["transfer gap"] if still else [])]
    head = [*names, *columns[: -1 if still else None], *(["transfer gap (images − clips)"] if still else []), "runs"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for group, rows in sorted(groups.items(), key=lambda item: list(map(natural, item[0]))):
        row = cells(rows, still)
        lines.append(
            " | ".join([*group, *(row.get(column, "–") for column in columns), str(len({s.run for s in rows}))])
        )
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def groups_of(scores: Sequence[Score]) -> dict[str, str]:
    """Run -> what is erased in it: a kind, a word with two senses, or several concepts at once."""
    concepts: dict[str, set[str]] = {}
    for s in scores:
        concepts.setdefault(s.run, set()).add(s.concept)
    senses = {s.run for s in scores if s.split == "other_sense"}
    kinds = {s.run: "word with two senses" if s.run in senses else s.kind for s in scores}
    return {run: kinds[run] if len(names) == 1 else f"{len(names)} concepts" for run, names in concepts.items()}


def pooled(scores: Sequence[Score]) -> list[str]:
    """What runs of one method, recipient and set of concepts differ in besides the seed: keys, or that it is unsaid."""
    concepts, alike = defaultdict(set), defaultdict(list)
    for s in scores:
        concepts[s.run].add(s.concept)
    for s in scores:
        alike[s.method, s.t2v, frozenset(concepts[s.run])].append(s)
    keys = {key: None for own in alike.values() for key in varied(own)}
    return ["what scores do not say" if key == "run" else key for key in keys]


def differing_in(scores: Sequence[Score], by: str) -> dict[tuple[str, str], str]:
    """(run, recipient) -> what it has of the key `by`, as text. ValueError for a key that scores do not have."""
    if by == "concepts":
        named: dict[str, set[str]] = {}
        for s in scores:
            named.setdefault(s.run, set()).add(s.concept)
        return {(s.run, s.t2v): str(len(named[s.run])) for s in scores}
    if not hasattr(scores[0], by):
        raise ValueError(f"found by={by}: expected concepts, or a key of scores as shots, parameters, steps, t2v")
    return {(s.run, s.t2v): str(getattr(s, by)) for s in scores}


def _as_one(some: Mapping[tuple[str, str], str], others: Mapping[tuple[str, str], str]) -> bool:
    """Whether two keys tell the same runs apart."""
    both = {(value, others[where]) for where, value in some.items()}
    return len(both) == len(set(some.values())) == len(set(others.values()))


def varied(scores: Sequence[Score]) -> dict[str, dict[tuple[str, str], str]]:
    """Key -> (run, recipient) -> value as text, of those of KEYS that have several values.

    And the runs' own names, "run", where two of the same concepts and seed differ in none of them: in something that
    scores do not say, so that they are no repetitions of each other.
    """
    found = {key: differing_in(scores, key) for key in KEYS}
    found = {key: values for key, values in found.items() if len(set(values.values())) > 1}
    given = found.get("setting", {})
    if any(_as_one(given, values) for key, values in found.items() if key != "setting"):
        found.pop("setting", None)  # as data.steps=5, which is in `steps` already
    concepts, same = defaultdict(set), defaultdict(set)
    for s in scores:
        concepts[s.run].add(s.concept)
    for s in scores:
        setting = tuple(values[s.run, s.t2v] for values in found.values())
        same[frozenset(concepts[s.run]), s.seed, s.t2v, setting].add(s.run)
    if any(len(runs) > 1 for runs in same.values()):
        found["run"] = {(s.run, s.t2v): s.run for s in scores}
    return found
