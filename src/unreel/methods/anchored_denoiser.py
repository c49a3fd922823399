"""Anchored denoiser: it learns to answer whatever enters near the anchor's embeddings as it answered the anchor itself.

    L(psi) = a E || f_psi(x_t, c_a + v*) - f_0(x_t, c_a) ||^2 / s  +  r E || f_psi(x_t', c_r) - f_0(x_t', c_r) ||^2 / s'
    v* = argmin_v || f_psi(x_t, c_a + v) - g ||^2

c_a are the unedited encoder's embeddings of a caption with the anchor in the concept's place. v is one vector that is
added to all of them but the first: there the attack `cce_behind` injects what it learns. g is the target of the
prediction type for x_t, noised pictures of the concept by the frozen model f_0, so that v* is what still brings the
concept back. Some steps take the embeddings of the caption that names the concept in the place of c_a + v*. Retained
captions c_r have pictures of their own, x_t'. s is the frozen model's error under the anchor, s' the variance of its
predictions.

Each row of a batch has a v of its own, which Adam moves on by one step at every step of the training and which begins
anew every so often, on the way from the anchor to the concept. Some last long, and go far.

Reference: ours. Training against an adversary in the space of embeddings is from Yimeng Zhang et al., "Defensive
Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models" (AdvUnlearn), NeurIPS 2024, arXiv
2405.15234, who train the text encoder; matching the prediction for an anchor is from Nupur Kumari et al., ICCV 2023,
arXiv 2303.13516.
Departures: the adversary goes on while the denoiser is trained, one step each, in place of an inner loop of thirty; it
enters behind the encoder and is not bounded.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unreel.batches import Batches, Step
from unreel.methods.gradient import GradientMethod
from unreel.methods.method import Task
from unreel.methods.slots import added
from unreel.models.model import Conditioning, Model
from unreel.validation import checked

_AT_ONCE = 8  # pictures


@dataclass(frozen=True)
class Pictures:
    """Pictures by the frozen model, latents (N, ...), with what the frozen model reads of their captions.

    Attributes:
        latents: of the pictures.
        said: what they were asked to show.
        anchors: the same with the anchor in the concept's place; of retained pictures the same as `said`.
    """

    latents: Tensor
    said: Conditioning
    anchors: Conditioning


class Vectors:
    """The vectors v, one a row of the batch, each with an Adam of its own.

    Args:
        step_size: of Adam.
        life: steps that one lasts, on average.
        seed: of where they begin, and when.
        device: where they are, also when they come from a checkpoint.
    """

    def __init__(self, step_size: float, life: int, seed: int, device: torch.device) -> None:
        self.step_size, self.life, self.seed, self.device = step_size, life, seed, device
        self.free: list[Tensor] = []
        self.optimizers: list[torch.optim.Adam] = []

    def current(self, towards: Tensor, number: int) -> list[Tensor]:
        """v of step `number`, (D,) each; `towards` (B, D) is the way from each row's anchor to its concept."""
        rng = np.random.default_rng([self.seed, 12, number])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        old = dict(enumerate(zip(self.free, self.optimizers, strict=True)))
        self.free, self.optimizers = [], []
        for row, way in enumerate(towards):
            ends, far = rng.random() < 1 / self.life, rng.random()
            start = far * way + 0.1 * torch.randn(way.shape, generator=generator).to(way)
            if row in old and not ends:
                free, optimizer = old[row]
            else:
                free = start.detach().clone().requires_grad_(True)
                optimizer = torch.optim.Adam([free], lr=self.step_size)
            self.free.append(free)
            self.optimizers.append(optimizer)
        return self.free

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"free": [free.detach() for free in self.free], "optimizers": optimizers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        self.free = [free.to(self.device, copy=True).requires_grad_(True) for free in state["free"]]
        self.optimizers = [torch.optim.Adam([free], lr=self.step_size) for free in self.free]
        for optimizer, known in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)

    def move(self, gradients: Sequence[Tensor]) -> None:
        """One step down."""
        for free, optimizer, gradient in zip(self.free, self.optimizers, gradients, strict=True):
            free.grad = gradient
            optimizer.step()


@dataclass
class Prepared:
    """What the steps of a training use: pictures of the concepts, retained ones, and the adversary."""

    concept: Pictures
    others: Pictures
    adversary: Vectors

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return self.adversary.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        self.adversary.load_state_dict(state)


@checked
class AnchoredDenoiser(GradientMethod):
    """The method; hyperparameters are in conf/method/anchored_denoiser.yaml.

    Attributes:
        anchor_weight: a.
        retain_weight: r.
        named: share of the steps that see the concept's own embeddings in place of the adversary's.
        pictures: how many the frozen model makes of each concept.
        kept: how many it makes of retained captions, for each concept.
        adversary_step: of Adam, in units of the embeddings.
        life: steps that an adversary lasts, on average.
        noisiest: share of the timesteps that are drawn for the concept, from the noisiest on; 1 are all.

    Raises:
        ValueError: for numbers that will not do.
    """

    anchor_weight: PositiveFloat
    retain_weight: NonNegativeFloat
    named: Annotated[float, Field(ge=0, le=1)]
    pictures: PositiveInt
    kept: PositiveInt
    adversary_step: PositiveFloat
    life: PositiveInt
    noisiest: Annotated[float, Field(gt=0, le=1)]
    edits = ("denoiser",)

    def prepare(self, reference: Model, task: Task, batches: Batches) -> Prepared:
        rng = np.random.default_rng([task.seed, 9])
        shown, said, anchors, kept = list[str](), list[str](), list[str](), list[str]()
        for captions in task.captions:
            shown += captions.shot_prompts(self.pictures, task.seed)
            pairs = [captions.pair(rng, shot) for shot in range(self.pictures)]
            said += [named for named, _ in pairs]
            anchors += [anchored for _, anchored in pairs]
            kept += captions.retain(rng, self.kept)
        return Prepared(
            _pictures(reference, shown, said, anchors, task.seed),
            _pictures(reference, kept, kept, kept, task.seed + 1),
            Vectors(self.adversary_step, self.life, task.seed, reference.device),
        )

    def loss(self, step: Step) -> dict[str, Tensor]:
        """ "match" and "retain" are the two terms, without their weights; "evidence" is how near the adversary is."""
        concept, others, adversary = step.prepared.concept, step.prepared.others, step.prepared.adversary
        own_part = zlib.crc32(" ".join(step.batch.forget).encode())  # of several processes each has another one
        rng, count = np.random.default_rng([adversary.seed, 10, step.batch.number, own_part]), len(step.batch.forget)
        rows, kept = (rng.integers(len(each.latents), size=count).tolist() for each in (concept, others))
        noisy, timesteps, goal = _noised(step.model, concept.latents[rows], self.noisiest, rng)
        noisy_kept, timesteps_kept, _ = _noised(step.model, others.latents[kept], 1.0, rng)
        said, anchors, held = concept.said.rows(rows), concept.anchors.rows(rows), others.said.rows(kept)
        with torch.no_grad():
            wanted = step.reference.predict(noisy, timesteps, anchors)
            wanted_kept = step.reference.predict(noisy_kept, timesteps_kept, held)
        scale = (wanted - goal).square().flatten(1).mean(1)
        vectors = adversary.current(_mean(said) - _mean(anchors), step.batch.number)
        named = rng.random() < self.named
        found = step.model.predict(noisy, timesteps, said if named else added(anchors, torch.stack(vectors)))
        errors = (found - goal).square().flatten(1).mean(1) / scale
        if not named:
            adversary.move(torch.autograd.grad(errors.sum(), vectors, retain_graph=True))
        match = ((found - wanted).square().flatten(1).mean(1) / scale).mean()
        own = step.model.predict(noisy_kept, timesteps_kept, held)
        retain = (own - wanted_kept).square().mean() / wanted_kept.var()
        loss = self.anchor_weight * match + self.retain_weight * retain
        return {"loss": loss, "match": match, "retain": retain, "evidence": errors.detach().mean()}


def _mean(conditioning: Conditioning) -> Tensor:
    """The mean of each prompt's embeddings but the first, (B, D)."""
    return conditioning["prompt_embeds"][:, 1:].mean(1)


@torch.no_grad()
def _pictures(
    model: Model, shown: Sequence[str], said: Sequence[str], anchors: Sequence[str], seed: int
) -> Pictures:  # fmt: skip
    """Pictures of the texts `shown`, with two other texts for each."""
    seeds, latents = [int(np.random.default_rng([seed, 11, i]).integers(2**31)) for i in range(len(shown))], []
    for i in range(0, len(shown), _AT_ONCE):
        few = slice(i, i + _AT_ONCE)
        pixels = model.render(shown[few], seeds[few]) * 2 - 1
        latents.append(model.encode_pixels(pixels, torch.Generator().manual_seed(seeds[i])).float().clone())
    read = (model.encode_prompt(list(texts)) for texts in (said, anchors))
    return Pictures(torch.cat(latents), *(Conditioning({n: t.clone() for n, t in each.items()}) for each in read))


def _noised(model: Model, latents: Tensor, noisiest: float, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t of latents (B, ...), their timesteps, and what is to be predicted there."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    count = model.num_train_timesteps
    first = min(round(count * (1 - noisiest)), count - 1)
    timesteps = torch.randint(first, count, (len(latents),), generator=generator).to(latents.device)
    noisy, goal = model.noised(latents, noise, timesteps)
    return noisy, timesteps, goal
