"""Rendering: nothing edited is served from anything else's entries, and clips stay on disk."""

import importlib
import sys

import pytest
import torch

from unreel.cache import TensorCache
from unreel.edits import Edit, hashes_of
from unreel.hashes import code_hash
from unreel.models.stable_diffusion import StableDiffusion
from unreel.records import Prompt
from unreel.rendering import Renderer, StoredClips

PROMPTS = [Prompt("a drum", "forget", ()), Prompt("a cat", "retain", ()), Prompt("a drum", "forget", ())]


@pytest.fixture
def renderer(tmp_path):
    return Renderer(StableDiffusion.tiny(), TensorCache(tmp_path / "all"), TensorCache(tmp_path / "own"), 2)


def denoiser_edit(model):
    name = model.select(["denoiser.cross_attention.kv"])[0]
    value = dict(model.components["denoiser"].named_parameters())[name.split("/")[1]].detach() * 3
    return Edit({name: value}, hashes_of(model.components, ["denoiser"]), "few_shot")


def clips_of(rendered):
    return torch.stack(list(rendered.clips))


def test_an_edited_denoiser_is_not_served_from_a_warm_cache(renderer):
    before = clips_of(renderer.render(PROMPTS, [1, 2, 3], "before"))
    edit = denoiser_edit(renderer.model)
    with edit.applied(renderer.model):
        after = clips_of(renderer.render(PROMPTS, [1, 2, 3], "after", edit))
        unsaid = clips_of(renderer.render(PROMPTS, [1, 2, 3], "before"))  # edited, and nobody said so
    assert not torch.equal(after, before) and torch.equal(unsaid, after)
    assert torch.equal(clips_of(renderer.render(PROMPTS, [1, 2, 3], "before")), before)


def test_what_an_edit_attaches_is_not_served_from_a_warm_cache(renderer):
    """No weight shows it."""
    before = clips_of(renderer.render(PROMPTS, [1, 2, 3], "before"))
    edit = Edit({}, {}, "negative_prompt", {"negative_prompt": "a drum"})
    with edit.applied(renderer.model):
        after = clips_of(renderer.render(PROMPTS, [1, 2, 3], "after", edit))
    assert not torch.equal(after, before)
    assert renderer.key(edit) != renderer.key(None)


def test_clips_are_rendered_once_and_cost_what_rendering_them_had_cost(renderer, monkeypatch):
    first = renderer.render(PROMPTS, [1, 2, 1], "before")
    asked = []
    monkeypatch.setattr(renderer.model, "render", lambda texts, seeds: asked.append(texts))
    again = renderer.render(PROMPTS, [1, 2, 1], "before")
    assert asked == [] and again.seconds == pytest.approx(first.seconds) and min(first.seconds) > 0
    assert again.hash == first.hash and torch.equal(first.clips[0], first.clips[2]), "the same prompt and seed"
    assert len(list((renderer.cache.folder).rglob("*.safetensors"))) == 2


def test_clips_stay_on_disk_and_a_lost_one_is_named(renderer):
    rendered = renderer.render(PROMPTS, [1, 2, 3], "before")
    assert isinstance(rendered.clips, StoredClips) and not any(
        isinstance(v, torch.Tensor) for v in vars(rendered.clips).values()
    )
    assert rendered.at([1]).clips[0].shape == (1, 3, 32, 32) and len(rendered.clips[:2]) == 2
    for path in renderer.cache.folder.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(ValueError, match="has lost a clip"):
        rendered.clips[0]


def test_code_is_known_by_its_source_and_by_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "my_own.py"
    path.write_text("from unreel.records import Prompt\n\n\nclass Mine:\n    pass\n")
    first = code_hash([importlib.import_module("my_own").Mine])
    assert first == code_hash([sys.modules["my_own"].Mine()]) != code_hash([StableDiffusion])
    path.write_text(path.read_text().replace("pass", "x = 1"))
    assert code_hash([sys.modules["my_own"].Mine]) == first, "what was edited after it was loaded does not run"
    del sys.modules["my_own"]
    assert code_hash([importlib.import_module("my_own").Mine]) != first
    del sys.modules["my_own"]
