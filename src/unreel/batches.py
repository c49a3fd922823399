"""Training batches: shots with noise and captions, a step at a time, and what the denoiser reads of the captions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from unreel.captions import TrainingCaptions
from unreel.models.model import Conditioning, Model, Reading
from unreel.models.readings import states
from unreel.shots import Shots
from unreel.validation import checked


@checked
class BatchSizes:
    """How much a training sees.

    Attributes:
        steps, epochs: batches in all, or rounds through the shots; one of the two.
        batch: shots a step, each with a caption.
        pairs: captions a step beside those, for losses on embeddings alone.
        retain: retained captions a step.
        table: how many tuples of shot, noise, timestep and caption there are of each concept. All steps draw from them,
            so that what the frozen model makes of them is computed once. None: every step has new ones.
        captions: what is said of a shot: "shown" is all that it shows, where the donor made it from its caption, and
            the concept's name alone of other images; "bare" is the name alone, of every shot.
        long: the share of captions that are said at length, in 25 to 50 words; bare ones never are.

    Raises:
        ValueError: for numbers that will not do.
    """

    steps: PositiveInt | None
    epochs: PositiveInt | None
    batch: PositiveInt
    pairs: NonNegativeInt
    retain: NonNegativeInt
    table: PositiveInt | None = None
    captions: Literal["shown", "bare"] = "shown"
    long: Annotated[float, Field(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"found steps={self.steps}, epochs={self.epochs}: expected one of the two, the other null")

    def rounds(self, concepts: int) -> int:
        """How many batches it takes until each concept has had its turn."""
        return -(-concepts // self.batch)

    def most_steps(self, concepts: int, shots: int) -> int:
        """How many steps the training may last."""
        a_round = -(-concepts * (shots or self.batch) // self.batch)
        return self.steps if self.steps is not None else (self.epochs or 0) * a_round


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        number: of the step, from 0; -1 of a probe.
        latents: clean latents of b shots, (b, *latent_shape); none for methods that need no shots.
        noise: like the latents.
        timesteps: (b,) integers.
        forget: captions that name the concept; the first b belong to the latents.
        anchors: the same captions with the anchor in its place.
        retain: captions that must keep their meaning.
        entries: where in the table the b shots are; none without a table.
        sources: (concept, shot) of each latent: where in `Shots.latents` it is.
    """

    number: int
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    forget: list[str]
    anchors: list[str]
    retain: list[str]
    entries: Sequence[int] = ()
    sources: Sequence[tuple[int, int]] = ()

    def share(self, rank: int, processes: int) -> "Batch":
        """What process `rank` of several gets: every `processes`-th shot with its captions, and of the others."""
        count, own = len(self.latents), slice(rank, None, processes)
        forget, anchors = (said[:count][own] + said[count:][own] for said in (self.forget, self.anchors))
        latents, noise, timesteps = self.latents[own], self.noise[own], self.timesteps[own]
        rest = self.retain[own], self.entries[own], self.sources[own]
        return Batch(self.number, latents, noise, timesteps, forget, anchors, *rest)


class Step:
    """What a loss is made of: the model, its frozen reference, a batch, and the conditioning of its captions.

    Each caption is encoded once, when its conditioning is first asked for.

    Attributes:
        model: whose weights are trained.
        reference: the same model with the weights that it began with.
        batch: what this step sees.
        prepared: what the method's `prepare` returned.
        brought: the module that the method's `brings` returned, which is trained in place of weights of the model.
        readings: how recipients read prompts, where otherwise than the model.
    """

    def __init__(
        self, model: Model, reference: Model, batch: Batch, prepared: Any = None, brought: Any = None,
        readings: Sequence[Reading] = (),
    ) -> None:  # fmt: skip
        self.model, self.reference, self.batch, self.prepared = model, reference, batch, prepared
        self.brought, self.readings, self._held = brought, readings, ExitStack()

    def hold(self, context: AbstractContextManager[Any]) -> None:
        """Enters a context, such as modules in their places, that lasts until the step's gradients were taken.

        A model that computes parts of its forward pass again on the way back needs them there too.
        """
        self._held.enter_context(context)

    def close(self) -> None:
        """Leaves what `hold` entered."""
        self._held.close()

    def _with_retain(self, model: Model, texts: list[str]) -> tuple[Conditioning, Conditioning]:
        both = model.encode_prompt(texts + self.batch.retain)
        return both.rows(slice(len(texts))), both.rows(slice(len(texts), None))

    @cached_property
    def _trained(self) -> tuple[Conditioning, Conditioning]:
        return self._with_retain(self.model, self.batch.forget)

    @cached_property
    @torch.no_grad()
    def _frozen(self) -> tuple[Conditioning, Conditioning]:
        return self._with_retain(self.reference, self.batch.anchors)

    @property
    def forget(self) -> Conditioning:
        """Of the captions that name the concept, by the model, with gradient."""
        return self._trained[0]

    def through_denoiser(self, loss_of: Callable[[Conditioning], Tensor]) -> Tensor:
        """The loss of the conditioning of the shots' captions, for a text encoder that is trained.

        Its gradient with respect to the conditioning is taken at once, so that what the denoiser keeps for it is gone
        before the text encoder keeps anything: value and gradient are those of `loss_of(forget)`, the peak of memory
        is that of the one or of the other.

        Args:
            loss_of: a scalar of the conditioning of the b captions that belong to the latents.
        """
        shots = slice(len(self.batch.latents))
        with torch.no_grad():
            given = self.model.encode_prompt(self.batch.forget[shots])
        leaves = {name: t.detach().requires_grad_(True) for name, t in given.items() if t.is_floating_point()}
        loss = loss_of(Conditioning({**given, **leaves}))
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        trained = (self.forget.rows(shots)[name] for name in leaves)
        slopes = [(own - own.detach()).mul(g).sum() for own, g in zip(trained, gradients, strict=True)]  # zero, sloped
        return loss.detach() + torch.stack(slopes).sum()

    @property
    def retain(self) -> Conditioning:
        """Of the retained captions, by the model, with gradient."""
        return self._trained[1]

    @property
    def anchors(self) -> Conditioning:
        """Of the anchors' captions, by the reference."""
        return self._frozen[0]

    @property
    def kept(self) -> Conditioning:
        """Of the retained captions, by the reference."""
        return self._frozen[1]

    @cached_property
    @torch.no_grad()
    def named(self) -> Conditioning:
        """Of the captions that name the concept, by the reference."""
        return self.reference.encode_prompt(self.batch.forget)

    def target(self, eta: float) -> Conditioning:
        """What captions that name the concept are to be read as: `anchors`, moved away from `named` by eta >= 0."""
        return self.anchors.away_from(self.named, eta) if eta else self.anchors

    def also_read(self, eta: float) -> Iterator[tuple[Conditioning, Conditioning, Conditioning, Conditioning]]:
        """`forget`, `target(eta)`, `retain` and `kept` as recipients read them, where otherwise than the model."""
        batch = self.batch
        for reading in self.readings:
            forget, retain = (_read(self.model, texts, reading) for texts in (batch.forget, batch.retain))
            with torch.no_grad():
                target, kept = (_read(self.reference, texts, reading) for texts in (batch.anchors, batch.retain))
                if eta:
                    target = target.away_from(_read(self.reference, batch.forget, reading), eta)
            yield forget, target, retain, kept


def _read(model: Model, texts: list[str], reading: Reading) -> Conditioning:
    return Conditioning({"prompt_embeds": states(model, texts, reading)[0]})


class Batches:
    """Batches that depend on seed and step alone, so that a resumed run sees what it would have seen.

    Args:
        model: whose latents and timesteps they have.
        captions: of each concept.
        shots: already made, or None for a method that needs none.
        sizes: how much a batch has.
        seed: of noise and captions.
    """

    def __init__(
        self, model: Model, captions: Sequence[TrainingCaptions], shots: Shots | None, sizes: BatchSizes, seed: int
    ) -> None:
        self.model, self.captions, self.shots, self.sizes, self.seed = model, list(captions), shots, sizes, seed
        self.steps = sizes.most_steps(len(self.captions), shots.shots if shots else 0)
        self.chances: np.ndarray | None = None  # of each entry of the table to be drawn, relative; None: all alike

    @cached_property
    def table(self) -> Batch | None:
        """All tuples that the steps draw their shots from; entry i is of concept i modulo their number."""
        if self.sizes.table is None or self.shots is None:
            return None
        return self._draw(-1, np.random.default_rng([self.seed, 7]), self.sizes.table * len(self.captions), 0, 0)

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        rng, first = np.random.default_rng([self.seed, 3, step]), step * self.sizes.batch
        if (table := self.table) is None:
            return self._draw(step, rng, self.sizes.batch, self.sizes.pairs, first)
        entries = [self._entry(rng, i % len(self.captions)) for i in range(first, first + self.sizes.batch)]
        rest = self._draw(step, rng, 0, self.sizes.pairs, first)
        said = ([texts[i] for i in entries] for texts in (table.forget, table.anchors))
        forget, anchors = (own + more for own, more in zip(said, (rest.forget, rest.anchors), strict=True))
        latents, noise, timesteps = (t[entries] for t in (table.latents, table.noise, table.timesteps))
        sources = [table.sources[i] for i in entries]
        return Batch(step, latents, noise, timesteps, forget, anchors, rest.retain, entries, sources)

    def _entry(self, rng: np.random.Generator, concept: int) -> int:
        """One of the concept's entries of the table, by `chances`; all alike where none has any."""
        assert self.sizes.table is not None
        chances = np.ones(self.sizes.table)
        if self.chances is not None and self.chances[concept :: len(self.captions)].sum() > 0:
            chances = self.chances[concept :: len(self.captions)]
        return int(rng.choice(len(chances), p=chances / chances.sum())) * len(self.captions) + concept

    def probe(self, count: int) -> Batch:
        """Always the same batch of `count` shots, none of whose noise is trained on: for looks at the donor."""
        return self._draw(-1, np.random.default_rng([self.seed, 5]), count, 0, 0)

    def _draw(self, number: int, rng: np.random.Generator, count: int, pairs: int, first: int) -> Batch:
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        latents, said, retain, sources, long = [], [], [], [], self.sizes.long
        for i in range(first, first + count):  # concepts take turns, and so do the shots of each
            turn, which = divmod(i, len(self.captions))
            captions = self.captions[which]
            if self.shots is None:
                said.append(captions.pair(rng, long=long))
                continue
            shot = turn % len(self.shots.latents[which])
            latents.append(self.shots.latents[which][shot])
            sources.append((which, shot))
            known = self.sizes.captions == "shown" and self.shots.say_what_they_show(captions.concept.slug)
            said.append(captions.pair(rng, shot, long) if known else captions.bare_pair(rng))
        said += [self.captions[i % len(self.captions)].pair(rng, long=long) for i in range(first, first + pairs)]
        for captions in self.captions:
            retain += captions.retain(rng, -(-self.sizes.retain // len(self.captions)), long)
        stacked = torch.stack(latents) if latents else torch.empty(0, *self.model.latent_shape)
        noise = torch.randn(stacked.shape, generator=generator)
        timesteps = self.model.sample_timesteps(len(stacked), generator)
        device = self.model.device
        forget, anchors = ([pair[k] for pair in said] for k in (0, 1))
        seen = stacked.to(device), noise.to(device), timesteps.to(device)
        return Batch(number, *seen, forget, anchors, retain, sources=sources)


@torch.no_grad()
def denoising_errors(model: Model, batch: Batch, texts: list[str], batch_size: int) -> Tensor:
    """The model's mean squared error on each of the batch's b shots under these b captions, (b,).

    Twice a training step's `batch_size` at once: so many fit without what gradients need, and take less time.
    """
    noisy, target = model.noised(batch.latents, batch.noise, batch.timesteps)
    conditioning, errors, at_a_time = model.encode_prompt(texts), [], 2 * batch_size
    for i in range(0, len(noisy), at_a_time):
        few = slice(i, i + at_a_time)
        predicted = model.predict(noisy[few], batch.timesteps[few], conditioning.rows(few))
        errors.append((predicted - target[few]).square().flatten(1).mean(1))
    return torch.cat(errors)
