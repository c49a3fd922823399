"""Models of the AnimateDiff family on Stable Diffusion XL, whose UNet and two text encoders they hold whole.

Reference: Yuwei Guo et al., "AnimateDiff", ICLR 2024, arXiv 2307.04725; its adapter for SDXL is called a beta.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, Unpack

from diffusers import AnimateDiffSDXLPipeline, DDIMScheduler, MotionAdapter
from pydantic import PositiveInt
from torch import Tensor

from unreel.models.animatediff import tiny_adapter
from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.stable_diffusion_xl import ENCODED, added, reading_of, tiny_xl_parts
from unreel.validation import ModelFolder


class AnimateDiffSDXL(PipelineModel):
    """Clips by an AnimateDiffSDXLPipeline.

    Args:
        folder: of the Stable Diffusion XL pipeline: a local diffusers folder or a hub id.
        motion_adapter: likewise, of the adapter.
        revision, motion_adapter_revision: of hub ids.
        num_frames, num_inference_steps, guidance_scale: how it renders.
        scheduler: changes to the pipeline's schedule, which is then stepped by DDIM; None leaves it alone.
        fps, common: as in PipelineModel.
    """

    latent_axis = 2
    asked = ()
    encoded: ClassVar = ENCODED

    def __init__(
        self,
        folder: ModelFolder,
        motion_adapter: ModelFolder = "",
        revision: str | None = None,
        motion_adapter_revision: str | None = None,
        num_frames: PositiveInt = 16,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float = 5.0,
        fps: PositiveInt = 8,
        scheduler: Mapping[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "num_frames": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
        }  # fmt: skip
        sources = {"": (folder, revision), "motion_adapter": (motion_adapter, motion_adapter_revision)}
        self.schedule = dict(scheduler) if scheduler is not None else None
        super().__init__(sources, options, fps, num_frames, **common)

    def _load(self) -> Any:
        adapter = MotionAdapter.from_pretrained(**self.sources["motion_adapter"])
        pipeline = AnimateDiffSDXLPipeline.from_pretrained(**self.sources[""], motion_adapter=adapter)
        if self.schedule is not None:
            pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **self.schedule)
        return pipeline

    @property
    def reading(self) -> Reading:
        return reading_of(self.pipeline)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser, frames = self.components["denoiser"], noisy.shape[2]
        embeds = conditioning["prompt_embeds"].to(denoiser.dtype)
        return denoiser(
            noisy.to(denoiser.dtype), timesteps,
            encoder_hidden_states=embeds.repeat_interleave(frames, 0),  # its UNet wants the text once a frame
            added_cond_kwargs=added(conditioning, denoiser, self.size_px),
        ).sample.float()  # fmt: skip

    @classmethod
    def tiny(cls) -> Self:
        pipeline = AnimateDiffSDXLPipeline(**tiny_xl_parts(), motion_adapter=tiny_adapter())
        return cls.of(
            pipeline, num_frames=3, num_inference_steps=2, guidance_scale=4.0, name="tiny_animatediff_sdxl"
        )  # fmt: skip
