"""Attacks in a run: rows of both sides, the page, one search however often it is killed, and what is refused."""

import json
import shutil

import evaluate
import pytest
import train

from conftest import configured, opened
from test_train import only_run, small_run
from unreel.attacks.cce import CCE
from unreel.attacks.relearn import Relearn
from unreel.columns import column_of
from unreel.figures import attacks
from unreel.overview import write_overview
from unreel.records import must_go
from unreel.results import write_tables
from unreel.scores import read_scores
from unreel.tables import cells, columns_of

CCE_FEW = ["attack.cce.steps=2", "attack.cce.pictures=2", "attack.cce.batch=1"]
FEW = [
    "attack=[paraphrase,cce,relearn_encoder]", "attack.paraphrase.each=1", *CCE_FEW, "attack.relearn_encoder.steps=2",
    "attack.relearn_encoder.looks_at=[0,1]", "attack.relearn_encoder.pictures=2", "attack.relearn_encoder.batch=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def attacked(small_folders, judge_folder, tmp_path_factory):
    """A run with three attacks: (folder of all, run folder, its options)."""
    folder = tmp_path_factory.mktemp("attacked")
    options = [*small_run(small_folders, judge_folder, folder), *FEW, "logger=none"]
    train.main(configured("train", options))
    return folder, only_run(folder), options


def test_an_attack_has_rows_of_the_edited_model_and_of_its_control(attacked):
    _, run, _ = attacked
    rows = {(s.split, s.stage, s.metric): s for s in read_scores(run / "scores.jsonl") if s.split.startswith("attack_")}
    for name in ("paraphrase", "cce", "relearn_encoder"):
        for stage in ("before", "after"):
            seen = rows[f"attack_{name}", stage, "concept_accuracy"]
            success = rows[f"attack_{name}", stage, "success_rate"]
            assert seen.goal == success.goal == "down" and seen.n == 2 and seen.unit == "share"
            assert success.value >= seen.value and bool(seen.edit) == (stage == "after")
    for step in (0, 1, 2):
        assert rows["attack_relearn_encoder", "after", f"step_{step}_concept_accuracy"].n == 2
    plain = next(s for s in read_scores(run / "scores.jsonl") if (s.split, s.stage, s.metric) == (
        "forget", "after", "concept_accuracy"))  # fmt: skip
    assert rows["attack_relearn_encoder", "after", "step_0_concept_accuracy"].value == plain.value
    again = rows.get(("attack_relearn_encoder", "after", "step_0_resurgence"))
    assert again is None or again.value == 0, "N = 0 gives R = 0, or nothing was forgotten and there is none"
    assert not any("clip_score" in metric or "context" in metric for _, _, metric in rows)


def test_what_was_found_is_kept_as_data_and_shown(attacked):
    folder, run, _ = attacked
    assert (run / "attacks" / "cce" / "after_sd15_van_gogh.safetensors").is_file()
    told = json.loads((run / "attacks" / "paraphrase" / "after_sd15_van_gogh.json").read_text())
    assert told["prompts"][0]["plain"] != told["prompts"][0]["attacked"] and not (run / "rendered").exists()
    page = (run / "report.html").read_text()
    assert "Can it be brought back?" in page and page.count("attacked, after") >= 6
    assert told["prompts"][0]["attacked"] in page
    assert (run / "clips" / "animatediff_van_gogh_attack_cce.png").is_file()
    overview = write_overview(folder / "runs" / "train").read_text()
    assert "attack relearn_encoder" in overview and "attack_cce" in overview


def test_every_attack_is_a_column(attacked):
    _, run, _ = attacked
    scores = read_scores(run / "scores.jsonl")
    assert columns_of(scores)[-3:] == ["attack cce", "attack paraphrase", "attack relearn_encoder"]
    assert must_go(column_of("attack cce").split) and "before)" in cells(scores)["attack cce"]
    assert columns_of([s for s in scores if not s.split.startswith("attack_")]) == columns_of(scores)[:-3]


def test_the_figure_of_attacks_shows_what_came_back_beside_the_control(attacked, tmp_path):
    _, run, _ = attacked
    scores = read_scores(run / "scores.jsonl")
    (axis,) = attacks(scores, {"attack cce": 0.25}).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cce", "paraphrase", "relearn_encoder"]

    def seen(stage):
        rows = [s for s in scores if s.stage == stage and s.metric == "concept_accuracy"]
        return [
            next(s.value for s in rows if s.split == f"attack_{name}")
            for name in ("cce", "paraphrase", "relearn_encoder")
        ]

    assert [bar.get_width() for bar in axis.patches] == pytest.approx(seen("after"))
    assert list(axis.lines[-2].get_xdata()) == pytest.approx(seen("before"))
    assert list(axis.lines[-1].get_xdata()) == [0.25, 0.25]
    write_tables(scores, tmp_path, {"attack cce": 0.25})
    assert (tmp_path / "attacks.png").stat().st_size > 1000
    write_tables([s for s in scores if not s.split.startswith("attack_")], tmp_path / "plain", {})
    assert not (tmp_path / "plain" / "attacks.png").exists()


def test_a_killed_run_does_not_search_twice(attacked, monkeypatch):
    """Its status is all that is lost; trained weights are not kept in finished runs, so that these are left out."""
    _, run, options = attacked
    before = read_scores(run / "scores.jsonl")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "status": "stopped"}))
    monkeypatch.setattr(CCE, "search", None)
    searched, own = [], Relearn.search
    monkeypatch.setattr(Relearn, "search", lambda self, target: searched.append(target.edited) or own(self, target))
    train.main(configured("train", options))
    assert searched == [True], "the control was searched again"
    kept = [(s.stage, s.split, s.metric, s.value, s.clips) for s in before]
    assert sorted(kept) == sorted(
        (s.stage, s.split, s.metric, s.value, s.clips) for s in read_scores(run / "scores.jsonl")
    )


def test_runs_of_other_seeds_share_the_searches_on_unedited_models(attacked, monkeypatch):
    _, _, options = attacked
    searched, own = [], CCE.search
    monkeypatch.setattr(
        CCE, "search", lambda self, target: searched.append((target.edited, target.seed)) or own(self, target)
    )
    kept = [option for option in options if not option.startswith("attack")]
    train.main(configured("train", [*kept, "attack=[cce]", *CCE_FEW, "seed=7"]))
    assert searched == [(True, 7)]


def test_a_saved_edit_is_attacked_on_any_recipient(attacked):
    folder, run, options = attacked
    own = [o for o in options if o.startswith(("t2v", "judge", "runs", "cache", "device"))]
    edit = shutil.copy(run / "edit.safetensors", folder / "edit.safetensors")
    evaluate.main(configured("evaluate", [*own, f"edit={edit}", "attack=[cce]", *CCE_FEW, "logger=none"]))
    scores = read_scores(only_run(folder, "evaluate") / "scores.jsonl")
    found = {s.stage for s in scores if (s.split, s.metric) == ("attack_cce", "concept_accuracy")}
    assert found == {"before", "after"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["attack=cce", "attack.cce.steps=0"], "found attack.cce.steps=0: expected greater than or equal to 1"),
        (["attack=cce", "attack.cce.steps=-3"], "found attack.cce.steps=-3"),
        (["attack=cce", "attack.cce.steps=1000000"], "expected less than or equal to 100000"),
        (["attack=cce", "+attack.cce.nonsense=1"], "CCE has no such setting"),
        (["attack=cce", "attack.cce.lr=.nan"], "attack.cce.lr"),
        (["attack=[cce,p4d]", "attack.p4d.every=0"], "found attack.p4d.every=0: expected greater than 0"),
        (["attack=[cce]", "method=safree"], "attack cce searches in the weights of a model, but safree changes none"),
        (["attack=[relearn_both]", "method=negative_prompt"], "negative_prompt changes none"),
        (["attack=paraphrase", "attack.paraphrase.path=/nowhere"], "/nowhere is no file"),
        (["attack=paraphrase", "attack.paraphrase.kinds=[anagram]"], "attack.paraphrase.kinds"),
        (["attack=ring_a_bell", "attack.ring_a_bell.crossover=2"], "crossover=2.*expected a chance"),
        (["attack=relearn_encoder", "attack.relearn_encoder.captions=all"], "expected 'near', 'far' or 'unrelated'"),
    ],
)
def test_what_cannot_be_attacked_is_said_at_the_door(overrides, says, tmp_path):
    config = configured("train", ["concept=drum", "logger=none", f"runs={tmp_path}", f"cache={tmp_path}", *overrides])
    with pytest.raises(Exception, match=says) as caught:
        opened(config)
    from unreel.cli import one_line

    assert one_line(caught.value)
