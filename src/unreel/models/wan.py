"""Models of the Wan family: clips by a transformer that reads UMT5. With one frame it makes images, and is a donor.

Reference: Team Wan, "Wan: Open and Advanced Large-Scale Video Generative Models", 2025, arXiv 2503.20314.
"""

from typing import Any, Self, Unpack

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from pydantic import PositiveInt
from torch import Tensor
from transformers import UMT5EncoderModel

from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.t5 import tiny_encoder, tiny_tokenizer
from unreel.validation import ModelFolder


class Wan(PipelineModel):
    """Clips by a WanPipeline, of Wan 2.1 or 2.2.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_frames: 1, or one more than a multiple of 4.
        height, width: of the frames, in px.
        num_inference_steps, guidance_scale: how it renders.
        max_sequence_length: tokens of a prompt.
        fps, common: as in PipelineModel.
    """

    kind = WanPipeline
    denoiser = "transformer"
    asked = ("max_sequence_length",)
    latent_axis = 2
    steps_flows = True
    temporal = True
    grid = (4, 16)
    projections = ("condition_embedder.text_embedder",)

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_frames: PositiveInt = 81,
        height: PositiveInt = 480,
        width: PositiveInt = 832,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float = 5.0,
        max_sequence_length: PositiveInt = 512,
        fps: PositiveInt = 16,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "num_frames": num_frames, "height": height, "width": width, "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale, "max_sequence_length": max_sequence_length,
        }  # fmt: skip
        super().__init__({"": (folder, revision)}, options, fps, num_frames, **common)

    @property
    def reading(self) -> Reading:
        return Reading(self.options["max_sequence_length"], masked=True, cleaning="ftfy", pads="zero")

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output; late in the sampling of Wan 2.2 14B that of its second one, which no edit knows."""
        pipeline, denoiser = self.pipeline, self.components["denoiser"]
        if pipeline.config.boundary_ratio is None:
            return self._predicted(denoiser, noisy, timesteps, conditioning)
        late = timesteps < pipeline.config.boundary_ratio * self.num_train_timesteps
        found = torch.zeros_like(noisy, dtype=torch.float32)
        for module, rows in ((denoiser, ~late), (pipeline.transformer_2, late)):
            if rows.any():
                found[rows] = self._predicted(module, noisy[rows], timesteps[rows], conditioning.rows(rows))
        return found

    def _predicted(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if self.pipeline.config.expand_timesteps:  # Wan 2.2 5B is told the time of every patch
            frames, high, wide = noisy.shape[2:]
            timesteps = timesteps[:, None].expand(-1, frames * -(-high // 2) * -(-wide // 2))
        embeds = conditioning["prompt_embeds"].to(denoiser.dtype)
        given = {"hidden_states": noisy.to(denoiser.dtype), "encoder_hidden_states": embeds}
        return denoiser(**given, timestep=timesteps).sample.float()

    @classmethod
    def tiny(cls) -> Self:
        tokenizer = tiny_tokenizer()
        torch.manual_seed(1)
        vae = AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
            text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        )  # fmt: skip
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        pipeline = WanPipeline(
            tokenizer=tokenizer, text_encoder=tiny_encoder(tokenizer, UMT5EncoderModel), vae=vae,
            transformer=transformer, scheduler=scheduler,
        )  # fmt: skip
        return cls.of(
            pipeline, num_frames=5, height=32, width=32, num_inference_steps=2, guidance_scale=4.0,
            max_sequence_length=64, name="tiny_wan",
        )  # fmt: skip
