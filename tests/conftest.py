"""Small real pipelines with random weights, of other sizes than the zoo's: what Stable Diffusion's own path runs on."""

import json

import open_clip
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unreel.donors import Donor
from unreel.zoo.store import zoo_tokenizer


def small_pipeline(prediction_type: str = "epsilon", layers: int = 12, seed: int = 0) -> StableDiffusionPipeline:
    """32 x 32 px, 12 text layers of width 32 as CLIP ViT-L has 12 of width 768."""
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(zoo_tokenizer())
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=64, projection_dim=32, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=32,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type,
        clip_sample=False, set_alpha_to_one=False,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def small_donor(prediction_type: str = "epsilon", layers: int = 12, seed: int = 0) -> Donor:
    return Donor(small_pipeline(prediction_type, layers, seed), num_inference_steps=2, guidance_scale=4.0, name="small")


@pytest.fixture
def donor() -> Donor:
    return small_donor()


@pytest.fixture(scope="session")
def small_folders(tmp_path_factory):
    """A pipeline folder, and what makes it video: a motion adapter, and a pipeline with a video UNet of its own."""
    folder = tmp_path_factory.mktemp("small")
    pipeline = small_pipeline()
    pipeline.save_pretrained(folder / "sd")
    torch.manual_seed(1)
    MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=8, motion_max_seq_length=16, use_motion_mid_block=False,
    ).save_pretrained(folder / "adapter")  # fmt: skip
    unet = UNet3DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"), up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    TextToVideoSDPipeline(unet=unet, **parts).save_pretrained(folder / "modelscope")
    return folder


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory):
    """A small open_clip model with random weights, and open_clip's own tokenizer."""
    folder = tmp_path_factory.mktemp("judge")
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    torch.manual_seed(2)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder
