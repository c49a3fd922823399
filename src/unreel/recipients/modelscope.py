"""Recipients of the ModelScope / ZeroScope family: a UNet3DConditionModel that was trained on video.

Reference: Jiuniu Wang et al., "ModelScope Text-to-Video Technical Report", 2023, arXiv 2308.06571. diffusers calls its
pipeline deprecated (frozen since 0.33.1): this file alone imports it.
"""

from pathlib import Path

from diffusers import TextToVideoSDPipeline, UNet3DConditionModel

from unreel.donors import pipeline_options
from unreel.recipients.recipient import Recipient


class ModelScope(Recipient):
    """Renders clips with a TextToVideoSDPipeline.

    Args:
        folder: a local diffusers folder or a hub id.
        unet: folder of a UNet3DConditionModel that takes the place of the one in there, or None.
        revision: of a hub id.
        dtype: float32 or float16.
        num_frames, num_inference_steps, guidance_scale, fps, autocast: how it renders.
        name: what scores call it.
        device: where it runs.
    """

    def __init__(
        self,
        folder: str | Path,
        unet: str | Path | None = None,
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
        options = pipeline_options(folder, revision, dtype)
        if unet is not None:
            if not (Path(unet) / "config.json").is_file():
                raise ValueError(f"{unet}: expected the folder of a UNet3DConditionModel")
            options["unet"] = UNet3DConditionModel.from_pretrained(
                str(unet), use_safetensors=True, torch_dtype=options["torch_dtype"]
            )
        pipeline = TextToVideoSDPipeline.from_pretrained(**options).to(device)
        rendering = {
            "num_frames": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
        }  # fmt: skip
        super().__init__(pipeline, rendering, fps, name or str(folder), autocast)
