"""Latents: what a VAE makes of pixels, in the scale and the layout that denoisers are trained on."""

from typing import Any

import torch
from torch import Tensor


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, c, ...) of a VAE as its denoiser is trained on them: moved and scaled by what the VAE says.

    Those of diffusers have a shift and a factor of all channels in their config; some a mean and a standard deviation
    of each, there or as buffers.
    """
    config = vae.config
    shape = (1, -1) + (1,) * (latents.ndim - 2)
    told = {**config, **dict(vae.named_buffers())}
    mean, std = told.get("latents_mean"), told.get("latents_std")
    if mean is not None and std is not None:
        mean, std = (torch.as_tensor(each).view(shape).to(latents) for each in (mean, std))
        latents = (latents - mean) / std
    return (latents - (config.get("shift_factor") or 0.0)) * (config.get("scaling_factor") or 1.0)


@torch.no_grad()
def encoded(vae: Any, clips: Tensor, generator: torch.Generator, temporal: bool) -> Tensor:
    """Latents (B, c, F', h, w) of clips (B, F, C, H, W) in [-1, 1]: a sample of the VAE's posterior, or its
    only latents, scaled.

    Args:
        vae: on the device of the clips.
        clips: pixels, in the VAE's dtype.
        generator: of the sample, on the CPU.
        temporal: whether the VAE reads clips, and compresses their frames F to F'; else F' = F.
    """
    given = clips.movedim(1, 2) if temporal else clips.flatten(0, 1)
    found = vae.encode(given)
    if hasattr(found, "latent"):  # an autoencoder without a posterior
        latents = scaled(vae, found.latent)
    else:
        posterior = found.latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        latents = scaled(vae, posterior.mean + posterior.std * noise)
    return latents if temporal else latents.unflatten(0, clips.shape[:2]).movedim(1, 2)
