"""TEA: the text encoder learns to make a concept's tokens indistinguishable from those of its anchor, for a critic.

    critic:   L(d)   = BCE(d(tau_phi(y)), 1) + BCE(d(tau_phi(y_a)), 0)
    encoder:  L(phi) = a BCE(d(tau_phi(y)), 0) + p ( 1 - cos(tau_phi(y_a), tau_0(y_a)) )

y names the concept, y_a is the same caption with the anchor in its place, d is a perceptron of two layers that looks at
one token at a time; all terms are means over tokens, without padding. The two take turns, a step of AdamW each. Neither
images nor a denoiser are needed: a step costs three passes through the encoder and two back.

Reference: Alireza Dehghanpour Farashah, Zhuan Shi, Negar Rostamzadeh and Golnoosh Farnadi, "TEA: Text Encoder Alignment
for Robust Concept Erasure in Text-to-Image Models", 2026, arXiv 2608.15341. Read: the authors' published code and its
README; the paper was not at hand.
Departures: pairs of captions come from templates and the vocabulary, with the concept's one anchor; the code has 20 to
50 captions by hand with five anchors each, which also say other things. d looks at what the denoiser reads, after the
final norm, and texts have their start and end; the code's looks at the state before that norm, of texts without
either. The code also keeps a running average of the weights, which its own commands don't load: at its decay of 0.999
it holds 1.6 % at most of what 16 steps change, and is left out. Several processes have a critic each, of their share of
the captions. No encoder here has dropout, so that training and evaluation mode are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional

from unreel.batches import Batches, Step
from unreel.methods.gradient import GradientMethod
from unreel.methods.method import Task
from unreel.models.model import Model
from unreel.validation import checked


def said_tokens(model: Model, texts: Sequence[str]) -> Tensor:
    """Which tokens of B texts are no padding, (B, L) booleans; a text's start and its end are none."""
    read = model.tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=model.reading.max_length, return_tensors="pt"
    )
    return read.attention_mask.bool().to(model.device)


def mean_over(each: Tensor, mask: Tensor) -> Tensor:
    """The mean of values of tokens (B, L) over those of the mask."""
    return (each * mask).sum() / mask.sum()


@dataclass
class Critic:
    """Tells tokens of the concept from those of the anchor: its network, and what optimises it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer

    def wrong(self, tokens: Tensor, mask: Tensor, label: float) -> Tensor:
        """Its mean cross-entropy where all tokens (B, L, D) of the mask are said to be of the label."""
        found = self.network(tokens)[..., 0]
        each = functional.binary_cross_entropy_with_logits(found, torch.full_like(found, label), reduction="none")
        return mean_over(each, mask)

    def learn(self, concept: Tensor, anchor: Tensor, masks: tuple[Tensor, Tensor]) -> Tensor:
        """One step of its own; what it sees gets no gradient. Its loss before the step."""
        loss = self.wrong(concept.detach(), masks[0], 1.0) + self.wrong(anchor.detach(), masks[1], 0.0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


@checked
class TEA(GradientMethod):
    """The method; hyperparameters and their sources are in conf/method/tea.yaml.

    Attributes:
        adversarial: a, weight of fooling the critic.
        preservation: p, weight of what anchors' captions are held by.
        critic_lr: rate of the critic.

    Raises:
        ValueError: for numbers that will not do.
    """

    adversarial: PositiveFloat
    preservation: NonNegativeFloat
    critic_lr: PositiveFloat
    edits = ("text_encoder",)
    algorithm: ClassVar[type[torch.optim.Optimizer]] = torch.optim.AdamW

    def check(self, model: Model, roles: Sequence[str]) -> None:
        super().check(model, roles)
        found, wanted = model.encode_prompt([""])["prompt_embeds"].shape[1], said_tokens(model, [""]).shape[1]
        if found != wanted:
            raise ValueError(
                f"{self.name} expects one text encoder, each of whose tokens the denoiser reads: {model.name} reads"
                f" {found} states of {wanted} tokens; use method=few_shot or method=anchored"
            )

    def prepare(self, reference: Model, task: Task, batches: Batches) -> Critic:
        with torch.no_grad():
            width = reference.encode_prompt([""])["prompt_embeds"].shape[2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            network = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 1))
        network.to(reference.device)
        return Critic(network, torch.optim.AdamW(network.parameters(), lr=self.critic_lr))

    def loss(self, step: Step) -> dict[str, Tensor]:
        """ "critic" is the critic's own loss, "fool" and "preserve" are the two terms of the encoder's."""
        critic, batch, count = step.prepared, step.batch, len(step.batch.forget)
        masks = said_tokens(step.model, batch.forget), said_tokens(step.model, batch.anchors)
        embeds = step.model.encode_prompt(batch.forget + batch.anchors)["prompt_embeds"].float()
        concept, anchor = embeds[:count], embeds[count:]
        learned = critic.learn(concept, anchor, masks)
        fool = critic.wrong(concept, masks[0], 0.0)
        apart = 1 - functional.cosine_similarity(anchor, step.anchors["prompt_embeds"].float(), dim=-1)
        preserve = mean_over(apart, masks[1])
        loss = self.adversarial * fool + self.preservation * preserve
        return {"loss": loss, "critic": learned, "fool": fool, "preserve": preserve}
