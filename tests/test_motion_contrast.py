"""Motion contrast: what the order of frames tells is unlearned, and nothing where order tells nothing."""

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from conftest import configured
from test_shots import make_shots, sizes
from test_videos import clips_in
from unreel.batches import Batches, Step
from unreel.door import built
from unreel.methods.method import Task
from unreel.methods.motion_contrast import MotionContrast
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion

ROLES = ["mlp", "final_attention"]


def make_method(control="still", lr=1e-3, **changes):
    data = sizes(**dict(steps=3, pairs=0, retain=0) | changes)
    return MotionContrast(name="motion_contrast", control=control, optimizer={"lr": lr}, data=data, guard=None)


def trainer(steps, callbacks):
    return pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip


def started(method, folder, images=None, model=None, order=None):
    """The model, its batches, and what `prepare` made of them; `order`: another than the method's own."""
    model = model or ModelScope.tiny()
    shots = make_shots(folder, shots=2, images=images)
    shots.make(model)
    batches = Batches(model, shots.captions, shots, method.data, 0)
    reference = model.reference(["text_encoder"])
    prepared = method.prepare(reference, Task(shots.captions, ROLES, 0, shots, trainer), batches)
    return model, reference, batches, prepared


@pytest.mark.parametrize("frames", [2, 3, 8, 16])
def test_orders(frames):
    assert make_method("reversed").order(frames, 0) == list(range(frames))[::-1]
    assert make_method("still").order(frames, 0) == [frames // 2] * frames
    for seed in range(5):
        shuffled = make_method("shuffled").order(frames, seed)
        assert sorted(shuffled) == list(range(frames)) and all(k != i for i, k in enumerate(shuffled))


@pytest.mark.parametrize("table", [None, 4])
@pytest.mark.parametrize("control", ["still", "reversed"])
def test_clips_that_stand_still_have_nothing_to_unlearn(tmp_path, control, table):
    for name in ("a", "b"):
        Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / f"{name}.png")
    method = make_method(control, table=table)
    model, reference, batches, prepared = started(method, tmp_path / "cache", images=tmp_path)
    scalars = method.loss(Step(model, reference, batches.batch(0), prepared))
    assert float(scalars["gain"]) == pytest.approx(float(scalars["control_gain"]), abs=1e-5)
    assert float(scalars["loss"]) < 1e-5


@pytest.mark.parametrize("table", [None, 4])
def test_a_step_takes_the_gain_of_order_away(tmp_path, table):
    clips_in(tmp_path / "clips", 2)
    method = make_method(table=table)
    model, reference, batches, prepared = started(method, tmp_path / "cache", images=tmp_path / "clips")
    encoder = model.components["text_encoder"].requires_grad_(True)
    found = []
    for number in range(16):  # a batch in which the order does tell something
        scalars = method.loss(Step(model, reference, batches.batch(number), prepared))
        if scalars["loss"] > 0:
            break
    scalars["loss"].backward()
    for scale in (0.0, 1.0):
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.grad is not None:
                    parameter -= scale * 1e-2 * parameter.grad / (parameter.grad.norm() + 1e-12)
        again = method.loss(Step(model, reference, batches.batch(number), prepared))
        found.append(float(again["gain"] - again["control_gain"]))
    assert found[1] < found[0] and scalars["loss"] > 0


def test_the_anchors_errors_of_a_table_are_those_of_its_steps(tmp_path):
    clips_in(tmp_path / "clips", 2)
    with_table, without = make_method(table=4), make_method()
    model, reference, batches, prepared = started(with_table, tmp_path / "cache", images=tmp_path / "clips")
    bare = started(without, tmp_path / "cache", images=tmp_path / "clips", model=model)[3]
    for number in range(3):
        batch = batches.batch(number)
        known, afresh = (
            method.loss(Step(model, reference, batch, given))
            for method, given in ((with_table, prepared), (without, bare))
        )
        assert float(known["loss"]) == pytest.approx(float(afresh["loss"]), abs=1e-5)
    assert batches.chances is not None and (batches.chances >= 0).all()


def test_the_same_frames_stand_in_the_other_order(tmp_path):
    """The latents of x0' are those of the frames of x0, each where the order puts it."""
    clips_in(tmp_path / "clips", 2)
    method, model = make_method("shuffled"), ModelScope.tiny()
    with torch.no_grad():  # a posterior without noise
        model.components["vae"].quant_conv.weight[4:] = 0
        model.components["vae"].quant_conv.bias[4:] = -60
    model, _, batches, prepared = started(method, tmp_path / "cache", images=tmp_path / "clips", model=model)
    batch, order = batches.batch(0), method.order(model.num_frames, 0)
    moved = batch.latents[:, :, order]
    assert torch.allclose(prepared.of(batch).latents, moved, atol=1e-4)
    assert not torch.allclose(batch.latents, moved, atol=1e-4)
    assert prepared.of(batch).forget == batch.forget and torch.equal(prepared.of(batch).noise, batch.noise)


def test_it_asks_for_a_video_model_and_for_shots():
    with pytest.raises(ValueError, match="learns from clips, and tiny_stable_diffusion makes images: expected a video"):
        make_method().check(StableDiffusion.tiny(), ROLES)
    with pytest.raises(ValueError, match="shots=0 for motion_contrast"):
        make_method().most_steps(1, 0)
    config = configured("train", ["method=motion_contrast", "concept=spinning", "t2i=zoo_unet3d"])
    built(config.method).check(ModelScope.tiny(), list(config.parameters.roles))
    with pytest.raises(ValueError, match="control"):
        make_method("backwards")
