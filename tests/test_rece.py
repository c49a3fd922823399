"""RECE: its embedding is the minimiser, its rounds take away what UCE leaves, and it edits keys and values alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from unreel.captions import TrainingCaptions
from unreel.concepts import to_concept
from unreel.edits import Edit
from unreel.methods.method import Task
from unreel.methods.rece import RECE, brought_back
from unreel.methods.uce import UCE
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion, tiny_pipeline
from unreel.models.text2video_zero import Text2VideoZero
from unreel.vocabulary import Surroundings

KV = ["denoiser.cross_attention.kv"]
VOCABULARY = {
    "subject": ["a cat", "a dog", "a car", "a fish", "an owl"],
    "scene": ["on the beach", "at night", "in the snow", "in the city"],
    "style": ["as a pencil sketch", "as pixel art"],
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrices(seed: int = 0) -> dict[str, Tensor]:
    return {f"w{i}": random(6, 8, seed=seed + i) for i in range(3)}


def method(uce=(), **changes):
    values: dict[str, Any] = dict(
        lam=0.1, erase_scale=1.0, preserve_scale=0.1, tokens="all", guide=" ", templates=["{}"]
    )
    options: dict[str, Any] = dict(epochs=1, lam_r=1e-3, accumulate=True) | changes
    return RECE(name="rece", uce=UCE(name="uce", **(values | dict(uce))), **options)


def task(*names: str) -> Task:
    concepts = [to_concept(name, {"name": name, "kind": "object", "neighbours": ["a guitar"]}) for name in names]
    return Task([TrainingCaptions(c, Surroundings(VOCABULARY, concepts, False)) for c in concepts], KV, seed=0)


def weights_of(model) -> dict[str, Tensor]:
    every = {f"denoiser/{name}": p for name, p in model.components["denoiser"].named_parameters()}
    return {name: every[name].detach().double() for name in model.select(KV)}


def distance(new: Mapping[str, Tensor], inputs: Tensor, old: Mapping[str, Tensor], outputs: Tensor) -> float:
    """|| W_new inputs - W_old outputs || over all matrices."""
    return sum(float((inputs @ w.T - outputs @ old[name].T).square().sum()) for name, w in new.items()) ** 0.5


def test_the_embedding_is_the_minimiser():
    old, new, c, lam_r = matrices(), matrices(10), random(1, 8, seed=20), 0.3

    def objective(z: Tensor) -> float:
        return distance(new, z, old, c) ** 2 + lam_r * float(z.square().sum())

    found = brought_back(old, new, c, lam_r)
    least, generator = objective(found), torch.Generator().manual_seed(0)
    for _ in range(20):
        step = torch.randn(1, 8, dtype=torch.float64, generator=generator)
        assert objective(found + 1e-3 * step) > least and objective(found - 1e-3 * step) > least


def test_unedited_matrices_give_the_embedding_back_and_a_large_lam_r_shortens_it():
    old, c = matrices(), random(4, 8, seed=20)
    assert torch.allclose(brought_back(old, old, c, 1e-12), c, rtol=0, atol=1e-8)
    norms = [float(brought_back(old, matrices(10), c, lam_r).norm()) for lam_r in (1e-3, 1.0, 1e3, 1e6)]
    assert norms == sorted(norms, reverse=True) and norms[-1] < 1e-3


def test_a_round_sends_the_embedding_that_brought_the_concept_back_to_the_guide():
    model, of_it = StableDiffusion.tiny(), method()
    old = weights_of(model)
    with torch.no_grad():
        rows = of_it.uce.rows(model, task("drum"))
        uce = of_it.uce.solve(model, task("drum"), old)
        back = brought_back(old, uce, rows.erased, of_it.lam_r)
        rece = of_it.solve(model, task("drum"), old)
    away = distance(old, rows.erased, old, rows.guides)
    assert distance(uce, rows.erased, old, rows.guides) < 0.3 * away  # UCE erases the words
    assert distance(uce, back, old, rows.guides) > 0.7 * away  # and not what brings the concept back
    assert distance(rece, back, old, rows.guides) < 0.5 * away
    assert distance(rece, rows.erased, old, rows.guides) < 0.5 * away  # the words stay erased


def test_the_second_edit_starts_from_the_edited_matrices():
    model, of_it = StableDiffusion.tiny(), method(accumulate=False)
    old = weights_of(model)
    with torch.no_grad():
        rows, uce = of_it.uce.rows(model, task("drum")), of_it.uce.solve(model, task("drum"), old)
        found = of_it.solve(model, task("drum"), old)
    back = replace(rows, erased=brought_back(old, uce, rows.erased, of_it.lam_r))
    inputs, sources = torch.cat([back.erased, back.preserved]), torch.cat([back.guides, back.preserved])
    scales = torch.cat([torch.full((len(back.erased),), 1.0), torch.full((len(back.preserved),), 0.1)]).double()
    for name, w in list(found.items())[:2]:  # the gradient of the second edit's objective is zero there
        gradient = ((inputs @ w.T - sources @ uce[name].T) * scales[:, None]).T @ inputs + 0.1 * (w - uce[name])
        assert gradient.abs().max() < 1e-6 * (inputs.square().sum() * w.norm())
        from_old = ((inputs @ w.T - sources @ old[name].T) * scales[:, None]).T @ inputs + 0.1 * (w - old[name])
        assert from_old.abs().max() > 100 * gradient.abs().max()


def test_no_round_is_uce_and_every_round_changes_more():
    model = StableDiffusion.tiny()
    uce = method().uce.erase(model, task("drum"))
    edits = [method(epochs=n).erase(model, task("drum")) for n in range(3)]
    assert all(torch.equal(value, uce.tensors[name]) for name, value in edits[0].tensors.items())
    assert len({edit.hash for edit in edits}) == 3


def test_accumulated_rounds_hold_the_words_that_the_paper_lets_go_of():
    model, left = StableDiffusion.tiny(), {}
    old = weights_of(model)
    for accumulate in (True, False):
        of_it = method(uce=dict(tokens="last", lam=1e-3), accumulate=accumulate)
        with torch.no_grad():
            rows, found = of_it.uce.rows(model, task("drum")), of_it.solve(model, task("drum"), old)
        away = distance(old, rows.erased, old, rows.guides)
        left[accumulate] = distance(found, rows.erased, old, rows.guides) / away
    assert left[True] < 0.1 and left[False] > 0.5


@pytest.mark.parametrize("family", [StableDiffusion, AnimateDiff, ModelScope, Text2VideoZero])
def test_every_family_is_edited_in_its_keys_and_values_alone(family):
    model = family.tiny()
    edit = method().erase(model, task("drum", "rocket"))
    assert sorted(edit.tensors) == sorted(model.select(KV))
    before = model.render(["a drum"], [0])
    with edit.applied(model):
        after = model.render(["a drum"], [0])
    assert torch.isfinite(after).all() and not torch.equal(after, before)


def test_the_saved_edit_changes_a_plain_diffusers_pipeline(tmp_path):
    method().erase(StableDiffusion.tiny(), task("drum")).save(tmp_path / "edit.safetensors")
    pipeline, edit = tiny_pipeline(), Edit.load(tmp_path / "edit.safetensors")
    edit.apply(pipeline)
    own = dict(pipeline.unet.named_parameters())
    assert edit.method == "rece" and all(torch.equal(own[n.partition("/")[2]], v) for n, v in edit.tensors.items())


@pytest.mark.parametrize("changes", [dict(epochs=-1), dict(epochs=1.5), dict(lam_r=0)])
def test_values_that_will_not_do_are_refused(changes):
    with pytest.raises(ValueError, match=f"RECE\n{next(iter(changes))}\n"):
        method(**changes)


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="cannot change text_encoder/"):
        method().check(StableDiffusion.tiny(), ["mlp"])


def test_the_config_gives_the_method_and_its_weights():
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        config = compose("train", ["method=rece", "concept=drum"])
    assert config.parameters.name == "cross_attention_kv"
    found = instantiate(config.method, _convert_="all")
    assert isinstance(found, RECE) and isinstance(found.uce, UCE) and found.uce.guide == " "
