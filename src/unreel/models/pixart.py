"""Models of the PixArt family: images by a transformer that reads a T5 encoder, the text encoder of many video models.

Reference: Junsong Chen et al., "PixArt-α", ICLR 2024, arXiv 2310.00426; "PixArt-Σ", ECCV 2024, arXiv 2403.04692.
"""

from typing import ClassVar, Self, Unpack

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from pydantic import PositiveInt
from torch import Tensor

from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.stable_diffusion import tiny_parts
from unreel.models.t5 import tiny_encoder, tiny_tokenizer
from unreel.validation import ModelFolder


class PixArt(PipelineModel):
    """Images, as clips of one frame, by a PixArtAlphaPipeline or a PixArtSigmaPipeline.

    Prompts are made lower case, and no more: `clean_caption` of the pipeline, which needs beautifulsoup4, is off.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_inference_steps, guidance_scale: how it generates.
        max_sequence_length: tokens of a prompt; 120 of PixArt-α, 300 of PixArt-Σ.
        common: as in Common.
    """

    denoiser = "transformer"
    asked = ("max_sequence_length", "clean_caption")
    encoded: ClassVar = {"prompt_embeds": 0, "prompt_attention_mask": 1}
    projections = ("caption_projection",)

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_inference_steps: PositiveInt = 20,
        guidance_scale: float = 4.5,
        max_sequence_length: PositiveInt = 120,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "max_sequence_length": max_sequence_length, "clean_caption": False, "use_resolution_binning": False,
        }  # fmt: skip
        super().__init__({"": (folder, revision)}, options, 1, 1, **common)

    @property
    def reading(self) -> Reading:
        return Reading(self.options["max_sequence_length"], masked=True, cleaning="lower", pads="masked")

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser = self.components["denoiser"]
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if denoiser.use_additional_conditions:  # PixArt-α at 1024 px is told the size in px
            like = {"device": noisy.device, "dtype": denoiser.dtype}
            added = {
                "resolution": torch.full((len(noisy), 2), float(self.size_px), **like),
                "aspect_ratio": torch.ones((len(noisy), 1), **like),
            }
        predicted = denoiser(
            noisy.to(denoiser.dtype), timestep=timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"].to(denoiser.dtype),
            encoder_attention_mask=conditioning["prompt_attention_mask"], added_cond_kwargs=added,
        ).sample  # fmt: skip
        return predicted[:, : noisy.shape[1]].float()  # the rest is a variance

    @classmethod
    def tiny(cls) -> Self:
        parts, tokenizer = tiny_parts(), tiny_tokenizer()
        torch.manual_seed(1)
        transformer = PixArtTransformer2DModel(
            sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
            caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True,
            activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
            norm_elementwise_affine=False, norm_eps=1e-6,
        )  # fmt: skip
        pipeline = PixArtAlphaPipeline(
            tokenizer=tokenizer, text_encoder=tiny_encoder(tokenizer), vae=parts["vae"], transformer=transformer,
            scheduler=DPMSolverMultistepScheduler(),
        )  # fmt: skip
        return cls.of(pipeline, num_inference_steps=2, guidance_scale=4.0, name="tiny_pixart")
