"""Recipients of the AnimateDiff family: a MotionAdapter on a Stable Diffusion pipeline.

Reference: Yuwei Guo et al., "AnimateDiff", 2023, arXiv 2307.04725.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter

from unreel.donors import pipeline_options
from unreel.recipients.recipient import Recipient


class AnimateDiff(Recipient):
    """Renders clips with an AnimateDiffPipeline.

    Args:
        folder: of the Stable Diffusion pipeline: a local diffusers folder or a hub id.
        motion_adapter: likewise, of the adapter.
        revision, motion_adapter_revision: of hub ids.
        dtype: float32 or float16.
        num_frames, num_inference_steps, guidance_scale, fps, autocast: how it renders.
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
        autocast: bool = False,
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
        pipeline = AnimateDiffPipeline.from_pretrained(**options, motion_adapter=adapter).to(device)
        if scheduler is not None:
            pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **scheduler)
        rendering = {
            "num_frames": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
        }  # fmt: skip
        super().__init__(pipeline, rendering, fps, name or str(folder), autocast)
