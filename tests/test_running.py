"""How a pipeline runs: what saves memory or steps changes what it costs, and nothing else."""

import json
import weakref

import open_clip
import pytest
import torch

import test_models
from conftest import configured, opened
from test_safree import FORGET, RETAIN, make_edit, planted
from test_train import small_run
from unreel import assembly, training
from unreel.cache import TensorCache
from unreel.declarations import arguments_of
from unreel.edits import Edit, hashes_of
from unreel.methods.gradient import GradientMethod
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.pipeline_model import PipelineModel
from unreel.models.running import Common, kept_in_8_bits
from unreel.models.stable_diffusion import StableDiffusion
from unreel.models.text2video_zero import Text2VideoZero
from unreel.records import Prompt
from unreel.rendering import Renderer
from unreel.runs import Run
from unreel.scores import read_scores
from unreel.sharing import plan


@pytest.fixture
def folder(small_folders):
    return small_folders / "sd"


def rendered(folder, **common):
    return StableDiffusion(folder, num_inference_steps=4, **common).render(["a cat", "a drum at night"], [3, 4])


@pytest.mark.parametrize("saving", [{"vae_slicing": True}, {"group_offload": True}, {"denoiser_dtype": "float32"}])
def test_savings_of_memory_render_the_same(folder, saving):
    assert torch.allclose(rendered(folder), rendered(folder, **saving), atol=1e-5)


def test_a_denoiser_in_bfloat16_renders_nearly_the_same_and_is_another_content(folder):
    clips, plain = rendered(folder, denoiser_dtype="bfloat16"), rendered(folder)
    assert clips.dtype == torch.float32 and not torch.equal(clips, plain)
    assert (clips - plain).abs().mean() < 0.05
    model, other = StableDiffusion(folder, denoiser_dtype="bfloat16"), StableDiffusion(folder)
    dtypes = {key: next(module.parameters()).dtype for key, module in model.components.items()}
    assert dtypes == {"text_encoder": torch.float32, "denoiser": torch.bfloat16, "vae": torch.float32}
    assert model.content != other.content


FAMILIES = [StableDiffusion, AnimateDiff, ModelScope, Text2VideoZero]
FLOAT8 = {"denoiser_storage": "float8"}


@pytest.fixture(params=FAMILIES)
def built_in_8_bits(request, small_folders):
    """Builds a small model of each family."""
    folder = small_folders / ("modelscope" if request.param is ModelScope else "sd")
    own = {"motion_adapter": small_folders / "adapter"} if request.param is AnimateDiff else {}
    own |= {"t0": 1, "t1": 2} if request.param is Text2VideoZero else {}
    own |= {} if request.param is StableDiffusion else {"num_frames": 3}
    return lambda **common: request.param(folder, **own, num_inference_steps=4, name="small", **common)


def test_a_denoiser_in_8_bits_takes_a_quarter_renders_nearly_the_same_and_is_another_content(built_in_8_bits, tmp_path):
    models = {bits: built_in_8_bits(**common) for bits, common in {32: {}, 8: FLOAT8}.items()}
    size = {bits: sum(p.nbytes for p in model.components["denoiser"].parameters()) for bits, model in models.items()}
    assert size[8] < 0.3 * size[32], "norms alone stay as they were"
    cache = TensorCache(tmp_path)
    renderers = {bits: Renderer(model, cache, cache, 2) for bits, model in models.items()}
    prompts = [Prompt(text, "retain", ()) for text in ("a cat", "a drum at night")]
    clips = {bits: torch.stack(list(r.render(prompts, [3, 4], "before").clips)) for bits, r in renderers.items()}
    assert not torch.equal(clips[8], clips[32]) and (clips[8] - clips[32]).abs().mean() < 0.05
    assert renderers[8].key(None) != renderers[32].key(None) and models[8].content != models[32].content
    assert renderers[8].key(None) != Renderer(built_in_8_bits(**FLOAT8, autocast=True), cache, cache, 2).key(None)


@pytest.mark.parametrize(
    "more",
    [{"group_offload": True}, {"checkpointing": True}, {"vae_slicing": True}, {"denoiser_dtype": "float32"},
     {"denoiser_dtype": "bfloat16"}, {"autocast": True}],
    ids=str,
)  # fmt: skip
def test_a_denoiser_in_8_bits_goes_with_all_else(folder, more):
    plain, other = rendered(folder, **FLOAT8), rendered(folder, **FLOAT8, **more)
    rounds = more.get("denoiser_dtype") == "bfloat16" or "autocast" in more
    assert torch.allclose(plain, other, atol=0.5 if rounds else 1e-5) and (plain - other).abs().mean() < 0.05
    dtype = next(StableDiffusion(folder, **FLOAT8, **more).components["denoiser"].parameters()).dtype
    assert dtype == torch.float8_e4m3fn


def test_a_text_encoders_edit_and_a_conditioning_go_to_a_denoiser_in_8_bits(folder):
    model, donor, prompts, seeds = (
        StableDiffusion(folder, **FLOAT8),
        StableDiffusion(folder),
        ["a cat", "a drum"],
        [3, 4],
    )
    edited = donor.reference(["text_encoder"])
    with torch.no_grad():
        edited.components["text_encoder"].final_layer_norm.weight.mul_(2)
    edit = Edit.between(donor, edited, ["text_encoder"], "few_shot")
    before = model.render(prompts, seeds)
    with edit.applied(model):
        after = model.render(prompts, seeds)
        assert torch.allclose(model.render(model.encode_prompt(prompts), seeds), after, atol=1e-5)
    assert not torch.equal(after, before) and torch.equal(model.render(prompts, seeds), before)


def test_guidance_acts_on_a_denoiser_in_8_bits():
    model = planted()
    kept_in_8_bits(model.components["denoiser"])
    before = model.render([FORGET, RETAIN], [3, 4])
    with make_edit(model).applied(model):
        after = model.render([FORGET, RETAIN], [3, 4])
    assert not torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])


def test_what_edits_a_denoiser_is_refused_on_one_in_8_bits(tmp_path):
    options = ["concept=cat", "method=uce", "+t2v.zoo_animatediff.denoiser_storage=float8", f"runs={tmp_path}"]
    parts = opened(configured("train", options))
    (recipient,) = parts.recipients
    roles, says = ["denoiser.cross_attention.kv"], r"float8_e4m3fn.*denoiser_storage=null; edit.*first, then quantise"
    with pytest.raises(ValueError, match=rf"zoo_animatediff: the denoiser is quantised.*{says}"):
        plan(parts.donor, parts.recipients, parts.method, roles)
    with pytest.raises(ValueError, match=rf"edits the denoiser of zoo_animatediff.*{says}"):
        parts.method.check_dtypes(recipient)
    edit = Edit({}, hashes_of(parts.donor.components, ["denoiser"]), "uce")
    with pytest.raises(ValueError, match=rf"the denoiser is quantised.*{says}"):
        edit.check(recipient)


def gradients(model):
    """Of the text encoder, through the denoiser."""
    encoder = model.components["text_encoder"].requires_grad_(True)
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    predicted = model.predict(latents, torch.tensor([400, 800]), model.encode_prompt(["a cat", "a drum at night"]))
    predicted.square().mean().backward()
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.requires_grad_(False).zero_grad()
    return found


def saved(model):
    """Numbers that autograd keeps for the way back."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        gradients(model)
    return sum(sizes)


def test_checkpointing_keeps_less_and_gives_the_same_gradients(folder):
    plain, less = StableDiffusion(folder), StableDiffusion(folder, checkpointing=True)
    assert not any(module.training for module in less.components["denoiser"].modules())
    ours, theirs = gradients(plain), gradients(less)
    assert ours.keys() == theirs.keys() and len(ours) > 100
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    assert saved(less) < saved(plain) / 2


@pytest.mark.parametrize("family", test_models.FAMILIES)
def test_all_families_take_what_is_common_and_no_more(family, folder):
    declared = arguments_of(f"{family.__module__}.{family.__name__}")
    assert set(Common.__annotations__) <= set(declared.types) and not declared.more
    with pytest.raises(ValueError, match="found solver='dpm'"):
        family(folder, solver="dpm")
    with pytest.raises(ValueError, match="found denoiser_dtype='int8': expected 'float32', 'float16' or 'bfloat16'"):
        family(folder, denoiser_dtype="int8")


def test_timesteps_are_spread_as_asked_for(folder):
    spread = {}
    for spacing in (None, "trailing", "leading"):
        scheduler = StableDiffusion(folder, timestep_spacing=spacing).pipeline.scheduler
        scheduler.set_timesteps(4)
        spread[spacing] = scheduler.timesteps.tolist()
    assert spread["trailing"][0] == 999 and spread["leading"][0] < 999 and spread[None] == spread["leading"]


@pytest.mark.parametrize(
    "recipient",
    [
        "animatediff",
        "modelscope",
        "text2video_zero",
        "zoo_text2video_zero",
        "latte",
        "wan",
        "ltx",
        "cogvideox",
        "mochi",
    ],
)
def test_the_fast_preset_takes_less_than_half_the_steps_of_every_recipient(recipient):
    steps = {}
    for rendering in ("full", "fast"):
        entry = configured("train", ["concept=cat", f"t2v={recipient}", f"rendering={rendering}"]).t2v[recipient]
        steps[rendering] = entry.num_inference_steps
        if "t0" in entry:
            assert 0 <= entry.t0 < entry.t1 < entry.num_inference_steps
    assert 1 < steps["fast"] < steps["full"] / 2


def test_a_method_that_edits_a_denoiser_refuses_one_in_bfloat16(folder):
    model = StableDiffusion(folder, denoiser_dtype="bfloat16", name="half")
    with pytest.raises(ValueError, match=r"edits the denoiser of half, found in torch.bfloat16.*denoiser_dtype=null"):
        opened(configured("train", ["concept=cat", "method=uce"])).method.check_dtypes(model)


def test_a_denoiser_whose_weights_come_and_go_is_not_edited(folder):
    model = StableDiffusion(folder, group_offload=True, name="offloaded")
    with pytest.raises(ValueError, match=r"denoiser of offloaded, found with group_offload=true: expected false"):
        opened(configured("train", ["concept=cat", "method=uce"])).method.check_dtypes(model)


def test_a_model_around_a_pipeline_is_where_the_pipeline_is(folder):
    pipeline = StableDiffusion(folder).pipeline
    assert StableDiffusion.of(pipeline).device.type == "cpu"
    assert StableDiffusion.of(pipeline.to("meta")).device.type == "meta"


def test_a_trainer_of_several_gpus_passes_its_check():
    """The check makes one for a CPU, which no devices=-1 suits."""
    assembly.check_trainer(configured("train", ["concept=cat", "trainer=ddp"]))


@pytest.mark.parametrize(
    ("options", "named"), [([], True), (["device=cpu"], False), (["trainer.accelerator=cpu"], False)], ids=str
)
def test_a_run_says_what_computed_it(options, named, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    options = [option if option.startswith("device") else f"+{option}" for option in options]
    run = Run(configured("train", ["concept=cat", f"output={tmp_path / 'run'}", *options]), [], [], None)
    assert (run.provenance["hardware"] == "a GPU") == named


def test_a_quantised_text_encoder_is_refused_before_it_is_loaded_and_after(folder, tmp_path):
    copied = tmp_path / "eight_bit"
    (copied / "text_encoder").mkdir(parents=True)
    (copied / "model_index.json").write_text("{}")
    (copied / "text_encoder" / "config.json").write_text(json.dumps({"quantization_config": {"load_in_8bit": True}}))
    with pytest.raises(ValueError, match=r"its text encoder is quantised: expected one in float16 or float32"):
        StableDiffusion(copied)
    model = StableDiffusion(folder)
    edit = Edit({}, hashes_of(model.components, ["text_encoder"]), "few_shot")
    encoder = model.components["text_encoder"]
    weight = next(module for module in encoder.modules() if isinstance(module, torch.nn.Linear))
    weight.weight = torch.nn.Parameter(weight.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"text encoder is quantised \(.*torch.int8\).*edit the model first"):
        edit.check(model)


@pytest.fixture
def loaded(monkeypatch):
    """The denoisers that are in memory, and how many were at once, at most: of every model one."""
    held, most = weakref.WeakSet(), [0]
    prepared = PipelineModel._prepared

    def counting(self, pipeline):
        held.add(getattr(pipeline, self.denoiser))
        most[0] = max(most[0], len(held))
        return prepared(self, pipeline)

    monkeypatch.setattr(PipelineModel, "_prepared", counting)
    return held, most


def test_one_model_at_a_time_scores_the_same_with_one_model_in_memory(loaded, tmp_path):
    options = ["concept=cat", "method=anchored", "method.data.steps=2", "t2v=[zoo_images,zoo_unet3d]", "logger=none",
               "evaluation.prompts=2", "t2v.zoo_unet3d.num_frames=2", "metric=accuracy", "export=[]",
               f"cache={tmp_path / 'cache'}"]  # fmt: skip
    (held, most), found = loaded, {}
    for alone in (False, True):
        held.clear()
        most[0] = 0
        config = configured("train", [*options, f"one_model_at_a_time={alone}", f"output={tmp_path / str(alone)}"])
        parts = opened(config)
        training.train(config, parts.questions)
        rows = read_scores(tmp_path / str(alone) / "scores.jsonl")
        found[alone] = [(row.t2v, row.stage, row.split, row.metric, row.value, row.clips) for row in rows]
        assert most[0] == (1 if alone else 3)
    assert found[True] == found[False] and len(found[True]) >= 16


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["rendering.steps=0"], "found rendering.steps=0: expected a factor"),
        (["rendering.steps=banana"], "found rendering.steps=banana: expected a factor"),
        (["one_model_at_a_time=maybe"], "found one_model_at_a_time=maybe: expected true or false"),
        (["trainer=gpu_8gb", "evaluation.at_steps=[10]"], "expected evaluation.at_steps=\\[\\], or"),
        (["+t2i.group_offload=true"], "found t2i.group_offload=true: expected false"),
        (["+t2i.denoiser_storage=float8"], "found t2i.denoiser_storage=float8: expected null, as the donor is trained"),
        (["+t2v.zoo_images.denoiser_storage=int4"], "denoiser_storage='int4': expected 'float8'"),
        (["t2v.zoo_images.timestep_spacing=banana"], "timestep_spacing='banana': expected"),
    ],
)
def test_settings_that_will_not_do_are_refused_at_the_door(options, says):
    with pytest.raises(ValueError, match=says):
        opened(configured("train", ["concept=cat", "t2v=zoo_images", *options]))


@pytest.mark.parametrize("alone", [False, True])
def test_one_model_at_a_time_no_judge_is_in_memory_where_clips_are_rendered(
    alone, small_folders, judge_folder, monkeypatch, tmp_path
):
    """Nor is it in a training: a CLIP ViT-L/14 takes 1.7 GB of a GPU."""
    held, seen = weakref.WeakSet(), []
    create, render, erase = open_clip.create_model, PipelineModel.render, GradientMethod.erase

    def creating(*args, **options):
        held.add(model := create(*args, **options))
        return model

    def watched(original):
        def watching(*args, **options):
            seen.append(len(held))
            return original(*args, **options)

        return watching

    monkeypatch.setattr(open_clip, "create_model", creating)
    monkeypatch.setattr(PipelineModel, "render", watched(render))
    monkeypatch.setattr(GradientMethod, "erase", watched(erase))
    options = [*small_run(small_folders, judge_folder, tmp_path), f"one_model_at_a_time={alone}", "logger=none"]
    parts = opened(config := configured("train", [*options, "export=[]", "metric=[accuracy,clip_score]"]))
    training.train(config, parts.questions)
    assert set(seen) == ({0} if alone else {0, 1}) and len(seen) >= 4
