"""A new generation of video models starts from the shipped ones, and changes nothing else."""

import json

import pytest
import torch
from diffusers import (
    LatteTransformer3DModel,
    MotionAdapter,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from safetensors.torch import load_file

from conftest import configured
from unreel.zoo import store
from unreel.zoo.pretrain import STAGES
from unreel.zoo.shipped import unpack

FEW = [
    "precision=32-true", "accelerator=cpu", "drawings.count=16", "drawings.harder=0.35", "latents.clips=16",
    "motion.steps=1", "motion.batch=1", "motion.stills=0", "unet3d.steps=1", "unet3d.batch=1", "unet3d.stills=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder of shipped models, in which both video models learned one step more."""
    folder = tmp_path_factory.mktemp("zoo") / "second"
    unpack(folder)
    cfg = configured("zoo", [f"work={folder}", f"init_from={folder}/before", *FEW])
    for name in ("latents", "motion", "unet3d"):
        STAGES[name](cfg)
    return folder


def difference(folder, kind, shipped):
    """The largest difference of any weight from the shipped ones."""
    new, old = kind.from_pretrained(folder).state_dict(), kind.from_pretrained(shipped).state_dict()
    return max(float((new[name] - old[name].float()).abs().max()) for name in old)


def test_video_models_learn_on_from_the_shipped_weights(work):
    models = store.MODELS
    for folder, kind, shipped in (
        (work / "motion" / "motion_adapter", MotionAdapter, models / "motion_adapter"),
        (work / "unet3d" / "model", UNet3DConditionModel, models / "unet3d"),
    ):
        assert 0 < difference(folder, kind, shipped) < 2e-3, "one step of Adam away"
    for name, shipped in (("motion", "motion_adapter"), ("unet3d", "unet3d")):
        before = json.loads((models / shipped / "training.json").read_text())[name]
        record = json.loads((work / name / "training.json").read_text())
        assert record["steps"] == 1 and record["before"]["steps"] == before["steps"]


def test_a_mean_with_the_earlier_weights_is_as_near_to_them_as_its_share_says(work):
    """Of a stage that is finished already: nothing is trained anew."""
    whole = difference(work / "unet3d" / "model", UNet3DConditionModel, store.MODELS / "unet3d")
    record = json.loads((work / "unet3d" / "training.json").read_text())
    STAGES["unet3d"](configured("zoo", [f"work={work}", f"init_from={work}/before", *FEW, "unet3d.share=0.25"]))
    near = difference(work / "unet3d" / "model", UNet3DConditionModel, store.MODELS / "unet3d")
    assert near == pytest.approx(whole / 4, rel=0.01)
    mean = json.loads((work / "unet3d" / "training.json").read_text())
    assert mean == record | {"mean_with": {"share": 0.75, "steps": record["before"]["steps"]}}
    STAGES["unet3d"](configured("zoo", [f"work={work}", f"init_from={work}/before", *FEW]))
    assert difference(work / "unet3d" / "model", UNet3DConditionModel, store.MODELS / "unet3d") == whole
    assert json.loads((work / "unet3d" / "training.json").read_text()) == record, "it is no mean any more"


def test_without_stills_the_image_model_stays_as_it_is(work):
    assert difference(work / "motion" / "unet", UNet2DConditionModel, store.MODELS / "t2i" / "unet") == 0


def test_the_vae_keeps_its_scale(work):
    scales = [
        json.loads((folder / "config.json").read_text())["scaling_factor"]
        for folder in (work / "vae" / "model", store.MODELS / "t2i" / "vae")
    ]
    assert scales[0] == scales[1]
    latents = load_file(work / "latents.safetensors")["latents"].float() * scales[0]
    assert 0.7 < float(latents.std()) < 1.3 and torch.isfinite(latents).all()


def test_latte_learns_on_from_the_shipped_pixart(work):
    STAGES["latte"](configured("zoo", [f"work={work}", *FEW, "latte.steps=1", "latte.batch=1", "latte.stills=1"]))
    new = LatteTransformer3DModel.from_pretrained(work / "latte" / "model").state_dict()
    old = PixArtTransformer2DModel.from_pretrained(store.MODELS / "pixart" / "transformer").state_dict()
    assert 0 < max(float((new[name] - old[name].float()).abs().max()) for name in old) < 2e-3, "one step of Adam away"


def test_a_work_folder_in_use_is_refused(work):
    with pytest.raises(ValueError, match=r"found .*second: expected a work folder that is not there yet"):
        unpack(work)
