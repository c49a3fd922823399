"""Schedules: how a diffusers scheduler mixes clean latents with noise, and what it wants predicted of the mixture.

x_t = a_t x_0 + s_t n        with a_t^2 + s_t^2 = 1, or on a straight path (flow matching) a_t = 1 - s_t
"""

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is one of flow matching by its class, whatever it says of predictions."""
    return "FlowMatch" in type(scheduler).__name__


def prediction_type(scheduler: Any) -> str:
    """What is predicted: one of PREDICTIONS, or what else the scheduler says."""
    return "flow_prediction" if is_flow(scheduler) else scheduler.config.get("prediction_type", "epsilon")


def prepared(scheduler: Any, steps_flows: bool, timestep_spacing: str | None) -> Any:
    """A scheduler that the pipeline can step.

    Args:
        scheduler: the pipeline's.
        steps_flows: whether the pipeline itself steps those of flow matching; elsewhere DPM-Solver takes their place.
        timestep_spacing: as diffusers' schedulers call it, None leaves theirs.

    Raises:
        ValueError: for a prediction type that is none, or a spacing for a scheduler that has none.
    """
    if is_flow(scheduler) and not steps_flows:
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=scheduler.config.get("shift", 1.0)
        )
    if (found := prediction_type(scheduler)) not in PREDICTIONS:
        raise ValueError(f"found prediction type {found!r}: expected {', '.join(PREDICTIONS)}")
    if timestep_spacing is None:
        return scheduler
    if steps_flows and found == "flow_prediction":
        raise ValueError(
            f"found timestep_spacing={timestep_spacing!r}: expected null, as its steps of flow matching are spread by"
            " their share of noise"
        )
    return type(scheduler).from_config(scheduler.config, timestep_spacing=timestep_spacing)


def signal(scheduler: Any, timesteps: Tensor, like: Tensor, steps_flows: bool) -> tuple[Tensor, Tensor]:
    """a_t and s_t at timesteps (B,), broadcastable to `like`.

    Timesteps of a pipeline that steps flows itself are s_t times their number; those of others count from 0, so that
    the last one is pure noise.
    """
    if prediction_type(scheduler) == "flow_prediction":
        noise = (timesteps.float() + (0 if steps_flows else 1)) / scheduler.config.num_train_timesteps
        clean = 1 - noise
        if scheduler.config.get("invert_sigmas", False):  # time runs from noise to data
            clean, noise = noise, clean
    else:
        kept = scheduler.alphas_cumprod.to(timesteps.device)[timesteps.long()].float()
        clean, noise = kept.sqrt(), (1 - kept).sqrt()
    shape = (-1,) + (1,) * (like.ndim - 1)
    return clean.view(shape).to(like), noise.view(shape).to(like)


def noised(
    scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor, steps_flows: bool
) -> tuple[Tensor, Tensor]:
    """x_t, and what the denoiser is to predict there, float32; arguments as in `Model.noised` and `signal`."""
    alpha, sigma = signal(scheduler, timesteps, latents, steps_flows)
    towards_data = scheduler.config.get("invert_sigmas", False)
    target = {
        "epsilon": noise, "sample": latents, "v_prediction": alpha * noise - sigma * latents,
        "flow_prediction": latents - noise if towards_data else noise - latents,
    }[prediction_type(scheduler)]  # fmt: skip
    return alpha * latents + sigma * noise, target.float()


def sample_timesteps(scheduler: Any, count: int, generator: torch.Generator, steps_flows: bool) -> Tensor:
    """`count` random timesteps (count,), uniform; those of a pipeline that steps flows itself shifted as its steps are.

    A shift k takes a share s of noise to k s / (1 + (k - 1) s) (Esser et al. 2024, arXiv 2403.03206, equation 23).
    """
    most = int(scheduler.config.num_train_timesteps)
    drawn = torch.randint(most, (count,), generator=generator)
    if not (steps_flows and prediction_type(scheduler) == "flow_prediction"):
        return drawn
    return shifted(scheduler, (drawn + 1) / most)


def shifted(scheduler: Any, shares: Tensor) -> Tensor:
    """Timesteps (B,), integers, of shares of noise in (0, 1), with the scheduler's shift."""
    most = int(scheduler.config.num_train_timesteps)
    shift = float(scheduler.config.get("shift") or scheduler.config.get("flow_shift") or 1.0)
    return (most * shift * shares / (1 + (shift - 1) * shares)).round().long().clamp(1, most - 1)
