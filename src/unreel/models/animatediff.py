"""Models of the AnimateDiff family: a MotionAdapter on a Stable Diffusion pipeline, whose UNet it holds whole.

Reference: Yuwei Guo et al., "AnimateDiff", ICLR 2024, arXiv 2307.04725.
"""

from collections.abc import Mapping
from typing import Any, Self, Unpack

import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
from pydantic import PositiveInt
from torch import Tensor

from unreel.models.model import Conditioning
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.stable_diffusion import tiny_parts
from unreel.validation import ModelFolder


def tiny_adapter() -> MotionAdapter:
    """A motion adapter with random weights for the UNet of `tiny_parts`."""
    torch.manual_seed(1)
    return MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=8, motion_max_seq_length=16, use_motion_mid_block=False,
    )  # fmt: skip


class AnimateDiff(PipelineModel):
    """Clips by an AnimateDiffPipeline.

    Args:
        folder: of the Stable Diffusion pipeline: a local diffusers folder or a hub id.
        motion_adapter: likewise, of the adapter.
        revision, motion_adapter_revision: of hub ids.
        num_frames, num_inference_steps, guidance_scale: how it renders.
        scheduler: changes to the pipeline's schedule, which is then stepped by DDIM; None leaves it alone.
        fps, common: as in PipelineModel.
    """

    latent_axis = 2
    kind = AnimateDiffPipeline

    def __init__(
        self,
        folder: ModelFolder,
        motion_adapter: ModelFolder = "",
        revision: str | None = None,
        motion_adapter_revision: str | None = None,
        num_frames: PositiveInt = 16,
        num_inference_steps: PositiveInt = 20,
        guidance_scale: float = 7.5,
        fps: PositiveInt = 8,
        scheduler: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "num_frames": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
        }  # fmt: skip
        sources = {"": (folder, revision), "motion_adapter": (motion_adapter, motion_adapter_revision)}
        self.held = {} if scheduler is None else {"scheduler": dict(scheduler)}
        super().__init__(sources, options, fps, num_frames, **common)

    def _load(self) -> Any:
        adapter = MotionAdapter.from_pretrained(**self.sources["motion_adapter"])
        pipeline = self.kind.from_pretrained(**self.sources[""], motion_adapter=adapter)
        if self.held:
            pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **self.held["scheduler"])
        return pipeline

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        frames = noisy.shape[2]  # its UNet wants the text once a frame
        each = {name: tensor.repeat_interleave(frames, 0) for name, tensor in conditioning.items()}
        return super().predict(noisy, timesteps, Conditioning(each))

    @classmethod
    def tiny(cls) -> Self:
        pipeline = AnimateDiffPipeline(**tiny_parts(), motion_adapter=tiny_adapter())
        return cls.of(pipeline, num_frames=3, num_inference_steps=2, guidance_scale=4.0, name="tiny_animatediff")
