"""The LightningModule around a gradient method, with the guard rails that keep the rest of the encoder whole.

Guarded, a step minimises

    method loss + anchor_weight * D(tau(y), tau_0(y_a)) + retain_weight * D(tau(y_r), tau_0(y_r))

where D is the squared distance of token embeddings over the reference's mean square, all positions, padding too (there
CLIP carries the sentence); y names the concept, y_a has the anchor in its place, y_r are retained captions. Every few
steps the donor itself says how much of the concept is left, and the best state so far is kept.
"""

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from unreel.donors import Donor, select_parameters
from unreel.edits import Edit
from unreel.shots import Batch, Embeds, Shots


@dataclass(frozen=True)
class Guard:
    """Guard rails; `None` in a method's YAML switches all of them off.

    Attributes:
        anchor_weight: how strongly captions with the concept are pulled to the same captions without it.
        retain_weight: how strongly retained captions are held.
        max_drift: trust region: D of retained captions that no look may find left; then the change is halved.
        check_every: steps between looks at the donor.
        gone_below: share of the concept's evidence that counts as gone, in [0, 1].
        patience: looks at which it is gone, one after the other, before the training stops early.
        probes: shots of each concept per look.
    """

    anchor_weight: float
    retain_weight: float
    max_drift: float
    check_every: int
    gone_below: float
    patience: int
    probes: int


def distance(embeds: Tensor, reference: Tensor) -> Tensor:
    """D: squared distance of embeddings (B, L, D) over the reference's mean square around its mean, a scalar >= 0."""
    return (embeds - reference).float().square().mean() / reference.float().var()


class LookAtDonor(pl.Callback):
    """Lets the module look before the checkpoint of the same step is written; its own hook would come after that."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, UnlearningModule)
        pl_module.look()


class UnlearningModule(pl.LightningModule):
    """Trains the chosen parameters of the donor's text encoder; all else is frozen.

    Args:
        donor: the model that pays.
        shots: makes the batches.
        method: has `loss(donor, batch, embeds)`.
        roles: which parameters, as in `select_parameters`.
        optimizer: arguments of Adam.
        guard: or None.
    """

    def __init__(
        self, donor: Donor, shots: Shots, method: Any, roles: list[str], optimizer: dict[str, Any], guard: Guard | None
    ) -> None:
        super().__init__()
        self.donor, self.shots, self.method, self.guard, self.optimizer = donor, shots, method, guard, optimizer
        self.text_encoder = donor.text_encoder
        self.reference = copy.deepcopy(donor.text_encoder)  # frozen, in eval mode
        self.trained = select_parameters(self.text_encoder, roles)
        for name, parameter in self.text_encoder.named_parameters():
            parameter.requires_grad_(name in self.trained)
        self.best: dict[str, Tensor] = self._state()
        self.best_score, self.best_step, self.gone = [math.inf], 0, 0
        self.stopped = ""  # why it ended early, for the report

    def _state(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.text_encoder.named_parameters() if n in self.trained}

    @torch.no_grad()
    def _restore(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.text_encoder.named_parameters():
            if name in state:
                parameter.copy_(state[name])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.text_encoder.parameters() if p.requires_grad], **self.optimizer)

    def training_step(self, _batch: Any, _index: int) -> Tensor | None:
        batch = self.shots.batch(self.global_step).share(self.trainer.global_rank, self.trainer.world_size)
        embeds = Embeds(self.donor, batch, self.reference)
        scalars = self.method.loss(self.donor, batch, embeds)
        loss = scalars.pop("loss")
        if self.guard is not None:
            scalars["anchor"] = distance(embeds.forget, embeds.anchors)
            scalars["retain"] = distance(embeds.retain, embeds.kept)
            loss = loss + self.guard.anchor_weight * scalars["anchor"] + self.guard.retain_weight * scalars["retain"]
        self.log_dict({f"train/{name}": value.detach() for name, value in scalars.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        if not torch.isfinite(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")):  # on any process
            self.stopped = f"the loss was {loss.item()} at step {self.global_step}; the last good state was kept"
            self.trainer.should_stop = True
            if self.trainer.world_size == 1:
                return None
            return sum(0.0 * p.sum() for p in self.text_encoder.parameters() if p.requires_grad)  # DDP skips no step
        if self.guard is None:  # should the next loss be none
            self.best, self.best_step = self._state(), self.global_step
        return loss

    @cached_property
    def probe(self) -> Batch:
        """What every look at the donor looks at."""
        assert self.guard is not None
        return self.shots.probe(self.guard.probes * len(self.shots.captions))

    @torch.no_grad()
    def _errors(self, texts: list[str], encoder: nn.Module) -> Tensor:
        """The donor's denoising errors on the probe under these captions, (probes, concepts)."""
        batch, few = self.probe, self.shots.batch_size
        noisy = self.donor.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = self.donor.target(batch.latents, batch.noise, batch.timesteps).float()
        inputs = noisy, batch.timesteps, self.donor.encode_prompt(texts, encoder)
        parts = zip(*(tensor.split(few) for tensor in inputs), strict=True)
        predicted = torch.cat([self.donor.predict(*part) for part in parts])
        errors = (predicted - target).square().mean((1, 2, 3))
        return errors.view(-1, len(self.shots.captions))  # concepts take turns

    @cached_property
    def _errors_before(self) -> tuple[Tensor, Tensor]:
        """Under the anchors' captions and under the concepts', with the encoder as it was."""
        return self._errors(self.probe.anchors, self.reference), self._errors(self.probe.forget, self.reference)

    def evidence(self) -> list[float | None]:
        """How much each concept's captions still help the donor with its shots: 1 as before, 0 no more than the anchor.

        (E_anchor - E) / (E_anchor - E_before), E the donor's mean error on the concept's shots; at most 2 in size. None
        where they never helped more than half of the shots (sign test at 5 %), so that it cannot be told: noise for
        shots, or photos that the donor does not know by that name.
        """
        anchor, before = self._errors_before
        left = (anchor - self._errors(self.probe.forget, self.text_encoder)).mean(0) / (anchor - before).mean(0)
        helped, shots = (before < anchor).sum(0).tolist(), len(anchor) if self.shots.shots else 0
        known = [shots > 0 and binomtest(k, shots, alternative="greater").pvalue < 0.05 for k in helped]
        return [value if sure else None for value, sure in zip(left.clamp(-2, 2).tolist(), known, strict=True)]

    @torch.no_grad()
    def drift(self, texts: list[str]) -> float:
        """D of captions between the encoder as it is and as it was."""
        return float(distance(self.donor.encode_prompt(texts), self.donor.encode_prompt(texts, self.reference)))

    def configure_callbacks(self) -> list[pl.Callback]:
        return [LookAtDonor()]

    def on_train_start(self) -> None:
        if self.guard is not None and self.gone >= self.guard.patience:  # resumed after it had stopped early
            self.trainer.should_stop = True

    def _agreed(self, value: Any) -> Any:
        """What the first process found, in all of them, so that they decide alike."""
        return self.trainer.strategy.broadcast(value)

    def look(self) -> None:
        """Every few steps: the trust region, how much of the concept is left, the best state, and whether to stop."""
        guard = self.guard
        if guard is None or (self.global_step % guard.check_every and self.global_step != self.trainer.max_steps):
            return
        drift = self._agreed(self.drift(self.probe.retain))
        while drift > guard.max_drift:  # trust region: back along the way it came
            before = dict(self.reference.named_parameters())
            self._restore({name: (p + before[name]) / 2 for name, p in self._state().items()})
            drift = self._agreed(self.drift(self.probe.retain))
        evidence = self._agreed(self.evidence())
        known = [value for value in evidence if value is not None]
        scalars = {"drift": drift} | ({"evidence": max(known)} if known else {})  # of the concept that is left most
        for logger in self.trainer.loggers:
            logger.log_metrics({f"donor/{name}": value for name, value in scalars.items()}, step=self.global_step)
        # the least evidence first, then, of states where it is gone, the least drift; the last state if none is known
        score = [max(scalars["evidence"] - guard.gone_below, 0.0), drift] if known else [0.0, -self.global_step]
        if score < self.best_score:
            self.best_score, self.best_step, self.best = score, self.global_step, self._state()
        self.gone = self.gone + 1 if score[0] == 0 and len(known) == len(evidence) else 0
        if self.gone >= guard.patience:
            self.stopped = f"what was to be forgotten was gone on the donor at step {self.global_step}"
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Only what is trained goes to disk; the frozen models are loaded from their own folders."""
        checkpoint["state_dict"] = self._state()
        checkpoint["best"] = {"state": self.best, "score": self.best_score, "step": self.best_step, "gone": self.gone,
                              "stopped": self.stopped}  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restore(checkpoint["state_dict"])
        best = checkpoint["best"]
        self.best, self.best_score, self.best_step = best["state"], best["score"], best["step"]
        self.gone, self.stopped = best["gone"], best["stopped"]
        checkpoint["state_dict"] = self.state_dict()  # all of it is in place now

    def finish(self) -> None:
        """Puts the best state into the encoder and freezes it; without guard rails the last good one."""
        if self.guard is not None or self.stopped:
            self._restore(self.best)
        self.text_encoder.requires_grad_(False)

    def facts(self) -> dict[str, Any]:
        """What was trained and how it ended, for the report."""
        sizes = {name: p.numel() for name, p in self.text_encoder.named_parameters()}
        return {
            "tensors": len(self.trained), "parameters": sum(sizes[name] for name in self.trained),
            "of": sum(sizes.values()), "steps": self.global_step, "most_steps": self.shots.steps,
            "processes": self.trainer.world_size, "stopped": self.stopped,
            "best_step": self.best_step if self.guard is not None else None,
        }  # fmt: skip

    def edit(self, provenance: dict[str, Any]) -> Edit:
        """What the training changed."""
        return Edit.between(self.reference, self.text_encoder, provenance)
