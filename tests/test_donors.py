"""Donors: every prediction type against diffusers' own schedulers, and roles by the model's real depth."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from conftest import small_donor, small_pipeline
from unreel.donors import Donor, select_parameters


def clip_text(layers, width, inner):
    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(num_hidden_layers=layers, hidden_size=width, intermediate_size=inner))


def count(encoder, roles):
    sizes = {name: p.numel() for name, p in encoder.named_parameters()}
    return sum(sizes[name] for name in select_parameters(encoder, roles))


def test_roles_have_the_published_sizes_on_clip_l():
    encoder = clip_text(12, 768, 3072)
    assert count(encoder, ["mlp"]) == 56_669_184  # Fuchi & Takagi 2024: 12 (768 3072 2 + 3072 + 768)
    assert count(encoder, ["final_attention"]) == 2_362_368  # 4 (768 768 + 768)
    assert count(encoder, ["mlp", "final_attention"]) == 56_669_184 + 2_362_368
    assert count(encoder, ["all"]) == sum(p.numel() for p in encoder.parameters())
    assert count(encoder, ["embeddings"]) == encoder.config.vocab_size * 768


@pytest.mark.parametrize("layers", [4, 12, 23])
def test_the_final_attention_is_the_last_there_is(layers):
    names = select_parameters(clip_text(layers, 32, 64), ["final_attention"])
    assert len(names) == 8 and all(f".layers.{layers - 1}." in name for name in names)


def test_a_selection_that_matches_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"'lora' matches nothing; roles: all, .*mlp\.fc1\.weight"):
        select_parameters(clip_text(2, 32, 64), ["mlp", "lora"])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets_are_those_of_diffusers(prediction_type):
    donor = small_donor(prediction_type, layers=2)
    scheduler = donor.pipeline.scheduler
    latents, noise = torch.randn(2, 3, 4, 16, 16).unbind()
    timesteps = torch.tensor([0, 500, 999])
    assert torch.allclose(
        donor.add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps), atol=1e-6
    )
    wanted = {"epsilon": noise, "sample": latents, "v_prediction": scheduler.get_velocity(latents, noise, timesteps)}
    assert torch.allclose(donor.target(latents, noise, timesteps), wanted[prediction_type], atol=1e-6)


def test_flow_noise_and_target_lie_on_the_straight_path():
    pipeline = small_pipeline(layers=2)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    donor = Donor(pipeline, 2, 1.0)
    latents, noise = torch.randn(2, 2, 4, 16, 16).unbind()
    timesteps = torch.tensor([249, 999])
    noisy, target = donor.add_noise(latents, noise, timesteps), donor.target(latents, noise, timesteps)
    assert torch.allclose(noisy[1], noise[1])
    assert torch.allclose(noisy[0] - 0.25 * target[0], latents[0], atol=1e-5)


def test_a_flow_donor_generates_along_the_path_that_it_is_trained_on():
    pipeline = small_pipeline(layers=2)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    donor = Donor(pipeline, 4, 4.0)
    images = donor.generate(["a cat"], [0])
    assert images.shape == (1, 3, 32, 32) and images.isfinite().all()
    scheduler = donor.pipeline.scheduler
    scheduler.set_timesteps(20)
    clean, noise = torch.zeros(20, 4, 1, 1), torch.ones(20, 4, 1, 1)
    shares = donor.add_noise(clean, noise, scheduler.timesteps)[:, 0, 0, 0]
    assert torch.allclose(shares, scheduler.sigmas[:20], atol=0.002)


def test_an_unknown_prediction_type_is_refused():
    pipeline = small_pipeline(layers=2)
    pipeline.scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="score"):
        Donor(pipeline, 2, 1.0)


def test_prompts_are_encoded_as_the_pipeline_encodes_them(donor):
    wanted, _ = donor.pipeline.encode_prompt(["a cat on the beach", ""], "cpu", 1, False)
    assert torch.equal(donor.encode_prompt(["a cat on the beach", ""]), wanted)
