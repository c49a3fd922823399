"""Pretraining of the VAE (AutoencoderKL): 64 x 64 px <-> latents of 16 x 16.

Reference: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, arXiv 2112.10752,
section 3.1. Departures: no perceptual or adversarial term; an L1 on image gradients keeps strokes and thin lines.
"""

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from unreel.zoo.drawings import Drawings
from unreel.zoo.pretraining import Stage


def _gradients(pixels: Tensor) -> tuple[Tensor, Tensor]:
    return pixels[..., 1:] - pixels[..., :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


class Autoencoder(Stage):
    """Trains `vae`; `kl_weight` is per latent element."""

    def __init__(
        self, drawings: Drawings, channels: list[int], latent_channels: int, kl_weight: float, **stage: Any
    ) -> None:
        super().__init__(**stage)
        self.drawings, self.kl_weight = drawings, kl_weight
        self.vae = AutoencoderKL(
            block_out_channels=tuple(channels),
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=16,
            mid_block_add_attention=False,
            sample_size=64,
        ).to(memory_format=torch.channels_last)
        with torch.no_grad():  # begin with little posterior noise: it learns several times faster
            self.vae.quant_conv.bias[latent_channels:] -= 5

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        indices = rng.choice(len(self.drawings), int(self.hparams["batch"]), replace=False)
        pixels = (self.drawings.frames(indices, rng).to(self.device) * 2 - 1).contiguous(
            memory_format=torch.channels_last
        )
        posterior = self.vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        edges = sum((a - b).abs().mean() for a, b in zip(_gradients(decoded), _gradients(pixels), strict=True))
        mse = (decoded - pixels).square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": (decoded - pixels).abs().mean() + mse + 0.5 * edges + self.kl_weight * kl, "mse": mse, "kl": kl}


@torch.inference_mode()
def encode_latents(
    vae: AutoencoderKL, drawings: Drawings, count: int, device: torch.device, batch: int = 8
) -> dict[str, Tensor]:
    """The first `count` drawings as the denoisers see them, all frames, float16.

    "latents": posterior means, not yet scaled, (count, F, c, 16, 16); "masks": the share of each latent pixel that the
    subject covers, (count, F, 16, 16).
    """
    out, masks = [], []
    for start in track(range(0, count, batch), "encoding latents"):
        indices = np.arange(start, min(start + batch, count))
        clips = drawings.batch_of_clips(indices).to(device) * 2 - 1
        with torch.autocast(device.type, dtype=torch.bfloat16):
            mean = vae.encode(clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)).latent_dist.mean
        out.append(mean.float().half().cpu().unflatten(0, clips.shape[:2]))
        masks.append(functional.adaptive_avg_pool2d(drawings.masks(indices), mean.shape[-2:]).half())
    return {"latents": torch.cat(out), "masks": torch.cat(masks)}
