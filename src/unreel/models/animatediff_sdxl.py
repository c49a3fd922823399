"""Models of the AnimateDiff family on Stable Diffusion XL, whose UNet and two text encoders they hold whole.

Reference: Yuwei Guo et al., "AnimateDiff", ICLR 2024, arXiv 2307.04725; its adapter for SDXL is called a beta.
"""

from typing import ClassVar, Self

from diffusers import AnimateDiffSDXLPipeline
from torch import Tensor

from unreel.models.animatediff import AnimateDiff, tiny_adapter
from unreel.models.model import Conditioning, Reading
from unreel.models.stable_diffusion_xl import ENCODED, added, reading_of, tiny_xl_parts


class AnimateDiffSDXL(AnimateDiff):
    """Clips by an AnimateDiffSDXLPipeline.

    Arguments as AnimateDiff's, with a Stable Diffusion XL pipeline for `folder`.
    """

    kind = AnimateDiffSDXLPipeline
    asked = ()
    encoded: ClassVar = ENCODED

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
