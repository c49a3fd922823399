"""Anchored denoiser: what the adversary does, and what its steps teach."""

import itertools
from dataclasses import replace

import pytest
import torch

from test_contracts import small_method, trainer
from test_shots import make_shots
from unreel.batches import Batches, Step
from unreel.methods.anchored_denoiser import Vectors
from unreel.methods.method import Task
from unreel.methods.slots import added
from unreel.models.model import Conditioning
from unreel.models.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")


@pytest.fixture
def parts(tmp_path):
    """The method with two pictures a concept, a tiny model on which texts have more effect than by chance, a task."""
    method, roles = small_method("anchored_denoiser")
    method = replace(method, pictures=2, kept=3)
    model = StableDiffusion.tiny()
    for name, parameter in model.components["denoiser"].named_parameters():
        if "attn2.to_v" in name:
            parameter.data.mul_(20)
    return method, model, Task(make_shots(tmp_path, shots=2).captions, roles, 0, None, trainer)


def step_of(parts, number=0, **changes):
    """A step of the training, and the method with other settings."""
    method, model, task = parts
    method, batches = replace(method, **changes), Batches(model, task.captions, None, method.data, 0)
    reference = model.reference(["denoiser"])
    return method, Step(model, reference, batches.batch(number), method.prepare(reference, task, batches))


def test_a_vector_enters_at_all_places_but_the_first():
    embeds = torch.randn(2, 5, 3)
    vectors = torch.tensor([[1.0, 0, 0], [0, 2.0, 0]])
    found = added(Conditioning({"prompt_embeds": embeds}), vectors)["prompt_embeds"]
    assert torch.equal(found[:, 0], embeds[:, 0])
    assert torch.allclose(found[:, 1:] - embeds[:, 1:], vectors[:, None].expand(-1, 4, -1), atol=1e-6)


def test_adversaries_go_on_by_adam_and_begin_anew_each_at_its_time():
    towards, adversary = torch.ones(2, 4), Vectors(0.1, 10**9, 0, CPU)
    begun = torch.stack(adversary.current(towards, 0)).detach().clone()
    adversary.move([torch.ones(4), -torch.ones(4)])
    wanted = begun + torch.tensor([[-0.1], [0.1]])
    assert torch.allclose(torch.stack(adversary.current(towards, 1)), wanted, atol=1e-5), "Adam's first step"
    short = Vectors(0.1, 2, 0, CPU)
    seen = [torch.stack(short.current(towards, number)).detach().clone() for number in range(12)]
    anew = [[not torch.equal(a[row], b[row]) for a, b in itertools.pairwise(seen)] for row in range(2)]
    assert all(any(row) and not all(row) for row in anew) and anew[0] != anew[1]
    again = Vectors(0.1, 2, 0, CPU)
    assert all(torch.equal(torch.stack(again.current(towards, n)), each) for n, each in enumerate(seen))


def test_nothing_is_to_be_learned_where_the_model_answers_as_the_anchor_did(parts):
    """With captions of the anchor in the place of those that name the concept, loss and gradient are zero."""
    method, step = step_of(parts, named=1.0)
    concept = step.prepared.concept
    step.prepared = replace(step.prepared, concept=replace(concept, said=concept.anchors))
    scalars = method.loss(step)
    assert float(scalars["match"]) == 0 and float(scalars["retain"]) == 0
    assert float(scalars["evidence"]) == pytest.approx(1)


def test_the_adversary_finds_what_lowers_the_error_and_no_weight_changes_by_it(parts):
    method, step = step_of(parts, 1, named=0.0, life=10**6, adversary_step=0.05)
    before = [p.clone() for p in step.model.components["denoiser"].parameters()]
    found = [float(method.loss(step)["evidence"]) for _ in range(12)]
    assert found[-1] < found[0]
    assert all(torch.equal(a, b) for a, b in zip(before, step.model.components["denoiser"].parameters(), strict=True))


def test_its_steps_bring_the_concepts_captions_to_the_anchors_answer(parts):
    method, model, task = parts
    longer = replace(method, named=1.0, optimizer={"lr": 1e-3}, data=replace(method.data, steps=30), retain_weight=0.1)
    edit = longer.erase(model, task)

    _, step = step_of(parts, 7, named=1.0)  # pictures and reference of the unedited model
    as_it_was = float(replace(method, named=1.0).loss(step)["match"])
    with edit.applied(model):
        assert float(replace(method, named=1.0).loss(step)["match"]) < 0.7 * as_it_was


def test_vectors_from_a_checkpoint_go_where_the_model_is():
    """Lightning loads checkpoints to the CPU."""
    adversary = Vectors(0.1, 10**9, 0, CPU)
    adversary.current(torch.ones(2, 4), 0)
    elsewhere = Vectors(0.1, 10**9, 0, torch.device("meta"))
    elsewhere.load_state_dict(adversary.state_dict())
    assert {free.device.type for free in elsewhere.free} == {"meta"} and adversary.free[0].device == CPU
