"""Adversary: learned words that bring an erased concept back, searched while it is erased, and turned to the anchor.

With y_*(v) the caption y with a learned embedding v in place of the concept's name, each training step takes

    inner:  v  <-  a few steps of Adam towards  argmin_v  D(tau_phi(y_*(v)), tau_0(y))
    outer:  L(phi) += weight * D(tau_phi(y_*(v)), a)

with tau_phi the trained text encoder, tau_0 the one that it began as, and a and D the target and the distance of guard
rails (`unreel.methods.guard`). So v is a word that the edited encoder reads as the concept, and it learns to read it as
it reads the concept's name: as the anchor, or beyond. The search needs no denoiser, and goes on from one training step
to the next; now and then one of the words begins anew, near the concept's name or anywhere, at the length of the
table's rows or longer, since words that attackers learn are up to ten times as long (`furthest`).

Reference: ours. Adversarial training of the text encoder against learned words is from Yimeng Zhang et al., "Defensive
Unlearning with Adversarial Training", NeurIPS 2024, arXiv 2405.15234 (`unreel.methods.adv_unlearn`), who search a word
*before* the name through the denoiser, and push what it leads to away from the concept.
Departures: none; there is no paper to depart from.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unreel.batches import Step
from unreel.methods.guard import distance
from unreel.methods.keywords import name_of, said_with
from unreel.methods.slots import learned, slots_of, table_of
from unreel.models.model import Model
from unreel.records import Concept
from unreel.validation import checked


@checked
class Adversary:
    """How much is searched; `null` in a method's YAML switches it off.

    Attributes:
        words: how many learned words there are of each concept.
        steps: of the search, before each step of the training.
        lr: its rate, in standard deviations of the encoder's table of tokens.
        furthest: the most that a word's length is, as it begins, in lengths of the table's rows.
        restart_every: training steps after which one word of each concept begins anew.
        captions: how many of a step's captions have a learned word in the name's place.
        weight: how strongly they are pulled to the guard rails' target.
    """

    words: PositiveInt
    steps: PositiveInt
    lr: PositiveFloat
    furthest: Annotated[float, Field(ge=1)]
    restart_every: PositiveInt
    captions: PositiveInt
    weight: NonNegativeFloat


class Search:
    """The learned words of a training, and what moves them.

    Args:
        adversary: how much is searched.
        reference: the model before the training.
        concepts: that are erased.
        texts: texts in which the word that stands for the learned ones is not said.
        seed: of where words begin.
    """

    def __init__(
        self, adversary: Adversary, reference: Model, concepts: Sequence[Concept], texts: Sequence[str], seed: int
    ) -> None:
        self.adversary, self.concepts = adversary, concepts
        self.slot = slots_of(reference, 1, [*texts, *(phrase for each in concepts for phrase in each.phrases)])
        table = table_of(reference).float()
        self.mean, self.spread, self.size = table.mean(0), table.std(0), table.std()
        tokenizer = reference.tokenizer
        names = [tokenizer(name_of(each), add_special_tokens=False).input_ids for each in concepts]
        self.names = [table[ids].mean(0) for ids in names]
        self.generator = torch.Generator().manual_seed(1_000_003 * seed + 15)
        places = [(c, k) for c in range(len(concepts)) for k in range(adversary.words)]
        self.free = torch.stack([self._fresh(c, near=not k % 2) for c, k in places]).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.free], lr=adversary.lr)
        self.taken = 0  # training steps

    @property
    def rows(self) -> Tensor:
        """The learned words' embeddings, (concepts * words, D), with gradient to what is searched."""
        return self.free * self.size

    def _fresh(self, concept: int, near: bool) -> Tensor:
        """Where a word begins, (D,), in units of `size`: near the concept's name, or anywhere."""
        length = self.adversary.furthest ** float(torch.rand(1, generator=self.generator, device="cpu"))
        noise = torch.randn(self.mean.shape, generator=self.generator, device="cpu").to(self.mean)
        begun = self.names[concept] + self.size * noise / 3 if near else self.mean + self.spread * noise
        return length * begun / self.size

    @torch.no_grad()
    def _restart(self) -> None:
        """One word of each concept begins anew, each in its turn."""
        turn, which = divmod(self.taken // self.adversary.restart_every - 1, self.adversary.words)
        for c in range(len(self.concepts)):
            place = c * self.adversary.words + which
            self.free[place] = self._fresh(c, near=not (turn + which + 1) % 2)
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[self.free][moment][place] = 0

    def _said(self, texts: Sequence[str]) -> tuple[list[str], list[int]]:
        """The texts with the slot in the names' place, and the row that each is read with."""
        said, places, count = [], [], len(self.concepts)
        turns = [self.taken * self.adversary.captions // count] * count  # on from the last step's
        for text in texts:
            c = next((i for i, each in enumerate(self.concepts) if _names(each, text)), 0)
            said.append(said_with(text, self.concepts[c], self.slot[0]))
            places.append(c * self.adversary.words + turns[c] % self.adversary.words)
            turns[c] += 1
        return said, places

    def loss(self, step: Step, eta: float) -> Tensor:
        """The outer distance of a training step, after the inner search; gradients go to the encoder alone.

        Args:
            step: whose captions are said with the words.
            eta: how far beyond the anchor their target is, as in `Step.target`.
        """
        few = slice(-min(self.adversary.captions, len(step.batch.forget)), None)
        texts = step.batch.forget[few]
        said, places = self._said(texts)
        if self.taken and not self.taken % self.adversary.restart_every:
            self._restart()
        self.taken += 1
        goal = step.named.rows(few)
        for _ in range(self.adversary.steps):
            with learned(step.model, self.slot, self.rows[places][:, None]):
                near = distance(step.model.encode_prompt(said), goal)
            (self.free.grad,) = torch.autograd.grad(near, self.free)
            self.optimizer.step()
        with learned(step.model, self.slot, self.rows.detach()[places][:, None]):
            return distance(step.model.encode_prompt(said), step.target(eta).rows(few))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        random = self.generator.get_state()
        return {
            "free": self.free.detach(), "optimizer": self.optimizer.state_dict(), "taken": self.taken, "random": random
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        with torch.no_grad():
            self.free.copy_(state["free"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.taken = state["taken"]
        self.generator.set_state(state["random"])


def _names(concept: Concept, text: str) -> bool:
    """Whether a text says the concept."""
    names = [*concept.phrases, name_of(concept)]
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) for name in names)
