"""The first layer alone moves, the last layer turns away from the concept, and no denoiser is ever called."""

from contextlib import contextmanager

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from unreel.batches import Batches, BatchSizes, Step
from unreel.captions import TrainingCaptions
from unreel.concepts import to_concept
from unreel.methods.guard import distance
from unreel.methods.hirm import HiRM, high_level
from unreel.methods.method import Task
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion
from unreel.models.text2video_zero import Text2VideoZero
from unreel.sharing import plan
from unreel.vocabulary import Surroundings
from unreel.zoo.store import verified

VOCABULARY = {
    "subject": ["a cat", "a dog", "a car", "a fish", "an owl"],
    "scene": ["on the beach", "at night", "in the snow", "in the city"],
    "style": ["as a pencil sketch", "as pixel art"],
}
ROLES = ["first_layer"]


def captions_of(**changes):
    concept = to_concept("drum", {"name": "drum", "kind": "object"} | changes)
    return [TrainingCaptions(concept, Surroundings(VOCABULARY, [concept], False))]


def task_of(seed=0):
    def trainer(steps, callbacks):
        return pl.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=callbacks,
        )  # fmt: skip

    return Task(captions_of(), ROLES, seed, None, trainer)


def hirm(target="anchor", coefficient=1.0, prompts="names", steps=30, lr=1e-2):
    data = BatchSizes(steps=steps, epochs=None, batch=6, pairs=0, retain=0)
    return HiRM(name="hirm", target=target, coefficient=coefficient, prompts=prompts, optimizer={"lr": lr}, data=data)


@contextmanager
def untouchable(model):
    """Inside the `with` block the denoiser and the VAE may not be called, and after it they must be as they were."""

    def called(module, *_):
        raise AssertionError(f"{type(module).__name__} was called")

    parts = [model.components[key] for key in ("denoiser", "vae")]
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    hooks = [m.register_forward_pre_hook(called) for part in parts for m in part.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for part, state in zip(parts, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())


@torch.no_grad()
def loss_of(method, model, edit=None, captions=None):
    """The loss on one batch, with an edit applied or without."""
    reference, captions = model.reference(["text_encoder"]), captions or captions_of()
    batches = Batches(model, captions, None, method.data, 7)
    step = Step(model, reference, batches.batch(0), method.prepare(reference, Task(captions, ROLES, 0), batches))
    if edit is None:
        return float(method.loss(step)["loss"])
    with edit.applied(model):
        return float(method.loss(step)["loss"])


@pytest.mark.parametrize("prompts", ["names", "captions"])
@pytest.mark.parametrize("target", ["anchor", "random"])
def test_only_the_first_layer_moves_and_the_last_one_reaches_its_target(target, prompts):
    model, method = StableDiffusion.tiny(), hirm(target, prompts=prompts)
    with untouchable(model):
        edit = method.erase(model, task_of())
    assert edit.tensors and all(".layers.0." in name for name in edit.tensors)
    assert loss_of(method, model, edit) < 0.9 * loss_of(method, model)


def test_on_the_zoos_donor_captions_are_read_like_their_anchors_though_one_attention_alone_is_in_the_loss():
    """On random weights that attention says too little of the conditioning; the zoo's donor is a trained one."""
    model, captions, rng = StableDiffusion(verified("t2i")), captions_of()[0], np.random.default_rng(99)
    pairs = [captions.pair(rng) for _ in range(16)]
    edit = hirm(prompts="captions", lr=3e-4).erase(model, task_of())
    with torch.no_grad():
        named, anchors = (model.encode_prompt(list(texts)) for texts in zip(*pairs, strict=True))
        with edit.applied(model):
            after = model.encode_prompt([text for text, _ in pairs])
    assert distance(after, anchors) < 0.5 * distance(named, anchors)


def test_what_is_misdirected_is_the_last_attention_after_its_projection():
    model = StableDiffusion.tiny()
    encoder = model.components["text_encoder"]
    last = next(m for name, m in encoder.named_modules() if name.endswith("layers.1.self_attn.out_proj"))
    before = high_level(model, ["a drum"])
    with torch.no_grad():
        last.bias += 1
    assert torch.allclose(high_level(model, ["a drum"]), before + 1, atol=1e-5)
    assert not last._forward_hooks


def test_where_the_anchor_is_the_concept_there_is_nothing_to_do():
    captions, model = captions_of(name=None, phrases=["a drum"], anchor="a drum"), StableDiffusion.tiny()
    for prompts in ("names", "captions"):
        assert loss_of(hirm(prompts=prompts), model, captions=captions) == 0 < loss_of(hirm(prompts=prompts), model)


def test_the_random_direction_has_mean_square_1_and_is_the_seeds():
    model, method = StableDiffusion.tiny(), hirm("random")
    batches = Batches(model, captions_of(), None, method.data, 0)
    first, same, other = (method.prepare(model, task_of(seed), batches).direction for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert float(first.square().mean()) == pytest.approx(1)


@pytest.mark.parametrize("target", ["anchor", "random"])
def test_the_same_seed_makes_the_same_edit(target):
    edits = [hirm(target, prompts="captions", steps=3).erase(StableDiffusion.tiny(), task_of(s)) for s in (0, 0, 1)]
    assert edits[0].hash == edits[1].hash != edits[2].hash


def test_one_edit_serves_every_recipient_with_the_same_encoder():
    model = StableDiffusion.tiny()
    recipients = [family.tiny() for family in (AnimateDiff, Text2VideoZero, ModelScope)]
    (share,) = plan(model, recipients, hirm(), ROLES)
    edit = hirm(steps=10).erase(share.maker, task_of())
    assert share.maker is model and share.recipients == recipients
    for recipient in recipients:
        before = recipient.render(["a drum"], [0])
        with edit.applied(recipient):
            assert not torch.equal(before, recipient.render(["a drum"], [0]))
        assert torch.equal(before, recipient.render(["a drum"], [0]))


@pytest.mark.parametrize("family", [AnimateDiff, Text2VideoZero, ModelScope])
def test_a_video_model_can_be_its_own_donor(family):
    model = family.tiny()
    with untouchable(model):
        edit = hirm(steps=3).erase(model, task_of())
    assert edit.hash == hirm(steps=3).erase(StableDiffusion.tiny(), task_of()).hash


@pytest.mark.parametrize("changes", [dict(target="nothing"), dict(prompts="all"), dict(coefficient=0.0)])
def test_settings_that_will_not_do_are_refused(changes):
    (key,) = changes
    with pytest.raises(ValueError, match=f"HiRM\n{key}\n"):
        hirm(**changes)


def test_an_encoder_that_is_not_clips_is_refused_before_any_training():
    model = StableDiffusion.tiny()
    model.pipeline.text_encoder = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    with pytest.raises(ValueError, match="found no self_attn"):
        hirm().check(model, ["text_encoder.all"])
