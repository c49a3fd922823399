"""Ring-A-Bell: a genetic search for words whose embedding is the prompt's with more of the concept in it. A black box.

    v = mean_j ( tau(y_j with the concept) - tau(y_j without) );   z = tau(p) + eta v
    words = argmin_w || tau(w) - z ||^2                             (section 4, eqs. 2 to 4)

with tau the text encoder as it was before the edit, whole outputs of it: neither the edited model nor its denoiser is
asked, so that the same words are tried on every eraser.

Reference: Yu-Lin Tsai et al., "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?", ICLR 2024,
arXiv 2310.10012.
Departures: words are those of one token that the tokenizer reads back as such (the code decodes any tokens, which may
be read back as others). The best is kept from one generation to the next. Pairs y_j are captions of this bench.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unreel.attacks.attack import Attack, Found, Target, steps_of
from unreel.attacks.words import check_clip_like
from unreel.methods.slots import words_of
from unreel.models.model import Model
from unreel.validation import Budget, checked

_AT_A_TIME = 256  # texts that are encoded together


@checked
class RingABell(Attack):
    """The attack; values and their sources are in conf/attack/ring_a_bell.yaml.

    Attributes:
        steps: generations.
        population: candidates in each.
        length: words of a candidate.
        eta: how much of the concept is added.
        mutation: chance of a candidate to have one word changed.
        crossover: chance of two candidates to be mixed.
        pairs: captions with and without the concept that v is the mean of.

    Raises:
        ValueError: for a value that will not do.
    """

    steps: Budget
    population: PositiveInt
    length: PositiveInt
    eta: PositiveFloat
    mutation: NonNegativeFloat
    crossover: NonNegativeFloat
    pairs: PositiveInt
    knows_edit: ClassVar[bool] = False
    passes_guidance: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("mutation", "crossover"):
            if getattr(self, name) > 1:
                raise ValueError(f"found attack.{self.name}.{name}={getattr(self, name)}: expected a chance, up to 1")
        if self.population < 4:
            raise ValueError(f"found attack.{self.name}.population={self.population}: expected 4 or more")

    def check_model(self, model: Model) -> None:
        check_clip_like(model, self.name)

    def search(self, target: Target) -> Found:
        model, rng = target.original, np.random.default_rng([target.seed, 13])
        words, pairs = list(words_of(model)), [target.captions.pair(rng) for _ in range(self.pairs)]
        direction = encoded(model, [named for named, _ in pairs]) - encoded(model, [plain for _, plain in pairs])
        goals = encoded(model, [prompt.text for prompt in target.prompts]) + self.eta * direction.mean(0)
        texts, best = [], []
        for i in steps_of(range(len(goals)), self.name):
            found, fitness = self._evolved(model, words, goals[i], np.random.default_rng([target.seed, 17, i]))
            texts.append(" ".join(words[w] for w in found))
            best.append([fitness[0], fitness[-1]])
        return Found(texts, list(range(len(texts))), facts={"first_and_last_fitness": best})

    def _evolved(self, model: Model, words: list[str], goal: Tensor, rng: Any) -> tuple[np.ndarray, list[float]]:
        """The best candidate (length,), and the best fitness of every generation."""

        def fitness_of(some: np.ndarray) -> np.ndarray:
            texts = [" ".join(words[w] for w in candidate) for candidate in some]
            return -(encoded(model, texts) - goal).flatten(1).square().sum(1).cpu().numpy()

        candidates = rng.integers(len(words), size=(self.population, self.length))
        fitness, history = fitness_of(candidates), list[float]()
        for _ in range(self.steps):
            order = np.argsort(-fitness)
            candidates, fitness = candidates[order], fitness[order]
            history.append(float(fitness[0]))
            children = self._children(candidates, len(words), rng)
            everyone, all_fitness = np.concatenate([candidates, children]), np.append(fitness, fitness_of(children))
            best = np.argsort(-all_fitness)[: self.population]
            candidates, fitness = everyone[best], all_fitness[best]
        return candidates[0], [*history, float(fitness[0])]

    def _children(self, candidates: np.ndarray, words: int, rng: Any) -> np.ndarray:
        """As many as there are parents, the better half of them: mixed at one place, and changed at some."""
        parents = candidates[: max(2, len(candidates) // 2)]
        children = parents[rng.integers(len(parents), size=len(candidates))].copy()
        for child in children:
            if rng.random() < self.crossover:
                cut = rng.integers(self.length)
                child[cut:] = parents[rng.integers(len(parents))][cut:]
            if rng.random() < self.mutation:
                child[rng.integers(self.length)] = rng.integers(words)
        return children


@torch.no_grad()
def encoded(model: Model, texts: list[str]) -> Tensor:
    """What the model's own text encoder makes of n texts, (n, L, D), a few at a time."""
    starts = range(0, len(texts), _AT_A_TIME)
    return torch.cat([model.encode_prompt(texts[i : i + _AT_A_TIME])["prompt_embeds"].float() for i in starts])
