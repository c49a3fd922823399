"""Models of the ModelScope / ZeroScope family: a UNet3DConditionModel that was trained on video.

Reference: Jiuniu Wang et al., "ModelScope Text-to-Video Technical Report", 2023, arXiv 2308.06571. diffusers calls its
pipeline deprecated (frozen since 0.33.1): this file alone imports it.
"""

from typing import Any, Self, Unpack

import torch
from diffusers import TextToVideoSDPipeline, UNet3DConditionModel
from pydantic import PositiveInt

from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.running import beside
from unreel.models.stable_diffusion import tiny_parts
from unreel.validation import ModelFolder


def tiny_unet3d() -> UNet3DConditionModel:
    """A video UNet with random weights, of the sizes of `tiny_parts`."""
    torch.manual_seed(1)
    return UNet3DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"), up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip


class ModelScope(PipelineModel):
    """Clips by a TextToVideoSDPipeline.

    Args:
        folder: a local diffusers folder or a hub id.
        unet: folder of a UNet3DConditionModel that takes the place of the one in there, or None.
        revision: of a hub id.
        num_frames, num_inference_steps, guidance_scale: how it renders.
        height, width: of its frames in px; None for those that its UNet was made for.
        fps, common: as in PipelineModel.
    """

    latent_axis = 2

    def __init__(
        self,
        folder: ModelFolder,
        unet: ModelFolder | None = None,
        revision: str | None = None,
        num_frames: PositiveInt = 16,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float = 9.0,
        fps: PositiveInt = 8,
        height: PositiveInt | None = None,
        width: PositiveInt | None = None,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "num_frames": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
        }  # fmt: skip
        for name, edge in {"height": height, "width": width}.items():
            if edge is not None and edge % 8:
                raise ValueError(f"found {name}={edge}: expected a multiple of 8 px")
        options |= {name: edge for name, edge in {"height": height, "width": width}.items() if edge is not None}
        sources = {"": (folder, revision), **beside("unet", unet, UNet3DConditionModel)}
        super().__init__(sources, options, fps, num_frames, **common)

    def _load(self) -> Any:
        own = {part: UNet3DConditionModel.from_pretrained(**where) for part, where in self.sources.items() if part}
        return TextToVideoSDPipeline.from_pretrained(**self.sources[""], **own)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        *layout, high, wide = super().latent_shape
        scale = int(self.pipeline.vae_scale_factor)
        edges = [self.options.get(name, old * scale) for name, old in (("height", high), ("width", wide))]
        return (*layout, *(edge // scale for edge in edges))

    @classmethod
    def tiny(cls) -> Self:
        pipeline = TextToVideoSDPipeline(**tiny_parts() | {"unet": tiny_unet3d()})
        return cls.of(pipeline, num_frames=3, num_inference_steps=2, guidance_scale=4.0, name="tiny_modelscope")
