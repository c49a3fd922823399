"""Edits: bit-exact, restored bit for bit, refused on other weights; the check before every transfer."""

import copy
import hashlib
import json
import re
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from diffusers import AnimateDiffPipeline, TextToVideoZeroPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

from conftest import small_model
from unreel import Edit
from unreel.edits import load_sum
from unreel.exports.components import export_components
from unreel.hashes import parameter_hashes, tensor_hash
from unreel.models.animatediff import AnimateDiff, tiny_adapter
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import NO_CHECKER, StableDiffusion, tiny_parts, tiny_pipeline
from unreel.models.text2video_zero import Text2VideoZero
from unreel.sharing import Held
from unreel.weights import hashes_of


@pytest.fixture
def edited():
    """A pipeline and an edit of its text encoder; the pipeline is unedited."""
    pipeline = tiny_pipeline(layers=3)
    changed = copy.deepcopy(pipeline.text_encoder)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if "layers.1.mlp" in name:
                parameter.add_(1e-6 * torch.randn_like(parameter))  # less than half precision can tell
    other = copy.copy(pipeline)
    other.text_encoder = changed
    edit = Edit.between(pipeline, other, ["text_encoder"], "few_shot")
    return pipeline, replace(edit, provenance={"note": "for a test"}), changed


def test_saved_and_loaded_an_edit_makes_the_trained_encoder_bit_for_bit(edited, tmp_path):
    pipeline, edit, changed = edited
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.hash == edit.hash and loaded.provenance == {"note": "for a test"}
    assert len(loaded.tensors) == 4
    loaded.apply(pipeline)
    wanted = changed.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in pipeline.text_encoder.state_dict().items())


def test_the_context_manager_restores_bit_for_bit_even_after_an_error(edited):
    pipeline, edit, _ = edited
    before = {name: value.clone() for name, value in pipeline.text_encoder.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), edit.applied(pipeline):
        assert any(not torch.equal(v, before[n]) for n, v in pipeline.text_encoder.state_dict().items())
        raise RuntimeError("inside")
    assert all(torch.equal(v, before[n]) for n, v in pipeline.text_encoder.state_dict().items())


def test_other_base_weights_are_refused_by_name_and_nothing_changes(edited):
    pipeline, edit, _ = edited
    with torch.no_grad():
        pipeline.text_encoder.get_parameter("encoder.layers.0.mlp.fc1.bias")[0] += 1
    before = parameter_hashes(pipeline.text_encoder)
    with pytest.raises(ValueError, match=r"1 of \d+ tensors \(encoder\.layers\.0\.mlp\.fc1\.bias\)"):
        edit.apply(pipeline)
    assert parameter_hashes(pipeline.text_encoder) == before


def test_a_half_precision_copy_of_the_same_weights_takes_the_edit(edited):
    pipeline, edit, _ = edited
    edit.apply(pipeline.to(dtype=torch.float16))


@pytest.mark.parametrize("harm", ["cut", "flip", "other", "missing"])
def test_a_damaged_file_is_refused_by_name(edited, tmp_path, harm):
    path = tmp_path / "edit.safetensors"
    edited[1].save(path)
    data = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(data[:-100])
    elif harm == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif harm == "other":
        path.write_bytes(b"not a safetensors file at all")
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"edit\.safetensors"):
        Edit.load(path)


def test_the_exported_folder_loads_with_plain_transformers(edited, tmp_path):
    pipeline, edit, changed = edited
    edit.apply(pipeline)
    export_components(pipeline, ["text_encoder"], tmp_path)
    export_components(pipeline, ["text_encoder", "denoiser"], tmp_path)  # over an older one
    loaded = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    assert parameter_hashes(loaded) == parameter_hashes(changed)
    assert {path.name for path in tmp_path.iterdir()} == {"text_encoder", "unet"}
    assert parameter_hashes(UNet2DConditionModel.from_pretrained(tmp_path / "unet")) == parameter_hashes(pipeline.unet)


def test_an_edit_of_the_first_format_loads_with_its_hash(edited, tmp_path):
    """As version 0.1 wrote them: bare names, one component, no method."""
    pipeline, edit, changed = edited
    bare = {name.removeprefix("text_encoder/"): tensor for name, tensor in edit.tensors.items()}
    base = {name.removeprefix("text_encoder/"): digest for name, digest in edit.base.items()}
    parts = [f"{name} {tensor_hash(tensor, tensor.dtype)}" for name, tensor in sorted(bare.items())]
    parts += [f"{name} {digest}" for name, digest in sorted(base.items())]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    metadata = {"format": "unreel-edit-1", "component": "text_encoder", "hash": digest, "base": json.dumps(base),
                "provenance": json.dumps({"note": "old"})}  # fmt: skip
    save_file(bare, tmp_path / "old.safetensors", metadata)
    old = Edit.load(tmp_path / "old.safetensors")
    assert old.hash == digest == edit.hash and old.provenance == {"note": "old"}
    old.apply(pipeline)
    wanted = changed.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in pipeline.text_encoder.state_dict().items())


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"base": "{"}, "metadata"),
        ({"base": "[]"}, "base is list"),
        ({"base": "{}", "settings": '"x"'}, "settings is str"),
        ({"base": "{}", "settings": '{"a": 1}', "method": "os.system"}, "has hash"),
    ],
)
def test_hostile_metadata_is_refused_by_name(tmp_path, metadata, says):
    save_file({}, tmp_path / "edit.safetensors", {"format": "unreel-edit-2", "hash": "0", **metadata})
    with pytest.raises(ValueError, match=says) as caught:
        Edit.load(tmp_path / "edit.safetensors")
    assert "edit.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["os.system", "../../etc/passwd", "unreel.methods.few_shot", "", "x" * 10_000])
def test_a_method_that_is_no_plain_name_is_never_looked_up(tmp_path, name):
    edit = Edit({}, {}, name, {"phrases": ["a"] * 100_000})
    edit.save(tmp_path / "edit.safetensors")
    with pytest.raises(ValueError, match="expected the name of a file in conf/method") as caught:
        Edit.load(tmp_path / "edit.safetensors").apply(tiny_pipeline())
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("settings", [{"x": 1}, {"negative_prompt": ["a"] * 9}, {"negative_prompt": "a", "x": {}}])
def test_settings_that_are_not_the_methods_are_refused(settings):
    pipeline = tiny_pipeline()
    with pytest.raises(ValueError, match="are not those of the method negative_prompt") as caught:
        Edit({}, {}, "negative_prompt", settings).apply(pipeline)
    assert "\n" not in str(caught.value) and not hasattr(pipeline, "unreel_edits")


def test_huge_metadata_is_refused(tmp_path):
    save_file(
        {}, tmp_path / "edit.safetensors", {"format": "unreel-edit-2", "hash": "0", "provenance": "9" * 10_000_001}
    )
    with pytest.raises(ValueError, match="provenance has 10,000,001 characters"):
        Edit.load(tmp_path / "edit.safetensors")


def test_a_method_that_this_version_does_not_know_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'teleport', which is not known here: .*few_shot"):
        Edit({}, {}, "teleport", {"a": 1}).apply(tiny_pipeline())


def test_an_edit_of_several_components_is_whole_or_not_at_all(edited):
    pipeline, edit, _ = edited
    name = next(n for n, _ in pipeline.unet.named_parameters() if "attn2.to_k" in n)
    value = dict(pipeline.unet.named_parameters())[name].detach() + 1
    both = Edit(
        {**edit.tensors, f"denoiser/{name}": value},
        {**edit.base, **hashes_of({"denoiser": pipeline.unet}, ["denoiser"])}, "few_shot",
    )  # fmt: skip
    assert both.components == ("text_encoder", "denoiser")
    before = [parameter_hashes(module) for module in (pipeline.text_encoder, pipeline.unet)]
    with both.applied(pipeline):
        assert torch.equal(dict(pipeline.unet.named_parameters())[name], value)
    assert [parameter_hashes(module) for module in (pipeline.text_encoder, pipeline.unet)] == before
    with torch.no_grad():
        pipeline.unet.conv_in.bias.add_(1)
    before = [parameter_hashes(module) for module in (pipeline.text_encoder, pipeline.unet)]
    with pytest.raises(ValueError, match=r"in its denoiser 1 of \d+ tensors \(conv_in\.bias\) differ"):
        both.apply(pipeline)
    assert [parameter_hashes(module) for module in (pipeline.text_encoder, pipeline.unet)] == before


def test_an_edit_of_an_images_unet_reaches_the_video_models_that_hold_it_and_no_other():
    parts = tiny_parts()
    donor = StableDiffusion.of(tiny_pipeline())
    animated = AnimateDiff.of(AnimateDiffPipeline(**tiny_parts(), motion_adapter=tiny_adapter()), num_frames=3)
    zero = Text2VideoZero.of(TextToVideoZeroPipeline(**parts, **NO_CHECKER), num_frames=3)
    name = donor.select(["denoiser.cross_attention.kv"])[0]
    value = dict(donor.components["denoiser"].named_parameters())[name.split("/")[1]].detach() * 2
    edit = Edit({name: value}, hashes_of(donor.components, ["denoiser"]), "few_shot")
    for recipient in (animated, zero):
        assert Held.by(donor, ["denoiser"]).differs(recipient) == ""
        with edit.applied(recipient):
            assert torch.equal(dict(recipient.components["denoiser"].named_parameters())[name.split("/")[1]], value)
    video = ModelScope.tiny()
    assert "in its denoiser" in Held.by(donor, ["denoiser"]).differs(video)
    with pytest.raises(ValueError, match="belongs to other weights: in its denoiser"):
        edit.apply(video)
    assert Held.by(donor, ["text_encoder"]).differs(video) == ""


def test_an_attachment_of_a_peft_lora_is_data_and_restores_bit_for_bit(tmp_path, monkeypatch):
    """A method of the user's own, from a file and a YAML of theirs: its edit carries a LoRA that its class attaches."""
    peft = pytest.importorskip("peft")
    monkeypatch.setattr("unreel.door._CONF", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "my_lora.yaml").write_text("_target_: my_lora.MyLora\nname: my_lora\n")
    (tmp_path / "my_lora.py").write_text(LORA)
    torch.manual_seed(0)
    pipeline = tiny_pipeline()
    config = {"r": 2, "target_modules": ["q_proj"], "lora_alpha": 2}
    twin = peft.inject_adapter_in_model(peft.LoraConfig(**config), copy.deepcopy(pipeline.text_encoder))
    state = {f"attached/{k}": torch.randn_like(v) for k, v in peft.get_peft_model_state_dict(twin).items()}
    Edit(state, hashes_of({"text_encoder": pipeline.text_encoder}, ["text_encoder"]), "my_lora", config).save(
        tmp_path / "edit.safetensors"
    )
    model = StableDiffusion.of(pipeline, num_inference_steps=2)
    before, weights = model.render(["a cat"], [0]), parameter_hashes(pipeline.text_encoder)
    with Edit.load(tmp_path / "edit.safetensors").applied(model):
        assert not torch.allclose(model.render(["a cat"], [0]), before, atol=1e-3)
    assert torch.equal(model.render(["a cat"], [0]), before) and parameter_hashes(pipeline.text_encoder) == weights
    Edit.load(tmp_path / "edit.safetensors").apply(pipeline)
    assert not torch.allclose(model.render(["a cat"], [0]), before, atol=1e-3)


LORA = """
from contextlib import contextmanager
from dataclasses import dataclass
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from unreel.methods.method import Method


@dataclass(frozen=True, kw_only=True)
class MyLora(Method):
    edits = ("text_encoder",)
    attaches = {"r": int, "target_modules": list, "lora_alpha": int}

    def erase(self, model, task):
        raise AssertionError("not asked for here")

    @classmethod
    @contextmanager
    def attach(cls, pipeline, edit):
        encoder = pipeline.text_encoder
        inject_adapter_in_model(LoraConfig(**edit.settings), encoder)
        state = {name.removeprefix("attached/"): value for name, value in edit.tensors.items()}
        set_peft_model_state_dict(encoder, state)
        try:
            yield
        finally:
            for name, module in list(encoder.named_modules()):
                if hasattr(module, "base_layer"):
                    parent, _, child = name.rpartition(".")
                    setattr(encoder.get_submodule(parent), child, module.base_layer)
"""


def test_the_shared_encoder_check_passes_for_copies_and_says_what_differs():
    donor, recipient = small_model(layers=3), small_model(layers=3)
    assert Held.by(donor, ["text_encoder"]).differs(recipient) == ""
    with torch.no_grad():
        recipient.pipeline.text_encoder.get_parameter("encoder.layers.2.self_attn.k_proj.weight")[0, 0] += 1
    assert re.search(r"1 of \d+ tensors \(encoder\.layers\.2\.self_attn\.k_proj\.weight\)",
                     Held.by(donor, ["text_encoder"]).differs(recipient))  # fmt: skip
    assert "num_hidden_layers is 2, not 3" in Held.by(donor, ["text_encoder"]).differs(small_model(layers=2))
    recipient = small_model(layers=3)
    recipient.pipeline.tokenizer.add_tokens(["<one-more>"])
    assert "vocabulary" in Held.by(donor, ["text_encoder"]).differs(recipient)


def made(model, roles, seed=0, method="few_shot"):
    """An edit that adds noise to the weights of some roles, as a method returns it."""
    generator, edited = torch.Generator().manual_seed(seed), model.reference(["text_encoder", "denoiser"])
    for name in model.select(roles):
        component, _, parameter = name.partition("/")
        with torch.no_grad():
            weight = edited.components[component].get_parameter(parameter)
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    components = list(dict.fromkeys(name.partition("/")[0] for name in model.select(roles)))
    return replace(Edit.between(model, edited, components, method), provenance={"note": f"{method} {seed}"})


def weights_with(model, *edits):
    """Hashes of all weights while some edits are applied, one inside the other."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(model))
        return {key: parameter_hashes(module) for key, module in model.components.items()}


@pytest.mark.parametrize("roles", [["denoiser.cross_attention.kv"], ["attention"]], ids=["component", "tensors"])
def test_edits_of_different_weights_are_added_in_any_order_and_the_sum_is_an_edit(tmp_path, roles):
    model = small_model(layers=2)
    first, second = made(model, ["mlp"]), made(model, roles, 1, "uce")
    both, before = first + second, weights_with(model)
    assert both.hash == (second + first).hash and both.tensors.keys() == first.tensors.keys() | second.tensors.keys()
    both.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.hash == both.hash and loaded.base == both.base and loaded.method == "few_shot+uce"
    assert [part["note"] for part in loaded.provenance["parts"]] == ["few_shot 0", "uce 1"]
    clips = model.render(["a cat"], [0])
    with loaded.applied(model):
        inside, held = model.render(["a cat"], [0]), weights_with(model)
    assert weights_with(model) == before and torch.equal(model.render(["a cat"], [0]), clips)
    for key in ("text_encoder", "denoiser"):  # each weight is that of the edit which changes it
        alone = [weights_with(model, edit)[key] for edit in (first, second)]
        assert all(held[key][n] == next((a[n] for a in alone if a[n] != d), d) for n, d in before[key].items())
    loaded.apply(model.pipeline)
    assert torch.equal(model.render(["a cat"], [0]), inside) and not torch.equal(inside, clips)
    export_components(model, loaded.components, tmp_path)
    exported = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    assert parameter_hashes(exported) == held["text_encoder"]


def test_an_edit_made_on_top_of_another_is_added_after_it_and_belongs_to_the_unedited_weights(tmp_path):
    model = small_model(layers=2)
    first, aside = made(model, ["mlp"]), made(model, ["denoiser.cross_attention.kv"], 3, "uce")
    with first.applied(model):
        second = made(model, ["mlp", "final_attention"], 1)
        wanted = weights_with(model, second)
    both = first + second
    assert weights_with(model, both) == wanted and both.base == first.base
    with pytest.raises(ValueError, match=r"the first was made on a model that holds the second; expected second \+ f"):
        second + first
    with both.applied(model):
        third = made(model, ["mlp"], 2)
        wanted = weights_with(model, third)
    assert weights_with(model, both + third) == weights_with(model, first + (second + third)) == wanted
    assert (aside + first + second).hash == (first + second + aside).hash
    assert len((aside + both).provenance["parts"]) == 3
    for name, edit in {"first": first, "second": second}.items():
        edit.save(tmp_path / name)
    assert load_sum([str(tmp_path / "first"), str(tmp_path / "second")]).hash == both.hash
    with pytest.raises(ValueError, match="first: these edits cannot be added in this order"):
        load_sum([str(tmp_path / "second"), str(tmp_path / "first")])


def test_sums_that_are_not_defined_are_refused_in_one_line():
    model = small_model(layers=2)
    first = made(model, ["mlp"])
    assert (first + first).hash == first.hash
    negative, mute = (
        Edit({}, {}, "negative_prompt", {"negative_prompt": "a cat"}),
        Edit({}, {}, "mute", {"keywords": [["cat"]], "alpha": 1.0}),
    )
    cases = {
        r"in the text encoder both change 4 of \d+ tensors \(.*\) of the same": made(model, ["layers.1.mlp"], 1),
        r"in the text encoder they belong to other weights": made(small_model(layers=2, seed=1), ["attention"]),
        "in the text encoder they belong to other weights, .* differ": made(small_model(layers=3), ["attention"]),
        "negative_prompt and mute both act while the pipeline samples": mute,
    }
    for says, other in cases.items():
        with pytest.raises(ValueError, match=says) as caught:
            (negative if other is mute else first) + other
        assert "\n" not in str(caught.value) and "expected" in str(caught.value)
    with pytest.raises(TypeError):
        first + "an edit"


def test_what_one_edit_attaches_goes_with_the_weights_of_another():
    model = small_model(layers=2)
    weights, attached = made(model, ["mlp"]), Edit({}, {}, "negative_prompt", {"negative_prompt": "a cat"})
    both = weights + attached
    assert both.hash == (attached + weights).hash and both.is_attached and both.method == "negative_prompt"
    with weights.applied(model), attached.applied(model):
        wanted = model.render(["a dog"], [0])
    with both.applied(model):
        assert torch.equal(model.render(["a dog"], [0]), wanted)


def test_a_video_models_own_edit_is_added_to_one_of_the_images_unet_that_it_holds():
    donor = StableDiffusion.of(tiny_pipeline())
    animated = AnimateDiff.of(AnimateDiffPipeline(**tiny_parts(), motion_adapter=tiny_adapter()), num_frames=3)
    first = made(donor, ["denoiser.cross_attention.kv"])
    second = made(animated, ["denoiser.self_attention"], 1)
    both = first + second
    assert both.hash == (second + first).hash and both.base == second.base
    both.check(animated)
    with pytest.raises(ValueError, match="in its denoiser"):
        both.check(donor)
