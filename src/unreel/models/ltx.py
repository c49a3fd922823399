"""Models of the LTX-Video family: clips by a fast transformer on strongly compressed latents, which reads T5.

Reference: Yoav HaCohen et al., "LTX-Video: Realtime Video Latent Diffusion", 2025, arXiv 2501.00103.
"""

from typing import Any, ClassVar, Self, Unpack

import numpy as np
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from pydantic import PositiveInt
from torch import Tensor

from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.running import scale_factor
from unreel.models.t5 import tiny_encoder, tiny_tokenizer
from unreel.validation import ModelFolder


class LTX(PipelineModel):
    """Clips by an LTXPipeline.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_frames: 1, or one more than a multiple of 8.
        height, width: of the frames, in px; multiples of 32.
        num_inference_steps, guidance_scale: how it renders.
        max_sequence_length: tokens of a prompt.
        decode_timestep, decode_noise_scale: of decoders that remove the last noise themselves, from version 0.9.1 on.
        fps, common: as in PipelineModel.
    """

    kind = LTXPipeline
    denoiser = "transformer"
    asked = ("max_sequence_length",)
    latent_axis = 2
    steps_flows = True
    temporal = True
    grid = (8, 32)
    encoded: ClassVar = {"prompt_embeds": 0, "prompt_attention_mask": 1}
    projections = ("caption_projection",)

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_frames: PositiveInt = 161,
        height: PositiveInt = 512,
        width: PositiveInt = 704,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float = 3.0,
        max_sequence_length: PositiveInt = 128,
        decode_timestep: float = 0.0,
        decode_noise_scale: float | None = None,
        fps: PositiveInt = 25,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "num_frames": num_frames, "height": height, "width": width, "frame_rate": fps,
            "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "max_sequence_length": max_sequence_length, "decode_timestep": decode_timestep,
            "decode_noise_scale": decode_noise_scale,
        }  # fmt: skip
        super().__init__({"": (folder, revision)}, options, fps, num_frames, **common)

    @property
    def reading(self) -> Reading:
        return Reading(self.options["max_sequence_length"], pads="masked")

    def set_timesteps(self, scheduler: Any, num_inference_steps: int) -> None:
        _, frames, high, wide = self.latent_shape
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        shift = calculate_shift(frames * high * wide, *(scheduler.config[name] for name in names))
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=shift)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        pipeline, denoiser = self.pipeline, self.components["denoiser"]
        patches = pipeline.transformer_spatial_patch_size, pipeline.transformer_temporal_patch_size
        space, (frames, high, wide) = scale_factor(pipeline, "spatial"), noisy.shape[2:]
        predicted = denoiser(
            pipeline._pack_latents(noisy.to(denoiser.dtype), *patches), timestep=timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"].to(denoiser.dtype),
            encoder_attention_mask=conditioning["prompt_attention_mask"],
            num_frames=frames, height=high, width=wide,
            rope_interpolation_scale=(scale_factor(pipeline, "temporal") / self.fps, space, space),
        ).sample  # fmt: skip
        return pipeline._unpack_latents(predicted, frames, high, wide, *patches).float()

    @classmethod
    def tiny(cls) -> Self:
        tokenizer = tiny_tokenizer()
        torch.manual_seed(1)
        vae = AutoencoderKLLTXVideo(
            latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
            layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=1, patch_size_t=1,
        )  # fmt: skip
        transformer = LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
            num_layers=1, caption_channels=32,
        )  # fmt: skip
        pipeline = LTXPipeline(
            tokenizer=tokenizer, text_encoder=tiny_encoder(tokenizer), vae=vae, transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )  # fmt: skip
        return cls.of(
            pipeline, num_frames=9, height=32, width=32, num_inference_steps=2, guidance_scale=4.0, name="tiny_ltx"
        )
