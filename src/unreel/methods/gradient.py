"""GradientMethod: erasers that train weights by a loss, with Lightning, and with guard rails if they are asked for."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import DataLoader, TensorDataset

from unreel.batches import Batches, BatchSizes, Step
from unreel.edits import ATTACHED, Edit, hashes_of
from unreel.methods.guard import Guard, GuardRails, State, distance
from unreel.methods.lora import LowRank
from unreel.methods.method import Method, Task
from unreel.models.model import Model
from unreel.models.roles import split_name
from unreel.signals import Stopped


@dataclass(frozen=True, kw_only=True)
class GradientMethod(Method):
    """An eraser that minimises a loss over some weights, of the model or of a module that it brings along.

    Attributes:
        optimizer: arguments of `algorithm`.
        data: how much a step sees, and how many steps there are.
        guard: guard rails, or None.
        algorithm: what minimises.
    """

    optimizer: Mapping[str, Any]
    data: BatchSizes
    guard: Guard | None = None
    algorithm: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam

    def __post_init__(self) -> None:
        """ValueError for numbers that the algorithm does not take."""
        try:
            self.algorithm([torch.zeros(1)], **self.optimizer)
        except Exception as error:  # whatever it says of values that it never expected
            name = self.algorithm.__name__
            raise ValueError(f"method.optimizer: {error}: expected the arguments of torch.optim.{name}") from None
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.optimizer.values()):
            raise ValueError(f"method.optimizer: found {dict(self.optimizer)}: expected finite numbers")

    @abstractmethod
    def loss(self, step: Step) -> dict[str, Tensor]:
        """Scalars; "loss" is minimised, the others are logged."""

    def guarded_loss(self, step: Step) -> dict[str, Tensor]:
        """`loss` with the terms of the guard rails, "anchor" and "retain", if there are any; a loss's own stay.

        They are means over the ways in which the model and the recipients read prompts.
        """
        scalars = self.loss(step)
        if (guard := self.guard) is not None:
            eta = guard.anchor_eta
            read = [(step.forget, step.target(eta), step.retain, step.kept), *step.also_read(eta)]
            anchor = torch.stack([distance(forget, target) for forget, target, _, _ in read]).mean()
            retain = torch.stack([distance(retain, kept) for _, _, retain, kept in read]).mean()
            held = guard.anchor_weight * anchor + guard.retain_weight * retain
            scalars = {"anchor": anchor, "retain": retain} | scalars | {"loss": scalars["loss"] + held}
        return scalars

    def brings(self, model: Model, task: Task) -> nn.Module | None:
        """A module that is trained in place of weights of the model, such as adapters; None by default.

        `step.brought` has it: the loss puts it into its place for as long as a step lasts, with `step.hold`, so that
        `step.reference`, which shares all weights with the model then, predicts without it before. The edit holds its
        parameters as "attached/NAME", and `settings`, for `attach`.
        """
        return None

    def settings(self, task: Task) -> Mapping[str, Any]:
        """What an edit says beside the tensors of what the method brings along; JSON."""
        return {}

    def prepare(self, reference: Model, task: Task, batches: Batches) -> Any:
        """What all steps use, made once before the first one, such as trajectories; `step.prepared` has it.

        What steps change of it, such as an opponent that learns, is in checkpoints if it has torch's `state_dict` and
        `load_state_dict`.

        Args:
            reference: the model as it is before the training.
            task: what is erased.
            batches: what steps will see; a method may say which entries of its table are worth seeing.
        """
        return None

    def most_steps(self, concepts: int, shots: int) -> int:
        """With guard rails as many times more, of more concepts than a batch holds, as a round through them takes."""
        rounds = self.data.rounds(concepts) if self.guard is not None and self.data.steps is not None else 1
        return rounds * self.data.most_steps(concepts, shots if "shots" in self.needs else 0)

    def check(self, model: Model, roles: Sequence[str]) -> None:
        super().check(model, roles)
        if self.guard is not None and "text_encoder" not in self.edits:
            raise ValueError(f"found method.guard for {self.name}: guard rails hold text encoders; expected guard=null")
        if self.guard is not None and not self.data.retain:
            raise ValueError("found method.data.retain=0 with guard rails, which hold retained captions: expected some")

    def erase(self, model: Model, task: Task) -> Edit:
        assert task.trainer is not None
        module = ErasureModule(self, model, task)
        trainer = task.trainer(module.batches.steps, [LookAtDonor()])
        data = DataLoader(TensorDataset(torch.arange(module.batches.steps)), batch_size=None)  # a clock
        try:
            try:
                trainer.fit(module, data, ckpt_path=task.checkpoint, weights_only=True)
            finally:
                module.to(model.device)  # Lightning leaves on the CPU what it has trained
            module.finish()
            edit = module.edit()
            return replace(edit, provenance={"facts": module.facts(edit)})
        finally:
            module.close_step()
            module.restore(module.before)
            for parameter in module.trained.values():
                parameter.requires_grad_(False)
            if module.low_rank is not None:
                module.low_rank.take_out()


class LookAtDonor(pl.Callback):
    """Lets the module look before clips are rendered and the checkpoint is written; its own hook would come after."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, ErasureModule)
        pl_module.look()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A stop says at which step, and ends the other processes of a training, which got no signal of their own."""
        if isinstance(exception, Stopped):
            exception.where = exception.where or f"training, step {trainer.global_step} of {trainer.max_steps}"
            if (launcher := trainer.strategy.launcher) is not None:
                launcher.kill(exception.number)


class ErasureModule(pl.LightningModule):
    """Trains the chosen parameters of a model, factors beside them, or what the method brings; all else is frozen.

    Args:
        method: gives the loss.
        model: whose weights are trained.
        task: captions, shots, roles.
    """

    def __init__(self, method: GradientMethod, model: Model, task: Task) -> None:
        super().__init__()
        self.method, self.model, self.task = method, model, task
        self.brought = method.brings(model, task)
        names = model.select(task.roles) if self.brought is None else []
        touched = sorted({split_name(name)[0] for name in names})
        self.reference = model.reference(touched, shared=task.lora is not None)
        self.base = hashes_of(model.components, touched) if task.lora is not None else {}
        self.low_rank = LowRank(task.lora, model, task.roles, task.seed) if task.lora is not None else None
        self.touched = nn.ModuleDict({key: model.components[key] for key in touched})
        every = {f"{k}/{n}": p for k, module in self.touched.items() for n, p in module.named_parameters()}
        if self.brought is not None:
            own = self.brought.to(model.device).named_parameters()
            every = {f"{ATTACHED}{name}": p for name, p in own}
        if self.low_rank is not None:
            names, every = [], dict(self.low_rank.parameters)
        self.trained = {name: every[name].requires_grad_(True) for name in names or every}
        self.before = self.state()
        shots = task.shots if "shots" in method.needs else None
        self.batches = Batches(model, task.captions, shots, method.data, task.seed)
        self.batches.steps = method.most_steps(len(task.captions), shots.shots if shots else 0)
        self.rails = GuardRails(method.guard, model, self.reference, self.batches) if method.guard else None
        self.prepared = method.prepare(self.reference, task, self.batches)
        self.good, self.stopped = self.before, ""  # the last good state, and why it ended early
        self.step: Step | None = None  # whose gradients are not taken yet

    def state(self) -> State:
        """A copy of the trained weights."""
        return {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Writes weights back."""
        for name, value in state.items():
            self.trained[name].copy_(value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.method.algorithm(self.trained.values(), **self.method.optimizer)

    def close_step(self) -> None:
        """Takes out what the loss of the last step put into its place."""
        if self.step is not None:
            self.step.close()
            self.step = None

    def on_after_backward(self) -> None:
        self.close_step()

    def training_step(self, _batch: Any, _index: int) -> Tensor | None:
        batch = self.batches.batch(self.global_step).share(self.trainer.global_rank, self.trainer.world_size)
        self.step = Step(self.model, self.reference, batch, self.prepared, self.brought, self.task.readings)
        scalars = self.method.guarded_loss(self.step)
        loss = scalars.pop("loss")
        self.log_dict({f"train/{name}": value.detach() for name, value in scalars.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        if not torch.isfinite(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")):  # on any process
            self.stopped = f"the loss was {loss.item()} at step {self.global_step}; the last good state was kept"
            self.trainer.should_stop = True
            self.close_step()
            if self.trainer.world_size == 1:
                return None
            return torch.stack([0.0 * p.sum() for p in self.trained.values()]).sum()  # DDP skips no step
        if self.rails is None:  # should the next loss be none
            self.good = self.state()
        return loss

    def on_train_start(self) -> None:
        if self.rails is not None and self.rails.gone >= self.rails.patience:  # resumed after it had stopped early
            self.trainer.should_stop = True

    def look(self) -> None:
        """Every few steps, and after the last one, the guard rails look."""
        step, rails = self.global_step, self.rails
        if rails is None or (step % rails.guard.check_every and step != self.trainer.max_steps):
            return
        agreed = self.trainer.strategy.broadcast
        before = self.before if self.low_rank is None else self.low_rank.origin(self.before)
        scalars, stopped = rails.look(step, self.state, self.restore, before, agreed)
        for logger in self.trainer.loggers:
            logger.log_metrics({f"donor/{name}": value for name, value in scalars.items()}, step=step)
        if stopped:
            self.stopped = stopped
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Only what is trained goes to disk; the frozen models are loaded from their own folders."""
        checkpoint["state_dict"] = self.state()
        rails = self.rails.to_checkpoint() if self.rails else {}
        carried = self.prepared.state_dict() if isinstance(self.prepared, Stateful) else {}
        checkpoint["erasure"] = {
            "good": {} if self.rails else self.good, "stopped": self.stopped, "rails": rails, "prepared": carried
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.restore(checkpoint["state_dict"])
        saved = checkpoint["erasure"]
        self.good, self.stopped = saved["good"] or self.before, saved["stopped"]
        if self.rails is not None:
            self.rails.from_checkpoint(saved["rails"])
        if isinstance(self.prepared, Stateful):
            self.prepared.load_state_dict(saved["prepared"])
        checkpoint["state_dict"] = self.state_dict()  # all of it is in place now

    def finish(self) -> None:
        """Puts the best state into the model; without guard rails the last good one, where the loss ran away."""
        if self.rails is not None and self.rails.best:
            self.restore(self.rails.best)
        elif self.stopped:
            self.restore(self.good)

    def facts(self, edit: Edit) -> dict[str, Any]:
        """What was trained and how it ended, for the report."""
        weights = [p for key in edit.components for p in self.model.components[key].parameters()]
        return self.method.facts(self.model, edit) | {
            "tensors": len(self.trained), "parameters": sum(p.numel() for p in self.trained.values()),
            "of": sum(p.numel() for p in weights), "components": list(edit.components), "attached": edit.is_attached,
            "steps": self.global_step, "most_steps": self.batches.steps, "processes": self.trainer.world_size,
            "stopped": self.stopped, "best_step": self.rails.best_step if self.rails else None,
        }  # fmt: skip

    def edit(self) -> Edit:
        """What the training has changed so far."""
        if self.brought is not None:
            tensors = {name: p.detach().cpu().clone() for name, p in self.trained.items()}
            base = hashes_of(self.model.components, self.method.edits)
            return Edit(tensors, base, self.method.name, self.method.settings(self.task))
        if self.low_rank is not None:
            return Edit(self.low_rank.tensors(), self.base, self.method.name)
        return Edit.between(self.reference, self.model, list(self.touched), self.method.name)
