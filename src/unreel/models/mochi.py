"""Models of the Mochi family: clips by a transformer in which the text, read by T5, and the frames attend together.

Reference: Genmo Team, "Mochi 1", 2024, https://github.com/genmoai/models. Its time runs from noise to data.
"""

from typing import Any, ClassVar, Self, Unpack

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from pydantic import PositiveInt
from torch import Tensor

from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.t5 import tiny_encoder, tiny_tokenizer
from unreel.validation import ModelFolder

_NEARLY_LINEAR = 0.025  # share of noise that the first half of its steps removes, in its pipeline


class Mochi(PipelineModel):
    """Clips by a MochiPipeline.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_frames: one more than a multiple of 6.
        height, width: of the frames, in px.
        num_inference_steps, guidance_scale: how it renders.
        max_sequence_length: tokens of a prompt.
        fps, common: as in PipelineModel.
    """

    kind = MochiPipeline
    denoiser = "transformer"
    asked = ("max_sequence_length",)
    latent_axis = 2
    steps_flows = True
    temporal = True
    grid = (6, 16)
    encoded: ClassVar = {"prompt_embeds": 0, "prompt_attention_mask": 1}
    projections = ("time_embed.caption_proj",)

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_frames: PositiveInt = 19,
        height: PositiveInt = 480,
        width: PositiveInt = 848,
        num_inference_steps: PositiveInt = 64,
        guidance_scale: float = 4.5,
        max_sequence_length: PositiveInt = 256,
        fps: PositiveInt = 30,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "num_frames": num_frames, "height": height, "width": width, "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale, "max_sequence_length": max_sequence_length,
        }  # fmt: skip
        super().__init__({"": (folder, revision)}, options, fps, num_frames, **common)

    @property
    def reading(self) -> Reading:
        return Reading(self.options["max_sequence_length"], masked=True, pads="masked")

    def set_timesteps(self, scheduler: Any, num_inference_steps: int) -> None:
        scheduler.set_timesteps(sigmas=linear_quadratic_schedule(num_inference_steps, _NEARLY_LINEAR))

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser = self.components["denoiser"]
        predicted = denoiser(
            hidden_states=noisy.to(denoiser.dtype), timestep=timesteps.to(denoiser.dtype),
            encoder_hidden_states=conditioning["prompt_embeds"].to(denoiser.dtype),
            encoder_attention_mask=conditioning["prompt_attention_mask"],
        )  # fmt: skip
        return predicted.sample.float()

    @classmethod
    def tiny(cls) -> Self:
        tokenizer = tiny_tokenizer()
        torch.manual_seed(1)
        vae = AutoencoderKLMochi(
            encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5
        )
        transformer = MochiTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=12,
            text_embed_dim=32, time_embed_dim=4, max_sequence_length=16,
        )  # fmt: skip
        pipeline = MochiPipeline(
            tokenizer=tokenizer, text_encoder=tiny_encoder(tokenizer), vae=vae, transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        )  # fmt: skip
        return cls.of(
            pipeline, num_frames=7, height=32, width=32, num_inference_steps=2, guidance_scale=4.0, name="tiny_mochi"
        )
