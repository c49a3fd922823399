"""UCE: its solution against an independent one, its limits, what it erases and keeps, and where the edit fits."""

from itertools import pairwise
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
from unreel.methods.uce import UCE, Rows, edited, last_tokens
from unreel.models.animatediff import AnimateDiff
from unreel.models.latte import Latte
from unreel.models.modelscope import ModelScope
from unreel.models.pixart import PixArt
from unreel.models.stable_diffusion import StableDiffusion, tiny_pipeline
from unreel.models.text2video_zero import Text2VideoZero
from unreel.vocabulary import Surroundings

FAMILIES = [StableDiffusion, AnimateDiff, ModelScope, Text2VideoZero, PixArt, Latte]
KV = ["denoiser.cross_attention.kv"]
VOCABULARY = {
    "subject": ["a cat", "a dog", "a car", "a fish", "an owl"],
    "scene": ["on the beach", "at night", "in the snow", "in the city"],
    "style": ["as a pencil sketch", "as pixel art"],
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_rows(erased: int = 3, preserved: int = 4, width: int = 8) -> Rows:
    return Rows(random(erased, width, seed=1), random(erased, width, seed=2), random(preserved, width, seed=3))


def method(**changes):
    options: dict[str, Any] = dict(
        lam=0.5, erase_scale=1.0, preserve_scale=1.0, tokens="last", templates=["{}", "a photo of {}"]
    )
    return UCE(name="uce", **(options | changes))


def task(*names: str, evaluated=()) -> Task:
    concepts = [to_concept(name, {"name": name, "kind": "object", "neighbours": ["a guitar"]}) for name in names]
    captions = [TrainingCaptions(c, Surroundings(VOCABULARY, concepts, False), evaluated) for c in concepts]
    return Task(captions, KV, seed=0)


def weights_of(model, edit: Edit | None = None) -> dict[str, Tensor]:
    every = {f"denoiser/{name}": p for name, p in model.components["denoiser"].named_parameters()}
    own = {name: every[name].detach().double() for name in model.select(KV)}
    return own if edit is None else {name: edit.tensors[name].double() for name in own}


def share_left(model, edit: Edit, texts: list[str], guides: list[str], tokens: str = "last") -> float:
    """How much of the way from the guides' keys and values to those of the texts is left, token by token."""

    def rows(said: list[str]) -> Tensor:
        embeds = model.attended(model.encode_prompt(said)).double()
        return embeds.flatten(0, 1) if tokens == "all" else embeds[torch.arange(len(said)), last_tokens(model, said)]

    with torch.no_grad():
        c, g, old, new = rows(texts), rows(guides), weights_of(model), weights_of(model, edit)
    left, before = (
        sum(float((c @ w.T - g @ old[name].T).square().sum()) for name, w in some.items()) for some in (new, old)
    )
    return (left / before) ** 0.5


def test_the_solution_is_that_of_an_independent_least_squares_solve():
    w0, rows, scales = random(6, 8), random_rows(), (0.7, 1.3)
    found = edited({"w": w0}, rows, *scales, lam=0.2)["w"]
    inputs, values = torch.cat([rows.erased, rows.preserved]), torch.cat([rows.guides, rows.preserved]) @ w0.T
    s = torch.tensor([scales[0]] * 3 + [scales[1]] * 4, dtype=torch.float64).sqrt()[:, None]
    root = 0.2**0.5
    left = torch.cat([s * inputs, root * torch.eye(8, dtype=torch.float64)])
    wanted = torch.linalg.lstsq(left, torch.cat([s * values, root * w0.T])).solution.T
    assert torch.allclose(found, wanted, rtol=0, atol=1e-8)
    w = found.requires_grad_()
    objective = (s * (inputs @ w.T - values)).square().sum() + 0.2 * (w - w0).square().sum()
    assert torch.autograd.grad(objective, w)[0].abs().max() < 1e-8
    assert not torch.allclose(w, w0, atol=0.1)


def test_nothing_to_erase_and_a_guide_that_is_the_concept_leave_the_weights_alone():
    w0, rows = random(6, 8), random_rows()
    for same in (random_rows(erased=0), Rows(rows.erased, rows.erased, rows.preserved)):
        assert torch.allclose(edited({"w": w0}, same, 1.0, 1.0, lam=0.1)["w"], w0, rtol=0, atol=1e-12)


def test_a_large_lam_changes_nothing_and_a_small_one_reaches_every_guide():
    w0, rows = random(6, 8), random_rows()
    assert torch.allclose(edited({"w": w0}, rows, 1.0, 1.0, lam=1e12)["w"], w0, rtol=0, atol=1e-9)
    w = edited({"w": w0}, rows, 1.0, 1.0, lam=1e-12)["w"]  # 7 independent rows of width 8
    assert torch.allclose(rows.erased @ w.T, rows.guides @ w0.T, rtol=0, atol=1e-6)
    assert torch.allclose(rows.preserved @ w.T, rows.preserved @ w0.T, rtol=0, atol=1e-6)


def test_preserved_rows_move_less_the_larger_their_scale():
    w0, rows = random(6, 8), random_rows(erased=5, preserved=9)
    moved = [
        float((rows.preserved @ (edited({"w": w0}, rows, 1.0, scale, lam=0.1)["w"] - w0).T).norm())
        for scale in (0.0, 0.1, 1.0, 10.0, 100.0)
    ]
    assert all(after < before for before, after in pairwise(moved)) and moved[-1] < moved[0] / 10


def test_the_last_token_is_that_of_the_text_and_an_empty_text_has_its_first():
    model = StableDiffusion.tiny()
    texts = ["", " ", "a drum", "a photo of a drum " * 40]
    places, tokenizer = last_tokens(model, texts), model.pipeline.tokenizer
    assert places[:2].tolist() == [0, 0] and int(places[3]) == model.reading.max_length - 2
    ids = tokenizer("a drum").input_ids
    assert ids[int(places[2])] == ids[-2] and ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("tokens", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_erased_and_only_its_keys_and_values_change(family, tokens):
    model = family.tiny()
    edit = method(tokens=tokens, lam=1e-3).erase(model, task("drum"))
    assert sorted(edit.tensors) == sorted(model.select(KV))
    assert all(name.endswith(("to_k.weight", "to_v.weight")) for name in edit.tensors)
    most = {"last": 0.2, "all": 0.65}[tokens]  # a width of 32 cannot do justice to the rows of all tokens
    assert share_left(model, edit, ["a drum", "one drum"], ["something"] * 2, tokens) < most
    assert share_left(model, edit, ["a cat", "a guitar"], ["something"] * 2, tokens) > 0.85
    before = model.render(["a drum", "a cat"], [0, 0])
    with edit.applied(model):
        after = model.render(["a drum", "a cat"], [0, 0])
    assert torch.isfinite(after).all() and torch.equal(model.render(["a drum", "a cat"], [0, 0]), before)
    drum, cat = (after - before).flatten(1).norm(dim=1).tolist()
    assert drum > 0 and (tokens == "last" or cat < drum)


def test_several_concepts_are_erased_at_once_and_none_is_preserved():
    model, of_both = StableDiffusion.tiny(), task("drum", "rocket")
    edit = method(lam=1e-3).erase(model, of_both)
    assert share_left(model, edit, ["a drum", "a rocket"], ["something"] * 2) < 0.2
    one = method(lam=1e-3).erase(model, task("drum"))
    assert share_left(model, one, ["a rocket"], ["something"]) > 0.3


def test_another_sense_that_is_erased_too_is_not_preserved():
    senses = {"beak": "a crane with a beak", "hook": "a crane with a hook"}
    concepts = [
        to_concept(
            slug, {"kind": "object", "phrases": [said], "other_senses": [s for s in senses.values() if s != said]}
        )
        for slug, said in senses.items()
    ]
    captions = [TrainingCaptions(c, Surroundings(VOCABULARY, concepts, False)) for c in concepts]
    model, erased = StableDiffusion.tiny(), list(senses.values())
    edit = method(lam=1e-3, templates=["{}"]).erase(model, Task(captions, KV, seed=0))
    assert share_left(model, edit, erased, ["something"] * 2) < 0.1


def test_a_guide_text_takes_the_place_of_the_anchor():
    model = StableDiffusion.tiny()
    edit = method(lam=1e-3, guide="art").erase(model, task("drum"))
    assert share_left(model, edit, ["a drum"], ["art"]) < 0.2 < share_left(model, edit, ["a drum"], ["something"])


def test_no_text_of_the_evaluation_is_used():
    evaluated = ["A photo of a drum", "a cat"]
    forget, guides, kept = method().texts(task("drum", evaluated=evaluated).captions[0])
    assert "a drum" in forget and len(forget) == len(guides) and "a guitar" in kept and "a dog" in kept
    assert not {text.casefold() for text in evaluated} & {text.casefold() for text in forget + kept}
    with pytest.raises(ValueError, match="drum: the evaluation's prompts say all"):
        method(templates=["{}"]).texts(task("drum", evaluated=["a drum", "the drum", "one drum"]).captions[0])


def test_the_saved_edit_changes_a_plain_diffusers_pipeline_in_keys_and_values_alone(tmp_path):
    method().erase(StableDiffusion.tiny(), task("drum")).save(tmp_path / "edit.safetensors")
    pipeline, untouched = tiny_pipeline(), tiny_pipeline()
    edit = Edit.load(tmp_path / "edit.safetensors")
    edit.apply(pipeline)
    for key in ("unet", "text_encoder", "vae"):
        old = dict(getattr(untouched, key).named_parameters())
        found = {n for n, p in getattr(pipeline, key).named_parameters() if not torch.equal(p, old[n])}
        assert found == ({name.partition("/")[2] for name in edit.tensors} if key == "unet" else set())


def test_an_edit_made_on_images_fits_video_models_with_the_same_unet_and_no_others():
    donor = StableDiffusion.tiny()
    edit = method(lam=1e-3).erase(donor, task("drum"))
    for family in (AnimateDiff, Text2VideoZero):
        model = family.tiny()
        before = model.render(["a drum"], [0])
        with edit.applied(model):
            assert not torch.equal(model.render(["a drum"], [0]), before)
    with pytest.raises(ValueError, match="other weights"):
        edit.check(ModelScope.tiny())


def test_the_same_task_gives_the_same_edit():
    one, other = (method().erase(StableDiffusion.tiny(), task("drum")) for _ in range(2))
    assert one.hash == other.hash


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(lam=0), "UCE\nlam\n"), (dict(preserve_scale=-1.0), "UCE\npreserve_scale\n"),
        (dict(tokens="first"), "'last' or 'all'"), (dict(templates=["a drum"]), "UCE\ntemplates"),
        (dict(templates=[]), "at least 1"),
    ],
)  # fmt: skip
def test_values_that_will_not_do_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        method(**changes)


def test_other_weights_are_refused_and_so_is_a_denoiser_that_reads_another_width(monkeypatch):
    model = StableDiffusion.tiny()
    with pytest.raises(ValueError, match=r"cannot change text_encoder/"):
        method().check(model, ["mlp"])
    method().check(model, KV)
    method().check(PixArt.tiny(), KV)
    monkeypatch.setattr(PixArt, "projections", ())
    with pytest.raises(ValueError, match="reads width 24, and what tiny_pixart reads of texts has 32"):
        method().check(PixArt.tiny(), KV)


def test_the_config_gives_the_method_and_its_weights():
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        config = compose("train", ["method=uce", "concept=drum"])
    assert config.parameters.name == "cross_attention_kv"
    found = instantiate(config.method, _convert_="all")
    assert isinstance(found, UCE) and found.name == "uce" and found.tokens == "last" and found.guide is None
