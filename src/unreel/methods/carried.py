"""Carried: what a method takes from step to step beside the trained weights, such as an opponent, is in checkpoints."""

from dataclasses import replace
from typing import Any, Protocol, cast

import pytorch_lightning as pl

from unreel.methods.method import Task


class Carries(Protocol):
    """What a method's `prepare` returns when its steps change it."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and texts that a resumed training needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""


class CarriedState(pl.Callback):
    """Writes the state of what `prepare` returned into each checkpoint, and reads it from the one that is resumed."""

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        checkpoint["carried"] = cast(Carries, pl_module.prepared).state_dict()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        cast(Carries, pl_module.prepared).load_state_dict(checkpoint["carried"])


def carrying(task: Task) -> Task:
    """The same task, whose trainers keep the state of what the method's `prepare` returns."""
    made = task.trainer
    assert made is not None
    return replace(task, trainer=lambda steps, callbacks: made(steps, [*callbacks, CarriedState()]))
