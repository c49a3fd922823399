"""Anchored: the text encoder learns to read a concept's captions as it read those with an anchor in its place.

    L(phi) = a D(tau_phi(y), tau_0(y_a) - eta (tau_0(y) - tau_0(y_a))) + r D(tau_phi(y_r), tau_0(y_r))

y names the concept, y_a is the same caption with the anchor in its place, y_r are retained captions; eta > 0 goes
beyond the anchor, as the guard rails can (`unreel.methods.guard`). D is the squared distance of token embeddings, all
positions, over the variance of its second argument (`unreel.methods.guard.distance`). No image and no denoiser is
needed: a step costs two passes through the encoder, three with eta > 0, and one back.

Reference: ours. These are the anchor and retain terms of unreel's guard rails, alone. Mapping a concept to an anchor is
from Nupur Kumari et al., "Ablating Concepts in Text-to-Image Diffusion Models", ICCV 2023, arXiv 2303.13516, who match
the denoiser's predictions; here it is the embeddings that are matched, before any denoiser.
Departures: none; there is no paper to depart from.
"""

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from unreel.batches import Step
from unreel.methods.gradient import GradientMethod
from unreel.methods.guard import distance
from unreel.validation import checked


@checked
class Anchored(GradientMethod):
    """The method; hyperparameters and their sources are in conf/method/anchored.yaml.

    The weights are the method's own, as they are its loss. A guard may be added for its trust region alone.

    Attributes:
        anchor_weight: a, > 0: how strongly captions with the concept are pulled to the same captions without it.
        retain_weight: r, >= 0: how strongly retained captions are held.
        anchor_eta: eta, >= 0: how far beyond the anchor the target is, as in `unreel.methods.guard`.

    Raises:
        ValueError: for numbers that will not do, and for a guard that counts the two terms again.
    """

    anchor_weight: PositiveFloat
    retain_weight: NonNegativeFloat
    anchor_eta: NonNegativeFloat = 0.0
    edits = ("text_encoder",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.retain < 1:
            raise ValueError(
                f"{self.name}: found data.retain={self.data.retain}: expected 1 or more; retain_weight=0 switches the"
                " retained captions off"
            )
        if self.guard is not None and (self.guard.anchor_weight or self.guard.retain_weight):
            raise ValueError(
                f"{self.name}: found a guard with anchor_weight={self.guard.anchor_weight} and"
                f" retain_weight={self.guard.retain_weight}, which are in the loss already: expected 0 for both, or"
                " method.guard=null"
            )

    def loss(self, step: Step) -> dict[str, Tensor]:
        """ "anchor" and "retain" are the two distances, without their weights."""
        anchor, retain = distance(step.forget, step.target(self.anchor_eta)), distance(step.retain, step.kept)
        return {
            "loss": self.anchor_weight * anchor + self.retain_weight * retain,
            "anchor": anchor,
            "retain": retain,
        }
