"""Recipients of the ModelScope / ZeroScope family: a UNet3DConditionModel that was trained on video.

Reference: Jiuniu Wang et al., "ModelScope Text-to-Video Technical Report", 2023, arXiv 2308.06571. diffusers calls its
pipeline deprecated (frozen since 0.33.1): this file alone imports it.
"""

from pathlib import Path

from diffusers import TextToVideoSDPipeline

from unreel.donors import pipeline_options
from unreel.recipients.recipient import Recipient


class ModelScope(Recipient):
    """Renders clips with a TextToVideoSDPipeline.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        dtype: float32 or float16.
        num_frames, num_inference_steps, guidance_scale, fps, autocast: how it renders.
        name: what scores call it.
        device: where it runs.
    """

    def __init__(
        self,
        folder: str | Path,
        revision: str | None = None,
        dtype: str = "float32",
        num_frames: int = 16,
        num_inference_steps: int = 50,
        guidance_scale: float = 9.0,
        fps: int = 8,
        autocast: bool = False,
        name: str = "",
        device: str = "cpu",
    ) -> None:
        pipeline = TextToVideoSDPipeline.from_pretrained(**pipeline_options(folder, revision, dtype)).to(device)
        rendering = {
            "num_frames": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
        }  # fmt: skip
        super().__init__(pipeline, rendering, fps, name or str(folder), autocast)
