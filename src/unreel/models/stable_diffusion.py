"""Models of the Stable Diffusion 1 and 2 family: images. The usual donor; as a recipient what clips are compared with.

Reference: Robin Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, arXiv
2112.10752.
"""

from pathlib import Path
from typing import Any, Self, Unpack

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pydantic import PositiveInt
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unreel.models.pipeline_model import Common, PipelineModel
from unreel.validation import ModelFolder

_TOKENIZER = Path(__file__).parents[1] / "zoo" / "models" / "t2i" / "tokenizer"  # a small real one, for tiny models


def tiny_parts(prediction_type: str = "epsilon", layers: int = 2, seed: int = 0) -> dict[str, Any]:
    """The parts of a StableDiffusionPipeline with random weights: 32 x 32 px, a CLIP text encoder of width 32."""
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(_TOKENIZER)
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
    return {"vae": vae, "text_encoder": CLIPTextModel(text), "tokenizer": tokenizer, "unet": unet,
            "scheduler": scheduler}  # fmt: skip


NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def tiny_pipeline(prediction_type: str = "epsilon", layers: int = 2, seed: int = 0) -> StableDiffusionPipeline:
    """`tiny_parts` as a pipeline."""
    return StableDiffusionPipeline(**tiny_parts(prediction_type, layers, seed), **NO_CHECKER)


class StableDiffusion(PipelineModel):
    """Images, as clips of one frame, by a StableDiffusionPipeline.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_inference_steps, guidance_scale: how it generates.
        common: as in Common.
    """

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float = 7.5,
        **common: Unpack[Common],
    ) -> None:
        options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        super().__init__({"": (folder, revision)}, options, 1, 1, **common)

    def _load(self) -> Any:
        return StableDiffusionPipeline.from_pretrained(
            **self.sources[""], safety_checker=None, requires_safety_checker=False
        )

    @classmethod
    def tiny(cls) -> Self:
        return cls.of(tiny_pipeline(), num_inference_steps=2, guidance_scale=4.0, name="tiny_stable_diffusion")
