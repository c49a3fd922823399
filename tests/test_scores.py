"""Score rows survive the file, and a bad row is named."""

import json

import pytest

from unreel.records import Score
from unreel.scores import read_scores, write_scores

DESIGN_KEYS = [
    "slug",
    "run",
    "t2i",
    "t2v",
    "concept",
    "kind",
    "method",
    "parameters",
    "shots",
    "seed",
    "stage",
    "split",
    "metric",
    "value",
    "stderr",
    "n",
    "edit",
    "clips",
    "seconds",
]


def _score(**changes):
    return Score(
        **({"slug": "zoo_report", "metric": "style_accuracy", "value": 0.9, "stderr": 0.02, "n": 200} | changes)
    )


def test_rows_come_back_as_they_were_with_the_keys_of_the_design(tmp_path):
    path = tmp_path / "scores.jsonl"
    rows = [_score(t2i="zoo"), _score(t2v="zoo_animatediff", metric="motion_accuracy")]
    write_scores(path, rows)
    assert read_scores(path) == rows
    for line in path.read_text().splitlines():
        assert list(json.loads(line))[: len(DESIGN_KEYS)] == DESIGN_KEYS
    assert [p.name for p in tmp_path.iterdir()] == ["scores.jsonl"]


def test_a_bad_row_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "scores.jsonl"
    write_scores(path, [_score()])
    for bad in ('{"value": 1', '{"colour": "red"}'):
        path.write_text(path.read_text().splitlines()[0] + "\n" + bad + "\n")
        with pytest.raises(ValueError, match=r"scores.jsonl.*2"):
            read_scores(path)
