"""Models: every family and prediction type against diffusers' own, and roles by the model's real depth."""

import copy
import importlib
import inspect
import json
import pkgutil
import re

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextConfig, CLIPTextModel

import unreel.models
from conftest import small_model
from unreel.cache import TensorCache
from unreel.cli import one_line
from unreel.models import padding
from unreel.models.animatediff import AnimateDiff
from unreel.models.cogvideox import CogVideoX
from unreel.models.latte import Latte
from unreel.models.ltx import LTX
from unreel.models.model import Conditioning, Model
from unreel.models.modelscope import ModelScope
from unreel.models.pixart import PixArt
from unreel.models.readings import states
from unreel.models.roles import select
from unreel.models.stable_diffusion import StableDiffusion, tiny_pipeline
from unreel.models.t5 import tiny_encoder, tiny_tokenizer
from unreel.models.text2video_zero import Text2VideoZero
from unreel.models.wan import Wan
from unreel.records import Prompt
from unreel.rendering import Renderer

MODULES = [
    importlib.import_module(f"unreel.models.{found.name}") for found in pkgutil.iter_modules(unreel.models.__path__)
]
FAMILIES = sorted(
    {
        c
        for m in MODULES
        for _, c in inspect.getmembers(m, inspect.isclass)
        if issubclass(c, Model) and c is not Model and "tiny" in vars(c)
    },
    key=lambda c: c.__name__,
)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def tiny(request):
    return request.param.tiny()


def test_padding_that_is_not_read_is_not_encoded(tiny, monkeypatch):
    """And what the denoiser makes of the rest, and its gradient, are what they are with the padding."""
    texts, seen = ["a cat on the beach", "a drum", ""], []
    encoder = tiny.components["text_encoder"].requires_grad_(True)
    weight = encoder.get_input_embeddings().weight
    for module in encoder.modules():  # T5 holds its embeddings twice
        if getattr(module, "weight", None) is weight:
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    rng = torch.Generator().manual_seed(0)
    noisy = torch.randn(len(texts), *tiny.latent_shape, generator=rng)
    timesteps = tiny.sample_timesteps(len(texts), rng)
    found = []
    for longest in (padding._longest, lambda mask: mask.shape[1]):
        monkeypatch.setattr(padding, "_longest", longest)
        predicted = tiny.predict(noisy, timesteps, tiny.encode_prompt(texts))
        found.append((predicted, *torch.autograd.grad(predicted.square().sum(), weight)))
    assert (seen[0] < seen[-1]) == (tiny.reading.masked and tiny.reading.pads != "read")
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def clip_text(layers, width, inner):
    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(num_hidden_layers=layers, hidden_size=width, intermediate_size=inner))


def select_text(encoder, roles):
    return select({"text_encoder": encoder}, roles)


def count(encoder, roles):
    sizes = {f"text_encoder/{name}": p.numel() for name, p in encoder.named_parameters()}
    return sum(sizes[name] for name in select_text(encoder, roles))


def test_roles_have_the_published_sizes_on_clip_l():
    encoder = clip_text(12, 768, 3072)
    assert count(encoder, ["mlp"]) == 56_669_184  # Fuchi & Takagi 2024: 12 (768 3072 2 + 3072 + 768)
    assert count(encoder, ["final_attention"]) == 2_362_368  # 4 (768 768 + 768)
    assert count(encoder, ["mlp", "text_encoder.final_attention"]) == 56_669_184 + 2_362_368
    assert count(encoder, ["all"]) == sum(p.numel() for p in encoder.parameters())
    assert count(encoder, ["embeddings"]) == encoder.config.vocab_size * 768


@pytest.mark.parametrize("layers", [4, 12, 23])
def test_the_final_attention_is_the_last_there_is_and_the_first_layer_the_first(layers):
    names = select_text(clip_text(layers, 32, 64), ["final_attention"])
    assert len(names) == 8 and all(f".layers.{layers - 1}." in name for name in names)
    assert all(".layers.0." in name for name in select_text(clip_text(layers, 32, 64), ["first_layer"]))


def test_roles_have_t5s_own_modules():
    encoder = tiny_encoder(tiny_tokenizer())
    mlp = select_text(encoder, ["mlp"])
    assert len(mlp) == 6 and all(re.search(r"DenseReluDense\.w(i_0|i_1|o)\.weight$", name) for name in mlp)
    final = select_text(encoder, ["final_attention"])
    assert [name[-8:] for name in final] == ["q.weight", "k.weight", "v.weight", "o.weight"]
    assert all(".block.1." in name for name in final)
    assert all(".block.0." in name for name in select_text(encoder, ["first_layer"]))
    assert select_text(encoder, ["embeddings"]) == ["text_encoder/shared.weight"]
    assert count(encoder, ["all"]) == sum(p.numel() for p in encoder.parameters())


def test_roles_of_a_second_text_encoder_are_those_of_the_first():
    both = {"text_encoder": clip_text(4, 32, 64), "text_encoder_2": clip_text(2, 32, 64)}
    assert all(name.startswith("text_encoder/") for name in select(both, ["mlp"]))
    names = select(both, ["text_encoder_2.final_attention"])
    assert len(names) == 8 and all(name.startswith("text_encoder_2/") and ".layers.1." in name for name in names)


def test_a_selection_that_matches_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"'lora' matches nothing; roles: all, .*mlp\.fc1\.weight"):
        select_text(clip_text(2, 32, 64), ["mlp", "lora"])


def test_cross_attention_is_where_text_enters_and_nothing_else_is(tiny):
    """What the roles call cross-attention reads the text; without it the denoiser is deaf to the prompt.

    Where text and frames attend jointly there is none, and only the projection of the text is the text's own.
    """
    try:
        names = tiny.select(["denoiser.cross_attention.kv"])
    except ValueError as error:
        assert "joint attention; expected denoiser.text_projection" in str(error)
        names, both = tiny.select(["denoiser.text_projection"]), []
    else:
        both = tiny.select(["denoiser.cross_attention"])
        assert set(both) >= set(names)
    rest = tiny.select(["denoiser.not_cross_attention"])
    assert names and {*both, *rest} == {*tiny.select(["denoiser.all"])}
    denoiser = dict(tiny.components["denoiser"].named_parameters())
    with torch.no_grad():
        for name in names:
            denoiser[name.split("/")[1]].zero_()
    latents = torch.randn(2, *tiny.latent_shape, generator=torch.Generator().manual_seed(0))[:1].expand(
        2, *tiny.latent_shape
    )
    with torch.no_grad():
        read = tiny.encode_prompt(["a cat", "a drum"])
        if both:  # a pooled embedding that goes with the time, as SDXL's, is text that no attention reads
            same = {name: t[:1].expand_as(t) for name, t in read.items() if name.startswith("pooled")}
            read = Conditioning({**read, **same})
        told = tiny.predict(latents, torch.tensor([500, 500]), read)
    assert torch.allclose(told[0], told[1], atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets_are_those_of_diffusers(prediction_type):
    model = small_model(prediction_type, layers=2)
    scheduler = model.pipeline.scheduler
    latents, noise = torch.randn(2, 3, 4, 16, 16).unbind()
    timesteps = torch.tensor([0, 500, 999])
    noisy, target = model.noised(latents, noise, timesteps)
    assert torch.allclose(noisy, scheduler.add_noise(latents, noise, timesteps), atol=1e-6)
    wanted = {"epsilon": noise, "sample": latents, "v_prediction": scheduler.get_velocity(latents, noise, timesteps)}
    assert torch.allclose(target, wanted[prediction_type], atol=1e-6)


def test_flow_noise_and_target_lie_on_the_straight_path():
    pipeline = tiny_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    model = StableDiffusion.of(pipeline, num_inference_steps=2, guidance_scale=1.0)
    latents, noise = torch.randn(2, 2, 4, 16, 16).unbind()
    noisy, target = model.noised(latents, noise, torch.tensor([249, 999]))
    assert torch.allclose(noisy[1], noise[1])
    assert torch.allclose(noisy[0] - 0.25 * target[0], latents[0], atol=1e-5)


def test_a_flow_donor_generates_along_the_path_that_it_is_trained_on():
    pipeline = tiny_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    model = StableDiffusion.of(pipeline, num_inference_steps=4, guidance_scale=4.0)
    clips = model.render(["a cat"], [0])
    assert clips.shape == (1, 1, 3, 32, 32) and clips.isfinite().all()
    scheduler = model.pipeline.scheduler
    scheduler.set_timesteps(20)
    clean, noise = torch.zeros(20, 4, 1, 1), torch.ones(20, 4, 1, 1)
    shares = model.noised(clean, noise, scheduler.timesteps)[0][:, 0, 0, 0]
    assert torch.allclose(shares, scheduler.sigmas[:20], atol=0.002)


def test_an_unknown_prediction_type_is_refused():
    pipeline = tiny_pipeline()
    pipeline.scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="score"):
        StableDiffusion.of(pipeline)


class Fed:
    """What a denoiser is called with and what it returns, while it listens; `instead` replaces arguments of a call."""

    def __init__(self, denoiser):
        self.calls, self.instead, self.denoiser = [], None, denoiser

    def __enter__(self):
        self.signature = inspect.signature(self.denoiser.forward)
        before = self.denoiser.register_forward_pre_hook(self.before, with_kwargs=True)
        self.hooks = before, self.denoiser.register_forward_hook(self.after, with_kwargs=True)
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def bound(self, args, kwargs):
        return dict(self.signature.bind(*args, **kwargs).arguments)

    def before(self, _module, args, kwargs):
        asked = self.bound(args, kwargs)
        if self.instead is None:
            return None
        noisy = next(name for name in ("sample", "hidden_states") if name in asked)
        rows = len(asked[noisy])
        for name in (noisy, "timestep"):
            asked[name] = self.instead[name].expand(rows, *self.instead[name].shape[1:])
        return (), asked

    def after(self, _module, args, kwargs, output):
        self.calls.append((self.bound(args, kwargs), output[0] if isinstance(output, tuple) else output.sample))


def test_a_denoiser_is_told_what_its_pipeline_tells_it(tiny):
    if isinstance(tiny, Text2VideoZero):
        pytest.skip("its pipeline has the denoiser look at several frames, which no training does")
    check_what_a_denoiser_is_told(tiny)


def test_wan_2_2_is_told_the_time_of_every_patch():
    tiny = Wan.tiny()
    tiny.pipeline.register_to_config(expand_timesteps=True)
    check_what_a_denoiser_is_told(tiny)


@torch.no_grad()
def test_each_denoiser_of_wan_2_2_has_its_part_of_the_time():
    tiny = Wan.tiny()
    first, second = tiny.pipeline.transformer, copy.deepcopy(tiny.pipeline.transformer)
    for p in second.parameters():
        p.mul_(1.1)
    noisy, read = torch.randn(2, *tiny.latent_shape), tiny.encode_prompt(["a cat", "a drum"])
    times = torch.tensor([900, 100])
    ours = tiny.predict(noisy, times, read)
    tiny.pipeline.register_modules(transformer=second)
    theirs = tiny.predict(noisy, times, read)
    tiny.pipeline.register_modules(transformer=first, transformer_2=second)
    tiny.pipeline.register_to_config(boundary_ratio=0.5)
    both = tiny.predict(noisy, times, read)
    assert torch.allclose(both[0], ours[0], atol=1e-5) and torch.allclose(both[1], theirs[1], atol=1e-5)
    assert not torch.allclose(ours, theirs, atol=1e-3)


@torch.no_grad()
def check_what_a_denoiser_is_told(tiny):
    """The same noise at the same time under the same prompt: the pipeline's first prediction is the model's."""
    noisy = torch.randn(1, *tiny.latent_shape, generator=torch.Generator().manual_seed(0))
    with Fed(tiny.components["denoiser"]) as fed:
        tiny.predict(noisy, torch.tensor([500]), tiny.encode_prompt(["A cat on the beach"]))
        fed.instead, ours = fed.calls[0]
        fed.calls.clear()
        tiny.render(["A cat on the beach"], [0])
    rows = [row for _, output in fed.calls[:2] for row in output]  # of guidance's two prompts, together or in turn
    assert any(torch.allclose(row, ours[0], atol=1e-5) for row in rows)
    assert not all(torch.allclose(row, ours[0], atol=1e-3) for row in rows), "the prompt makes no difference"


@torch.no_grad()
def test_a_reading_tells_all_that_a_family_does_to_a_prompt(tiny):
    """The states under its own reading are what its pipeline gives the denoiser; of several encoders, the last tokens,
    or the first channels.
    """
    texts = ["A  cat on the beach", "a drum"]
    found, read = states(tiny, texts, tiny.reading)
    wanted = tiny.encode_prompt(texts)["prompt_embeds"][:, -tiny.reading.max_length :, : found.shape[-1]]
    assert torch.allclose(found[read], wanted[read], atol=1e-5)
    assert bool(read.all()) == ("prompt_attention_mask" not in tiny.encode_prompt(texts))


@torch.no_grad()
def test_a_donor_reads_as_the_recipient_will():
    donor, texts = PixArt.tiny(), ["a cat on the beach", "A drum"]
    for recipient in (CogVideoX.tiny(), LTX.tiny()):
        found, _ = states(donor, texts, recipient.reading)
        wanted = recipient.encode_prompt(texts)["prompt_embeds"]
        own = donor.encode_prompt(texts)["prompt_embeds"]
        assert found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-5)
        assert not torch.allclose(own[:, :4], found[:, :4], atol=1e-2), "the mask makes no difference"


@torch.no_grad()
def test_noise_and_target_are_those_of_the_familys_own_scheduler(tiny):
    """A scheduler that is given the target goes from the noisy latents of one step to those of the next."""
    scheduler = copy.deepcopy(tiny.pipeline.scheduler)
    tiny.set_timesteps(scheduler, 4)
    latents, noise = torch.randn(2, 1, *tiny.latent_shape, generator=torch.Generator().manual_seed(0)).unbind()
    first, second = scheduler.timesteps[:2]
    (noisy, target), (wanted, _) = (tiny.noised(latents, noise, t[None]) for t in (first, second))
    assert (noisy - wanted).abs().max() > 0.05
    assert torch.allclose(scheduler.step(target, first, noisy).prev_sample, wanted, atol=0.01)


def test_a_clip_depends_on_its_prompt_and_its_seed_alone(tiny):
    prompts, seeds = ["a cat on the beach", "a drum", "a drum"], [8, 8, 9]
    clips = tiny.render(prompts, seeds)
    assert clips.shape == (3, tiny.num_frames, 3, 32, 32) and clips.dtype == torch.float32
    assert clips.min() >= 0 and clips.max() <= 1 and clips.std() > 0
    assert (clips[1] - clips[2]).abs().max() > 0.01, "another seed, the same clip"
    assert (clips[1] - clips[0]).abs().max() > 0.003, "another prompt, the same clip"
    alone = tiny.render(prompts[1:2], seeds[1:2])
    assert torch.allclose(alone[0], clips[1], atol=1e-3), "the clip changes with its batch"


def test_conditioning_renders_what_its_text_renders(tiny):
    with torch.no_grad():
        conditioning = tiny.encode_prompt(["a cat on the beach", "a drum"])
    found, wanted = tiny.render(conditioning, [3, 4]), tiny.render(["a cat on the beach", "a drum"], [3, 4])
    assert torch.allclose(found, wanted, atol=1e-5)  # some pipelines encode one prompt at a time
    assert "encode_prompt" not in vars(tiny.pipeline), "the pipeline was left patched"


def test_latents_have_the_familys_layout_and_come_back_as_pixels(tiny):
    clips = torch.rand(2, tiny.num_frames if len(tiny.latent_shape) == 4 else 1, 3, 32, 32) * 2 - 1
    latents = tiny.encode_pixels(clips, torch.Generator().manual_seed(0))
    assert latents.shape == (2, *tiny.latent_shape)
    assert torch.equal(latents, tiny.encode_pixels(clips, torch.Generator().manual_seed(0)))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    timesteps = tiny.sample_timesteps(2, torch.Generator().manual_seed(1))
    noisy, target = tiny.noised(latents, noise, timesteps)
    with torch.no_grad():
        assert tiny.predict(noisy, timesteps, tiny.encode_prompt(["a cat", "a drum"])).shape == target.shape


def test_a_reference_keeps_its_weights_when_the_models_change(tiny):
    reference = tiny.reference(["text_encoder", "denoiser"])
    before = reference.render(["a cat"], [0])
    with torch.no_grad():
        for key in ("text_encoder", "denoiser"):
            for parameter in tiny.components[key].parameters():
                parameter.add_(0.1)
    assert torch.equal(reference.render(["a cat"], [0]), before)
    assert not torch.equal(tiny.render(["a cat"], [0]), before)
    assert reference.components["vae"] is tiny.components["vae"]


def test_a_model_is_loaded_when_it_is_used_and_can_be_released(small_folders):
    model = AnimateDiff(small_folders / "sd", small_folders / "adapter", num_frames=3, num_inference_steps=2)
    content = model.content
    assert model._pipeline is None, "its content is told by its files"
    first = model.render(["a cat"], [0])
    model.release()
    assert model._pipeline is None
    assert torch.equal(model.render(["a cat"], [0]), first) and model.content == content


def test_what_was_loaded_to_render_can_be_trained(small_folders):
    model = StableDiffusion(small_folders / "sd", num_inference_steps=2)
    model.render(["a cat"], [0])
    for module in model.components.values():
        assert all(parameter.requires_grad_(True).requires_grad for parameter in module.parameters())


def test_a_run_is_the_same_on_every_machine_but_its_cached_clips_are_not(small_folders, tmp_path, monkeypatch):
    """A machine without bfloat16 renders other bits, which the others must not take for theirs."""
    made = {}
    for computes in (True, False):
        for module in ("models.pipeline_model", "rendering"):
            monkeypatch.setattr(f"unreel.{module}.computes_bfloat16", lambda _, computes=computes: computes)
        model = AnimateDiff(
            small_folders / "sd", small_folders / "adapter", num_frames=3, num_inference_steps=2, autocast=True
        )
        renderer = Renderer(model, TensorCache(tmp_path), TensorCache(tmp_path / "own"), 1)
        made[computes] = model.content, renderer.render([Prompt("a drum", "forget", ())], [8], "before").clips[0]
    assert made[True][0] == made[False][0] and not torch.equal(made[True][1], made[False][1])


def test_a_folder_that_holds_no_video_unet_is_one_line(small_folders, tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a UNet3DConditionModel"):
        ModelScope(small_folders / "sd", unet=tmp_path)


def test_a_video_unet_beside_the_pipeline_takes_the_place_of_its_own(small_folders):
    model = ModelScope(small_folders / "sd", small_folders / "modelscope" / "unet", num_frames=3, num_inference_steps=2)
    assert model.render(["a cat"], [0]).shape == (1, 3, 3, 32, 32)


def test_a_latte_transformer_beside_a_pixart_folder_is_its_video_model(tmp_path):
    PixArt.tiny().pipeline.save_pretrained(tmp_path / "pixart")
    whole = Latte.tiny()
    whole.pipeline.transformer.save_pretrained(tmp_path / "latte")
    options = {"num_frames": 3, "num_inference_steps": 2, "guidance_scale": 4.0}
    joined = Latte(tmp_path / "pixart", tmp_path / "latte", **options)
    assert joined.content != Latte(tmp_path / "pixart", **options).content
    clip = joined.render(["a cat"], [0])
    assert clip.shape == (1, 3, 3, 32, 32)
    whole.pipeline.scheduler = DPMSolverMultistepScheduler()  # PixArt's; all else of both is equal
    assert torch.equal(Latte.of(whole.pipeline, **options).render(["a cat"], [0]), clip)
    with pytest.raises(ValueError, match="expected the folder of a LatteTransformer3DModel"):
        Latte(tmp_path / "pixart", tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_line_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"^t: found nobody/nothing neither whole on this machine nor on a hub") as error:
        StableDiffusion("nobody/nothing", name="t").render(["a cat"], [0])
    assert "expected a connection to the hub, once, or a local diffusers folder" in one_line(error.value)
    assert "stacktrace" not in str(error.value) and "\n" not in str(error.value)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match=str(tmp_path)):
        StableDiffusion(tmp_path).render(["a cat"], [0])


def test_the_home_folder_is_expanded(small_folders, monkeypatch):
    monkeypatch.setenv("HOME", str(small_folders))
    assert StableDiffusion("~/sd").content == StableDiffusion(small_folders / "sd").content
    with pytest.raises(ValueError, match="~/nowhere: expected a diffusers folder"):
        StableDiffusion("~/nowhere")


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_a_number_of_frames_that_is_none_is_refused_before_anything_is_loaded(small_folders, number):
    with pytest.raises(ValueError, match="num_frames"):
        AnimateDiff(small_folders / "sd", small_folders / "adapter", num_frames=number)
