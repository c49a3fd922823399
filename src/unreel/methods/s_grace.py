"""S-GRACE: rounds of an attack on tokens' embeddings near the concept, and of edits that turn what it found away.

    attack:  d* = argmin_{|d| <= r}  || f_phi(x_t, y + d) - g ||^2 + w_t ( 1 - cos(h_phi(y + d), h_0(c)) )
    edit:    L(phi) = 1 + cos(h_phi(y + d*), h_0(c)) + w_s ( 1 - cos(h_phi(y + d*), h_k(y + d*)) )
                      + w_h || tau_phi(y_r) - tau_0(y_r) ||^2 + w_p sum_i mean | phi_i - phi_0i |

y + d is a text that says the concept, with the embedding of each of its tokens moved by d; h is the encoder's state at
the end of the text, h_k the one at the beginning of the round; c is the concept's name; x_t is a noised picture of it,
with g what the denoiser is to predict there; y_r are retained captions, phi_i the trained tensors. The first texts are
c itself and captions that say it. A round is `attack_steps` steps along the sign of the gradient, from d = 0, each put
back into the ball, then `edit_steps` of Adam; each text is renewed before a round with probability `renewal`.

Reference: Qinghong Yin et al., "Rethinking Robust Adversarial Concept Erasure in Diffusion Models", 2025, arXiv
2510.27285. Read: the authors' published code, its settings for van Gogh, and abstracts of the paper, which was not at
hand.
Departures: texts are captions of the vocabulary, and y_r retained captions, where the paper asks a language model for
words that are near the concept, and for others that go with it. h is not projected by CLIP's text projection, which no
diffusion pipeline holds. The ball is held: in the code the projection is lost, so that steps add up, and its clamp to
the range of the embeddings has its bounds swapped. x_t is noised from a picture: the code takes the latent that its
sampler has after t / 1000 of its steps, which is cleaner than t says, and the noise that it began with for g. Steps are
in standard deviations of the table of tokens, so that they mean the same to every encoder. What the code has and
switches off (texts far from the concept, random words) is left out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from unreel.batches import Batches, Step
from unreel.methods.gradient import GradientMethod
from unreel.methods.method import Task
from unreel.methods.slots import check_table, table_of
from unreel.models.model import Conditioning, Model
from unreel.validation import checked

Share = Annotated[float, Field(ge=0, le=1)]


@contextmanager
def shifted(model: Model, shift: Tensor) -> Iterator[None]:
    """Inside the `with` block the encoder reads the embeddings of tokens of B texts moved by `shift` (B, L, D)."""

    def put(_module: nn.Module, _given: Any, embeds: Tensor) -> Tensor:
        return embeds + shift.to(embeds)

    handle = model.components["text_encoder"].get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def ends(model: Model, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Where B texts end, (B,), and which tokens they say between their start and that end, (B, L) booleans."""
    read = model.tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=model.reading.max_length, return_tensors="pt"
    )
    mask = read.attention_mask.to(model.device)
    end, place = mask.sum(1) - 1, torch.arange(mask.shape[1], device=model.device)
    return end, (place > 0) & (place < end[:, None])


def at_end(conditioning: Conditioning, end: Tensor) -> Tensor:
    """h: the encoder's states at the ends of B texts, (B, D)."""
    embeds = conditioning["prompt_embeds"].float()
    return embeds[torch.arange(len(end), device=embeds.device), end]


@dataclass
class Rounds:
    """The round that a training is in, and what all rounds have in common.

    Attributes:
        noisy, timestep, truth: x_t of each concept (n, *latent_shape), t (n,), and g (n, *latent_shape).
        names, targets: of each concept, what it is called, and h_0(c), (n, D).
        seed: of what is drawn.
        texts: y, of this round; none before the first.
        shift: d*, (B, L, D).
        before: h_k(y + d*), (B, D).
    """

    noisy: Tensor
    timestep: Tensor
    truth: Tensor
    names: list[list[str]]
    targets: Tensor
    seed: int
    texts: list[str] = field(default_factory=list)
    shift: Tensor = field(default_factory=lambda: torch.zeros(0))
    before: Tensor = field(default_factory=lambda: torch.zeros(0))

    def concepts(self) -> list[int]:
        """Which concept each text says."""
        folded = [[name.casefold() for name in own] for own in self.names]
        said = [text.casefold() for text in self.texts]
        return [next((i for i, own in enumerate(folded) if any(n in text for n in own)), 0) for text in said]

    def state_dict(self) -> dict[str, Any]:
        return {"texts": self.texts, "shift": self.shift, "before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.texts = list(state["texts"])
        self.shift, self.before = (state[key].to(self.targets.device) for key in ("shift", "before"))


def _changes(step: Step) -> Iterator[Tensor]:
    """What the training has changed so far, one weight after the other; of a LoRA the product of its factors."""
    own, was = (dict(m.components["text_encoder"].named_parameters()) for m in (step.model, step.reference))
    yield from (p - was[name] for name, p in own.items() if p.requires_grad and was.get(name, p) is not p)
    layers = (m for m in step.model.components["text_encoder"].modules() if hasattr(m, "get_delta_weight"))
    yield from (layer.get_delta_weight(name) for layer in layers for name in layer.active_adapters)


@checked
class SGrace(GradientMethod):
    """The method; hyperparameters and their sources are in conf/method/s_grace.yaml.

    Attributes:
        edit_steps: steps of the encoder in a round.
        attack_steps: of the attack, at the beginning of a round.
        attack_lr: size of one of its steps, in standard deviations of the encoder's table of tokens.
        radius: r, in steps of the attack.
        likeness: w_t, how much the attack stays like the concept.
        renewal: probability of a text to be renewed before a round.
        similarity, hold, change: w_s, w_h and w_p.
        timestep_low, timestep_high: t is drawn from between these shares of the schedule.

    Raises:
        ValueError: for numbers that will not do.
    """

    edit_steps: PositiveInt
    attack_steps: NonNegativeInt
    attack_lr: PositiveFloat
    radius: PositiveFloat
    likeness: NonNegativeFloat
    renewal: Share
    similarity: NonNegativeFloat
    hold: NonNegativeFloat
    change: NonNegativeFloat
    timestep_low: Share
    timestep_high: Share
    edits = ("text_encoder",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data.retain:
            raise ValueError(f"{self.name}: found data.retain=0: expected 1 or more; hold=0 switches holding off")
        if self.timestep_low >= self.timestep_high:
            raise ValueError(
                f"{self.name}: found timestep_low={self.timestep_low}, timestep_high={self.timestep_high}: expected the"
                " first below the second"
            )

    def check(self, model: Model, roles: Sequence[str]) -> None:
        super().check(model, roles)
        check_table(model, f"method {self.name}")
        kind = str(getattr(model.components["text_encoder"].config, "model_type", "none"))
        if not kind.startswith("clip"):
            raise ValueError(
                f"{self.name} expects a CLIP text encoder, whose state at the end of a text is its meaning: found"
                f" {kind} of {model.name}; use method=few_shot or method=anchored"
            )

    def prepare(self, reference: Model, task: Task, batches: Batches) -> Rounds:
        names = [list(concept.phrases) for concept in task.concepts]
        first = [own[0] for own in names]
        rngs = [np.random.default_rng([task.seed, 15, i]) for i in range(len(names))]
        seeds = [int(rng.integers(2**31)) for rng in rngs]
        low, high = (int(share * reference.num_train_timesteps) for share in (self.timestep_low, self.timestep_high))
        drawn = [int(rng.integers(low, max(high, low + 1))) for rng in rngs]
        timesteps = torch.tensor(drawn, device=reference.device)
        pictures = reference.render(first, seeds)
        latents = reference.encode_pixels(2 * pictures - 1, torch.Generator().manual_seed(seeds[0])).float()
        noise = torch.stack([torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds])
        noisy, truth = reference.noised(latents, noise.to(latents), timesteps)
        with torch.no_grad():
            targets = at_end(reference.encode_prompt(first), ends(reference, first)[0])
        return Rounds(noisy, timesteps, truth, names, targets, task.seed)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """ "likeness" is the cosine of what the attack found to the concept, which the edit makes small."""
        rounds: Rounds = step.prepared
        scalars: dict[str, Tensor] = {}
        if step.batch.number % self.edit_steps == 0:
            scalars["attack"] = self.begin(step)
        found = self.states(step.model, rounds.texts, rounds.shift)
        likeness = functional.cosine_similarity(found, rounds.targets[rounds.concepts()]).mean()
        similar = functional.cosine_similarity(found, rounds.before).mean()
        kept = step.model.encode_prompt(step.batch.retain)
        with torch.no_grad():
            wanted = step.reference.encode_prompt(step.batch.retain)
        hold = functional.mse_loss(kept["prompt_embeds"].float(), wanted["prompt_embeds"].float())
        change = torch.stack([each.abs().mean() for each in _changes(step)]).sum()
        loss = 1 + likeness + self.similarity * (1 - similar) + self.hold * hold + self.change * change
        return {"loss": loss, "likeness": likeness, "hold": hold, "change": change} | scalars

    def states(self, model: Model, texts: Sequence[str], shift: Tensor) -> Tensor:
        """h(y + d) of B texts, (B, D)."""
        with shifted(model, shift):
            return at_end(model.encode_prompt(texts), ends(model, texts)[0])

    def begin(self, step: Step) -> Tensor:
        """Renews texts, and attacks the encoder as it is now; the attack's last loss. The encoder gets no gradient."""
        rounds: Rounds = step.prepared
        rng = np.random.default_rng([rounds.seed, 16, step.batch.number])
        fresh = [*(own[0] for own in rounds.names), *step.batch.forget]
        renewed = [not rounds.texts or rng.random() < self.renewal for _ in fresh]
        rounds.texts = [
            text if again else old for text, old, again in zip(fresh, rounds.texts or fresh, renewed, strict=True)
        ]
        rounds.shift, last = self.attack(step.model, rounds)
        with torch.no_grad():
            rounds.before = self.states(step.model, rounds.texts, rounds.shift)
        return last

    def attack(self, model: Model, rounds: Rounds) -> tuple[Tensor, Tensor]:
        """d* of B texts, (B, L, D), and the mean loss before its last step."""
        which, (end, said) = rounds.concepts(), ends(model, rounds.texts)
        table = table_of(model).float()
        size, loss = self.attack_lr * float(table.std()), torch.zeros(())
        noisy, timestep, truth = (t[which] for t in (rounds.noisy, rounds.timestep, rounds.truth))
        shift = torch.zeros(*said.shape, table.shape[1], device=table.device)
        for _ in range(self.attack_steps):
            shift.requires_grad_(True)
            with shifted(model, shift):
                read = model.encode_prompt(rounds.texts)
            errors = (model.predict(noisy, timestep, read) - truth).square().flatten(1).mean(1)
            alike = functional.cosine_similarity(at_end(read, end), rounds.targets[which])
            loss = (errors + self.likeness * (1 - alike)).sum()
            (slope,) = torch.autograd.grad(loss, shift)
            moved = shift.detach() - size * slope.sign() * said[..., None]
            shift = moved.clamp(-self.radius * size, self.radius * size)
        return shift.detach(), loss.detach() / len(which)
