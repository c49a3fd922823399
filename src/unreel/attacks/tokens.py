"""TokenAttack: attacks that search words of the vocabulary with gradients through the edited model. A white box.

    words = argmin_w  E_{e, t} || f_U(x_t, tau_phi(prompt with w), t) - goal ||^2

Final classes say what is optimised, and what the goal is.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unreel.attacks.attack import Attack, Found, Target, steps_of
from unreel.attacks.words import check_clip_like
from unreel.methods.slots import learned, slots_of, table_of, words_of
from unreel.models.model import Conditioning, Model
from unreel.validation import Budget

_CANDIDATES = 10  # of each prompt, over the search, that are compared at its end


def simplex(rows: Tensor) -> Tensor:
    """The nearest points (..., V) of the probability simplex: >= 0, sum 1 (Duchi et al. 2008, fig. 1)."""
    ordered, count = rows.sort(-1, descending=True).values, torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    above = (ordered.cumsum(-1) - 1) / count
    last = (ordered > above).sum(-1, keepdim=True) - 1
    return (rows - above.gather(-1, last)).clamp(min=0)


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """`hard` in the forward pass, to the bit; the gradient goes to `soft`."""
    return _StraightThrough.apply(soft, hard)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@dataclass(frozen=True)
class Noised:
    """What one step sees of P prompts: x_t (P, ...), timesteps (P,), and what is to be predicted there."""

    noisy: Tensor
    timesteps: Tensor
    truth: Tensor


@dataclass(frozen=True, kw_only=True)
class TokenAttack(Attack):
    """An attack by words of the vocabulary, other ones for each prompt.

    Attributes:
        tokens: how many words are searched.
        steps: of the optimizer.
        lr, weight_decay: its rate and decay.
        batch: prompts that are attacked together.
        probes: noised pictures that the words found on the way are compared on, the best of which are kept.
    """

    tokens: PositiveInt
    steps: Budget
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    batch: PositiveInt
    probes: PositiveInt
    learns_looks = True

    @abstractmethod
    def start(self, table: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """What is optimised for P prompts, (P, tokens, ...), of a table (V, D) of the words' embeddings."""

    @abstractmethod
    def ids(self, free: Tensor, table: Tensor) -> Tensor:
        """Which words it stands for, (P, tokens)."""

    @abstractmethod
    def rows(self, free: Tensor, table: Tensor) -> Tensor:
        """The embeddings of these words, (P, tokens, D), with gradient to what is optimised."""

    @abstractmethod
    def placed(self, text: str, words: Sequence[str]) -> str:
        """A prompt with the words in it."""

    @abstractmethod
    def optimizer(self, free: Tensor) -> torch.optim.Optimizer:
        """What optimises."""

    def goal(self, target: Target, seen: Noised, texts: Sequence[str]) -> Tensor:
        """What the edited denoiser is to predict: what is there."""
        return seen.truth

    def after_step(self, free: Tensor) -> None:
        """Puts what is optimised back to where it may be."""
        return

    def check_model(self, model: Model) -> None:
        check_clip_like(model, self.name)

    def search(self, target: Target) -> Found:
        words, texts, losses = words_of(target.model), list[str](), list[list[float]]()
        table = table_of(target.model)[list(words.values())].float()
        plain = [prompt.text for prompt in target.prompts]
        slots = slots_of(target.model, self.tokens, plain)
        latents = target.pictures(plain, target.seeds)
        starts = range(0, len(plain), self.batch)
        with _Bar(self.name, self.steps * len(starts)) as bar:
            for i in starts:
                few = slice(i, i + self.batch)
                found, fallen = self._searched(target, latents[few], plain[few], slots, table, i, bar)
                for text, row in zip(plain[few], found.tolist(), strict=True):
                    texts.append(self.placed(text, [list(words)[w] for w in row]))
                losses += fallen
        return Found(texts, list(range(len(texts))), facts={"first_and_best_loss": losses})

    def _searched(
        self, target: Target, latents: Tensor, plain: Sequence[str], slots: Sequence[str], table: Tensor, part: int,
        bar: Any,
    ) -> tuple[Tensor, list[list[float]]]:  # fmt: skip
        """The best words (P, tokens) of some prompts, and their losses at the beginning and now."""
        generator = torch.Generator().manual_seed(1_000_003 * target.seed + part)
        free = self.start(table, len(plain), generator).requires_grad_(True)
        optimizer, texts = self.optimizer(free), [self.placed(text, slots) for text in plain]
        turns = np.linspace(0, 1, self.steps, endpoint=False) if self.steps < 50 else (np.arange(self.steps) % 50) / 50
        candidates = [self.ids(free.detach(), table)]
        for step in range(self.steps):
            seen = self._noised(target, latents, float(turns[step]) + 0.01, generator)
            goal = self._goal(target, seen, plain)
            predicted = self._predicted(target, seen, texts, slots, self.rows(free, table))
            (free.grad,) = torch.autograd.grad((predicted - goal).square().flatten(1).mean(1).sum(), free)
            optimizer.step()
            with torch.no_grad():
                self.after_step(free)
            if not (step + 1) % max(1, self.steps // _CANDIDATES) or step + 1 == self.steps:
                candidates.append(self.ids(free.detach(), table))
            bar()
        return self._best(target, latents, plain, texts, slots, table, candidates)

    @torch.no_grad()
    def _best(
        self, target: Target, latents: Tensor, plain: Sequence[str], texts: Sequence[str], slots: Sequence[str],
        table: Tensor, candidates: Sequence[Tensor],
    ) -> tuple[Tensor, list[list[float]]]:  # fmt: skip
        generator = torch.Generator().manual_seed(1_000_003 * target.seed + 7)
        losses = torch.zeros(len(candidates), len(plain))
        for probe in range(self.probes):
            seen = self._noised(target, latents, (probe + 0.5) / self.probes, generator)
            goal = self._goal(target, seen, plain)
            for i, ids in enumerate(candidates):
                predicted = self._predicted(target, seen, texts, slots, table[ids])
                losses[i] += (predicted - goal).square().flatten(1).mean(1).cpu() / self.probes
        which = losses.argmin(0)
        best = torch.stack([candidates[int(c)][p] for p, c in enumerate(which)])
        return best, [[float(losses[0, p]), float(losses[c, p])] for p, c in enumerate(which)]

    def _noised(self, target: Target, latents: Tensor, share: float, generator: torch.Generator) -> Noised:
        timesteps = torch.full((len(latents),), int(share * target.model.num_train_timesteps), device=latents.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        noisy, truth = target.model.noised(latents, noise, timesteps)
        return Noised(noisy, timesteps, truth)

    @torch.no_grad()
    def _goal(self, target: Target, seen: Noised, plain: Sequence[str]) -> Tensor:
        return self.goal(target, seen, plain)

    def _predicted(
        self, target: Target, seen: Noised, texts: Sequence[str], slots: Sequence[str], rows: Tensor
    ) -> Tensor:
        with learned(target.model, slots, rows):
            read: Conditioning = target.model.encode_prompt(texts)
        return target.model.predict(seen.noisy, seen.timesteps, read)


class _Bar:
    """A progress bar on a terminal that is gone when its block ends."""

    def __init__(self, what: str, total: int) -> None:
        self.steps = iter(steps_of(range(total), what))

    def __enter__(self) -> Any:
        return lambda: next(self.steps, None)

    def __exit__(self, *_: Any) -> None:
        for _step in self.steps:
            pass
