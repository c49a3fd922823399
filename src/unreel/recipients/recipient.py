"""What recipients share: text-to-video pipelines that an edited text encoder goes into."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the machine has instructions for bfloat16 there; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


class Recipient:
    """Renders clips with a diffusers pipeline.

    Args:
        pipeline: has a tokenizer, a text encoder, a UNet and a VAE.
        options: what the pipeline is called with beside prompts and generators.
        fps: frames a second of its clips.
        name: what scores call it.
        autocast: whether the large operations of a float32 pipeline are done in bfloat16, where the machine can; the
            weights, the latents and the schedule stay as they are.
    """

    def __init__(
        self, pipeline: DiffusionPipeline, options: Mapping[str, Any], fps: int, name: str, autocast: bool
    ) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline: Any = pipeline
        self.options, self.fps, self.name = dict(options), fps, name
        self.tokenizer, self.text_encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        self.wants_autocast = autocast  # what runs are known by, whichever machine they are on
        self.autocast = autocast and computes_bfloat16(self.pipeline.device)
        self.modules: dict[str, nn.Module] = {"unet": self.pipeline.unet, "vae": self.pipeline.vae}

    def render(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Clips (B, F, C, H, W) in [0, 1], float32; each has a generator of its own."""
        with torch.inference_mode(), torch.autocast(self.pipeline.device.type, torch.bfloat16, enabled=self.autocast):
            return self._render(prompts, seeds)

    def _render(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found = self.pipeline(list(prompts), generator=generators, output_type="pt", **self.options)
        return self._clips(found).float().cpu()

    def _clips(self, found: Any) -> Tensor:
        """The clips in what the pipeline returned, (B, F, C, H, W)."""
        return found.frames
