"""The donor as its own recipient: images, as clips of one frame. What clips of the same edit are compared with."""

from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor

from unreel.donors import pipeline_options
from unreel.recipients.recipient import Recipient


class Images(Recipient):
    """Renders images with a StableDiffusionPipeline.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        dtype: float32 or float16.
        num_inference_steps, guidance_scale, autocast: how it renders.
        name: what scores call it.
        device: where it runs.
    """

    def __init__(
        self,
        folder: str | Path,
        revision: str | None = None,
        dtype: str = "float32",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        autocast: bool = False,
        name: str = "",
        device: str = "cpu",
    ) -> None:
        pipeline = StableDiffusionPipeline.from_pretrained(
            **pipeline_options(folder, revision, dtype), safety_checker=None, requires_safety_checker=False
        ).to(device)
        options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        super().__init__(pipeline, options, 1, name or str(folder), autocast)

    def _clips(self, found: Any) -> Tensor:
        return found.images[:, None]
