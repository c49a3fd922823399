"""The loss climbs, only the chosen tensors move, the guard rails hold."""

import copy
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch

from conftest import small_donor
from test_shots import VOCABULARY, make_shots
from unreel.cache import TensorCache
from unreel.concepts import Surroundings, TrainingCaptions, to_concept
from unreel.donors import Donor
from unreel.methods.few_shot import FewShot
from unreel.shots import Embeds, Shots
from unreel.unlearning import Guard, UnlearningModule
from unreel.zoo.store import verified

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
    batch, reference = data.batch(0), copy.deepcopy(donor.text_encoder)

    def scalars():
        return FewShot(bounded=False).loss(donor, batch, Embeds(donor, batch, reference))

    before = scalars()["forget_error"]
    optimizer = torch.optim.SGD(donor.text_encoder.requires_grad_(True).parameters(), lr=1e-2)
    scalars()["loss"].backward()
    optimizer.step()
    assert scalars()["forget_error"] > before
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
    same = replace(batch, forget=batch.anchors)
    scalars = FewShot(bounded=True).loss(donor, same, Embeds(donor, same, reference))
    assert float(scalars["loss"]) == 0


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


def test_evidence_tells_which_of_two_concepts_the_donor_still_knows(tmp_path):
    """On the zoo's own donor: an edit of van Gogh takes the evidence of van Gogh, and leaves that of the drum."""
    painter = to_concept("van_gogh", {"kind": "style", "name": "van gogh"})
    drum = to_concept("drum", {"kind": "object", "name": "drum"})
    surroundings = Surroundings(VOCABULARY, [painter, drum], False)

    def module_of(donor, *concepts):
        captions = [TrainingCaptions(concept, surroundings) for concept in concepts]
        data = Shots(
            captions, shots=2, steps=24, epochs=None, batch=4, pairs=4, retain=8, seed=0, cache=TensorCache(tmp_path)
        )
        data.make(donor)
        return data, UnlearningModule(
            donor, data, FewShot(bounded=True), ["mlp"], ADAM, replace(GUARD, check_every=99, probes=16)
        )

    donor = Donor.load(verified("t2i"), num_inference_steps=20, guidance_scale=4.0)
    data, module = module_of(donor, painter)
    assert module.evidence() == [1.0]
    trainer = pl.Trainer(
        max_steps=24, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    _, both = module_of(Donor.load(verified("t2i"), num_inference_steps=20, guidance_scale=4.0), painter, drum)
    both.text_encoder.load_state_dict(module.text_encoder.state_dict())
    of_painter, of_drum = both.evidence()
    assert of_painter < 0.3 and of_drum > 0.7
