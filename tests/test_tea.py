"""TEA: who gets whose gradient, which tokens count, and that the critic ends up fooled."""

import pytest
import torch

from test_esd import make_task
from unreel.batches import Batches, BatchSizes, Step
from unreel.methods.gradient import ErasureModule
from unreel.methods.tea import TEA, mean_over, said_tokens
from unreel.models.stable_diffusion import StableDiffusion


def make_method(steps=2, batch=4, lr=1e-3, **changes):
    data = BatchSizes(steps=steps, epochs=None, batch=batch, pairs=0, retain=0)
    options = dict(adversarial=0.5, preservation=1.0, critic_lr=1e-2) | changes
    return TEA(name="tea", optimizer={"lr": lr}, data=data, guard=None, **options)


def step_of(method, model, number=0):
    task = make_task(["all"])
    batches = Batches(model, task.captions, None, method.data, 0)
    reference = model.reference(["text_encoder"])
    return Step(model, reference, batches.batch(number), method.prepare(reference, task, batches))


def test_padding_does_not_count():
    model = StableDiffusion.tiny()
    mask = said_tokens(model, ["a drum", ""])
    assert mask[1].sum() == 2  # start and end
    assert mask[0].sum() > 2 and mask.shape == (2, model.reading.max_length)
    each = torch.tensor([[1.0, 3.0, 100.0]])
    assert mean_over(each, torch.tensor([[True, True, False]])) == 2.0


def test_the_critics_own_step_gives_the_encoder_no_gradient_and_lowers_its_loss():
    model, method = StableDiffusion.tiny(), make_method()
    encoder = model.components["text_encoder"].requires_grad_(True)
    step = step_of(method, model)
    texts = step.batch.forget + step.batch.anchors
    embeds, masks = model.encode_prompt(texts)["prompt_embeds"], said_tokens(model, texts)
    halves = embeds.chunk(2), tuple(masks.chunk(2))
    losses = [float(step.prepared.learn(*halves[0], halves[1])) for _ in range(30)]
    assert losses[0] == pytest.approx(2 * 0.693, abs=0.1)  # two coins
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is None for p in encoder.parameters())


def test_the_encoders_loss_is_the_sum_of_its_terms_and_reaches_the_encoder_alone():
    model, method = StableDiffusion.tiny(), make_method()
    encoder = model.components["text_encoder"].requires_grad_(True)
    step = step_of(method, model)
    found = method.loss(step)
    assert float(found["preserve"]) == pytest.approx(0, abs=1e-5)  # nothing has moved yet
    assert float(found["loss"]) == pytest.approx(0.5 * float(found["fool"]), abs=1e-5)
    critic = [p.detach().clone() for p in step.prepared.network.parameters()]
    found["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert all(torch.equal(p, was) for p, was in zip(step.prepared.network.parameters(), critic, strict=True))
    before = step.prepared.network[0].weight.grad.clone()
    assert before.abs().sum() > 0  # left by the encoder's step, and cleared by the critic's next one:
    zeros = torch.zeros(1, 2, critic[0].shape[1])
    step.prepared.learn(zeros, zeros, (torch.ones(1, 2), torch.ones(1, 2)))
    assert step.prepared.network[0].weight.grad.abs().sum() == 0


def test_the_concepts_tokens_move_to_where_a_critic_cannot_tell_them_from_the_anchors():
    model, method = StableDiffusion.tiny(), make_method(steps=60, batch=8, lr=3e-4)
    edit = method.erase(model, make_task(["all"]))
    probe = Batches(model, make_task(["all"]).captions, None, method.data, 5).batch(0)

    @torch.no_grad()
    def apart():
        both = model.encode_prompt(probe.forget + probe.anchors)["prompt_embeds"]
        masks = said_tokens(model, probe.forget + probe.anchors)[..., None]
        named, anchored = ((both * masks).sum(1) / masks.sum(1)).chunk(2)
        return float((named.mean(0) - anchored.mean(0)).norm())

    before = apart()
    with edit.applied(model):
        assert apart() < 0.7 * before


@pytest.mark.parametrize("wrong", [{"adversarial": 0.0}, {"preservation": -1.0}, {"critic_lr": 0.0}])
def test_numbers_that_will_not_do_are_named(wrong):
    with pytest.raises(ValueError, match=f"TEA\n{next(iter(wrong))}\n"):
        make_method(**wrong)


def test_the_seed_is_all_that_chance_depends_on():
    def hash_of(seed):
        return make_method().erase(StableDiffusion.tiny(), make_task(["all"], seed=seed)).hash

    assert hash_of(0) == hash_of(0) != hash_of(1)


def test_no_optimizer_of_the_encoder_holds_the_critic():
    model, method = StableDiffusion.tiny(), make_method()
    module = ErasureModule(method, model, make_task(["all"]))
    held = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert held == {id(p) for p in model.components["text_encoder"].parameters()}
    assert not held & {id(p) for p in module.prepared.network.parameters()}
