"""Recipients of the Text2Video-Zero family: a Stable Diffusion pipeline whose frames look at the first one.

Reference: Levon Khachatryan et al., "Text2Video-Zero", ICCV 2023, arXiv 2303.13439. diffusers calls its pipeline
deprecated (frozen since 0.33.1): this file alone imports it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, TextToVideoZeroPipeline
from torch import Tensor

from unreel.donors import pipeline_options
from unreel.recipients.recipient import Recipient


class Text2VideoZero(Recipient):
    """Renders clips with a TextToVideoZeroPipeline.

    Args:
        folder: of the Stable Diffusion pipeline: a local diffusers folder or a hub id.
        revision: of a hub id.
        dtype: float32 or float16.
        num_frames, num_inference_steps, guidance_scale, fps, autocast: how it renders.
        t0, t1: steps from the end between which motion is put in, 0 <= t0 < t1 < num_inference_steps (section 3.3.1).
        motion_field_strength: how far a frame moves on from the one before it, in px.
        name: what scores call it.
        device: where it runs.
    """

    def __init__(
        self,
        folder: str | Path,
        revision: str | None = None,
        dtype: str = "float32",
        num_frames: int = 8,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        fps: int = 8,
        autocast: bool = False,
        t0: int = 44,
        t1: int = 47,
        motion_field_strength: float = 12,
        name: str = "",
        device: str = "cpu",
    ) -> None:
        if not 0 <= t0 < t1 < num_inference_steps:
            raise ValueError(
                f"found t0={t0}, t1={t1}: expected 0 <= t0 < t1 < num_inference_steps={num_inference_steps}"
            )
        pipeline = TextToVideoZeroPipeline.from_pretrained(
            **pipeline_options(folder, revision, dtype),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).to(device)
        # it steps back and forth itself, by a schedule that every prediction type has in DDIM
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        rendering = {
            "video_length": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "t0": t0, "t1": t1, "motion_field_strength_x": motion_field_strength,
            "motion_field_strength_y": motion_field_strength,
        }  # fmt: skip
        super().__init__(pipeline, rendering, fps, name or str(folder), autocast)

    def _render(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        clips = []  # one prompt at a time, as the pipeline wants it
        for prompt, seed in zip(prompts, seeds, strict=True):
            frames = self.pipeline(prompt, generator=torch.Generator().manual_seed(seed), **self.options).images
            clips.append(torch.as_tensor(frames).float().permute(0, 3, 1, 2))
        return torch.stack(clips).cpu()
