"""CCE: a learned word that enters before the text encoder brings the concept back; a second form enters behind it.

With x_t noised pictures of the concept by the unedited model and y_* their captions with the word * in its place,

    v* = argmin_v  E_{(x0, y), e, t} || f_U(x_t, tau_phi(y_*; v), t) - g ||^2        (Gal et al. 2022, eq. 2)

with the edited encoder tau_phi, the edited denoiser f_U and g the target of its prediction type; v is one row (or a
few) beside the encoder's table of tokens. Behind the encoder, v is added to what the encoder makes of the caption
without the concept, so that no edit of the encoder can stop it: it measures what the denoiser still knows.

Reference: Minh Pham et al., "Circumventing Concept Erasure Methods For Text-to-Image Generative Models", ICLR 2024,
arXiv 2308.01508; the learned word is that of Rinon Gal et al., "An Image is Worth One Word", ICLR 2023, arXiv
2208.01618.
Departures: no gradient accumulation; the rate falls to nothing, and timesteps are drawn from the noisier ones, where
what is shown is decided, so that fewer steps do (`noisiest`). The word begins as the mean of the concept's own tokens
in the edited table (the paper: as a word that a person chose). Pictures are captioned with all that they were asked to
show. The form behind the encoder is ours.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unreel.attacks.attack import Attack, Found, Target, steps_of
from unreel.attacks.words import check_clip_like, without
from unreel.methods.keywords import name_of, said_with
from unreel.methods.slots import added, learned, slots_of, table_of
from unreel.models.model import Conditioning, Model
from unreel.validation import Budget, checked


@checked
class CCE(Attack):
    """The attack; values and their sources are in conf/attack/cce.yaml.

    Attributes:
        steps: of AdamW.
        lr: its rate, which falls to nothing.
        weight_decay: its decay.
        batch: pictures a step.
        pictures: how many pictures of the concept the attacker has.
        tokens: how many rows are learned; 1 in the paper.
        noisiest: share of the timesteps that are drawn, from the noisiest on; 1 are all.
        whole: whether the pictures of a video model are all frames of its clips, and not the first alone.

    Raises:
        ValueError: for a value that will not do.
    """

    steps: Budget
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    batch: PositiveInt
    pictures: PositiveInt
    tokens: PositiveInt
    noisiest: Annotated[float, Field(gt=0, le=1)]
    whole: ClassVar[bool] = False
    learns_looks = True

    def check_model(self, model: Model) -> None:
        check_clip_like(model, self.name)

    def search(self, target: Target) -> Found:
        shown = target.captions.shot_prompts(self.pictures, target.seed + 1)
        latents = target.pictures(shown, whole=self.whole)
        slots = self._slots(target, shown)
        captions = [self._caption(text, target, slots) for text in shown]
        rows = self._start(target).requires_grad_(True)
        losses = minimised(
            [rows], self.steps, self.lr, self.weight_decay, self.name,
            lambda step: self._loss(target, latents, captions, slots, rows, step),
        )  # fmt: skip
        read = [self._caption(prompt.text, target, slots) for prompt in target.prompts]
        texts = [self._caption(prompt.text, target, ["<*>"] * len(slots)) for prompt in target.prompts]
        facts = {"slots": slots, "read": read, "first_loss": losses[0], "last_loss": losses[1]}
        return Found(texts, list(range(len(texts))), {"rows": rows.detach()}, facts)

    def _slots(self, target: Target, shown: Sequence[str]) -> list[str]:
        return slots_of(target.model, self.tokens, [*shown, *(prompt.text for prompt in target.prompts)])

    def _caption(self, text: str, target: Target, slots: Sequence[str]) -> str:
        return said_with(text, target.concept, " ".join(slots))

    def _start(self, target: Target) -> Tensor:
        """The mean of the concept's own tokens, (tokens, D)."""
        ids = target.model.tokenizer(name_of(target.concept), add_special_tokens=False).input_ids
        return table_of(target.model)[ids].float().mean(0).repeat(self.tokens, 1)

    def _loss(
        self,
        target: Target,
        latents: Tensor,
        captions: Sequence[str],
        slots: Sequence[str],
        rows: Tensor,
        step: int,
    ) -> Tensor:
        which = np.random.default_rng([target.seed, 11, step]).integers(len(latents), size=self.batch)
        generator = torch.Generator().manual_seed(1_000_003 * target.seed + step)
        noise = torch.randn((self.batch, *latents.shape[1:]), generator=generator).to(latents)
        count = target.model.num_train_timesteps
        first = round(count * (1 - self.noisiest))
        timesteps = torch.randint(min(first, count - 1), count, (self.batch,), generator=generator).to(latents.device)
        noisy, goal = target.model.noised(latents[which], noise, timesteps)
        conditioning = self._read(target.model, [captions[i] for i in which], slots, rows)
        return (target.model.predict(noisy, timesteps, conditioning) - goal).square().mean()

    def _read(self, model: Model, texts: Sequence[str], slots: Sequence[str], rows: Tensor) -> Conditioning:
        """What the denoiser reads of the texts, with the learned rows (tokens, D) in them."""
        with learned(model, slots, rows):
            return model.encode_prompt(texts)

    @contextmanager
    def at_work(self, model: Model, found: Found, look: int) -> Iterator[Conditioning]:
        with torch.no_grad():
            rows = found.tensors["rows"].to(model.device)
            yield self._read(model, found.facts["read"], found.facts["slots"], rows)


@checked
class CCEBehind(CCE):
    """The same behind the encoder; of any edit of the encoder it is expected to bring the concept back."""

    def __post_init__(self) -> None:
        if self.tokens != 1:
            raise ValueError(
                f"found attack.{self.name}.tokens={self.tokens}: expected 1, what is added to all of a prompt"
            )

    def _slots(self, target: Target, shown: Sequence[str]) -> list[str]:
        return []

    def _caption(self, text: str, target: Target, slots: Sequence[str]) -> str:
        return without(text, target.concept)

    def _start(self, target: Target) -> Tensor:
        """Nothing: the caption as it is."""
        width = target.model.encode_prompt([""])["prompt_embeds"].shape[-1]
        return torch.zeros((1, width), device=target.model.device)

    def _read(self, model: Model, texts: Sequence[str], slots: Sequence[str], rows: Tensor) -> Conditioning:
        return added(model.encode_prompt(texts), rows.expand(len(texts), -1))


def minimised(
    tensors: Sequence[Tensor], steps: int, lr: float, weight_decay: float, what: str, loss_of: Any
) -> tuple[float, float]:
    """Minimises a loss of tensors by AdamW, with a rate that falls to nothing.

    Args:
        tensors: that change.
        steps, lr, weight_decay: of AdamW.
        what: the bar's name.
        loss_of: a scalar of the step's number.

    Returns:
        The loss over the first tenth of the steps and over the last one.
    """
    optimizer = torch.optim.AdamW(list(tensors), lr=lr, weight_decay=weight_decay)
    falls = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    losses = []
    for step in steps_of(range(steps), what):
        loss = loss_of(step)
        gradients = torch.autograd.grad(loss, list(tensors))
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient
        optimizer.step()
        falls.step()
        losses.append(float(loss.detach()))
    few = max(1, steps // 10)
    return float(np.mean(losses[:few])), float(np.mean(losses[-few:]))
