"""Models of the Sana family: images by a transformer with linear attention, which reads Gemma-2.

Reference: Enze Xie et al., "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers", ICLR
2025, arXiv 2410.10629.
"""

from collections.abc import Sequence
from typing import ClassVar, Self, Unpack

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from pydantic import PositiveInt
from torch import Tensor

from unreel.models import gemma
from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.validation import ModelFolder


class Sana(PipelineModel):
    """Images, as clips of one frame, by a SanaPipeline.

    Prompts are made lower case, and no more: `clean_caption` of the pipeline, which needs beautifulsoup4, is off.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        height, width: of the images, in px.
        num_inference_steps, guidance_scale: how it generates.
        max_sequence_length: L, how many tokens of a prompt are read.
        complex_human_instruction: lines before each prompt; None for the pipeline's own, [] for none.
        common: as in Common.
    """

    kind = SanaPipeline
    denoiser = "transformer"
    asked = ("max_sequence_length", "complex_human_instruction", "clean_caption")
    steps_flows = True
    encoded: ClassVar = {"prompt_embeds": 0, "prompt_attention_mask": 1}
    projections = ("caption_projection", "caption_norm")

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        height: PositiveInt = 1024,
        width: PositiveInt = 1024,
        num_inference_steps: PositiveInt = 20,
        guidance_scale: float = 4.5,
        max_sequence_length: PositiveInt = 300,
        complex_human_instruction: Sequence[str] | None = None,
        **common: Unpack[Common],
    ) -> None:
        lines = complex_human_instruction
        options = {
            "height": height, "width": width, "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale, "max_sequence_length": max_sequence_length,
            "complex_human_instruction": gemma.instruction_of(SanaPipeline) if lines is None else list(lines),
            "clean_caption": False, "use_resolution_binning": False,
        }  # fmt: skip
        super().__init__({"": (folder, revision)}, options, 1, 1, **common)

    @property
    def reading(self) -> Reading:
        return gemma.reading_of(self.options["complex_human_instruction"], self.options["max_sequence_length"])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        edges = (self.options[name] // self.pipeline.vae_scale_factor for name in ("height", "width"))
        return (self.components["denoiser"].config.in_channels, *edges)

    def tokenized(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        lines, length = self.options["complex_human_instruction"], self.options["max_sequence_length"]
        return gemma.tokenized(self.pipeline, texts, lines, length)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser = self.components["denoiser"]
        predicted = denoiser(
            noisy.to(denoiser.dtype), timestep=timesteps * denoiser.config.timestep_scale,
            encoder_hidden_states=conditioning["prompt_embeds"].to(denoiser.dtype),
            encoder_attention_mask=conditioning["prompt_attention_mask"],
        ).sample  # fmt: skip
        return predicted[:, : noisy.shape[1]].float()  # the rest is a variance

    @classmethod
    def tiny(cls) -> Self:
        tokenizer = gemma.tiny_tokenizer()
        torch.manual_seed(1)
        transformer = SanaTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
            num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32,
            sample_size=16,
        )  # fmt: skip
        blocks, scales = ("ResBlock", "EfficientViTBlock"), ((), (5,))
        vae = AutoencoderDC(
            in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks,
            decoder_block_types=blocks, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=scales, decoder_qkv_multiscales=scales, encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1), downsample_block_type="conv", upsample_block_type="interpolate",
            decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
        )  # fmt: skip
        scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        pipeline = SanaPipeline(
            tokenizer=tokenizer, text_encoder=gemma.tiny_encoder(tokenizer), vae=vae, transformer=transformer,
            scheduler=scheduler,
        )  # fmt: skip
        return cls.of(
            pipeline, height=32, width=32, num_inference_steps=2, guidance_scale=4.0, max_sequence_length=64,
            complex_human_instruction=gemma.TINY_INSTRUCTION, name="tiny_sana",
        )  # fmt: skip
