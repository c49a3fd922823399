"""Guard rails of a training: a trust region, evidence of what is left of the concept, the best state, an early stop.

They are ours, and any gradient method may have them. Guarded, a step minimises

    method loss + anchor_weight * D(tau(y), a) + retain_weight * D(tau(y_r), tau_0(y_r))
    a = tau_0(y_a) - eta (tau_0(y) - tau_0(y_a))

where D is the squared distance of token embeddings over the variance of its second argument, all positions, padding too
(there CLIP carries the sentence); y names the concept, y_a has the anchor in its place, y_r are retained captions. A
wide anchor, such as "something", now and then shows the concept itself; eta > 0 goes beyond it, away from the concept,
as ESD's negative guidance does with what a denoiser predicts (Gandikota et al., ICCV 2023, arXiv 2303.07345).
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from scipy.stats import binomtest
from torch import Tensor

from unreel.batches import Batch, Batches, denoising_errors
from unreel.models.model import Conditioning, Model
from unreel.validation import checked

State = dict[str, Tensor]
_MOST_HALVINGS = 24  # of a change, after which float32 holds no more of it


@checked
class Guard:
    """Guard rails; `None` in a method's YAML switches all of them off.

    Attributes:
        anchor_weight: how strongly captions with the concept are pulled to the target a.
        anchor_eta: eta, >= 0: how far beyond the anchor a is, in multiples of the way from the concept to the anchor; 0
            is the anchor itself.
        retain_weight: how strongly retained captions are held.
        max_drift: trust region: D of retained captions that no look may find left; then the change is halved.
        check_every: steps between looks at the donor.
        gone_below: share of the concept's evidence that counts as gone, at most 1; below 0 nothing ever does.
        patience: looks at which it is gone, one after the other, before the training stops early; times
            the number of concepts, as each has only its share of a step's captions.
        probes: shots of each concept per look.
    """

    anchor_weight: NonNegativeFloat
    retain_weight: NonNegativeFloat
    max_drift: PositiveFloat
    check_every: PositiveInt
    gone_below: Annotated[float, Field(le=1)]
    patience: PositiveInt
    probes: PositiveInt
    anchor_eta: NonNegativeFloat = 0.0


def distance(found: Conditioning, reference: Conditioning) -> Tensor:
    """D: squared distance of embeddings (B, L, D) over the reference's mean square around its mean, a scalar >= 0.

    Of a model with several encoders the mean over their embeddings; masks are none, and neither are those of an encoder
    that reads nothing of these texts, which are all the same.
    """
    embeds = [name for name, tensor in reference.items() if tensor.is_floating_point()]
    squares = torch.stack([(found[k] - reference[k]).float().square().mean() for k in embeds])
    spreads = torch.stack([reference[k].float().var() for k in embeds])
    tell = spreads > 0
    return (squares / torch.where(tell, spreads, 1.0) * tell).sum() / tell.sum()


class GuardRails:
    """Looks at a training every few steps.

    Args:
        guard: their numbers.
        model: whose weights are trained.
        reference: the same model as it began.
        batches: where probes come from.
    """

    def __init__(self, guard: Guard, model: Model, reference: Model, batches: Batches) -> None:
        self.guard, self.model, self.reference, self.batches = guard, model, reference, batches
        self.patience = guard.patience * len(batches.captions)
        self.best: State = {}
        self.best_score, self.best_step, self.gone = [math.inf], 0, 0

    @cached_property
    def probe(self) -> Batch:
        """What every look looks at."""
        return self.batches.probe(self.guard.probes * len(self.batches.captions))

    def _errors(self, texts: list[str], model: Model) -> Tensor:
        """The denoising errors on the probe under these captions, (probes, concepts)."""
        errors = denoising_errors(model, self.probe, texts, self.batches.sizes.batch)
        return errors.view(-1, len(self.batches.captions))  # concepts take turns

    @cached_property
    def _errors_before(self) -> tuple[Tensor, Tensor]:
        """Under the anchors' captions and under the concepts', with the weights as they were."""
        return self._errors(self.probe.anchors, self.reference), self._errors(self.probe.forget, self.reference)

    def evidence(self) -> list[float | None]:
        """How much each concept's captions still help the donor with its shots: 1 as before, 0 no more than the anchor.

        (E_anchor - E) / (E_anchor - E_before), E the donor's mean error on the concept's shots; at most 2 in size. None
        where they never helped more than half of the shots (sign test at 5 %), so that it cannot be told: no shots,
        noise for shots, or photos that the donor does not know by that name.
        """
        shots = self.batches.shots
        if shots is None or not shots.shots:
            return [None] * len(self.batches.captions)
        anchor, before = self._errors_before
        left = (anchor - self._errors(self.probe.forget, self.model)).mean(0) / (anchor - before).mean(0)
        helped = (before < anchor).sum(0).tolist()
        known = [binomtest(k, len(anchor), alternative="greater").pvalue < 0.05 for k in helped]
        return [value if sure else None for value, sure in zip(left.clamp(-2, 2).tolist(), known, strict=True)]

    @cached_property
    @torch.no_grad()
    def _target(self) -> Conditioning:
        """What the probe's captions are to be read as."""
        anchors, named = (self.reference.encode_prompt(texts) for texts in (self.probe.anchors, self.probe.forget))
        return anchors.away_from(named, self.guard.anchor_eta)

    @torch.no_grad()
    def off_target(self) -> float:
        """D of the probe's captions that name a concept, from what they are to be read as."""
        return float(distance(self.model.encode_prompt(self.probe.forget), self._target))

    @cached_property
    @torch.no_grad()
    def _kept(self) -> Conditioning:
        """What the probe's retained captions were read as."""
        return self.reference.encode_prompt(self.probe.retain)

    @torch.no_grad()
    def drift(self) -> float:
        """D of the probe's retained captions between the weights as they are and as they were."""
        return float(distance(self.model.encode_prompt(self.probe.retain), self._kept))

    def look(
        self, step: int, state: Callable[[], State], restore: Callable[[State], None], before: State, agreed: Callable
    ) -> tuple[dict[str, float], str]:
        """One look: the trust region, then how much is left, and whether this is the best state.

        Args:
            step: after which step.
            state, restore: read and write the trained weights.
            before: the weights that the training began with.
            agreed: gives all processes what the first one found, so that they decide alike.

        Returns:
            What there is to log, and why the training should stop; "" to go on.
        """
        guard = self.guard
        drift = agreed(self.drift())
        halvings = 0
        while drift > guard.max_drift:  # trust region: back along the way it came, in the end all of it
            halvings += 1
            back = before if halvings > _MOST_HALVINGS else {n: (p + before[n]) / 2 for n, p in state().items()}
            restore(back)
            drift = agreed(self.drift())
        evidence = agreed(self.evidence())
        known = [value for value in evidence if value is not None]
        scalars = {"drift": drift} | ({"evidence": max(known)} if known else {})  # of the concept that is left most
        # the least evidence first, then, of states where it is gone, the nearest to what the rails ask for: an early
        # one may have lost the concept, and not have the target in its place yet; the last state if none is known
        off = drift + (guard.anchor_weight * agreed(self.off_target()) if guard.anchor_weight else 0.0)
        score = [max(scalars["evidence"] - guard.gone_below, 0.0), off] if known else [0.0, -step]
        if score < self.best_score:
            self.best_score, self.best_step, self.best = score, step, state()
        self.gone = self.gone + 1 if score[0] == 0 and len(known) == len(evidence) else 0
        done = self.gone >= self.patience
        return scalars, f"what was to be forgotten was gone on the donor at step {step}" if done else ""

    def to_checkpoint(self) -> dict[str, Any]:
        """What a resumed training needs to know."""
        return {"state": self.best, "score": self.best_score, "step": self.best_step, "gone": self.gone}

    def from_checkpoint(self, saved: dict[str, Any]) -> None:
        """The reverse of `to_checkpoint`."""
        self.best, self.best_score, self.best_step = saved["state"], saved["score"], saved["step"]
        self.gone = saved["gone"]
