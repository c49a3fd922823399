"""HiRM: the text encoder's first layer is trained until its last layer no longer says the concept.

    HiRM-S:  L(phi_1) = 1/T sum_t || h_t(y) - c h0_t(y_a) ||^2          towards a supercategory y_a
    HiRM-R:  L(phi_1) = 1/T sum_t || h_t(y) - c r_t ||^2                towards a random direction r

phi_1 are the first layer's weights. h_t is what the last layer's self-attention writes at token t of T, after its
output projection, and h0_t is that of the encoder as it was. r is drawn once. Nothing is retained explicitly, and
neither images nor a denoiser are needed: a step costs one or two passes through the encoder and one back.

Reference: Uichan Lee, Jeonghyeon Kim and Sangheum Hwang, "Localized Concept Erasure in Text-to-Image Diffusion Models
via High-Level Representation Misdirection", ICLR 2026, arXiv 2602.19631. The equations were read in a note on the
paper, and what they leave open in a port of its train.py; neither the paper nor the authors' code was at hand.
Departures: y_a is the concept's anchor, or nothing in the concept's place, where the paper names a supercategory
("Painting"). y may be a caption and y_a the same one with the anchor (`prompts: captions`), where the paper's y is the
name alone (`prompts: names`): conf/method/hirm.yaml says why. A name is said in all its phrases. r is Gaussian with
mean square 1 over all tokens and channels, so that c does not depend on the width, where the port draws it uniform in
[0, 1), all positive, with norm 1. Adam where the port has AdamW; the decay is 1e-8. The first layer's norms are trained
too, where the port trains its attention and MLP alone. The loss is a mean over channels as well, as in the port. The
paper's other target for nudity, a difference of two readings, is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn.functional import pad

from unreel.batches import Batches, Step
from unreel.methods.gradient import GradientMethod
from unreel.methods.method import Task
from unreel.models.model import Model
from unreel.validation import checked
from unreel.vocabulary import say


def last_projection(model: Model) -> nn.Module:
    """The output projection of a text encoder's last self-attention, in CLIP, T5 or Gemma. ValueError without one."""
    encoder = model.components["text_encoder"]
    outputs = (".self_attn.out_proj", ".SelfAttention.o", ".self_attn.o_proj")
    found = [module for name, module in encoder.named_modules() if name.endswith(outputs)]
    if not found:
        raise ValueError(
            f"{model.name}: found no self_attn.out_proj in its text encoder: HiRM expects one of CLIP, T5 or Gemma"
        )
    return found[-1]


def high_level(model: Model, texts: Sequence[str]) -> Tensor:
    """h of B texts, (B, T, D), with gradient where the encoder is trained; zeros where padding is not encoded."""
    seen: list[Tensor] = []
    handle = last_projection(model).register_forward_hook(lambda module, inputs, output: seen.append(output))
    places: list[int] = []  # T, of what the encoder is called with

    def count(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        places.append((args[0] if args else kwargs["input_ids"]).shape[1])

    counts = model.components["text_encoder"].register_forward_pre_hook(count, with_kwargs=True)
    try:
        model.encode_prompt(texts)
    finally:
        handle.remove()
        counts.remove()
    return pad(seen[0], (0, 0, 0, places[0] - seen[0].shape[1])).float()


@dataclass(frozen=True)
class Prepared:
    """Names of the concepts, those of their anchors, as many, and r (T, D)."""

    names: list[str]
    anchors: list[str]
    direction: Tensor


@checked
class HiRM(GradientMethod):
    """The method; hyperparameters and their sources are in conf/method/hirm.yaml.

    Attributes:
        target: anchor (HiRM-S) or random (HiRM-R).
        coefficient: c, > 0, in units of the anchor's own states, or of a direction of mean square 1.
        prompts: names or captions: the texts that are misdirected.

    Raises:
        ValueError: for another target, other prompts, or a coefficient that is not above 0.
    """

    target: Literal["anchor", "random"]
    coefficient: PositiveFloat
    prompts: Literal["names", "captions"]
    edits = ("text_encoder",)

    def check(self, model: Model, roles: Sequence[str]) -> None:
        super().check(model, roles)
        last_projection(model)

    def prepare(self, reference: Model, task: Task, batches: Batches) -> Prepared:
        said = [(c.concept.part, phrase, c.anchor) for c in task.captions for phrase in c.concept.phrases]
        with torch.no_grad():
            shape = high_level(reference, [""])[0].shape
        r = torch.randn(shape, generator=torch.Generator().manual_seed(task.seed))
        direction = (r / r.square().mean().sqrt()).to(reference.device)
        return Prepared([say({p: name}) for p, name, _ in said], [say({p: a}) for p, _, a in said], direction)

    def loss(self, step: Step) -> dict[str, Tensor]:
        prepared, batch = step.prepared, step.batch
        named, anchored = prepared.names, prepared.anchors
        if self.prompts == "captions":
            named, anchored = batch.forget, batch.anchors
        with torch.no_grad():
            towards = high_level(step.reference, anchored) if self.target == "anchor" else prepared.direction
        return {"loss": (high_level(step.model, named) - self.coefficient * towards).square().mean()}
