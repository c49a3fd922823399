"""ESD: the denoiser learns to answer a concept's prompt with its own prediction, guided away from the concept.

    L(theta) = E_{c, k, x_t} || eps_theta(x_t, c) - [ eps_0(x_t, null) - eta (eps_0(x_t, c) - eps_0(x_t, null)) ] ||^2

with eps_0 the frozen model, null the empty prompt, and x_t what the frozen model reaches on its way from noise to the
prompt c, with guidance, after k of its inference steps; k is uniform. The paper has eta = 1. At eta = 0 the target is
the prediction for the empty prompt, at eta = -1 that for c, so that nothing changes. ESD-x trains the cross-attention,
ESD-u everything else, ESD-x-strict the keys and values of the cross-attention alone: conf/method/esd*.yaml.

Models that predict clean latents, velocities or flows need no conversion. At one x_t these are affine functions of the
noise, and the target's coefficients sum to 1: it is the same target, and the loss has another weight at each t.

Reference: Rohit Gandikota, Joanna Materzynska, Jaden Fiotto-Kaufman and David Bau, "Erasing Concepts from Diffusion
Models", ICCV 2023, arXiv 2303.07345.
Departures: x_t comes from the frozen model, as in the authors' later code; in the paper it comes from the model in
training. It is drawn from trajectories that are sampled once, because a new one at each step, as in the paper, would be
most of the cost. t is the timestep of the k-th inference step, as in the later code; the first code drew it from those
up to the next step. Prompts are all the concept's phrases; the paper's is its name. ESD-u also trains norms and
embeddings, as "everything but the cross-attention" says; the later code trains linear and convolutional layers only.
A step sees several x_t (`data.batch`); the paper's sees one.
"""

import copy
import inspect
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional

from unreel.batches import Batch, Batches, Step
from unreel.methods.gradient import GradientMethod
from unreel.methods.method import Task
from unreel.models.model import Conditioning, Model
from unreel.validation import checked


def negative_guidance(null: Tensor, cond: Tensor, eta: float) -> Tensor:
    """null - eta * (cond - null), written so that eta = -1 gives `cond` to the bit."""
    return (1 + eta) * null - eta * cond


@dataclass(frozen=True)
class Trajectories:
    """What the frozen model passed through while it sampled prompts, N times in T steps.

    Attributes:
        noisy: x_t as the denoiser reads it, (N, T, *latent_shape), on the CPU.
        timesteps: t of each step, (T,), noisiest first.
        prompts: conditioning of the N prompts.
        null: that of the empty prompt, once.
        seed: of what is drawn.
    """

    noisy: Tensor
    timesteps: Tensor
    prompts: Conditioning
    null: Conditioning
    seed: int

    def draw(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Conditioning, Conditioning]:
        """x_t, t and the conditioning of c and of null, one for each caption of the batch.

        What is drawn for a caption depends on seed, step and caption alone: a resumed training sees what it would have
        seen, and several processes share a batch out without drawing the same.
        """
        rngs = [np.random.default_rng([self.seed, 8, batch.number, zlib.crc32(said.encode())]) for said in batch.forget]
        rows, steps = ([int(rng.integers(size)) for rng in rngs] for size in self.noisy.shape[:2])
        noisy, timesteps = self.noisy[rows, steps].to(device), self.timesteps[steps].to(device)
        return noisy, timesteps, self.prompts.rows(rows), self.null.rows([0] * len(rows))


@torch.no_grad()
def sample_trajectories(
    model: Model, prompts: list[str], num_inference_steps: int, guidance_scale: float, seed: int, batch: int
) -> Trajectories:
    """One trajectory a prompt, by the model's own scheduler, `batch` at a time; each has a generator of its own."""
    said, null = model.encode_prompt(prompts), model.encode_prompt([""])
    passed = []
    for first in range(0, len(prompts), batch):
        rows = list(range(first, min(first + batch, len(prompts))))
        cond, uncond = said.rows(rows), null.rows([0] * len(rows))
        seeds = [int(np.random.default_rng([seed, 7, row]).integers(2**62)) for row in rows]
        generators = [torch.Generator().manual_seed(each) for each in seeds]
        scheduler = copy.deepcopy(model.pipeline.scheduler)
        model.set_timesteps(scheduler, num_inference_steps)
        known = inspect.signature(scheduler.step).parameters
        extra = {name: value for name, value in (("eta", 0.0), ("generator", generators)) if name in known}
        noise = torch.stack([torch.randn(model.latent_shape, generator=generator) for generator in generators])
        latents, states = noise.to(model.device) * getattr(scheduler, "init_noise_sigma", 1.0), []
        for t in scheduler.timesteps:
            noisy = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
            timesteps = t.to(model.device).expand(len(rows))
            states.append(noisy.cpu())
            away = model.predict(noisy, timesteps, uncond)
            guided = away + guidance_scale * (model.predict(noisy, timesteps, cond) - away)
            latents = scheduler.step(guided, t, latents, **extra).prev_sample
        passed.append(torch.stack(states, 1))
    return Trajectories(torch.cat(passed), scheduler.timesteps.cpu(), said, null, seed)


@checked
class ESD(GradientMethod):
    """The method; hyperparameters and their sources are in conf/method/esd*.yaml.

    Attributes:
        eta: strength of the negative guidance.
        trajectories: how many are sampled of each concept, whose phrases take turns.
        num_inference_steps, guidance_scale: how they are sampled.

    Raises:
        ValueError: for numbers that will not do.
    """

    eta: float
    trajectories: PositiveInt
    num_inference_steps: PositiveInt
    guidance_scale: float
    edits = ("denoiser",)

    def prepare(self, reference: Model, task: Task, batches: Batches) -> Trajectories:
        turns = range(self.trajectories)
        prompts = [concept.phrases[i % len(concept.phrases)] for concept in task.concepts for i in turns]
        return sample_trajectories(
            reference, prompts, self.num_inference_steps, self.guidance_scale, task.seed, self.data.batch
        )

    def loss(self, step: Step) -> dict[str, Tensor]:
        noisy, timesteps, c, null = step.prepared.draw(step.batch, step.model.device)
        with torch.no_grad():
            target = negative_guidance(
                step.reference.predict(noisy, timesteps, null), step.reference.predict(noisy, timesteps, c), self.eta
            )
        return {"loss": functional.mse_loss(step.model.predict(noisy, timesteps, c), target)}
