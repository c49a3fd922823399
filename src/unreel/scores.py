"""Files of scores: one JSON object a line."""

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from unreel.files import write_text
from unreel.records import Score


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Writes a `scores.jsonl`; the file appears whole."""
    write_text(path, "".join(score.to_json() + "\n" for score in scores))


def read_scores(path: Path) -> list[Score]:
    """The rows of a `scores.jsonl`; keys that an older file lacks get their defaults.

    Raises:
        ValueError: for a row that is not JSON, has unknown or missing keys or a value of the wrong type; one line that
            names the file and the line.
    """
    scores = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            scores.append(_parse(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return scores


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
