"""The loss climbs, only the chosen tensors move, the guard rails hold."""

import copy

import pytest
import pytorch_lightning as pl
import torch

from conftest import small_donor
from test_shots import make_shots
from unreel.methods.few_shot import FewShot
from unreel.unlearning import Guard, UnlearningModule

ADAM = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 1e-8}
GUARD = Guard(anchor_weight=1.0, retain_weight=3.0, max_drift=0.2, check_every=2, gone_below=0.05, patience=3, probes=4)
SUBSETS = {
    "all": ["all"], "mlp": ["mlp"], "attention": ["attention"], "mlp_attention": ["mlp", "attention"],
    "mlp_final_attention": ["mlp", "final_attention"], "embeddings": ["embeddings"],
}  # fmt: skip


def train(tmp_path, donor, roles=("mlp", "final_attention"), guard=None, optimizer=ADAM, shots=2, steps=4, **changes):
    data = make_shots(tmp_path, shots=shots, steps=steps, **changes)
    data.make(donor)
    module = UnlearningModule(donor, data, FewShot(bounded=guard is not None), list(roles), optimizer, guard)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    module.finish()
    return module


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_step_raises_the_denoising_error_on_the_same_tuple(tmp_path, prediction_type):
    donor = small_donor(prediction_type, layers=2)
    data = make_shots(tmp_path)
    data.make(donor)
    batch, method, reference = data.batch(0), FewShot(bounded=False), copy.deepcopy(donor.text_encoder)
    before = method.loss(donor, batch, reference)["forget_error"]
    optimizer = torch.optim.SGD(donor.text_encoder.requires_grad_(True).parameters(), lr=1e-2)
    method.loss(donor, batch, reference)["loss"].backward()
    optimizer.step()
    assert method.loss(donor, batch, reference)["forget_error"] > before
    assert all(p.grad is None for module in (donor.unet, donor.vae) for p in module.parameters())


@pytest.mark.parametrize("subset", SUBSETS)
def test_exactly_the_chosen_tensors_move(tmp_path, subset):
    donor = small_donor(layers=3)
    frozen = {name: copy.deepcopy(getattr(donor, name).state_dict()) for name in ("unet", "vae")}
    module = train(tmp_path, donor, SUBSETS[subset])
    moved = set(module.edit({}).tensors)
    unused = {name for name in module.trained if name.endswith("k_proj.bias")}  # softmax does not see a key's bias
    assert moved | unused == set(module.trained) | unused and moved <= set(module.trained)
    for name, before in frozen.items():
        assert all(torch.equal(value, before[key]) for key, value in getattr(donor, name).state_dict().items())


def test_the_same_seed_makes_the_same_edit_and_another_makes_another(tmp_path):
    edits = [train(tmp_path, small_donor(layers=2), seed=seed).edit({}) for seed in (0, 0, 1)]
    assert edits[0].hash == edits[1].hash != edits[2].hash


@pytest.mark.parametrize("shots", [0, 1, 3])
def test_any_number_of_shots_trains(tmp_path, shots):
    assert train(tmp_path, small_donor(layers=2), shots=shots).edit({}).tensors


def test_the_bounded_loss_stops_climbing_where_the_caption_helps_no_more(tmp_path):
    donor = small_donor(layers=2)
    data = make_shots(tmp_path)
    data.make(donor)
    batch, reference = data.batch(0), copy.deepcopy(donor.text_encoder)
    same = FewShot(bounded=True).loss(donor, type(batch)(**{**vars(batch), "forget": batch.anchors}), reference)
    assert float(same["loss"]) == 0


def test_the_trust_region_holds_retained_captions_where_plain_ascent_leaves_it(tmp_path):
    fast = ADAM | {"lr": 3e-2}
    drifts = {}
    for name, guard in (("plain", None), ("guarded", GUARD)):
        module = train(tmp_path, small_donor(layers=2), guard=guard, optimizer=fast, steps=8)
        drifts[name] = module.drift(module.shots.probe(4).retain)
    assert drifts["plain"] > GUARD.max_drift >= drifts["guarded"]


def test_a_training_that_runs_away_ends_with_the_last_good_state(tmp_path):
    module = train(tmp_path, small_donor(layers=2), optimizer=ADAM | {"lr": float("inf")})
    assert "last good state" in module.stopped
    assert all(torch.isfinite(p).all() for p in module.text_encoder.parameters())
