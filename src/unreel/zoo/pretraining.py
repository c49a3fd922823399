"""What every pretraining stage shares: a module that draws its own batch for each step, and a resumable run.

A stage is a `Stage` subclass with `loss(step)`; batch, noise and captions depend on (seed, step) only, so a run that
was killed continues where its last checkpoint stands and sees what it would have seen.
"""

import json
import time
from abc import ABC, abstractmethod
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from unreel.files import write_text


class Stage(pl.LightningModule, ABC):
    """One pretraining stage.

    Args:
        steps: optimisation steps in all.
        batch: examples a step.
        lr: peak of a one-cycle schedule.
        seed: of weights, draws and noise.
        weight_decay: of AdamW.
    """

    def __init__(self, steps: int, batch: int, lr: float, seed: int, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters(dict(steps=steps, batch=batch, lr=lr, seed=seed, weight_decay=weight_decay))
        torch.manual_seed(seed)

    @abstractmethod
    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars of one step, on `self.device`; "loss" is minimised."""

    def training_step(self, _batch: Any, _batch_index: int) -> Tensor:
        rng = np.random.default_rng([self.hparams["seed"], self.global_step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        scalars = self.loss(rng, generator)
        self.log_dict(scalars, prog_bar=True)
        return scalars["loss"]

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, self.hparams["lr"], weight_decay=self.hparams["weight_decay"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams["lr"], total_steps=self.hparams["steps"] + 1, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def device_of(accelerator: str) -> torch.device:
    """Where Lightning trains with "cpu", "gpu", "cuda" or "auto"."""
    use_cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def fit(
    stage: Stage,
    folder: Path,
    accelerator: str,
    precision: str,
    ema_decay: float,
    minutes: float,
    init: Path | None = None,
) -> dict[str, Any]:
    """Trains a stage from where its last checkpoint in `folder` stands to its end; its weights are the EMA afterwards.

    Args:
        stage: the module.
        folder: checkpoints, `metrics.csv` and `training.json` go here.
        accelerator: Lightning's name, "cpu", "gpu" or "auto".
        precision: Lightning's name, e.g. "bf16-mixed".
        ema_decay: of the exponential moving average of the weights.
        minutes: between checkpoints.
        init: a checkpoint of an earlier generation of this stage, whose EMA weights a fresh run starts from.

    Returns:
        What a model card says of the training: steps, batch, seed, seconds on which machine, loss curve; and of the
        earlier generation that it started from, if any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record_path, steps = folder / "training.json", stage.hparams["steps"]
    last = folder / "last.ckpt"
    if init is not None and not last.exists():
        stage.load_state_dict(torch.load(init, map_location="cpu", weights_only=True)["state_dict"])
    spent = json.loads(record_path.read_text())["seconds"] if last.exists() and record_path.exists() else 0.0
    started = time.monotonic()
    record: dict[str, Any] = {"before": json.loads((init.parent / "training.json").read_text())} if init else {}
    record.get("before", {}).pop("loss_curve", None)

    class Record(pl.Callback):
        """Writes the running record beside each checkpoint."""

        def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
            every = max(steps // 60, 1)
            if trainer.global_step % every == 0 or trainer.global_step == steps:
                value = float(trainer.callback_metrics["loss"])
                curve = record.setdefault("loss_curve", _read_curve(record_path, trainer.global_step))
                curve.append([trainer.global_step, round(value, 5)])
                record.update(
                    stage=type(module).__name__, steps=steps, batch=stage.hparams["batch"], lr=stage.hparams["lr"],
                    seed=stage.hparams["seed"], seconds=round(spent + time.monotonic() - started, 1),
                    machine=_machine(module.device),
                )  # fmt: skip
                write_text(record_path, json.dumps(record))

    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=steps,
        gradient_clip_val=1.0,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=20,
        callbacks=[
            EMAWeightAveraging(device_of(accelerator), decay=ema_decay),
            ModelCheckpoint(
                folder,
                save_last=True,
                save_top_k=0,
                train_time_interval=timedelta(minutes=minutes),
                enable_version_counter=False,
            ),
            RichProgressBar(),
            Record(),
        ],
        enable_model_summary=False,
    )
    clock: DataLoader = DataLoader(TensorDataset(torch.arange(steps)), batch_size=None)  # a stage draws its own batches
    trainer.fit(stage, clock, ckpt_path=last if last.exists() else None, weights_only=True)
    trainer.save_checkpoint(last)  # the same command again has nothing left to train
    return json.loads(record_path.read_text())


def _machine(device: torch.device) -> str:
    """What a card calls the machine."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def _read_curve(path: Path, before: int) -> list[list[float]]:
    curve = json.loads(path.read_text()).get("loss_curve", []) if path.exists() else []
    return [point for point in curve if point[0] < before]
