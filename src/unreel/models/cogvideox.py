"""Models of the CogVideoX family: clips by a transformer in which the text, read by T5, and the frames attend together.

Reference: Zhuoyi Yang et al., "CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer", ICLR 2025, arXiv
2408.06072.
"""

from typing import Self, Unpack

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from pydantic import PositiveInt
from torch import Tensor

from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.t5 import tiny_encoder, tiny_tokenizer
from unreel.validation import ModelFolder


class CogVideoX(PipelineModel):
    """Clips by a CogVideoXPipeline, of CogVideoX-2B or -5B.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_frames: 1, or one more than a multiple of 4.
        height, width: of the frames, in px.
        num_inference_steps, guidance_scale: how it renders.
        max_sequence_length: tokens of a prompt, as many as its transformer was made for.
        fps, common: as in PipelineModel.
    """

    kind = CogVideoXPipeline
    denoiser = "transformer"
    asked = ("max_sequence_length",)
    latent_axis = 2  # of ours: the pipeline's own have the frames before the channels
    temporal = True
    grid = (4, 16)
    projections = ("patch_embed.text_proj",)

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_frames: PositiveInt = 49,
        height: PositiveInt = 480,
        width: PositiveInt = 720,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float = 6.0,
        max_sequence_length: PositiveInt = 226,
        fps: PositiveInt = 8,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "num_frames": num_frames, "height": height, "width": width, "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale, "max_sequence_length": max_sequence_length,
        }  # fmt: skip
        super().__init__({"": (folder, revision)}, options, fps, num_frames, **common)

    @property
    def reading(self) -> Reading:
        return Reading(self.options["max_sequence_length"])

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        pipeline, denoiser = self.pipeline, self.components["denoiser"]
        places = None
        if denoiser.config.use_rotary_positional_embeddings:
            size = (self.options["height"], self.options["width"], noisy.shape[2], self.device)
            places = pipeline._prepare_rotary_positional_embeddings(*size)
        predicted = denoiser(
            hidden_states=noisy.transpose(1, 2).to(denoiser.dtype), timestep=timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"].to(denoiser.dtype), image_rotary_emb=places,
        ).sample  # fmt: skip
        return predicted.transpose(1, 2).float()

    @classmethod
    def tiny(cls) -> Self:
        tokenizer = tiny_tokenizer()
        torch.manual_seed(1)
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
            temporal_compression_ratio=4,
        )  # fmt: skip
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
            text_embed_dim=32, num_layers=1, sample_width=4, sample_height=4, sample_frames=9, patch_size=2,
            temporal_compression_ratio=4, max_text_seq_length=64,
        )  # fmt: skip
        pipeline = CogVideoXPipeline(
            tokenizer=tokenizer, text_encoder=tiny_encoder(tokenizer), vae=vae, transformer=transformer,
            scheduler=CogVideoXDDIMScheduler(
                prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0,
                timestep_spacing="trailing", clip_sample=False,
            ),
        )  # fmt: skip
        return cls.of(
            pipeline, num_frames=9, height=32, width=32, num_inference_steps=2, guidance_scale=4.0,
            max_sequence_length=64, name="tiny_cogvideox",
        )  # fmt: skip
