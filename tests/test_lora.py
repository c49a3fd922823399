"""LoRA: any gradient method trains factors; the edit is small, exact, and goes where edits go."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from conftest import configured, small_model
from test_contracts import small_method, trainer, yamls
from test_gradient import ADAM, GUARD, few_shot
from test_shots import make_shots
from unreel import Edit
from unreel.edits import hashes_of
from unreel.exports import lora as exported
from unreel.exports.components import export_components
from unreel.hashes import parameter_hashes
from unreel.low_rank import names_of, weight_of
from unreel.methods.gradient import ErasureModule, GradientMethod
from unreel.methods.guard import GuardRails
from unreel.methods.lora import LoRA
from unreel.methods.method import Task
from unreel.models.animatediff import AnimateDiff
from unreel.models.animatediff_sdxl import AnimateDiffSDXL
from unreel.models.modelscope import ModelScope
from unreel.models.pixart import PixArt
from unreel.models.stable_diffusion import StableDiffusion
from unreel.models.stable_diffusion_xl import StableDiffusionXL
from unreel.sharing import plan
from unreel.training import lora_of

PROMPTS, SEEDS = ["a drum on the beach", "a cat"], [0, 1]
RANK_4 = LoRA(rank=4, alpha=8)
METHODS = [
    path.stem for path in yamls("method")
    if isinstance(small_method(path.stem)[0], GradientMethod) and not small_method(path.stem)[0].attaches
]  # fmt: skip


def task_of(tmp_path, model, roles=("mlp",), lora=RANK_4):
    shots = make_shots(tmp_path, shots=2)
    shots.make(model)
    return Task(shots.captions, list(roles), 0, shots, trainer, lora=lora)


def module_of(tmp_path, model, **changes):
    return ErasureModule(few_shot(GUARD, ADAM, **changes), model, task_of(tmp_path, model))


@pytest.fixture
def edit(tmp_path):
    return few_shot(GUARD, ADAM | {"lr": 1e-2}).erase(small_model(layers=2), task_of(tmp_path, small_model(layers=2)))


def test_factors_that_are_not_trained_yet_are_the_model_itself_to_the_bit(tmp_path):
    model = small_model(layers=2)
    before, clips = parameter_hashes(model.components["text_encoder"]), model.render(PROMPTS, SEEDS)
    module = module_of(tmp_path, model)
    assert torch.equal(model.render(PROMPTS, SEEDS), clips), "with the factors in their places"
    edit = module.edit()
    module.low_rank.take_out()
    assert parameter_hashes(model.components["text_encoder"]) == before == {
        name.partition("/")[2]: digest for name, digest in edit.base.items()
    }  # fmt: skip
    with edit.applied(model):
        assert parameter_hashes(model.components["text_encoder"]) == before


@pytest.mark.parametrize("name", METHODS)
def test_every_method_that_trains_weights_trains_factors_of_them(name, tmp_path):
    method, roles = small_method(name)
    model = ModelScope.tiny() if "clips" in method.needs else StableDiffusion.tiny()
    before = {key: parameter_hashes(module) for key, module in model.components.items()}
    kinds = {key: [type(m) for m in module.modules()] for key, module in model.components.items()}
    task = task_of(tmp_path, model, roles)
    edit = method.erase(model, task)
    assert {key: parameter_hashes(module) for key, module in model.components.items()} == before
    assert {key: [type(m) for m in module.modules()] for key, module in model.components.items()} == kinds
    assert not any(p.requires_grad for module in model.components.values() for p in module.parameters())
    assert edit.tensors and all(".lora_" in tensor for tensor in edit.tensors)
    assert set(edit.changed) <= set(model.select(roles)) and edit.components == method.edits
    assert edit.provenance["facts"]["parameters"] == sum(tensor.numel() for tensor in edit.tensors.values())
    clips = model.render(PROMPTS, SEEDS)
    with edit.applied(model):
        assert not torch.equal(model.render(PROMPTS, SEEDS), clips)
    assert torch.equal(model.render(PROMPTS, SEEDS), clips), "the model was not restored bit for bit"


def test_the_same_seed_makes_the_same_factors(tmp_path):
    model = small_model(layers=2)
    task = task_of(tmp_path, model)
    assert few_shot(GUARD).erase(model, task).hash == few_shot(GUARD).erase(model, task).hash


def test_what_was_trained_is_what_the_edit_holds(tmp_path):
    """The forward pass with factors beside the matrices is that of the merged matrices, alpha / r included."""
    model = small_model(layers=2)
    module = module_of(tmp_path, model)
    with torch.no_grad():
        for name, parameter in module.trained.items():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        beside = model.encode_prompt(PROMPTS)["prompt_embeds"].clone()
        frozen = module.reference.encode_prompt(PROMPTS)["prompt_embeds"]
        edit = module.edit()
        module.low_rank.take_out()
        plain = model.encode_prompt(PROMPTS)["prompt_embeds"]
        with edit.applied(model):
            merged = model.encode_prompt(PROMPTS)["prompt_embeds"]
    assert torch.equal(plain, frozen) and (merged - plain).abs().max() > 0.1
    assert torch.allclose(merged, beside, atol=1e-4)


def test_the_reference_shares_the_weights_and_not_the_factors(tmp_path):
    module = module_of(tmp_path, small_model(layers=2))
    own = {p.data_ptr() for p in module.model.components["text_encoder"].parameters()}
    assert {p.data_ptr() for p in module.reference.components["text_encoder"].parameters()} < own


def test_the_trust_region_halves_the_change_and_so_the_drift(tmp_path):
    module = module_of(tmp_path, small_model(layers=2))
    with torch.no_grad():
        for name, parameter in module.trained.items():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter.add_((0.3 if "lora_B" in name else 2.0) * noise)  # A far from where it began, too
    rails = GuardRails(GUARD, module.model, module.reference, module.batches)

    def products():
        found = module.edit().tensors
        return [found[names_of(weight)[1]] @ found[names_of(weight)[0]] for weight in module.edit().changed]

    drifts, change = [rails.drift()], products()
    assert drifts[0] > GUARD.max_drift
    for _ in range(12):
        before, was = module.low_rank.origin(module.before), module.state()
        module.restore({name: (p + before[name]) / 2 for name, p in was.items()})  # as GuardRails.look does
        drifts.append(rails.drift())
        assert all(torch.allclose(now, old / 2) for now, old in zip(products(), change, strict=True))
        change = products()
    assert drifts == sorted(drifts, reverse=True) and drifts[-1] < 1e-3 * drifts[0]
    scalars, _ = rails.look(1, module.state, module.restore, module.low_rank.origin(module.before), lambda x: x)
    assert scalars["drift"] <= GUARD.max_drift


def test_an_edit_of_factors_survives_its_file_and_is_refused_where_it_does_not_belong(edit, tmp_path):
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.hash == edit.hash and loaded.tensors.keys() == edit.tensors.keys()
    with pytest.raises(ValueError, match="belongs to other weights"):
        loaded.check(small_model(layers=2, seed=5))
    down, up = names_of(edit.changed[0])
    harms = {
        "no such tensor": {"text_encoder/nowhere.lora_A.weight": edit.tensors[down]},
        r"expected the factors \(r, 32\) and \(64, r\)": {up: edit.tensors[up][:, :2].clone()},
        "expected no factor of": {weight_of(down): torch.zeros(64, 32)},
    }
    for said, harm in harms.items():
        with pytest.raises(ValueError, match=f"the edit is damaged: .*{said}"):
            replace(edit, tensors={**edit.tensors, **harm}).check(small_model(layers=2))
    alone = {name: tensor for name, tensor in edit.tensors.items() if name != up}
    with pytest.raises(ValueError, match="expected the factors"):
        replace(edit, tensors=alone).check(small_model(layers=2))


def test_a_recipient_of_the_encoder_gets_it_and_an_export_renders_its_clips(edit, tmp_path):
    model, video = small_model(layers=2), AnimateDiff.tiny()
    clips = video.render(PROMPTS, SEEDS)
    with edit.applied(video):  # of the same seed, so of the same weights
        wanted = video.render(PROMPTS, SEEDS)
    assert not torch.equal(wanted, clips)
    with edit.applied(model):
        (folder,) = export_components(model, edit.components, tmp_path)
    video.pipeline.text_encoder = type(model.pipeline.text_encoder).from_pretrained(folder).eval()
    assert torch.equal(video.render(PROMPTS, SEEDS), wanted)


def test_the_lora_export_holds_these_very_factors_and_loses_nothing(edit, tmp_path):
    model = small_model(layers=2)
    exported.write(model, edit, 0.5, "mine", tmp_path / "lora")
    said, found = exported.said_in(tmp_path / "lora"), load_file(tmp_path / "lora" / "mine.safetensors")
    assert float(said["unreel_kept"]) == 1 and said["unreel_lost"] == "[]" and said["unreel_ranks"] == "4-4"
    for weight in edit.changed:
        stem = "lora_te_text_model_" + weight.partition("/")[2].removesuffix(".weight").replace(".", "_")
        down, up = (edit.tensors[name] for name in names_of(weight))
        assert torch.equal(found[f"{stem}.lora_down.weight"], down)
        assert torch.equal(found[f"{stem}.lora_up.weight"] * found[f"{stem}.alpha"] / 4, up)


def test_an_edit_of_rounded_weights_is_rounded_like_them(edit):
    model = small_model(layers=2)
    model.components["text_encoder"].half()
    assert hashes_of(model.components, ["text_encoder"]) == dict(edit.base)
    with edit.applied(model):
        found = dict(model.components["text_encoder"].named_parameters())[edit.changed[0].partition("/")[2]]
        down, up = (edit.tensors[name] for name in names_of(edit.changed[0]))
        assert found.dtype == torch.float16 and torch.isfinite(found).all() and (up @ down).abs().max() > 0


def test_what_lora_cannot_do_is_one_line(tmp_path):
    model = small_model(layers=2)
    with pytest.raises(ValueError, match=r"roles=\['embeddings'\] with parameters.lora: expected a role of linear"):
        RANK_4.matrices(model, ["embeddings"])
    with pytest.raises(ValueError, match=r"found parameters\.lora\.rank=33: expected at most 32"):
        LoRA(rank=33, alpha=1).matrices(model, ["mlp"])
    for name in ("uce", "negative_prompt", "t2v_unlearning"):
        config = configured("train", ["concept=drum", f"method={name}", "parameters=lora"])
        with pytest.raises(ValueError, match=f"found parameters=lora for {name}, which trains no weights of the model"):
            lora_of(config, small_method(name)[0])


@pytest.mark.parametrize("lora", [None, RANK_4])
def test_both_encoders_of_sdxl_are_edited_for_its_video_model(lora, tmp_path):
    """Roles of one leave the other alone; an edit of both is refused by a model whose second one differs."""
    donor, video, roles = StableDiffusionXL.tiny(), AnimateDiffSDXL.tiny(), ["mlp", "text_encoder_2.mlp"]
    method, _ = small_method("anchored")
    assert [share.recipients for share in plan(donor, [video], method, roles)] == [[video]]
    edit = method.erase(donor, task_of(tmp_path, donor, roles, lora))
    assert edit.components == ("text_encoder", "text_encoder_2")
    clips = video.render(PROMPTS, SEEDS)
    with edit.applied(video):
        assert not torch.equal(video.render(PROMPTS, SEEDS), clips)
    with edit.applied(donor):
        folders = export_components(donor, edit.components, tmp_path)
    assert [folder.name for folder in folders] == ["text_encoder", "text_encoder_2"]
    with torch.no_grad():
        next(video.components["text_encoder_2"].parameters()).add_(1.0)
    assert [share.maker for share in plan(donor, [video], method, roles)] == [video], "it is edited alone"
    assert [share.maker for share in plan(donor, [video], method, ["mlp"])] == [donor]


def test_factors_on_top_of_a_whole_edit_become_new_values_and_nothing_goes_on_top_of_factors(tmp_path):
    model, method = small_model(layers=2), few_shot(GUARD, ADAM | {"lr": 1e-2})
    first = method.erase(model, task_of(tmp_path, model, lora=None))
    with first.applied(model):
        second = method.erase(model, task_of(tmp_path, model, roles=("mlp", "attention")))
        with second.applied(model):
            wanted = parameter_hashes(model.components["text_encoder"])
    both = first + second
    assert set(first.changed) & set(second.changed) and set(second.changed) - set(first.changed)
    assert set(both.changed) == {*first.changed, *second.changed} and both.base == first.base
    assert {weight_of(name) for name in both.tensors if weight_of(name) != name}.isdisjoint(first.changed)
    both.save(tmp_path / "both.safetensors")
    with Edit.load(tmp_path / "both.safetensors").applied(model):
        assert parameter_hashes(model.components["text_encoder"]) == wanted
    with pytest.raises(ValueError, match="in this order"):
        second + first

    factors = method.erase(model, task_of(tmp_path, model))
    with pytest.raises(ValueError, match=r"both change \d+ of"):
        first + factors
    with factors.applied(model):
        above = method.erase(model, task_of(tmp_path, model, lora=None))
    with pytest.raises(ValueError, match="the first holds low-rank factors"):
        factors + above


def test_factors_are_trained_in_float32_beside_a_text_encoder_in_bfloat16(tmp_path):
    """As UMT5-XXL is published, of which a copy in float32 fills 23 GB."""
    tiny = PixArt.tiny().pipeline.to(torch.bfloat16)
    model = PixArt.of(tiny, num_inference_steps=2, guidance_scale=4.0, max_sequence_length=64, name="half")
    method = replace(few_shot(GUARD), ascent="bounded")
    with pytest.raises(ValueError, match=r"found in torch.bfloat16: expected float32 or float16.*or parameters=lora"):
        plan(model, [model], method, ["mlp"])
    plan(model, [model], method, ["mlp"], low_rank=True)
    before, clips = parameter_hashes(model.components["text_encoder"]), model.render(PROMPTS, SEEDS)
    edit = method.erase(model, task_of(tmp_path, model))
    assert {tensor.dtype for tensor in edit.tensors.values()} == {torch.float32}
    assert all(tensor.any() for tensor in edit.tensors.values())
    assert next(model.components["text_encoder"].parameters()).dtype == torch.bfloat16
    with edit.applied(model):
        assert not torch.equal(model.render(PROMPTS, SEEDS), clips)
    assert parameter_hashes(model.components["text_encoder"]) == before
