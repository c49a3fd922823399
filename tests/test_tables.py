"""Tables over runs: hand-checkable numbers, and only of runs that finished."""

import json
import math
import runpy
from dataclasses import replace

import pytest
from hydra._internal.callbacks import Callbacks
from omegaconf import OmegaConf

from conftest import ROOT
from unreel.figures import forget_retain, pareto, scatter, setting_means
from unreel.files import write_text
from unreel.records import Score
from unreel.results import _asked_of, write_tables
from unreel.scores import read_scores, write_scores
from unreel.sweeps import Sweep
from unreel.tables import (
    cells,
    columns_of,
    differing_in,
    finished_scores,
    gap,
    groups_of,
    in_images,
    left,
    overall,
    pairs,
    pooled,
    smallest_difference,
    varied,
)


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
    # t of one degree of freedom is 12.706. forget: mean 0.1, standard deviation 0.1414, times t / sqrt(2): 1.271;
    # retain 0.7 / 0.8, residuals from 0.875 * 0.8 are -0.1 and 0.1, t * sqrt(0.02 / 2) / 0.8 = 1.588
    assert cells(scores) == {
        "forget": "**10.0%** ± 127.1% (90.0% before)", "context": "–",
        "retain": "**87.5%** ± 158.8% (80.0% before)", "other sense": "–", "overall": "–",
    }  # fmt: skip
    assert cells(scores[:2] + scores[2:4])["forget"] == "**0.0%** (80.0% before)"  # one run has no interval
    nothing = rows("a", 0, {RETAIN: 0.0}, {RETAIN: 0.0})
    assert cells(nothing)["retain"] == "0 before"


def test_the_transfer_gap_is_what_images_show_more_than_clips_of_the_same_edit():
    runs = [("a", 0, 0.1), ("b", 1, 0.0)]
    images = [replace(s, t2v="stills") for run, seed, left in runs for s in rows(run, seed, {}, {FORGET: left})]
    clips = rows("a", 0, {}, {FORGET: 0.1}) + rows("b", 1, {}, {FORGET: 0.2})
    still = in_images([*images, *clips], "stills")
    # gaps 0 and -0.2: mean -0.1, standard deviation 0.1414, 12.706 * 0.1414 / sqrt(2) = 1.271
    assert gap(clips, still) == "**-10.0%** ± 127.1%" and gap(images, still) == "**+0.0%** ± 0.0%"
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
    write_tables(finished_scores((tmp_path / "runs").iterdir()), tmp_path / "out", {"forget": 0.1})
    assert {s.run for s in read_scores(tmp_path / "out" / "scores.jsonl")} == {"a"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| m | object | v | **0.0%** (100.0% before) | – | **100.0%** (90.0% before) | – | – | 1 |" in table
    assert "asked: forget ≤ 10%" in table
    assert (tmp_path / "out" / "forget_retain.png").stat().st_size > 5000


def test_runs_of_one_seed_are_one_draw():
    """Concepts were chosen, not drawn: what differs between them is no error of the mean."""
    scores = [
        replace(s, concept=concept, run=f"{concept}-{seed}")
        for concept, kept in (("cat", 0.0), ("bus", 0.4))
        for seed in (0, 1)
        for s in rows("", seed, {FORGET: 1.0, RETAIN: 1.0}, {FORGET: kept + 0.1 * seed, RETAIN: 1.0})
    ]
    # means of the seeds 0.2 and 0.3: standard deviation 0.0707, times 12.706 / sqrt(2): 0.635
    assert cells(scores)["forget"] == "**25.0%** ± 63.5% (100.0% before)" and len(pairs(scores, "forget")) == 2
    one = [s for s in scores if s.seed == 0]
    assert cells(one)["forget"] == "**20.0%** (100.0% before)"  # nothing is known of other seeds


def test_runs_that_differ_in_something_unsaid_are_no_repetitions():
    twice = [s for name in ("a", "b") for s in rows(name, 0, {FORGET: 1.0, RETAIN: 1.0}, {FORGET: 0.0, RETAIN: 1.0})]
    assert varied(twice) == {"run": {("a", "v"): "a", ("b", "v"): "b"}}
    assert pooled(twice) == ["what scores do not say"]
    seeds = [*twice[:4], *(replace(s, seed=1) for s in twice[4:])]
    assert varied(seeds) == {} and pooled(seeds) == []
    assert setting_means(seeds).tolist() == [[0.0, 1.0]] and len(setting_means(twice)) == 2


def test_a_run_of_many_concepts_is_one_draw():
    run = [replace(s, concept=c) for c in ("cat", "bus") for s in rows("a", 0, {FORGET: 1.0}, {FORGET: 0.0})]
    run = [replace(s, value=0.4) if (s.concept, s.stage) == ("bus", "after") else s for s in run]
    assert cells(run)["forget"] == "**20.0%** (100.0% before)"
    assert forget_retain(run).shape == (0, 2)  # nothing is known of what it keeps


def test_runs_are_compared_by_what_they_differ_in(tmp_path):
    for shots, left_over in ((2, 0.5), (16, 0.0)):
        for seed in (0, 1):
            made = rows(f"{shots}-{seed}", seed, {FORGET: 1.0, RETAIN: 1.0}, {FORGET: left_over, RETAIN: 0.9})
            write_run(tmp_path / "runs", f"{shots}-{seed}", [replace(s, shots=shots) for s in made])
    write_tables(finished_scores((tmp_path / "runs").iterdir()), tmp_path / "out", {}, by="shots")
    head, _, table = (tmp_path / "out" / "table.md").read_text().partition("By shots")
    table = table.split("By what")[0]
    assert "Means over shots wherever a table has no column of it" in head
    assert table.index("| m | 2 | v | **50.0%**") < table.index("| m | 16 | v | **0.0%**")  # as numbers, not as text
    assert (tmp_path / "out" / "shots.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="by=shot: expected"):
        differing_in(rows("a", 0, {}, {FORGET: 1.0}), "shot")


def test_how_many_concepts_an_edit_has_is_something_runs_differ_in():
    two = [replace(s, concept=c) for c in ("cat", "bus") for s in rows("two", 0, {}, {FORGET: 0.0})]
    assert differing_in([*two, *rows("one", 0, {}, {FORGET: 0.0})], "concepts") == {
        ("two", "v"): "2",
        ("one", "v"): "1",
    }


def test_columns_beyond_the_four_are_there_where_runs_measured_them():
    plain = rows("a", 0, {FORGET: 1.0, RETAIN: 0.9}, {FORGET: 0.0, RETAIN: 0.9})
    more = plain + rows("a", 0, {}, {("retain", "ssim"): 0.8, ("forget", "agreement"): 0.97})
    assert columns_of(plain) == ["forget", "context", "retain", "other sense"]
    assert columns_of(more) == [*columns_of(plain), "agreement", "ssim"]
    assert cells(more)["ssim"] == "**80.0%**" and left(more, "agreement") == 0.97  # nothing to relate them to
    moved = rows("a", 0, {("retain", "motion_amount"): 2.8}, {("retain", "motion_amount"): 2.1})
    assert cells(moved)["motion amount"] == "**75.0%** (2.80 before)"  # of the clips' way, no share


def test_the_smallest_difference_is_what_the_spread_over_seeds_allows():
    made = {"m": (0.0, 0.2), "k": (0.5, 0.9)}
    groups = [
        [replace(s, method=name) for seed, v in enumerate(own) for s in rows(f"{name}{seed}", seed, {}, {FORGET: v})]
        for name, own in made.items()
    ]
    # squared standard errors of the means of two seeds 0.01 and 0.04; t of 2 degrees 4.303 * sqrt(2 * 0.025) = 0.962
    assert smallest_difference(groups, "forget") == pytest.approx(0.9621, abs=1e-3)
    assert math.isnan(smallest_difference([own[:1] for own in groups], "forget"))


def test_overall_is_the_harmonic_mean_of_what_is_forgotten_and_kept():
    def made(seed, forget, context, retain):
        before = {FORGET: 1.0, ("context", "context_accuracy"): 1.0, RETAIN: 0.5}
        return rows(
            f"r{seed}", seed, before, {FORGET: forget, ("context", "context_accuracy"): context, RETAIN: retain}
        )

    assert overall(made(0, 0.5, 1.0, 0.5)) == (pytest.approx(0.75), pytest.approx(math.nan, nan_ok=True))
    assert overall(made(0, 0.0, 1.0, 0.55))[0] == 1.0  # more than before counts as all of it
    assert overall([*made(0, 0.0, 1.0, 0.5), *made(1, 1.0, 1.0, 0.5)])[0] == 0.5  # one of two seeds forgot nothing
    assert overall(rows("a", 0, {FORGET: 1.0}, {FORGET: 0.0})) is None


def test_what_a_setting_repeats_is_no_key_of_its_own():
    def made(steps, setting):
        own = rows(setting or str(steps), 0, {FORGET: 1.0}, {FORGET: 0.0})
        return [replace(s, steps=steps, setting=setting) for s in own]

    assert list(varied([*made(5, "data.steps=5"), *made(9, "data.steps=9")])) == ["steps"]
    assert list(varied([*made(5, "optimizer.lr=1"), *made(5, "optimizer.lr=2")])) == ["setting"]


def test_thirty_methods_are_told_apart_in_a_scatter():
    row = rows("a", 0, {FORGET: 1.0, RETAIN: 1.0}, {FORGET: 0.5, RETAIN: 0.5})
    figure = scatter([replace(s, method=f"m{i}", run=f"r{i}") for i in range(30) for s in row], {})
    lines = [line for line in figure.axes[0].lines if line.get_label().startswith("m")]
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == len(lines) == 30


def test_the_pareto_front_is_of_runs_that_none_beats():
    made = [(0.0, 0.5), (0.1, 0.9), (0.1, 0.8), (0.2, 0.85), (0.3, 1.0)]
    scores = [
        s for i, (f, r) in enumerate(made) for s in rows(f"r{i}", 0, {FORGET: 1.0, RETAIN: 1.0}, {FORGET: f, RETAIN: r})
    ]
    assert pareto(forget_retain(scores)).tolist() == [[0.0, 0.5], [0.1, 0.9], [0.3, 1.0]]
    assert left(scores, "forget") == pytest.approx(0.14) and left(scores, "retain") == pytest.approx(0.81)
    assert left(scores, "other sense") != left(scores, "other sense")  # NaN


@pytest.fixture
def ended_sweep(tmp_path, monkeypatch):
    """Ends a sweep of one done and one failed job as Hydra does, with these arguments: its exit code."""
    config = OmegaConf.create(
        {"runs": str(tmp_path / "runs"), "cache": str(tmp_path / "cache"), "slug": "claims", "objectives": []}
    )
    folder = tmp_path / "runs" / "claims"
    for name in ("old", "new"):
        write_run(folder, name, rows(name, 0, {FORGET: 1.0, RETAIN: 1.0}, {FORGET: 0.0, RETAIN: 0.9}))
    write_text(folder / "jobs" / "000009.json", '{"overrides": [], "folder": "", "error": "of an earlier sweep"}')

    def end(*arguments, by="", error="no shots", objectives=()):
        config.objectives = list(objectives)
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        callbacks = Callbacks()
        callbacks.callbacks = [Sweep(str(tmp_path / "out"), by=by)]
        callbacks.on_multirun_start(config=config, config_name="train")
        jobs = [
            {"folder": str(folder / "new"), "error": ""},
            {"folder": "" if error else str(folder / "new"), "error": error},
        ]
        for number, job in enumerate(jobs):
            write_text(folder / "jobs" / f"{number:06}.json", json.dumps({"overrides": [f"seed={number}"], **job}))
        try:
            callbacks.on_multirun_end(config=config, config_name="train")
        except SystemExit as ended:
            return ended.code
        finally:
            callbacks.callbacks[0].lock.close()
        return 0

    return end


def test_a_sweep_tabulates_its_own_jobs_alone_and_ends_with_the_failed_one(ended_sweep, tmp_path, capsys):
    assert ended_sweep("experiment=claims", "launcher=joblib") == 1
    said = capsys.readouterr().err
    assert "1 of 2 runs done" in said and "failed: seed=1: no shots" in said and "earlier" not in said
    assert not (tmp_path / "out").exists(), "a part of an experiment took the place of the whole"
    tables = tmp_path / "runs" / "claims" / "tables"
    assert {s.run for s in read_scores(tables / "scores.jsonl")} == {"new"}
    assert "| m | object | v | **0.0%** (100.0% before) |" in (tables / "table.md").read_text()


def test_where_and_how_a_whole_experiment_runs_is_no_matter_to_its_folder(ended_sweep, tmp_path):
    assert ended_sweep("experiment=claims", "hydra/launcher=joblib", "logger.offline=false", error="") == 0
    assert (tmp_path / "out" / "table.md").is_file()


def test_the_table_of_a_search_has_its_trials_and_no_mean_over_them(ended_sweep, tmp_path):
    assert ended_sweep(objectives=["forget", "retain"], error="") == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| front | `seed` |" in table and "| 0.0% | 90.0% | * | 0 |" in table and "**" not in table


def test_a_sweep_whose_tables_fail_says_so(ended_sweep, capsys):
    assert ended_sweep(by="shot", error="") == 1
    assert "failed: the tables: found by=shot" in capsys.readouterr().err


def test_a_part_of_an_experiment_leaves_its_folder_alone(ended_sweep, tmp_path):
    assert ended_sweep("experiment=claims", "seed=0", error="") == 0
    assert not (tmp_path / "out").exists() and (tmp_path / "runs" / "claims" / "tables" / "table.md").is_file()


def test_the_rows_of_a_part_join_those_of_the_whole(tmp_path, monkeypatch):
    module = runpy.run_path(str(ROOT / "experiments" / "join.py"))
    monkeypatch.setitem(module["join"].__globals__, "ROOT", tmp_path)
    write_text(tmp_path / "conf/experiment/s.yaml", "hydra: {callbacks: {sweep: {folder: experiments/s, by: method}}}")
    worse, better = (
        ({FORGET: 1.0, RETAIN: 1.0}, {FORGET: 0.5, RETAIN: 1.0}),
        ({FORGET: 1.0, RETAIN: 1.0}, {FORGET: 0.0}),
    )
    both = [*rows("old", 0, *worse), *(replace(s, t2v="w") for s in rows("old", 0, *worse))]
    write_scores(tmp_path / "experiments/s/scores.jsonl", [*both, *rows("other", 1, *worse)])
    write_run(tmp_path / "runs", "new", rows("new", 0, *better))  # in one of the two recipients of the old
    write_run(tmp_path / "runs", "more", [replace(s, method="n") for s in rows("more", 0, *better)])
    write_run(tmp_path / "runs", "else", [replace(s, slug="another") for s in rows("else", 2, *better)])
    write_run(tmp_path / "runs", "half", rows("half", 3, *better), "running")
    module["join"]("s", tmp_path / "runs")
    joined = read_scores(tmp_path / "experiments/s/scores.jsonl")
    assert {(s.run, s.t2v) for s in joined} == {("old", "w"), ("other", "v"), ("new", "v"), ("more", "v")}
    assert "| n | object | v | **0.0%** (100.0% before) |" in (tmp_path / "experiments/s/table.md").read_text()
    module["join"]("s", tmp_path / "runs")
    assert read_scores(tmp_path / "experiments/s/scores.jsonl") == joined, "joined twice"
    write_run(tmp_path / "less", "less", [s for s in rows("less", 1, *better) if s.split == "forget"])
    with pytest.raises(ValueError, match="would replace rows without measuring retain accuracy"):
        module["join"]("s", tmp_path / "less")
    assert read_scores(tmp_path / "experiments/s/scores.jsonl") == joined, "rows were lost"
    with pytest.raises(ValueError, match="found no finished run of experiment=s"):
        module["join"]("s", tmp_path / "experiments")


def test_a_second_sweep_of_the_same_name_is_refused(tmp_path):
    config = OmegaConf.create({"runs": str(tmp_path), "cache": str(tmp_path), "slug": "claims"})
    first, second = Sweep(), Sweep()
    first.on_multirun_start(config)
    with pytest.raises(SystemExit, match="another sweep is at work"):
        second.on_multirun_start(config)
    first.lock.close()
    second.on_multirun_start(config)


def test_a_bar_says_whether_less_or_more_is_asked():
    down = ("forget", "second forget", "long forget", "motion seen", "broken", "worst frame", "attack cce")
    assert all(_asked_of(column).endswith("≤") for column in down)
    assert all(_asked_of(column).endswith("≥") for column in ("retain", "agreement", "long retain", "ssim", "near"))
