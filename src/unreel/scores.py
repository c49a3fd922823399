"""Scores: their files, one JSON object a line, and how sure one is of them."""

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from scipy.stats import binomtest, t

from unreel.files import write_text
from unreel.records import Score


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Writes a `scores.jsonl`; the file appears whole."""
    write_text(path, "".join(score.to_json() + "\n" for score in scores))


def read_scores(path: Path) -> list[Score]:
    """The rows of a `scores.jsonl`; keys that an older file lacks get their defaults.

    Raises:
        ValueError: for a missing file, and for a row that is not JSON, has unknown or missing keys or a value of the
            wrong type; one line that names the file and the line.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: remove that run's folder, or give its command again")
    scores = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            scores.append(_parse(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return scores


def interval(score: Score) -> tuple[float, float] | None:
    """95 % interval over clips: Wilson's of a share, else Student's t; None where nothing is known of it."""
    if score.stderr is None or not score.n:
        return None
    if score.metric.endswith(("accuracy", "agreement", "_share", "success_rate", "dynamic_degree_blocks")):
        found = binomtest(round(score.value * score.n), score.n).proportion_ci(method="wilson")
        return float(found.low), float(found.high)
    if score.n < 2:
        return None
    half = float(t.ppf(0.975, score.n - 1)) * score.stderr
    return score.value - half, score.value + half


def _parse(line: str) -> Score:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"found {type(row).__name__}: expected one JSON object a line")
    unknown = row.keys() - {field.name for field in fields(Score)}
    missing = {"slug", "metric", "value"} - row.keys()
    if unknown or missing:
        said = [
            f"{word} keys {', '.join(sorted(keys))}"
            for word, keys in (("unknown", unknown), ("missing", missing))
            if keys
        ]
        raise ValueError(" and ".join(said))
    return Score(**row)
