"""Tables over runs: hand-checkable numbers, and only of runs that finished."""

import json
from dataclasses import replace

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from unreel.records import Score
from unreel.scores import read_scores, write_scores
from unreel.tables import WriteTables, cells, gap, groups_of, in_images, write_tables


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
    # forget: mean 0.1, standard deviation 0.1414, 1.96 * 0.1414 / sqrt(2) = 0.196; retain 0.7 / 0.8, residuals from
    # 0.875 * 0.8 are -0.1 and 0.1, 1.96 * sqrt(0.02 / 2) / 0.8 = 0.245
    assert cells(scores) == {
        "forget": "**10.0%** ± 19.6% (90.0% before)", "context": "–",
        "retain": "**87.5%** ± 24.5% (80.0% before)", "other sense": "–",
    }  # fmt: skip
    assert cells(scores[:2] + scores[2:4])["forget"] == "**0.0%** (80.0% before)"  # one run has no interval
    nothing = rows("a", 0, {RETAIN: 0.0}, {RETAIN: 0.0})
    assert cells(nothing)["retain"] == "0 before"


def test_the_transfer_gap_is_what_clips_show_more_than_images_of_the_same_edit():
    images = [
        replace(s, t2v="stills") for run, left in (("a", 0.1), ("b", 0.0)) for s in rows(run, 0, {}, {FORGET: left})
    ]
    clips = rows("a", 0, {}, {FORGET: 0.1}) + rows("b", 0, {}, {FORGET: 0.2})
    still = in_images([*images, *clips], "stills")
    # gaps 0 and 0.2: mean 0.1, standard deviation 0.1414, 1.96 * 0.1414 / sqrt(2) = 0.196
    assert gap(clips, still) == "**+10.0%** ± 19.6%" and gap(images, still) == "**+0.0%** ± 0.0%"
    assert gap(rows("c", 0, {}, {FORGET: 0.1}), still) == "–"


def test_runs_are_grouped_by_what_they_erase():
    two = [replace(s, run="two", concept=c) for c in ("cat", "bus") for s in rows("", 0, {FORGET: 1.0}, {FORGET: 0.0})]
    sense = rows("bat", 0, {FORGET: 1.0, ("other_sense", "accuracy"): 1.0}, {FORGET: 0.0})
    assert groups_of([*two, *sense, *rows("one", 0, {FORGET: 1.0}, {FORGET: 0.0})]) == {
        "two": "2 concepts", "bat": "word with two senses", "one": "object",
    }  # fmt: skip


def test_tables_are_of_finished_runs_alone(tmp_path):
    write_run(tmp_path / "runs", "a", rows("a", 0, {FORGET: 1.0, RETAIN: 0.9}, {FORGET: 0.0, RETAIN: 0.9}))
    write_run(tmp_path / "runs", "b", rows("b", 1, {FORGET: 1.0, RETAIN: 0.9}, {FORGET: 0.9, RETAIN: 0.9}), "running")
    write_tables((tmp_path / "runs").iterdir(), tmp_path / "out", {"forget": 0.1})
    assert {s.run for s in read_scores(tmp_path / "out" / "scores.jsonl")} == {"a"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| m | object | v | **0.0%** (100.0% before) | – | **100.0%** (90.0% before) | – | 1 |" in table
    assert "asked: forget ≤ 10%" in table
    assert (tmp_path / "out" / "forget_retain.png").stat().st_size > 5000


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        write_tables([tmp_path], tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_a_sweep_tabulates_its_own_runs_alone(tmp_path):
    config = OmegaConf.create({"runs": str(tmp_path / "runs"), "slug": "claims"})
    folder = tmp_path / "runs" / "claims"
    for name in ("old", "new", "failed"):
        write_run(folder, name, rows(name, 0, {FORGET: 1.0}, {FORGET: 0.0}))
    tables = WriteTables(str(tmp_path / "out"))
    tables.on_multirun_start(config)
    for name, status in (("new", JobStatus.COMPLETED), ("failed", JobStatus.FAILED)):
        tables.on_job_end(config, JobReturn(status=status, _return_value=str(folder / name)))
    tables.on_multirun_end(config)
    assert {s.run for s in read_scores(tmp_path / "out" / "scores.jsonl")} == {"new"}
