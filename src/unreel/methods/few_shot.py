"""Few-shot unlearning of the text encoder: gradient ascent on the donor's denoising loss over a few images.

    L(phi) = - E_{(x0, y), e, t} || f_U(x_t, tau_phi(y), t) - g ||^2                    (Fuchi & Takagi 2024)

with U frozen and g the target of the donor's prediction type. Bounded, it climbs only until the concept's caption helps
the donor no more than the same caption with the anchor y_a in its place:

    L(phi) = E relu( 1 - || f_U(x_t, tau_phi(y), t) - g ||^2 / || f_U(x_t, tau_0(y_a), t) - g ||^2 )

An adversary adds captions in which a learned word that would bring the concept back stands in its name's place
(`unreel.methods.adversary`).

Reference: Masane Fuchi and Tomohiro Takagi, "Erasing Concepts from Text-to-Image Diffusion Models with Few-shot
Unlearning", BMVC 2024, arXiv 2405.07288; moved to video by Shiqi Liu and Yihua Tan, arXiv 2407.14209, 2024.
Departures: the bound (`ascent: bounded`) and the adversary, which are ours. The error under y_a is one of frozen
models, so that over a finite table of (x0, e, t, y) it is computed once (`data.table`); steps then draw entries by how
much y helps U there, as the others have no gradient. Zero shots are Gaussian latents, where the released code draws
them uniform and five-dimensional by a slip. No horizontal flip: shots are encoded once, and a flip would double the
cache for no measured gain. Templates of captions are word lists of our own (`data.captions: bare`, as published);
captions that say all that a generated shot shows are ours (`shown`). `ascent: none` leaves the guard rails' terms
alone, for ablations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from unreel.batches import Batches, Step, denoising_errors
from unreel.methods.adversary import Adversary, Search
from unreel.methods.gradient import GradientMethod
from unreel.methods.method import Task
from unreel.methods.slots import check_table
from unreel.models.model import Conditioning, Model
from unreel.validation import checked
from unreel.vocabulary import say


@dataclass
class Prepared:
    """What the steps of a training use.

    Attributes:
        anchor_errors: the donor's errors under the anchors' captions on the batches' table; None without one.
        search: the adversary's; None without one.
    """

    anchor_errors: Tensor | None = None
    search: Search | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return self.search.state_dict() if self.search else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        if self.search:
            self.search.load_state_dict(state)


@checked
class FewShot(GradientMethod):
    """The method; hyperparameters and their sources are in conf/method/few_shot*.yaml.

    Attributes:
        ascent: unbounded, bounded, or none.
        adversary: learned words to withstand, or None.

    Raises:
        ValueError: for another ascent, and for none without guard rails that pull or hold something.
    """

    ascent: Literal["unbounded", "bounded", "none"]
    adversary: Adversary | None = None
    edits = ("text_encoder",)
    needs = frozenset({"shots"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ascent == "none" and self.guard is None:
            raise ValueError(f"{self.name}: found ascent=none without guard rails, which trains nothing")

    def check(self, model: Model, roles: Sequence[str]) -> None:
        super().check(model, roles)
        if self.adversary is not None:
            check_table(model, f"method.adversary of {self.name}")

    def prepare(self, reference: Model, task: Task, batches: Batches) -> Prepared:
        """The anchors' errors on the batches' table, if any; steps then draw where the concept's name helps."""
        search = None
        if self.adversary is not None:
            said = [say(context) for captions in task.captions for context in captions.contexts]
            search = Search(self.adversary, reference, task.concepts, said, task.seed)
        return Prepared(self._anchor_errors(reference, batches), search)

    def _anchor_errors(self, reference: Model, batches: Batches) -> Tensor | None:
        table = batches.table if self.ascent == "bounded" else None
        if table is None:
            return None
        without, named = (
            denoising_errors(reference, table, texts, self.data.batch) for texts in (table.anchors, table.forget)
        )
        batches.chances = functional.relu(1 - named / without).double().cpu().numpy()
        return without

    def loss(self, step: Step) -> dict[str, Tensor]:
        """ "forget_error" and "anchor_error" are the donor's under these captions; "adversary" is of learned words."""
        batch, own = step.batch, step.prepared or Prepared()
        scalars, held = dict[str, Tensor](), torch.zeros((), device=step.model.device)
        if own.search is not None:
            scalars["adversary"] = own.search.loss(step, self.guard.anchor_eta if self.guard else 0.0)
            held = own.search.adversary.weight * scalars["adversary"]
        if self.ascent == "none":
            return {"loss": held} | {name: value.detach() for name, value in scalars.items()}
        noisy, target = step.model.noised(batch.latents, batch.noise, batch.timesteps)

        def errors(conditioning: Conditioning) -> Tensor:
            predicted = step.model.predict(noisy, batch.timesteps, conditioning)
            return (predicted - target).square().flatten(1).mean(1)

        if own.anchor_errors is not None:
            scalars["anchor_error"] = own.anchor_errors[list(batch.entries)]
        elif self.ascent == "bounded":
            with torch.no_grad():
                scalars["anchor_error"] = errors(step.anchors.rows(slice(len(noisy))))

        def climb(conditioning: Conditioning) -> Tensor:
            found = scalars["forget_error"] = errors(conditioning)
            if self.ascent == "unbounded":
                return -found.mean()
            return functional.relu(1 - found / scalars["anchor_error"]).mean()  # in units of the error without it

        loss = step.through_denoiser(climb) + held
        return {"loss": loss} | {name: value.detach().mean() for name, value in scalars.items()}
