"""P4D: words in the place of the prompt, or between its words, that make the edited model predict what the old one did.

    p* = argmin_p  E_{e, t} || f_U(x_t, tau_phi(p), t) - f_U0(x_t, tau_0(y), t) ||^2                  (eq. 2)

where p are embeddings; in the forward pass each is the nearest row of the vocabulary.

Reference: Zhi-Yi Chin et al., "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic
Prompts", ICML 2024, arXiv 2309.06135.
Departures: x_t are noised pictures of the prompt by the unedited model. Words are those of one token. Words found on
the way are compared by the same loss on fixed noise (the paper: by the likeness of pictures).
"""

from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor

from unreel.attacks.attack import Target
from unreel.attacks.tokens import Noised, TokenAttack, straight_through
from unreel.validation import checked


@checked
class P4D(TokenAttack):
    """The attack; values and their sources are in conf/attack/p4d.yaml.

    Attributes:
        every: how many words of the prompt stand between two of the searched ones (P4D-K); None has the searched words
            alone in the prompt's place (P4D-N).
    """

    every: PositiveInt | None

    def start(self, table: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return table[torch.randint(len(table), (count, self.tokens), generator=generator).to(table.device)].clone()

    def ids(self, free: Tensor, table: Tensor) -> Tensor:
        return torch.cdist(free, table.expand(len(free), -1, -1)).argmin(-1)

    def rows(self, free: Tensor, table: Tensor) -> Tensor:
        return straight_through(free, table[self.ids(free.detach(), table)])

    def placed(self, text: str, words: Sequence[str]) -> str:
        if self.every is None:
            return " ".join(words)
        said, spoken, made = list(words), text.split(), list[str]()
        for start in range(0, len(spoken), self.every):
            made += [*said[:1], *spoken[start : start + self.every]]
            said = said[1:]
        return " ".join([*made, *said])

    def optimizer(self, free: Tensor) -> torch.optim.Optimizer:
        return torch.optim.AdamW([free], lr=self.lr, weight_decay=self.weight_decay)

    def goal(self, target: Target, seen: Noised, texts: Sequence[str]) -> Tensor:
        original = target.original
        return original.predict(seen.noisy, seen.timesteps, original.encode_prompt(texts))
