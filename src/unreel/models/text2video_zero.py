"""Models of the Text2Video-Zero family: a Stable Diffusion pipeline whose frames look at the first one.

Reference: Levon Khachatryan et al., "Text2Video-Zero", ICCV 2023, arXiv 2303.13439. diffusers calls its pipeline
deprecated (frozen since 0.33.1): this file alone imports it.
"""

from collections.abc import Sequence
from typing import Any, Self, Unpack

import torch
from diffusers import DDIMScheduler, TextToVideoZeroPipeline
from pydantic import PositiveInt
from torch import Tensor

from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.stable_diffusion import NO_CHECKER, tiny_parts
from unreel.validation import ModelFolder


class Text2VideoZero(PipelineModel):
    """Clips by a TextToVideoZeroPipeline. Its denoiser is an image's, which no clip trains.

    Args:
        folder: of the Stable Diffusion pipeline: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_frames, num_inference_steps, guidance_scale: how it renders.
        t0, t1: steps from the end between which motion is put in, 0 <= t0 < t1 < num_inference_steps (section 3.3.1).
        motion_field_strength: how far a frame moves on from the one before it, in px.
        fps, common: as in PipelineModel.
    """

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_frames: PositiveInt = 8,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float = 7.5,
        fps: PositiveInt = 8,
        t0: int = 44,
        t1: int = 47,
        motion_field_strength: float = 12,
        **common: Unpack[Common],
    ) -> None:
        if not 0 <= t0 < t1 < num_inference_steps:
            raise ValueError(
                f"found t0={t0}, t1={t1}: expected 0 <= t0 < t1 < num_inference_steps={num_inference_steps}"
            )
        options = {
            "video_length": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "t0": t0, "t1": t1, "motion_field_strength_x": motion_field_strength,
            "motion_field_strength_y": motion_field_strength,
        }  # fmt: skip
        super().__init__({"": (folder, revision)}, options, fps, num_frames, **common)

    def _load(self) -> Any:
        return TextToVideoZeroPipeline.from_pretrained(**self.sources[""], **NO_CHECKER)

    def _prepared(self, pipeline: Any) -> Any:
        # it steps back and forth itself, by a schedule that every prediction type has in DDIM
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        return super()._prepared(pipeline)

    def _render(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        clips = []  # one prompt at a time, as the pipeline wants it
        for prompt, seed in zip(prompts, seeds, strict=True):
            frames = self.pipeline(prompt, generator=torch.Generator().manual_seed(seed), **self.options).images
            clips.append(torch.as_tensor(frames).float().permute(0, 3, 1, 2))
        return torch.stack(clips).cpu()

    @classmethod
    def tiny(cls) -> Self:
        return cls.of(
            TextToVideoZeroPipeline(**tiny_parts(), **NO_CHECKER), num_frames=3, num_inference_steps=4,
            guidance_scale=4.0, t0=1, t1=2, name="tiny_text2video_zero",
        )  # fmt: skip
