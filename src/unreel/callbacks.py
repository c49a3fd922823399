"""Lightning callbacks: thin."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from unreel.evaluation import Evaluation
from unreel.methods.gradient import ErasureModule


class RenderClips(pl.Callback):
    """Looks at what a training has done so far: renders clips, scores them and logs them, at some steps.

    Args:
        evaluation: does it.
        recipients: names of the recipients that get what is trained.
        at_steps: when. Of several processes the first one does; the others wait.
    """

    def __init__(self, evaluation: Evaluation, recipients: Sequence[str], at_steps: Sequence[int]) -> None:
        self.evaluation, self.recipients, self.at_steps = evaluation, list(recipients), set(at_steps)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, ErasureModule)
        if (step := trainer.global_step) in self.at_steps:
            if trainer.is_global_zero:
                self.evaluation.look(f"step_{step}", dict.fromkeys(self.recipients, pl_module.edit()), step)
            trainer.strategy.barrier()
