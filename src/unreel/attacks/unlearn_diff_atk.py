"""UnlearnDiffAtk: words before the prompt under which the edited model is its own classifier for the concept.

    d* = argmin_{d on the simplex}  E_{e, t} || f_U(x*_t, tau_phi([d; y]), t) - g ||^2                 (eq. 6)

with x* a picture of the prompt y by the unedited model and d rows over the vocabulary: in the forward pass the largest
entry of each alone, one word; after each step the rows are projected on the simplex.

Reference: Yimeng Zhang et al., "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate
Unsafe Images ... For Now", ECCV 2024, arXiv 2310.11868.
Departures: x* is the picture of the same prompt and seed (the paper: of its data set). Words are those of one token.
Words found on the way are compared on fixed noise, and the best kept: the paper stops when its detector sees the
concept, which would show the judge to the attack.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from unreel.attacks.tokens import TokenAttack, simplex, straight_through
from unreel.validation import checked


@checked
class UnlearnDiffAtk(TokenAttack):
    """The attack; values and their sources are in conf/attack/unlearn_diff_atk.yaml."""

    def start(self, table: Tensor, count: int, generator: torch.Generator) -> Tensor:
        drawn = torch.rand((count, self.tokens, len(table)), generator=generator)
        return simplex(drawn).to(table)

    def ids(self, free: Tensor, table: Tensor) -> Tensor:
        return free.argmax(-1)

    def rows(self, free: Tensor, table: Tensor) -> Tensor:
        hard = functional.one_hot(self.ids(free, table), len(table)).to(free)
        return straight_through(free, hard) @ table

    def placed(self, text: str, words: Sequence[str]) -> str:
        return f"{' '.join(words)} {text}"

    def optimizer(self, free: Tensor) -> torch.optim.Optimizer:
        return torch.optim.Adam([free], lr=self.lr, weight_decay=self.weight_decay)

    def after_step(self, free: Tensor) -> None:
        free.copy_(simplex(free))
