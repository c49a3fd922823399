"""AdvUnlearn: the text encoder unlearns a concept by negative guidance, after the worst word that an attacker finds.

    outer:  L(phi) = E || e_phi(x_t, [p*; c]) - [ e_0(x_t, null) - eta (e_0(x_t, c) - e_0(x_t, null)) ] ||^2
                     + gamma E || e_phi(x_r, c_r) - e_0(x_r, c_r) ||^2
    inner:  p* = argmin_p  E || e_phi(x_t, [p; c]) - e_0(x_t, c) ||^2

with e_0 the frozen model, e_phi the same denoiser reading the trained encoder, and [p; c] the concept's phrase c after
the embedding p of one more word. The attacker starts at a random word of the vocabulary and takes `attack_steps` steps
of Adam, each on another x_t; then the encoder takes one step. The first `warmup` steps see c alone. x_t and x_r are
what the frozen model passes through on its way from noise to c and to retained captions c_r, as in ESD.

Reference: Yimeng Zhang et al., "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion
Models", NeurIPS 2024, arXiv 2405.15234. Read: a note on the paper, and the authors' published code.
Departures: trajectories are sampled once, with the frozen model's predictions on them, where the code samples a new one
for every x_t; each x_t has a timestep of its own, that of an inference step, as in ESD here. c_r are retained captions
(near things, far ones, other senses, nothing), the code's are photos of objects of COCO. The attacker's step is in
standard deviations of the table of tokens, so that it means the same to every encoder. The attacker's words are those
of one token that neither c nor c_r says. As in the code, no ball bounds p: Adam's steps do.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from unreel.batches import Batches, Step
from unreel.methods.esd import Trajectories, negative_guidance, sample_trajectories
from unreel.methods.gradient import GradientMethod
from unreel.methods.method import Task
from unreel.methods.slots import check_table, learned, slots_of, table_of, words_of
from unreel.methods.t2v_unlearning import joined
from unreel.models.model import Conditioning, Model
from unreel.validation import checked

_AT_ONCE = 8  # prompts that are sampled together


@dataclass(frozen=True)
class Seen:
    """What the frozen model passed through on its way to N prompts in T steps, and what it predicted there.

    Attributes:
        texts: the N prompts.
        path: the trajectories, with the conditioning of the prompts and of null.
        said: e_0(x_t, c), (N, T, *latent_shape), on the CPU.
        unsaid: e_0(x_t, null), likewise; none where it is not asked for.
    """

    texts: list[str]
    path: Trajectories
    said: Tensor
    unsaid: Tensor | None

    def draw(self, rngs: Sequence[np.random.Generator], texts: Sequence[str] | None = None) -> tuple[list[int], ...]:
        """Rows and steps of one x_t for each generator; of a prompt that is `texts`' own, where there are some."""
        rows = []
        for i, rng in enumerate(rngs):
            own = [row for row, said in enumerate(self.texts) if texts is None or said == texts[i]]
            rows.append(own[int(rng.integers(len(own)))])
        return rows, [int(rng.integers(self.path.noisy.shape[1])) for rng in rngs]

    def noisy(self, rows: list[int], steps: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """x_t and t."""
        return self.path.noisy[rows, steps].to(device), self.path.timesteps[steps].to(device)


@torch.no_grad()
def _predictions(model: Model, path: Trajectories, conditioning: Conditioning) -> Tensor:
    """What a model predicts at every x_t, (N, T, *latent_shape), on the CPU; the conditioning has N rows, or one."""
    count, each = len(path.noisy), []
    for first in range(0, count, _AT_ONCE):
        rows = list(range(first, min(first + _AT_ONCE, count)))
        read = conditioning.rows(rows if conditioning.count > 1 else [0] * len(rows))
        each.append(
            torch.stack(
                [
                    model.predict(path.noisy[rows, step].to(model.device), t.to(model.device).expand(len(rows)), read)
                    for step, t in enumerate(path.timesteps)
                ],
                1,
            ).cpu()
        )
    return torch.cat(each)


@dataclass(frozen=True)
class Prepared:
    """Trajectories of the concepts' phrases and of retained captions; where the attacker's word stands in a text.

    Attributes:
        forget, retain: what the frozen model passed through.
        slot: a word that no text says, in whose place the attacker's word is read.
        words: embeddings of the words that the attacker may start at, (V, D).
        seed: of what is drawn.
    """

    forget: Seen
    retain: Seen
    slot: str
    words: Tensor
    seed: int


@checked
class AdvUnlearn(GradientMethod):
    """The method; hyperparameters and their sources are in conf/method/adv_unlearn*.yaml.

    Attributes:
        eta: strength of the negative guidance.
        gamma: weight of the retained captions.
        warmup: steps before the first attack.
        attack_steps: of the attacker, before each step of the encoder; with 0 there is no attacker.
        attack_lr: its rate, in standard deviations of the encoder's table of tokens.
        attack_sign: whether it sees the sign of its gradient alone (the fast variant).
        trajectories: how many are sampled of each concept, whose phrases take turns.
        retain_trajectories: how many are sampled of retained captions, for all concepts.
        num_inference_steps, guidance_scale: how they are sampled.

    Raises:
        ValueError: for numbers that will not do.
    """

    eta: float
    gamma: NonNegativeFloat
    warmup: NonNegativeInt
    attack_steps: NonNegativeInt
    attack_lr: PositiveFloat
    attack_sign: bool
    trajectories: PositiveInt
    retain_trajectories: PositiveInt
    num_inference_steps: PositiveInt
    guidance_scale: float
    edits = ("text_encoder",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data.retain:
            raise ValueError(f"{self.name}: found data.retain=0: expected 1 or more; gamma=0 switches retaining off")

    def check(self, model: Model, roles: Sequence[str]) -> None:
        super().check(model, roles)
        check_table(model, f"method {self.name}")

    def prepare(self, reference: Model, task: Task, batches: Batches) -> Prepared:
        phrases = [list(concept.phrases) for concept in task.concepts]
        named = [own[i % len(own)] for own in phrases for i in range(self.trajectories)]
        kept: list[str] = []
        for which, captions in enumerate(task.captions):
            rng = np.random.default_rng([task.seed, 12, which])
            kept += captions.retain(rng, -(-self.retain_trajectories // len(task.captions)), self.data.long)
        table, words = table_of(reference), words_of(reference)
        return Prepared(
            self._seen(reference, named, task.seed, with_null=True),
            self._seen(reference, kept, task.seed + 1, with_null=False),
            slots_of(reference, 1, named + kept)[0],
            table[list(words.values())],
            task.seed,
        )

    def _seen(self, reference: Model, texts: list[str], seed: int, with_null: bool) -> Seen:
        path = sample_trajectories(reference, texts, self.num_inference_steps, self.guidance_scale, seed, _AT_ONCE)
        said = _predictions(reference, path, path.prompts)
        return Seen(texts, path, said, _predictions(reference, path, path.null) if with_null else None)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """ "unlearn" and "retain" are the two terms of the outer loss, "attack" is the attacker's last one."""
        own, device, number = step.prepared, step.model.device, step.batch.number
        rngs = [np.random.default_rng([own.seed, 13, number, zlib.crc32(said.encode())]) for said in step.batch.forget]
        rows, steps = own.forget.draw(rngs)
        texts = [own.forget.texts[row] for row in rows]
        scalars: dict[str, Tensor] = {}
        if self.attack_steps and number >= self.warmup:
            prefix, scalars["attack"] = self.attack(step, texts, rngs)
            with learned(step.model, [own.slot], prefix):
                read = step.model.encode_prompt([f"{own.slot} {text}" for text in texts])
        else:
            read = step.model.encode_prompt(texts)
        target = negative_guidance(
            own.forget.unsaid[rows, steps].to(device), own.forget.said[rows, steps].to(device), self.eta
        )
        seeds = [[own.seed, 14, number, i, zlib.crc32(said.encode())] for i, said in enumerate(step.batch.retain)]
        at, when = own.retain.draw([np.random.default_rng(seed) for seed in seeds])
        kept = step.model.encode_prompt([own.retain.texts[row] for row in at])
        seen = zip(own.forget.noisy(rows, steps, device), own.retain.noisy(at, when, device), strict=True)
        noisy, timesteps = (torch.cat(pair) for pair in seen)
        predicted = step.model.predict(noisy, timesteps, joined(read, kept))
        unlearn = functional.mse_loss(predicted[: len(rows)], target)
        retain = functional.mse_loss(predicted[len(rows) :], own.retain.said[at, when].to(device))
        return {"loss": unlearn + self.gamma * retain, "unlearn": unlearn, "retain": retain} | scalars

    def attack(self, step: Step, texts: Sequence[str], rngs: Sequence[np.random.Generator]) -> tuple[Tensor, Tensor]:
        """p* of each of b phrases, (b, 1, D), and the attacker's last loss. The encoder gets no gradient here."""
        own, device = step.prepared, step.model.device
        prefix = own.words[[int(rng.integers(len(own.words))) for rng in rngs]][:, None].float().clone()
        prefix.requires_grad_(True)
        size = self.attack_lr * float(table_of(step.model).float().std())
        optimizer, said = torch.optim.Adam([prefix], lr=size), [f"{own.slot} {text}" for text in texts]
        loss = torch.zeros(())
        for _ in range(self.attack_steps):
            rows, steps = own.forget.draw(rngs, texts)
            noisy, timesteps = own.forget.noisy(rows, steps, device)
            with learned(step.model, [own.slot], prefix):
                predicted = step.model.predict(noisy, timesteps, step.model.encode_prompt(said))
            loss = (predicted - own.forget.said[rows, steps].to(device)).square().flatten(1).mean(1).sum()
            (slope,) = torch.autograd.grad(loss, prefix)
            prefix.grad = slope.sign() if self.attack_sign else slope
            optimizer.step()
        return prefix.detach(), loss.detach() / len(texts)
