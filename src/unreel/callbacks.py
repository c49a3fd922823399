"""Lightning callbacks: thin."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from unreel.edits import Edit
from unreel.evaluation import Evaluation
from unreel.methods.gradient import ErasureModule


class RenderClips(pl.Callback):
    """Looks at what a training has done so far: renders clips, scores them and logs them, at some steps.

    Args:
        evaluation: does it.
        recipients: names of the recipients that get what is trained.
        at_steps: when. Of several processes the first one does; the others wait.
        onto: an edit that the model holds already while it is trained; None without one.
        trained: names of those recipients that are the model in training, and hold `onto` themselves.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        recipients: Sequence[str],
        at_steps: Sequence[int],
        onto: Edit | None = None,
        trained: Sequence[str] = (),
    ) -> None:
        self.evaluation, self.recipients, self.at_steps = evaluation, list(recipients), set(at_steps)
        self.onto, self.trained = onto, list(trained)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, ErasureModule)
        if (step := trainer.global_step) in self.at_steps:
            if trainer.is_global_zero:
                edit = pl_module.edit()
                whole = edit if self.onto is None else self.onto + edit
                trained = pl_module.state()
                pl_module.restore(pl_module.before)  # the edit is put on the weights that it was made from
                try:
                    self.evaluation.look(
                        f"step_{step}", dict.fromkeys(self.recipients, whole) | dict.fromkeys(self.trained, edit), step
                    )
                finally:
                    pl_module.restore(trained)
            trainer.strategy.barrier()


class TrainingBar(pl.Callback):
    """How far a training is, for how long it has been at it, and its loss; gone when the training ends."""

    def __init__(self) -> None:
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(
            *columns, TextColumn("loss {task.fields[loss]}"), transient=True, disable=not get_console().is_terminal
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.progress.start()
            self.task = self.progress.add_task("", total=trainer.max_steps, completed=trainer.global_step, loss="")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            loss = trainer.callback_metrics.get("train/loss")
            said = "" if loss is None else f"{float(loss):.3f}"
            self.progress.update(self.task, completed=trainer.global_step, loss=said)

    def on_train_end(self, *_: Any) -> None:
        self.progress.stop()

    def on_exception(self, *_: Any) -> None:
        self.progress.stop()
