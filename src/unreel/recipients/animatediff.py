"""Recipients of the AnimateDiff family: a MotionAdapter on a Stable Diffusion pipeline.

Reference: Yuwei Guo et al., "AnimateDiff", 2023, arXiv 2307.04725.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
from torch import Tensor

from unreel.donors import pipeline_options


class AnimateDiff:
    """Renders clips with an AnimateDiffPipeline.

    Args:
        folder: of the Stable Diffusion pipeline: a local diffusers folder or a hub id.
        motion_adapter: likewise, of the adapter.
        revision, motion_adapter_revision: of hub ids.
        dtype: float32, float16 or bfloat16.
        num_frames, num_inference_steps, guidance_scale, fps: how it renders.
        scheduler: changes to the pipeline's schedule, which is then stepped by DDIM; None leaves it alone.
        name: what scores call it.
        device: where it runs.
    """

    def __init__(
        self,
        folder: str | Path,
        motion_adapter: str | Path,
        revision: str | None = None,
        motion_adapter_revision: str | None = None,
        dtype: str = "float32",
        num_frames: int = 16,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        fps: int = 8,
        scheduler: Mapping[str, Any] | None = None,
        name: str = "",
        device: str = "cpu",
    ) -> None:
        options = pipeline_options(folder, revision, dtype)
        local = Path(motion_adapter).exists()
        adapter = MotionAdapter.from_pretrained(
            str(motion_adapter), revision=None if local else motion_adapter_revision, local_files_only=local,
            use_safetensors=True, torch_dtype=options["torch_dtype"],
        )  # fmt: skip
        self.pipeline = AnimateDiffPipeline.from_pretrained(**options, motion_adapter=adapter).to(device)
        if scheduler is not None:
            self.pipeline.scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config, **scheduler)
        self.pipeline.set_progress_bar_config(disable=True)
        self.tokenizer, self.text_encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        self.name, self.fps = name or str(folder), fps
        self.options = {
            "num_frames": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
        }  # fmt: skip
        self.modules = {"unet": self.pipeline.unet, "vae": self.pipeline.vae}

    @torch.inference_mode()
    def render(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Clips (B, F, C, H, W) in [0, 1], float32; each has a generator of its own."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found = self.pipeline(list(prompts), generator=generators, output_type="pt", **self.options)
        return found.frames.float().cpu()
