"""Motion contrast: the text encoder unlearns what a caption says of the order of a clip's frames, and nothing else.

    gain(x0) = 1 - || f_V(x_t, tau_phi(y), t) - g ||^2 / || f_V(x_t, tau_0(y_a), t) - g ||^2
    L(phi)   = E_{(x0, y), e, t} relu( gain(x0) - gain(x0') )

with V the video denoiser, frozen, g its target, y_a the caption with the anchor in the concept's place, and x0' the
same frames in another order, or one of them held still, under the same noise e. A caption that helps with a clip by its
looks helps as much with x0'; what it says of the motion helps with x0 alone. At L = 0 it helps no more with the one
than with the other.

Reference: ours. The bounded ascent is that of `few_shot`; clips against the same frames in another order are how video
models are probed for motion (De-An Huang et al., "What Makes a Video a Video", CVPR 2018).
Departures: none.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unreel.batches import Batch, Batches, Step, denoising_errors
from unreel.methods.gradient import GradientMethod
from unreel.methods.method import Task
from unreel.models.model import Conditioning, Model
from unreel.validation import checked


@dataclass(frozen=True)
class Controls:
    """The other order of every shot, and the anchors' errors on a table of both.

    Attributes:
        latents: of each concept's clips in the other order, (K, *latent_shape).
        anchor_errors: || f_V(x_t, tau_0(y_a), t) - g ||^2 of the table's entries, and of the same in the other order;
            (2, entries), or None without a table.
    """

    latents: list[Tensor]
    anchor_errors: Tensor | None

    def of(self, batch: Batch) -> Batch:
        """The batch with the other order in place of each clip; noise, timesteps and captions stay."""
        other = torch.stack([self.latents[concept][shot] for concept, shot in batch.sources])
        return replace(batch, latents=other.to(batch.latents))


@checked
class MotionContrast(GradientMethod):
    """The method; hyperparameters and their sources are in conf/method/motion_contrast.yaml.

    Attributes:
        control: the other order: "still" holds the middle frame, "reversed" runs backwards, "shuffled" moves every
            frame to another place.
    """

    control: Literal["still", "reversed", "shuffled"]
    edits = ("text_encoder",)
    needs = frozenset({"shots", "clips"})

    def most_steps(self, concepts: int, shots: int) -> int:
        """As of every gradient method. ValueError for zero shots: noise has no order."""
        if not shots:
            raise ValueError(f"found shots=0 for {self.name}, which learns from clips: expected shots=1 or more")
        return super().most_steps(concepts, shots)

    def order(self, frames: int, seed: int) -> list[int]:
        """Which frame stands where in x0'."""
        if self.control == "still":
            return [frames // 2] * frames
        if self.control == "reversed":
            return list(range(frames))[::-1]
        cycle = np.random.default_rng([seed, 11]).permutation(frames)
        order = np.empty(frames, int)
        order[cycle] = np.roll(cycle, 1)  # each frame goes where the next of the cycle stood: none stays
        return order.tolist()

    def prepare(self, reference: Model, task: Task, batches: Batches) -> Controls:
        """Encodes the other order of every clip; steps then draw where the order matters most."""
        assert task.shots is not None
        latents = []
        for clips in task.shots.pixels:
            other = clips[:, self.order(clips.shape[1], task.seed)] * 2 - 1
            each = [
                reference.encode_pixels(clip[None], torch.Generator().manual_seed(seed))
                for clip, seed in zip(other, task.shots.seeds, strict=True)
            ]
            latents.append(torch.cat(each).float().cpu())
        controls, table = Controls(latents, None), batches.table
        if table is None:
            return controls
        both = (table, controls.of(table))
        anchors, named = (
            torch.stack([denoising_errors(reference, seen, texts, self.data.batch) for seen in both])
            for texts in (table.anchors, table.forget)
        )
        gains = 1 - named / anchors
        batches.chances = functional.relu(gains[0] - gains[1]).double().cpu().numpy()
        return replace(controls, anchor_errors=anchors)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """ "gain" is that of the clips as they are, "control_gain" that of the other order."""
        both = (step.batch, step.prepared.of(step.batch))
        if (known := step.prepared.anchor_errors) is not None:
            anchors = known[:, list(step.batch.entries)]
        else:
            with torch.no_grad():
                said = step.anchors.rows(slice(len(step.batch.latents)))
                anchors = torch.stack([_errors(step.model, seen, said) for seen in both])
        scalars: dict[str, Tensor] = {}

        def contrast(conditioning: Conditioning) -> Tensor:
            gains = [1 - _errors(step.model, seen, conditioning) / e for seen, e in zip(both, anchors, strict=True)]
            scalars["gain"], scalars["control_gain"] = gains
            return functional.relu(gains[0] - gains[1]).mean()

        loss = step.through_denoiser(contrast)
        return {"loss": loss} | {name: value.detach().mean() for name, value in scalars.items()}


def _errors(model: Model, batch: Batch, conditioning: Conditioning) -> Tensor:
    """The denoiser's mean squared error on each clip, (b,)."""
    noisy, target = model.noised(batch.latents, batch.noise, batch.timesteps)
    return (model.predict(noisy, batch.timesteps, conditioning) - target).square().flatten(1).mean(1)
