"""Edits that are added, in whole runs: one on top of another, several scored as one."""

import evaluate
import pytest
import train

from conftest import configured
from test_train import animatediff, modelscope, only_run, small_run
from unreel import Edit
from unreel.edits import load_sum
from unreel.erased import made_with
from unreel.metadata import MadeWith
from unreel.scores import read_scores


def quick(folders, judge_folder, tmp_path, slug, *more):
    """A run of a few seconds; its folder."""
    options = [o for o in small_run(folders, judge_folder, tmp_path) if "method." not in o and "checkpoint" not in o]
    train.main(configured("train", [*options, "method=anchored", "method.data.steps=2", "logger=none", "export=[]",
                                    f"slug={slug}", *more]))  # fmt: skip
    return only_run(tmp_path, slug)


def evaluated(folders, judge_folder, tmp_path, edit):
    """The folder of a run of evaluate.py."""
    evaluate.main(configured("evaluate", [
        f"edit={edit}", "t2v=animatediff", *animatediff(folders), f"judge.model=local-dir:{judge_folder}",
        "judge.pretrained=null", "logger=none", "device=cpu", f"runs={tmp_path / 'runs'}",
        f"cache={tmp_path / 'cache'}",
    ]))  # fmt: skip
    return only_run(tmp_path, "evaluate")


def test_a_concept_is_added_to_an_edited_model_and_both_are_scored_on_the_unedited_one(
    small_folders, judge_folder, tmp_path
):
    given = small_folders, judge_folder, tmp_path
    first = quick(*given, "first")
    second = quick(*given, "second", "concept=drum", f"onto={first / 'edit.safetensors'}", "evaluation.at_steps=[1]")
    one, both = (Edit.load(run / "edit.safetensors") for run in (first, second))
    assert both.base == one.base and both.hash != one.hash, "it belongs to the unedited weights"
    assert [list(part["config"]["concept"]) for part in both.provenance["parts"]] == [["van_gogh"], ["drum"]]
    rows = read_scores(second / "scores.jsonl")
    assert {row.concept for row in rows} == {"drum"} and {row.stage for row in rows} == {"before", "step_1", "after"}
    assert {row.edit for row in rows if row.stage == "after"} == {both.hash}
    run = evaluated(*given, second / "edit.safetensors")
    rows = read_scores(run / "scores.jsonl")
    assert {row.concept for row in rows} == {"van_gogh", "drum"} and {row.method for row in rows} == {"anchored"}
    assert {row.edit for row in rows if row.stage == "after"} == {both.hash}


def test_a_recipient_that_is_trained_itself_on_top_of_an_edit_can_be_looked_at(small_folders, judge_folder, tmp_path):
    own = [o for o in small_run(small_folders, judge_folder, tmp_path) if not o.startswith(("method.", "t2v"))]
    own += ["method=esd", "method.trajectories=2", "method.num_inference_steps=2", "method.data.steps=2",
            "t2v=modelscope", *modelscope(small_folders), "logger=none", "export=[]"]  # fmt: skip
    train.main(configured("train", [*own, "slug=first"]))
    onto = only_run(tmp_path, "first") / "edit.safetensors"
    train.main(configured("train", [*own, "slug=second", "concept=drum", "evaluation.at_steps=[1]", f"onto={onto}"]))
    rows = read_scores(only_run(tmp_path, "second") / "scores.jsonl")
    assert {row.concept for row in rows} == {"drum"} and {row.stage for row in rows} == {"before", "step_1", "after"}


def test_several_edits_are_scored_as_their_sum(small_folders, judge_folder, tmp_path):
    given = small_folders, judge_folder, tmp_path
    first = quick(*given, "first", "parameters=mlp")
    second = quick(*given, "second", "concept=drum", "parameters=attention")
    files = [str(run / "edit.safetensors") for run in (first, second)]
    both = load_sum(files)
    said = made_with(both.provenance, MadeWith)
    assert list(said.concept) == ["van_gogh", "drum"] and said.parameters.name == "mlp+attention"
    run = evaluated(*given, f"[{','.join(files)}]")
    assert Edit.load(run / "edit.safetensors").hash == both.hash
    rows = read_scores(run / "scores.jsonl")
    assert {row.concept for row in rows if row.stage == "after"} == {"van_gogh", "drum"}
    same = quick(*given, "third", "concept=drum", "parameters=mlp")
    with pytest.raises(SystemExit, match=r"cannot be added: in the text encoder both change"):
        evaluated(*given, f"[{files[0]},{same / 'edit.safetensors'}]")
