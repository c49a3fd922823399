"""AdvUnlearn: its two losses, that the attacker minimises its own objective, and that the encoder is left alone."""

import numpy as np
import pytest
import torch

from test_esd import make_task
from unreel.batches import Batches, BatchSizes, Step
from unreel.methods.adv_unlearn import AdvUnlearn
from unreel.methods.slots import learned, table_of
from unreel.models.stable_diffusion import StableDiffusion

ROLES = [r"text_encoder/.*\.layers\.", "final_layer_norm"]


def make_method(steps=2, lr=1e-3, batch=1, retain=2, **changes):
    data = BatchSizes(steps=steps, epochs=None, batch=batch, pairs=0, retain=retain)
    options = dict(
        eta=1.0, gamma=0.5, warmup=0, attack_steps=3, attack_lr=0.5, attack_sign=False, trajectories=2,
        retain_trajectories=3, num_inference_steps=3, guidance_scale=3.0,
    ) | changes  # fmt: skip
    return AdvUnlearn(name="adv_unlearn", optimizer={"lr": lr}, data=data, guard=None, **options)


def step_of(method, model, number=0, names=("drum",)):
    task = make_task(ROLES, names=names)
    reference = model.reference(["text_encoder"])
    batches = Batches(model, task.captions, None, method.data, task.seed)
    return Step(model, reference, batches.batch(number), method.prepare(reference, task, batches))


def test_what_the_frozen_model_predicts_is_kept_where_it_was_predicted():
    model = StableDiffusion.tiny()
    own = step_of(make_method(), model).prepared
    for seen in (own.forget, own.retain):
        for row, step in ((0, 0), (1, 2)):
            noisy, t = seen.noisy([row], [step], model.device)
            with torch.no_grad():
                there = model.predict(noisy, t, model.encode_prompt([seen.texts[row]]))
                null = model.predict(noisy, t, model.encode_prompt([""]))
            torch.testing.assert_close(seen.said[row, step][None], there, rtol=1e-4, atol=1e-4)
            if seen.unsaid is not None:
                torch.testing.assert_close(seen.unsaid[row, step][None], null, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("changes", "number"), [({"attack_steps": 0}, 0), ({"warmup": 5}, 4)])
def test_without_an_attacker_the_loss_is_the_plain_objective(changes, number):
    """Nothing has moved yet: the encoder's prediction is the frozen one, (1 + eta) differences from its target."""
    model = StableDiffusion.tiny()
    for eta in (-1.0, 0.0, 1.0):
        found = make_method(eta=eta, **changes).loss(step_of(make_method(**changes), model, number))
        assert "attack" not in found and float(found["retain"]) == pytest.approx(0, abs=1e-8)
        unlearn = float(found["unlearn"].detach())
        if eta == -1.0:
            assert unlearn == pytest.approx(0, abs=1e-8)
        elif eta == 0.0:
            plain = unlearn
        else:
            assert unlearn == pytest.approx(4 * plain, rel=1e-3)
        assert float(found["loss"]) == pytest.approx(unlearn + 0.5 * float(found["retain"]))
    assert plain > 0


def test_the_first_attack_comes_after_the_warmup():
    model, method = StableDiffusion.tiny(), make_method(warmup=5)
    assert "attack" in method.loss(step_of(method, model, 5)) and "attack" not in method.loss(step_of(method, model, 4))


def attacked(method, model, step):
    """The attacker's objective over all x_t of a phrase, before and after its steps, and its word."""
    own, text = step.prepared, step.prepared.forget.texts[0]

    @torch.no_grad()
    def objective(prefix):
        rows = [row for row, said in enumerate(own.forget.texts) if said == text for _ in range(3)]
        steps = [0, 1, 2] * (len(rows) // 3)
        noisy, t = own.forget.noisy(rows, steps, model.device)
        with learned(model, [own.slot], prefix[0]):
            read = model.encode_prompt([f"{own.slot} {text}"] * len(rows))
        return float((model.predict(noisy, t, read) - own.forget.said[rows, steps]).square().mean())

    start, _ = make_method(attack_steps=0).attack(step, [text], [np.random.default_rng(3)])
    found, _ = method.attack(step, [text], [np.random.default_rng(3)])
    return objective(start), objective(found), start, found


def test_the_attacker_brings_the_frozen_prediction_back_and_the_encoder_gets_no_gradient():
    model = StableDiffusion.tiny()
    encoder = model.components["text_encoder"].requires_grad_(True)
    method = make_method(attack_steps=60, attack_lr=1.0, trajectories=1)
    before, after, start, found = attacked(method, model, step_of(method, model))
    assert after < 0.8 * before
    assert found.shape == (1, 1, table_of(model).shape[1]) and not torch.equal(start, found)
    assert all(p.grad is None for p in encoder.parameters()) and not found.requires_grad


def test_the_fast_attacker_takes_one_step_of_its_size_in_every_direction():
    model = StableDiffusion.tiny()
    method = make_method(attack_steps=1, attack_lr=0.7, attack_sign=True, trajectories=1)
    _, _, start, found = attacked(method, model, step_of(method, model))
    moved = (found - start).abs() / table_of(model).std()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.7), rtol=1e-3, atol=1e-3)


def test_a_training_leads_the_prediction_beyond_null_and_leaves_the_embeddings_alone():
    model, method = StableDiffusion.tiny(), make_method(steps=30, lr=3e-3, attack_steps=1, warmup=20, gamma=0.1)
    edit = method.erase(model, make_task(ROLES))
    assert edit.tensors and set(edit.tensors) == set(model.select(ROLES))
    assert not any("embedding" in name for name in edit.tensors)
    seen = step_of(method, model).prepared.forget
    noisy, t = seen.noisy([0], [1], model.device)
    cond, null = seen.said[0, 1][None], seen.unsaid[0, 1][None]
    with edit.applied(model), torch.no_grad():
        moved = model.predict(noisy, t, model.encode_prompt([seen.texts[0]])) - cond
    assert float((moved * (null - cond)).sum() / (null - cond).square().sum()) > 0.5


def test_the_seed_is_all_that_chance_depends_on():
    def hash_of(seed):
        return make_method().erase(StableDiffusion.tiny(), make_task(ROLES, seed=seed)).hash

    assert hash_of(0) == hash_of(0) != hash_of(1)


def test_each_concept_is_attacked_after_its_own_phrase():
    model, method = StableDiffusion.tiny(), make_method(batch=4)
    own = step_of(method, model, names=("drum", "kite")).prepared.forget
    assert [text for text in own.texts if "drum" in text] and [text for text in own.texts if "kite" in text]
    rngs = [np.random.default_rng(i) for i in range(8)]
    rows, steps = own.draw(rngs, [own.texts[0], own.texts[-1]] * 4)
    assert [own.texts[row] for row in rows] == [own.texts[0], own.texts[-1]] * 4 and max(steps) < 3


@pytest.mark.parametrize("wrong", [{"attack_steps": -1}, {"gamma": -0.1}, {"attack_lr": 0.0}, {"warmup": 1.5}])
def test_numbers_that_will_not_do_are_named(wrong):
    with pytest.raises(ValueError, match=f"AdvUnlearn\n{next(iter(wrong))}\n"):
        make_method(**wrong)
    with pytest.raises(ValueError, match=r"found data\.retain=0"):
        make_method(retain=0)
