"""The loss climbs, only the chosen tensors move, the guard rails hold."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from conftest import configured, small_model
from test_shots import VOCABULARY, make_shots, sizes
from unreel.batches import Batches, Step
from unreel.cache import TensorCache
from unreel.captions import TrainingCaptions
from unreel.concepts import to_concept
from unreel.door import built
from unreel.methods.few_shot import FewShot
from unreel.methods.gradient import ErasureModule, LookAtDonor
from unreel.methods.guard import Guard, GuardRails, distance
from unreel.methods.method import Task
from unreel.models.cogvideox import CogVideoX
from unreel.models.model import Conditioning
from unreel.models.pixart import PixArt
from unreel.models.stable_diffusion import StableDiffusion
from unreel.sharing import plan
from unreel.shots import Shots
from unreel.vocabulary import Surroundings
from unreel.zoo.store import verified

ADAM = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 1e-8}
GUARD = Guard(anchor_weight=1.0, retain_weight=3.0, max_drift=0.2, check_every=2, gone_below=0.05, patience=3, probes=4)
SUBSETS = {
    "all": ["all"], "mlp": ["mlp"], "attention": ["attention"], "mlp_attention": ["mlp", "attention"],
    "mlp_final_attention": ["mlp", "final_attention"], "embeddings": ["embeddings"],
}  # fmt: skip


def few_shot(guard=None, optimizer=ADAM, **changes):
    data, ascent = sizes(**changes), "bounded" if guard else "unbounded"
    return FewShot(name="few_shot", ascent=ascent, optimizer=optimizer, data=data, guard=guard)


def trainer_of(steps, callbacks):
    return pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip


def task_of(tmp_path, model, roles=("mlp", "final_attention"), **options):
    shots = make_shots(tmp_path, **options)
    shots.make(model)
    return Task(shots.captions, list(roles), shots.seed, shots, trainer_of)


def train(tmp_path, model, roles=("mlp", "final_attention"), guard=None, optimizer=ADAM, shots=2, seed=0, **changes):
    """The module after its training, with the trained weights in the model."""
    task = task_of(tmp_path, model, roles, shots=shots, seed=seed)
    module = ErasureModule(few_shot(guard, optimizer, **changes), model, task)
    clock = DataLoader(torch.arange(module.batches.steps), batch_size=None)
    trainer_of(module.batches.steps, [LookAtDonor()]).fit(module, clock)
    module.finish()
    return module


def step_of(tmp_path, model):
    shots = make_shots(tmp_path)
    shots.make(model)
    batch = Batches(model, shots.captions, shots, sizes(), 0).batch(0)
    return Step(model, model.reference(["text_encoder"]), batch)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_step_raises_the_denoising_error_on_the_same_tuple(tmp_path, prediction_type):
    model = small_model(prediction_type, layers=2)
    step, plain = step_of(tmp_path, model), few_shot()

    def scalars():
        return plain.loss(Step(model, step.reference, step.batch))

    before, encoder = scalars()["forget_error"], model.components["text_encoder"]
    optimizer = torch.optim.SGD(encoder.requires_grad_(True).parameters(), lr=1e-2)
    scalars()["loss"].backward()
    optimizer.step()
    assert scalars()["forget_error"] > before
    assert all(p.grad is None for key in ("denoiser", "vae") for p in model.components[key].parameters())


def test_erasing_returns_the_change_and_leaves_the_model_as_it_was(tmp_path):
    model = small_model(layers=2)
    before = {key: copy.deepcopy(module.state_dict()) for key, module in model.components.items()}
    edit = few_shot().erase(model, task_of(tmp_path, model))
    assert edit.tensors and edit.method == "few_shot" and edit.provenance["facts"]["steps"] == 4
    for key, module in model.components.items():
        assert all(torch.equal(value, before[key][name]) for name, value in module.state_dict().items())
        assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("subset", SUBSETS)
def test_exactly_the_chosen_tensors_move(tmp_path, subset):
    model = small_model(layers=3)
    frozen = {name: copy.deepcopy(model.components[name].state_dict()) for name in ("denoiser", "vae")}
    module = train(tmp_path, model, SUBSETS[subset])
    moved = set(module.edit().tensors)
    unused = {name for name in module.trained if name.endswith("k_proj.bias")}  # softmax does not see a key's bias
    assert moved | unused == set(module.trained) | unused and moved <= set(module.trained)
    for name, before in frozen.items():
        assert all(torch.equal(value, before[key]) for key, value in model.components[name].state_dict().items())


def test_the_same_seed_makes_the_same_edit_and_another_makes_another(tmp_path):
    edits = [train(tmp_path, small_model(layers=2), seed=seed).edit() for seed in (0, 0, 1)]
    assert edits[0].hash == edits[1].hash != edits[2].hash


@pytest.mark.parametrize("shots", [0, 1, 3])
def test_any_number_of_shots_trains(tmp_path, shots):
    assert train(tmp_path, small_model(layers=2), shots=shots).edit().tensors


def test_without_ascent_the_shots_do_not_matter_and_without_guard_rails_nothing_would_train(tmp_path):
    def edit_of(shots_seed):
        model = small_model(layers=2)
        task = task_of(tmp_path, model)
        for latents in task.shots.latents:
            latents += shots_seed
        guard = replace(GUARD, check_every=4)
        return replace(few_shot(guard, steps=4), ascent="none").erase(model, task)

    one, other = edit_of(0.0), edit_of(1.0)
    assert one.tensors and one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    with pytest.raises(ValueError, match="ascent=none without guard rails"):
        replace(few_shot(), ascent="none")
    with pytest.raises(ValueError, match=r"(?s)ascent.*'unbounded', 'bounded' or 'none'.*'up'"):
        replace(few_shot(), ascent="up")


def test_the_bounded_loss_stops_climbing_where_the_caption_helps_no_more(tmp_path):
    model = small_model(layers=2)
    step = step_of(tmp_path, model)
    same = Step(model, step.reference, replace(step.batch, forget=step.batch.anchors))
    assert float(few_shot(GUARD).loss(same)["loss"]) == 0


def test_the_trust_region_holds_retained_captions_where_plain_ascent_leaves_it(tmp_path):
    fast = ADAM | {"lr": 3e-2}
    drifts = {}
    for name, guard in (("plain", None), ("guarded", GUARD)):
        module = train(tmp_path, small_model(layers=2), guard=guard, optimizer=fast, steps=8)
        rails = GuardRails(GUARD, module.model, module.reference, module.batches)
        drifts[name] = rails.drift()
    assert drifts["plain"] > GUARD.max_drift >= drifts["guarded"]


def test_a_training_that_runs_away_ends_with_the_last_good_state(tmp_path):
    module = train(tmp_path, small_model(layers=2), optimizer=ADAM | {"lr": 1e30})
    assert "last good state" in module.stopped
    assert all(torch.isfinite(p).all() for p in module.trained.values())


def test_evidence_tells_which_of_two_concepts_the_donor_still_knows(tmp_path):
    """On the zoo's own donor: an edit of van Gogh takes the evidence of van Gogh, and leaves that of the drum."""
    painter = to_concept("van_gogh", {"kind": "style", "name": "van gogh"})
    drum = to_concept("drum", {"kind": "object", "name": "drum"})
    surroundings = Surroundings(VOCABULARY, [painter, drum], False)

    def module_of(*concepts):
        model = StableDiffusion(verified("t2i"), num_inference_steps=20, guidance_scale=4.0)
        shots = Shots([TrainingCaptions(c, surroundings) for c in concepts], 2, 0, TensorCache(tmp_path))
        shots.make(model)
        guard = replace(GUARD, check_every=99, probes=16)
        method = few_shot(guard, steps=24, batch=4, pairs=4, retain=8)
        return ErasureModule(method, model, Task(shots.captions, ["mlp"], 0, shots, trainer_of))

    alone, both = module_of(painter), module_of(painter, drum)
    assert alone.rails.evidence() == [1.0]
    trainer_of(24, []).fit(alone, DataLoader(torch.arange(24), batch_size=None))
    both.restore(alone.state())
    of_painter, of_drum = both.rails.evidence()
    assert of_painter < 0.3 and of_drum > 0.7


def test_what_is_rendered_at_a_step_is_what_the_trust_region_left(tmp_path):
    model, drifts = small_model(layers=2), []

    class Render(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step % GUARD.check_every == 0:
                drifts.append(module.rails.drift())

    task = replace(task_of(tmp_path, model), trainer=lambda steps, callbacks: trainer_of(steps, [*callbacks, Render()]))
    few_shot(GUARD, ADAM | {"lr": 3e-2}, steps=4).erase(model, task)
    assert len(drifts) == 2 and max(drifts) <= GUARD.max_drift


def test_over_a_table_the_anchors_errors_are_computed_once_and_steps_see_where_the_name_helps(tmp_path, monkeypatch):
    model, method = small_model(layers=2), few_shot(GUARD, steps=4, table=6)
    module = ErasureModule(method, model, task_of(tmp_path, model))
    batches, table = module.batches, module.batches.table
    assert module.prepared.anchor_errors.shape == (6,) and batches.chances.shape == (6,) and batches.chances.min() >= 0
    chances = np.array([0.0, 1.0, 0.0, 3.0, 0.0, 0.0])
    batches.chances = chances
    seen = [batches.batch(step) for step in range(40)]
    assert {i for batch in seen for i in batch.entries} == {1, 3}
    assert sum(batch.entries.count(3) for batch in seen) > sum(batch.entries.count(1) for batch in seen)
    batch = seen[7]
    assert (
        torch.equal(batch.latents, table.latents[batch.entries]) and batch.forget[0] == table.forget[batch.entries[0]]
    )
    assert batches.batch(7).forget == batch.forget and batch.share(1, 2).entries == batch.entries[1::2]
    step, fresh = Step(model, module.reference, batch, module.prepared), Step(model, module.reference, batch)
    assert torch.allclose(method.loss(step)["anchor_error"], method.loss(fresh)["anchor_error"], atol=1e-5)
    batches.chances = np.zeros(6)  # a concept that the donor does not know by its name
    assert {i for step in range(40) for i in batches.batch(step).entries} == set(range(6))


def test_more_concepts_than_a_batch_holds_get_more_steps_and_more_looks(tmp_path):
    guarded, plain = few_shot(GUARD, steps=4, batch=2), few_shot(steps=4, batch=2)
    assert [guarded.most_steps(concepts, 2) for concepts in (1, 2, 3, 5)] == [4, 4, 8, 12]
    assert plain.most_steps(5, 2) == 4, "as published"
    model = small_model(layers=2)
    task = task_of(tmp_path, model)
    three = replace(task, captions=[task.captions[0]] * 3, shots=None)
    module = ErasureModule(replace(guarded, ascent="none"), model, three)
    assert module.batches.steps == 8
    assert module.rails.patience == 3 * GUARD.patience, "each concept has a third of a step's captions"


def test_of_states_without_the_concept_the_nearest_to_the_anchor_and_the_retained_captions_is_kept(
    tmp_path, monkeypatch
):
    model = small_model(layers=2)
    rails = ErasureModule(few_shot(GUARD), model, task_of(tmp_path, model)).rails
    found = {  # step -> what is left of the concept, drift, distance to the anchors' captions
        1: (0.9, 0.00, 0.9), 2: (0.0, 0.02, 0.5), 3: (0.0, 0.04, 0.1), 4: (0.0, 0.15, 0.05),
    }  # fmt: skip
    for step, (left, drift, off) in found.items():
        monkeypatch.setattr(rails, "evidence", lambda left=left: [left])
        monkeypatch.setattr(rails, "drift", lambda drift=drift: drift)
        monkeypatch.setattr(rails, "off_target", lambda off=off: off)
        rails.look(step, dict, lambda state: None, {}, lambda value: value)
    assert rails.best_step == 3


def test_captions_are_pulled_and_held_as_recipients_read_them_too(tmp_path):
    """CogVideoX reads the T5 of PixArt to another length, and does not tell it what is padding."""
    donor, recipient = PixArt.tiny(), CogVideoX.tiny()
    method, roles = few_shot(GUARD, steps=30, lr=1e-2), ["text_encoder.all"]
    (share,) = plan(donor, [recipient], method, roles)
    assert share.readings == [recipient.reading] and not plan(donor, [PixArt.tiny()], method, roles)[0].readings
    task = replace(task_of(tmp_path, donor, roles), readings=share.readings)
    task.shots.make(donor)
    batch = Batches(donor, task.captions, task.shots, sizes(), 0).batch(0)
    ((forget, anchors, retain, kept),) = Step(donor, donor, batch, readings=share.readings).also_read(0.0)
    with torch.no_grad():
        ((_, beyond, _, _),) = Step(donor, donor, batch, readings=share.readings).also_read(0.5)
        named, anchor = (recipient.encode_prompt(t)["prompt_embeds"] for t in (batch.forget, batch.anchors))
        assert torch.allclose(beyond["prompt_embeds"], 1.5 * anchor - 0.5 * named, atol=1e-4)
        said = (batch.forget, batch.anchors, batch.retain, batch.retain)
        for found, texts in zip((forget, anchors, retain, kept), said, strict=True):
            wanted = recipient.encode_prompt(texts)["prompt_embeds"]
            assert torch.allclose(found["prompt_embeds"], wanted, atol=1e-5)
        wanted, off = recipient.encode_prompt(batch.anchors), []
        for told in (task, replace(task, readings=[])):
            with method.erase(donor, told).applied(recipient):
                off.append(float(distance(recipient.encode_prompt(batch.forget), wanted)))
    assert off[0] < off[1]


def test_the_guards_target_is_beyond_the_anchor_by_eta_and_a_mask_stays(tmp_path):
    said = {"prompt_embeds": torch.tensor([[[2.0]]]), "attention_mask": torch.tensor([[1]])}
    other = {"prompt_embeds": torch.tensor([[[5.0]]]), "attention_mask": torch.tensor([[0]])}
    moved = Conditioning(said).away_from(Conditioning(other), 0.5)
    assert moved["prompt_embeds"].item() == 0.5 and moved["attention_mask"].item() == 1
    model = small_model(layers=2)
    task = task_of(tmp_path, model)
    terms, off = [], []
    for eta in (0.0, 0.5):
        module = ErasureModule(few_shot(replace(GUARD, anchor_eta=eta)), model, task)
        step = Step(model, module.reference, module.batches.batch(0), module.prepared)
        terms.append(float(module.method.guarded_loss(step)["anchor"]))
        off.append(module.rails.off_target())
    # from where the training begins, at the concept, the target is 1.5 times as far, and its square 2.25 times
    assert 1.5 < terms[1] / terms[0] < 3 and 1.5 < off[1] / off[0] < 3


def test_the_settings_of_a_run_from_before_there_was_an_eta_stop_at_the_anchor():
    for name in ("few_shot", "motion_contrast"):
        saved = OmegaConf.to_container(configured("train", [f"method={name}", "concept=drum"]), resolve=True)["method"]
        del saved["guard"]["anchor_eta"]
        assert built(OmegaConf.create(saved)).guard.anchor_eta == 0


def test_an_encoder_that_reads_nothing_of_the_texts_is_left_out_of_their_distance():
    told = {"prompt_embeds": torch.randn(2, 4, 8), "prompt_embeds_2": torch.zeros(2, 4, 8)}
    moved = {**told, "prompt_embeds": told["prompt_embeds"] + 0.1}
    alone = [Conditioning({"prompt_embeds": each["prompt_embeds"]}) for each in (moved, told)]
    assert distance(Conditioning(moved), Conditioning(told)) == distance(*alone) > 0


def test_the_trust_region_ends_even_where_halving_leads_nowhere(tmp_path, monkeypatch):
    """Of neighbouring floats, or where drift does not follow the weights, all of the change goes."""
    module = train(tmp_path, small_model(layers=2), guard=GUARD, steps=2)
    rails = GuardRails(GUARD, module.model, module.reference, module.batches)
    state, before = {"w": torch.ones(1)}, {"w": torch.zeros(1)}
    monkeypatch.setattr(rails, "drift", lambda: 1.0 if state["w"] else 0.0)
    monkeypatch.setattr(rails, "evidence", lambda: [None])
    monkeypatch.setattr(rails, "off_target", lambda: 0.0)
    rails.look(1, lambda: dict(state), state.update, before, lambda value: value)
    assert state["w"] == 0
