"""A method of two members: each part goes where its component is held, and is made once."""

import pytest
import train
from diffusers import AnimateDiffPipeline

from conftest import configured
from test_contracts import small_method
from test_train import modelscope, only_run, small_run
from unreel import Edit
from unreel.door import built
from unreel.models.animatediff import AnimateDiff, tiny_adapter
from unreel.models.stable_diffusion import StableDiffusion, tiny_parts, tiny_pipeline
from unreel.scores import read_scores
from unreel.sharing import plan


@pytest.fixture
def partnered():
    """The method with two steps of each of its members, and its roles."""
    return small_method("few_shot_partnered")


def test_each_part_of_a_partnered_method_goes_where_its_component_is_held(partnered):
    method, roles = partnered
    donor = StableDiffusion.of(tiny_pipeline(), name="donor")
    animated = AnimateDiff.of(AnimateDiffPipeline(**tiny_parts(), motion_adapter=tiny_adapter()), name="animated")
    other = StableDiffusion.of(tiny_pipeline(), name="other")  # the same text encoder, another UNet
    other.components["denoiser"].conv_in.bias.data.add_(1)
    shares = plan(donor, [animated, other], method, roles)
    assert [(share.maker.name, [r.name for r in share.recipients]) for share in shares] == [
        ("donor", ["animated"]), ("other", ["other"]),
    ]  # fmt: skip
    assert [[maker.name for maker in share.makers] for share in shares] == [["donor"] * 2, ["donor", "other"]]


def test_a_partnered_run_trains_the_encoder_once_and_gives_each_recipient_both_parts(
    small_folders, judge_folder, tmp_path
):
    options = [o for o in small_run(small_folders, judge_folder, tmp_path) if "method." not in o]
    train.main(configured("train", [
        *options, "method=few_shot_partnered", "method.encoder.data.steps=2", "method.encoder.guard.check_every=1",
        "method.denoiser.data.steps=2", "method.denoiser.pictures=2", "method.denoiser.kept=2",
        "method.encoder.guard.gone_below=-9", "logger=none", "export=[transformers,pipeline]",
        "t2v=[animatediff,modelscope]", *modelscope(small_folders),
    ]))  # fmt: skip
    run = only_run(tmp_path)
    shared, own = (Edit.load(folder / "edit.safetensors") for folder in (run, run / "edits" / "modelscope"))
    assert shared.components == own.components == ("text_encoder", "denoiser")
    encoders = [{n: t for n, t in e.tensors.items() if n.startswith("text_encoder/")} for e in (shared, own)]
    assert encoders[0].keys() == encoders[1].keys()
    assert all(encoders[0][n].equal(encoders[1][n]) for n in encoders[0]), "it was trained twice"
    pipeline = tiny_pipeline(layers=12)
    shared.apply(pipeline)
    assert (run / "unet").is_dir() and (run / "pipeline" / "animatediff").is_dir()
    assert {row.edit for row in read_scores(run / "scores.jsonl") if row.stage == "after"} == {shared.hash, own.hash}


def test_a_partner_of_the_wrong_component_is_refused():
    said = {"denoiser": "few_shot, which edits text_encoder", "encoder": "uce, which edits denoiser"}
    for member, says in said.items():
        other = configured("train", ["concept=drum", f"method={says.split(',')[0]}"]).method
        config = configured("train", ["concept=drum", "method=few_shot_partnered"])
        config.method[member] = other
        with pytest.raises(Exception, match=says):
            built(config.method)


def test_clips_during_the_training_of_several_parts_are_refused_before_any_work(small_folders, judge_folder, tmp_path):
    options = [
        o for o in small_run(small_folders, judge_folder, tmp_path) if "method." not in o and "at_steps" not in o
    ]
    with pytest.raises(SystemExit, match=r"at_steps=\[20\] for few_shot_partnered, whose parts are trained one after"):
        train.main(configured("train", [*options, "method=few_shot_partnered", "evaluation.at_steps=[20]"]))
    assert not list((tmp_path / "runs").rglob("edit.safetensors"))
