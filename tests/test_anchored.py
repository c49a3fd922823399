"""Captions of the concept are read like their anchors', retained ones as before, and no denoiser is ever called."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from unreel.batches import Batches, BatchSizes, Step
from unreel.captions import TrainingCaptions
from unreel.concepts import to_concept
from unreel.methods.anchored import Anchored
from unreel.methods.guard import Guard, distance
from unreel.methods.method import Task
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion
from unreel.models.text2video_zero import Text2VideoZero
from unreel.sharing import plan
from unreel.vocabulary import Surroundings

VOCABULARY = {
    "subject": ["a cat", "a dog", "a car", "a fish", "an owl"],
    "scene": ["on the beach", "at night", "in the snow", "in the city"],
    "style": ["as a pencil sketch", "as pixel art"],
}
ROLES = ["mlp", "final_attention"]
GUARD = Guard(anchor_weight=0, retain_weight=0, max_drift=0.01, check_every=5, gone_below=0.05, patience=3, probes=4)


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


def anchored(anchor_weight=1.0, retain_weight=3.0, guard=None, steps=30, retain=6, anchor_eta=0.0):
    data = BatchSizes(steps=steps, epochs=None, batch=1, pairs=5, retain=retain)
    return Anchored(
        name="anchored", anchor_weight=anchor_weight, retain_weight=retain_weight, optimizer={"lr": 1e-3}, data=data,
        guard=guard, anchor_eta=anchor_eta,
    )  # fmt: skip


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
def distances(model, edit, count=24):
    """D of new captions with the concept to their anchors', before and after the edit, and of new retained captions."""
    captions, rng, reference = captions_of()[0], np.random.default_rng(99), model.reference(["text_encoder"])
    pairs, retained = [captions.pair(rng) for _ in range(count)], captions.retain(rng, count)
    named, anchors, kept = (
        reference.encode_prompt(texts) for texts in (*map(list, zip(*pairs, strict=True)), retained)
    )
    with edit.applied(model):
        after = model.encode_prompt([text for text, _ in pairs])
        return float(distance(named, anchors)), float(distance(after, anchors)), float(
            distance(model.encode_prompt(retained), kept)
        )  # fmt: skip


def test_the_concept_is_read_like_its_anchor_and_no_denoiser_is_called():
    model = StableDiffusion.tiny()
    with untouchable(model):
        edit = anchored().erase(model, task_of())
    before, after, _ = distances(model, edit)
    assert after < 0.75 * before
    assert set(edit.tensors) <= set(model.select(ROLES)) and edit.components == ("text_encoder",)


def test_retained_captions_stay_closer_than_without_their_term():
    model = StableDiffusion.tiny()
    drift = [distances(model, anchored(retain_weight=w).erase(model, task_of()))[2] for w in (3.0, 0.0)]
    assert drift[0] < 0.7 * drift[1]


def test_with_eta_the_concept_is_read_beyond_its_anchor_away_from_what_it_was():
    """Along the way from anchor to concept: 1 before, 0 at the anchor, below 0 beyond."""
    model, captions = StableDiffusion.tiny(), captions_of()[0]
    named, anchors = map(list, zip(*(captions.pair(np.random.default_rng(i)) for i in range(24)), strict=True))
    with torch.no_grad():
        anchor = model.encode_prompt(anchors)["prompt_embeds"]
        way = model.encode_prompt(named)["prompt_embeds"] - anchor

    def place(eta):
        edit = anchored(retain_weight=0.0, steps=60, anchor_eta=eta).erase(model, task_of())
        with torch.no_grad(), edit.applied(model):
            return float(((model.encode_prompt(named)["prompt_embeds"] - anchor) * way).sum() / way.square().sum())

    at, beyond = place(0.0), place(1.0)
    assert beyond < -0.3 < at


def test_where_the_anchor_is_the_concept_there_is_nothing_to_do():
    captions = captions_of(name=None, phrases=["a drum"], anchor="a drum")
    model, method = StableDiffusion.tiny(), anchored()
    reference = model.reference(["text_encoder"])
    same, other = (
        float(method.loss(Step(model, reference, Batches(model, said, None, method.data, 0).batch(0)))["loss"])
        for said in (captions, captions_of())
    )
    assert same == 0 < other


def test_the_same_seed_makes_the_same_edit_and_another_makes_another():
    edits = [anchored(steps=3).erase(StableDiffusion.tiny(), task_of(seed)) for seed in (0, 0, 1)]
    assert edits[0].hash == edits[1].hash != edits[2].hash


def test_one_edit_serves_every_recipient_with_the_same_encoder():
    model = StableDiffusion.tiny()
    recipients = [family.tiny() for family in (AnimateDiff, Text2VideoZero, ModelScope)]
    (share,) = plan(model, recipients, anchored(), ROLES)
    edit = anchored(steps=10).erase(share.maker, task_of())
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
        edit = anchored(steps=3).erase(model, task_of())
    assert edit.hash == anchored(steps=3).erase(StableDiffusion.tiny(), task_of()).hash


def test_with_a_guard_its_own_terms_are_what_is_logged():
    """The guard's anchor_eta is another one, and its weights are 0."""
    model, method = StableDiffusion.tiny(), anchored(anchor_eta=1.0, guard=GUARD)
    reference = model.reference(["text_encoder"])
    step = Step(model, reference, Batches(model, captions_of(), None, method.data, 0).batch(0))
    own, guarded = method.loss(step), method.guarded_loss(step)
    assert guarded.keys() == own.keys() and all(torch.equal(guarded[name], own[name]) for name in own)


def test_a_guard_without_weights_gives_its_trust_region_and_needs_no_denoiser():
    model, loose = StableDiffusion.tiny(), anchored(retain_weight=0.0)
    with untouchable(model):
        edit = replace(loose, guard=GUARD).erase(model, task_of())
    assert distances(model, edit)[2] < distances(model, loose.erase(model, task_of()))[2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(anchor_weight=0.0), "(?s)anchor_weight.*greater than 0"),
        (dict(retain_weight=-1.0), "(?s)retain_weight.*greater than or equal to 0"),
        (dict(anchor_eta=-0.1), "(?s)anchor_eta.*greater than or equal to 0"),
        (dict(retain=0), "data.retain=0"),
        (dict(guard=replace(GUARD, anchor_weight=1.0)), "in the loss already"),
    ],
)
def test_numbers_that_will_not_do_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        anchored(**changes)
