"""What recipients share: text-to-video pipelines that an edited text encoder goes into."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn


class Recipient:
    """Renders clips with a diffusers pipeline.

    Args:
        pipeline: has a tokenizer, a text encoder, a UNet and a VAE.
        options: what the pipeline is called with beside prompts and generators.
        fps: frames a second of its clips.
        name: what scores call it.
    """

    def __init__(self, pipeline: DiffusionPipeline, options: Mapping[str, Any], fps: int, name: str) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline: Any = pipeline
        self.options, self.fps, self.name = dict(options), fps, name
        self.tokenizer, self.text_encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        self.modules: dict[str, nn.Module] = {"unet": self.pipeline.unet, "vae": self.pipeline.vae}

    @torch.inference_mode()
    def render(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Clips (B, F, C, H, W) in [0, 1], float32; each has a generator of its own."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found = self.pipeline(list(prompts), generator=generators, output_type="pt", **self.options)
        return found.frames.float().cpu()
