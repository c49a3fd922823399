"""S-GRACE: the attack stays in its ball and on what a text says, rounds begin when they should, edits turn away."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch

from test_esd import make_task
from unreel.batches import Batches, BatchSizes, Step
from unreel.methods.s_grace import SGrace, at_end, ends, shifted
from unreel.methods.slots import table_of
from unreel.models.stable_diffusion import StableDiffusion

ROLES = [r"text_encoder/.*\.layers\.", "final_layer_norm"]


def make_method(steps=4, lr=1e-3, batch=3, retain=4, **changes):
    data = BatchSizes(steps=steps, epochs=None, batch=batch, pairs=0, retain=retain)
    options = dict(
        edit_steps=2, attack_steps=3, attack_lr=0.5, radius=4.0, likeness=0.1, renewal=0.5, similarity=1.0, hold=1.0,
        change=0.2, timestep_low=0.75, timestep_high=0.95,
    ) | changes  # fmt: skip
    return SGrace(name="s_grace", optimizer={"lr": lr}, data=data, guard=None, **options)


def step_of(method, model, number=0, names=("drum",), prepared=None):
    task = make_task(ROLES, names=names)
    reference = model.reference(["text_encoder"])
    batches = Batches(model, task.captions, None, method.data, task.seed)
    return Step(model, reference, batches.batch(number), prepared or method.prepare(reference, task, batches))


def test_a_shift_moves_what_is_said_and_a_shift_of_nothing_moves_nothing():
    model, texts = StableDiffusion.tiny(), ["a drum", "a drum at night"]
    end, said = ends(model, texts)
    plain = model.encode_prompt(texts)["prompt_embeds"]
    assert said.sum(1).tolist() == (end - 1).tolist() and not said[:, 0].any() and end[0] < end[1]
    shift = torch.zeros(*said.shape, table_of(model).shape[1])
    with shifted(model, shift):
        assert torch.equal(model.encode_prompt(texts)["prompt_embeds"], plain)
    with shifted(model, shift + said[..., None]):
        moved = model.encode_prompt(texts)
    assert torch.equal(moved["prompt_embeds"][:, 0], plain[:, 0])  # the start comes before what is said
    assert not torch.allclose(at_end(moved, end), plain[[0, 1], end])
    assert torch.equal(model.encode_prompt(texts)["prompt_embeds"], plain)


@pytest.mark.parametrize(("radius", "steps", "reach"), [(4.0, 3, 3.0), (4.0, 9, 4.0), (0.5, 9, 0.5)])
def test_the_attack_stays_in_its_ball_and_on_what_the_texts_say(radius, steps, reach):
    model, method = StableDiffusion.tiny(), make_method(radius=radius, attack_steps=steps, attack_lr=0.5)
    step = step_of(method, model)
    encoder = model.components["text_encoder"].requires_grad_(True)
    method.begin(step)
    shift, (_, said) = step.prepared.shift, ends(model, step.prepared.texts)
    size = 0.5 * float(table_of(model).std())
    assert shift.abs().max() <= reach * size * 1.001 and shift.abs().max() > 0.8 * reach * size
    assert (shift[~said] == 0).all() and shift[said].abs().sum() > 0
    assert all(p.grad is None for p in encoder.parameters()) and not shift.requires_grad


def test_the_attack_lowers_its_loss_and_finds_what_is_more_like_the_concept():
    model = StableDiffusion.tiny()
    method = make_method(attack_steps=40, attack_lr=0.05, radius=100.0, likeness=10.0)
    step = step_of(method, model)
    rounds = step.prepared
    first = float(make_method(attack_steps=1, likeness=10.0).begin(step))
    texts = list(rounds.texts)
    rounds.texts = texts
    shift, last = method.attack(model, rounds)
    assert float(last) < first

    @torch.no_grad()
    def likeness(moved):
        found = method.states(model, texts, moved)
        return float(torch.cosine_similarity(found, rounds.targets[rounds.concepts()]).mean())

    assert likeness(shift) > likeness(torch.zeros_like(shift))


def test_rounds_begin_every_so_many_steps_with_the_name_first():
    model, method = StableDiffusion.tiny(), make_method(edit_steps=2, renewal=1.0)
    model.components["text_encoder"].requires_grad_(True)
    rounds = step_of(method, model).prepared
    texts = []
    for number in range(4):
        found = method.loss(step_of(method, model, number, prepared=rounds))
        assert ("attack" in found) == (number in (0, 2))
        texts.append(list(rounds.texts))
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert len(texts[0]) == 4 and texts[0][0] == rounds.names[0][0]
    kept = make_method(edit_steps=1, renewal=0.0)
    kept.loss(step_of(kept, model, 1, prepared=rounds))
    assert rounds.texts == texts[3]  # none is renewed


def test_at_the_beginning_of_a_round_only_the_likeness_counts():
    """Nothing has moved since: similarity, hold and change are 0, so that the loss is 1 + the cosine."""
    model, method = StableDiffusion.tiny(), make_method()
    model.components["text_encoder"].requires_grad_(True)
    found = method.loss(step_of(method, model))
    assert float(found["hold"]) == pytest.approx(0, abs=1e-8) and float(found["change"]) == 0
    assert float(found["loss"]) == pytest.approx(1 + float(found["likeness"]), abs=1e-4)
    assert -1 <= float(found["likeness"]) <= 1.0001


def test_each_text_is_turned_away_from_its_own_concept():
    model, method = StableDiffusion.tiny(), make_method(batch=4)
    step = step_of(method, model, names=("drum", "kite"))
    method.begin(step)
    said = ["drum" if "drum" in text else "kite" for text in step.prepared.texts]
    assert len(said) == 6 and step.prepared.concepts() == [("drum", "kite").index(each) for each in said]
    assert not torch.equal(step.prepared.targets[0], step.prepared.targets[1])


def test_a_training_turns_the_concept_away_and_leaves_the_embeddings_alone():
    model, method = StableDiffusion.tiny(), make_method(steps=40, edit_steps=10, similarity=0.0, change=0.0, hold=0.1)
    edit = method.erase(model, make_task(ROLES))
    assert set(edit.tensors) == set(model.select(ROLES))
    rounds = step_of(method, model).prepared
    with edit.applied(model), torch.no_grad():
        name = [rounds.names[0][0]]
        now = at_end(model.encode_prompt(name), ends(model, name)[0])
    assert float(torch.cosine_similarity(now, rounds.targets)) < 0.7  # 1 before


def test_a_training_resumed_within_a_round_goes_on_with_what_the_attack_found(tmp_path):
    def trainer_of(folder, last):
        def trainer(steps, callbacks):
            kept = pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
            return pl.Trainer(
                max_steps=min(steps, last), accelerator="cpu", logger=False, enable_progress_bar=False,
                enable_model_summary=False, callbacks=[*callbacks, kept],
            )  # fmt: skip

        return trainer

    def hash_of(last, folder, checkpoint=None):
        task = replace(make_task(ROLES), trainer=trainer_of(folder, last), checkpoint=checkpoint)
        return make_method(steps=6, edit_steps=4).erase(StableDiffusion.tiny(), task).hash

    whole = hash_of(6, tmp_path / "whole")
    assert hash_of(3, tmp_path / "part") != whole
    assert hash_of(6, tmp_path / "part", tmp_path / "part" / "last.ckpt") == whole


@pytest.mark.parametrize("wrong", [{"edit_steps": 0}, {"renewal": 1.5}, {"attack_lr": 0.0}, {"timestep_low": -0.1}])
def test_numbers_that_will_not_do_are_named(wrong):
    with pytest.raises(ValueError, match=f"SGrace\n{next(iter(wrong))}\n"):
        make_method(**wrong)
    with pytest.raises(ValueError, match="expected the first below the second"):
        make_method(timestep_low=0.9, timestep_high=0.9)
