"""Models of the SANA-Video family: clips by a transformer with linear attention, which reads Gemma-2 as Sana does.

Reference: Junsong Chen et al., "SANA-Video: Efficient Video Generation with Block Linear Diffusion Transformer", 2025,
arXiv 2509.24695.
"""

from collections.abc import Sequence
from typing import ClassVar, Self, Unpack

import torch
from diffusers import AutoencoderKLWan, DPMSolverMultistepScheduler, SanaVideoPipeline, SanaVideoTransformer3DModel
from pydantic import PositiveInt
from torch import Tensor

from unreel.models import gemma
from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.validation import ModelFolder


class SanaVideo(PipelineModel):
    """Clips by a SanaVideoPipeline.

    Prompts are made lower case, and no more: `clean_caption` of the pipeline, which needs beautifulsoup4, is off. How
    much is to move is said in the prompt itself, as its authors do: "... motion score: 30.".

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_frames: 1, or one more than a multiple of 4.
        height, width: of the frames, in px, multiples of 32.
        num_inference_steps, guidance_scale: how it renders.
        max_sequence_length: L, how many tokens of a prompt are read.
        complex_human_instruction: lines before each prompt; None for the pipeline's own, [] for none.
        fps, common: as in PipelineModel.
    """

    kind = SanaVideoPipeline
    denoiser = "transformer"
    asked = ("max_sequence_length", "complex_human_instruction", "clean_caption")
    latent_axis = 2
    steps_flows = True
    temporal = True
    grid = (4, 32)
    encoded: ClassVar = {"prompt_embeds": 0, "prompt_attention_mask": 1}
    projections = ("caption_projection", "caption_norm")

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_frames: PositiveInt = 81,
        height: PositiveInt = 480,
        width: PositiveInt = 832,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float = 6.0,
        max_sequence_length: PositiveInt = 300,
        complex_human_instruction: Sequence[str] | None = None,
        fps: PositiveInt = 16,
        **common: Unpack[Common],
    ) -> None:
        lines = complex_human_instruction
        options = {
            "frames": num_frames, "height": height, "width": width, "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale, "max_sequence_length": max_sequence_length,
            "complex_human_instruction": gemma.instruction_of(SanaVideoPipeline) if lines is None else list(lines),
            "clean_caption": False, "use_resolution_binning": False,
        }  # fmt: skip
        super().__init__({"": (folder, revision)}, options, fps, num_frames, **common)

    @property
    def reading(self) -> Reading:
        return gemma.reading_of(self.options["complex_human_instruction"], self.options["max_sequence_length"])

    def tokenized(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        lines, length = self.options["complex_human_instruction"], self.options["max_sequence_length"]
        return gemma.tokenized(self.pipeline, texts, lines, length)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser = self.components["denoiser"]
        predicted = denoiser(
            noisy.to(denoiser.dtype), timestep=timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"].to(denoiser.dtype),
            encoder_attention_mask=conditioning["prompt_attention_mask"],
        ).sample  # fmt: skip
        return predicted[:, : noisy.shape[1]].float()  # the rest is a variance

    @classmethod
    def tiny(cls) -> Self:
        tokenizer = gemma.tiny_tokenizer()
        torch.manual_seed(1)
        vae = AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
        transformer = SanaVideoTransformer3DModel(
            in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=12, num_layers=2,
            num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
            mlp_ratio=2.5, sample_size=8, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        )  # fmt: skip
        scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        pipeline = SanaVideoPipeline(
            tokenizer=tokenizer, text_encoder=gemma.tiny_encoder(tokenizer), vae=vae, transformer=transformer,
            scheduler=scheduler,
        )  # fmt: skip
        return cls.of(
            pipeline, num_frames=5, height=32, width=32, num_inference_steps=2, guidance_scale=4.0,
            max_sequence_length=64, complex_human_instruction=gemma.TINY_INSTRUCTION, name="tiny_sana_video",
        )  # fmt: skip
