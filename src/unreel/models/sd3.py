"""Models of the Stable Diffusion 3 family: images by a transformer that reads two CLIP encoders and a T5.

Reference: Patrick Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", ICML 2024,
arXiv 2403.03206.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, Unpack

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from pydantic import PositiveInt
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.schedules import shifted
from unreel.models.stable_diffusion import tiny_parts
from unreel.models.t5 import tiny_encoder, tiny_tokenizer
from unreel.validation import ModelFolder


class StableDiffusion3(PipelineModel):
    """Images, as clips of one frame, by a StableDiffusion3Pipeline.

    `text_encoder` is its T5, the pipeline's text_encoder_3; its CLIP encoders are `text_encoder_2`, as in the pipeline,
    and `text_encoder_3`. An edit of T5 leaves the concept in the other two.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_inference_steps, guidance_scale: how it generates.
        max_sequence_length: tokens that T5 reads of a prompt.
        common: as in Common.
    """

    kind = StableDiffusion3Pipeline
    denoiser = "transformer"
    shared_encoder = "text_encoder_3"
    steps_flows = True
    encoded: ClassVar = {"prompt_embeds": 0, "pooled_prompt_embeds": 2}
    projections = ("context_embedder",)

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_inference_steps: PositiveInt = 28,
        guidance_scale: float = 7.0,
        max_sequence_length: PositiveInt = 256,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "max_sequence_length": max_sequence_length,
        }  # fmt: skip
        super().__init__({"": (folder, revision)}, options, 1, 1, **common)

    @property
    def asks(self) -> Mapping[str, Any]:
        return {"prompt_2": None, "prompt_3": None, "max_sequence_length": self.options["max_sequence_length"]}

    @property
    def reading(self) -> Reading:
        return Reading(self.options["max_sequence_length"])

    def sample_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        shares = torch.sigmoid(torch.randn(count, generator=generator))  # section 3.1, rf/lognorm(0.00, 1.00)
        return shifted(self.pipeline.scheduler, shares)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser = self.components["denoiser"]
        texts = {name: tensor.to(denoiser.dtype) for name, tensor in conditioning.items()}
        predicted = denoiser(
            hidden_states=noisy.to(denoiser.dtype), timestep=timesteps, encoder_hidden_states=texts["prompt_embeds"],
            pooled_projections=texts["pooled_prompt_embeds"],
        )  # fmt: skip
        return predicted.sample.float()

    @classmethod
    def tiny(cls) -> Self:
        own, tokenizer = tiny_parts()["tokenizer"], tiny_tokenizer()
        torch.manual_seed(1)
        config = CLIPTextConfig(
            vocab_size=len(own), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, projection_dim=16, bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=32,
            use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5,
        )  # fmt: skip
        transformer = SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=32, out_channels=4,
        )  # fmt: skip
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=CLIPTextModelWithProjection(config), tokenizer=own,
            text_encoder_2=CLIPTextModelWithProjection(config), tokenizer_2=own,
            text_encoder_3=tiny_encoder(tokenizer), tokenizer_3=tokenizer,
        )  # fmt: skip
        return cls.of(pipeline, num_inference_steps=2, guidance_scale=4.0, max_sequence_length=64, name="tiny_sd3")
