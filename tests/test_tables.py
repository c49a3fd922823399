"""Tables over runs: hand-checkable numbers, and only of runs that finished."""

import json

import pytest

from unreel.records import Score
from unreel.scores import read_scores, write_scores
from unreel.tables import cells, write_tables


def rows(run, seed, before, after):
    """Scores of one run: {(split, metric): value} before and after."""
    shared = dict(slug="s", run=run, t2v="v", concept="cat", kind="object", method="m", seed=seed, n=10, stderr=0.1)
    return [
        Score(**shared, stage=stage, split=split, metric=metric, value=value)
        for stage, values in (("before", before), ("after", after))
        for (split, metric), value in values.items()
    ]


FORGET, RETAIN = ("forget", "concept_accuracy"), ("retain", "accuracy")


def write_run(folder, name, scores, status="done"):
    write_scores(folder / name / "scores.jsonl", scores)
    (folder / name / "status.json").write_text(json.dumps({"status": status}))


def test_a_row_pools_runs_and_relates_what_is_kept_to_before():
    scores = rows("a", 0, {FORGET: 0.8, RETAIN: 0.8}, {FORGET: 0.0, RETAIN: 0.6})
    scores += rows("b", 1, {FORGET: 1.0, RETAIN: 0.8}, {FORGET: 0.2, RETAIN: 0.8})
    # forget: mean 0.1, standard deviation 0.1414, 1.96 * 0.1414 / sqrt(2) = 0.196; retain 0.7 / 0.8
    assert cells(scores) == {
        "forget": "90.0% → **10.0%** ± 19.6%", "context": "–", "retain": "**87.5%** of 80.0%", "other sense": "–",
    }  # fmt: skip


def test_tables_are_of_finished_runs_alone(tmp_path):
    write_run(tmp_path / "runs", "a", rows("a", 0, {FORGET: 1.0, RETAIN: 0.9}, {FORGET: 0.0, RETAIN: 0.9}))
    write_run(tmp_path / "runs", "b", rows("b", 1, {FORGET: 1.0, RETAIN: 0.9}, {FORGET: 0.9, RETAIN: 0.9}), "running")
    write_tables(tmp_path / "runs", tmp_path / "out")
    assert {s.run for s in read_scores(tmp_path / "out" / "scores.jsonl")} == {"a"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| m | object | v | 100.0% → **0.0%** ± 0.0% | – | **100.0%** of 90.0% | – | 1 |" in table
    assert (tmp_path / "out" / "forget_retain.png").stat().st_size > 5000


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        write_tables(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
