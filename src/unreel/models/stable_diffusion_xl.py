"""Models of the Stable Diffusion XL family: images by a UNet that reads two CLIP text encoders.

Reference: Dustin Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", ICLR
2024, arXiv 2307.01952.
"""

from typing import Any, ClassVar, Self, Unpack

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from pydantic import PositiveInt
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.stable_diffusion import tiny_parts
from unreel.validation import ModelFolder

ENCODED = {"prompt_embeds": 0, "pooled_prompt_embeds": 2}  # of what encode_prompt returns


def reading_of(pipeline: Any) -> Reading:
    """The last state but one of both encoders, without a norm; what the last layers make of it is read pooled alone."""
    return Reading(int(pipeline.tokenizer.model_max_length), hidden_state=-2, normed=False)


def added(conditioning: Conditioning, denoiser: Any, size_px: int) -> dict[str, Tensor]:
    """What the denoiser is told beside the tokens: the second encoder's pooled embedding, and the picture's size.

    Args:
        conditioning: of B prompts.
        denoiser: gets it in its dtype.
        size_px: edge of the picture, which is whole: nothing is cropped.
    """
    pooled = conditioning["pooled_prompt_embeds"].to(denoiser.dtype)
    size = torch.tensor([size_px, size_px, 0, 0, size_px, size_px]).to(pooled)
    return {"text_embeds": pooled, "time_ids": size.repeat(len(pooled), 1)}


def tiny_xl_parts() -> dict[str, Any]:
    """The parts of a StableDiffusionXLPipeline with random weights: 32 x 32 px, two encoders of width 32."""
    parts = tiny_parts()
    torch.manual_seed(1)
    second = CLIPTextModelWithProjection(parts["text_encoder"].config)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=(2, 4), norm_num_groups=8, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
    )  # fmt: skip
    return parts | {"unet": unet, "text_encoder_2": second, "tokenizer_2": parts["tokenizer"]}


class StableDiffusionXL(PipelineModel):
    """Images, as clips of one frame, by a StableDiffusionXLPipeline.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_inference_steps, guidance_scale: how it generates.
        common: as in Common.
    """

    asked = ()
    encoded: ClassVar = ENCODED

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float = 5.0,
        **common: Unpack[Common],
    ) -> None:
        options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        super().__init__({"": (folder, revision)}, options, 1, 1, **common)

    def _load(self) -> Any:
        return StableDiffusionXLPipeline.from_pretrained(**self.sources[""], add_watermarker=False)

    @property
    def reading(self) -> Reading:
        return reading_of(self.pipeline)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser = self.components["denoiser"]
        return denoiser(
            noisy.to(denoiser.dtype), timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"].to(denoiser.dtype),
            added_cond_kwargs=added(conditioning, denoiser, self.size_px),
        ).sample.float()  # fmt: skip

    @classmethod
    def tiny(cls) -> Self:
        pipeline = StableDiffusionXLPipeline(**tiny_xl_parts(), add_watermarker=False)
        return cls.of(pipeline, num_inference_steps=2, guidance_scale=4.0, name="tiny_stable_diffusion_xl")
