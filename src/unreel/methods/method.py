"""Method: the contract of every eraser, and the task that it is given. One paper, one file, one YAML.

There are three kinds. A GradientMethod trains weights with Lightning, a ClosedFormMethod solves for them, and a
GuidanceMethod changes none and attaches itself to the pipeline instead.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from unreel.captions import TrainingCaptions
from unreel.edits import Edit
from unreel.methods.lora import LoRA
from unreel.models.model import Model, Reading
from unreel.records import Concept
from unreel.shots import Shots
from unreel.validation import Name


@dataclass(frozen=True)
class Task:
    """What is to be erased, and what a method may use for it.

    Attributes:
        captions: of each concept, with the concept itself.
        roles: which weights may change, as in `Model.select`.
        seed: of everything random.
        shots: of the concepts, made by the model; for methods that need them.
        trainer: gives a Lightning Trainer for so many steps, whose first callbacks are the given ones.
        checkpoint: where a killed training goes on, if one was.
        lora: that only changes of low rank are trained; None for the weights themselves.
        readings: how recipients of the edit read prompts, where otherwise than the model that it is made on.
    """

    captions: Sequence[TrainingCaptions]
    roles: Sequence[str]
    seed: int
    shots: Shots | None = None
    trainer: Callable[[int, list[pl.Callback]], pl.Trainer] | None = None
    checkpoint: Path | None = None
    lora: LoRA | None = None
    readings: Sequence[Reading] = ()

    @property
    def concepts(self) -> list[Concept]:
        """What is erased."""
        return [captions.concept for captions in self.captions]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """An eraser.

    Attributes:
        name: stem of its YAML; edits and scores carry it.
        edits: the components whose weights it changes; none for a method that only attaches itself.
        roles: the roles that it can change, where it is bound to some; empty where any weight of `edits` will do.
        needs: what it learns from beside captions: "shots", and "clips" where they must move.
        attaches: name -> type of the settings that its edits carry for `attach`; an edit with others is refused.
    """

    name: Name
    edits: ClassVar[tuple[str, ...]]
    roles: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[frozenset[str]] = frozenset()
    attaches: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def erase(self, model: Model, task: Task) -> Edit:
        """An edit that makes the model forget; the model itself is left as it was.

        The edit's provenance has `facts`: what was changed and how it ended, for the report.
        """

    @classmethod
    def attach(cls, pipeline: Any, edit: Edit) -> AbstractContextManager[None]:
        """Puts what is more than changed weights into a diffusers pipeline, inside a `with` block. Nothing by default.

        Args:
            pipeline: any that diffusers has, unreel's or the user's.
            edit: its settings and tensors are all that this may use.
        """
        return nullcontext()

    @classmethod
    def check_attached(cls, target: Any, edit: Edit) -> None:
        """ValueError when the tensors that an edit attaches do not fit a model. Nothing by default.

        Args:
            target: a Model, a diffusers pipeline, or a component of one alone.
            edit: its settings have the declared types.
        """
        return None

    @property
    def members(self) -> Sequence["Method"]:
        """The methods that it is made of, each of other components: itself alone, unless it says so."""
        return (self,)

    def roles_of(self, member: "Method", model: Model, roles: Sequence[str]) -> list[str]:
        """Those of some roles that one of its members may change in a model."""
        return list(roles)

    def joined(self, edits: Sequence[Edit]) -> Edit:
        """The edit of the method, of those that its members made, which may be made on different models."""
        (edit,) = edits
        return edit

    def most_steps(self, concepts: int, shots: int) -> int | None:
        """How many training steps it may take; None for methods that train nothing."""
        return None

    def check(self, model: Model, roles: Sequence[str]) -> None:
        """ValueError when the method cannot change these weights of this model, saying what it can change."""
        if not self.edits:
            return
        if "clips" in self.needs and model.num_frames < 2:
            raise ValueError(
                f"method {self.name} learns from clips, and {model.name} makes images: expected a video model as the"
                " donor, as t2i=zoo_unet3d"
            )
        chosen = model.select(roles)
        allowed = set(model.select(self.roles)) if self.roles else None
        for name in chosen:
            own = (
                "text_encoder" if name.startswith("text_encoder_") else name.split("/")[0]
            )  # a further one counts as it
            if own not in self.edits or (allowed is not None and name not in allowed):
                raise ValueError(
                    f"method {self.name} cannot change {name}, which parameters.roles={list(roles)} asks for: it"
                    f" changes {', '.join(self.roles or self.edits)}"
                )

    def check_dtypes(self, model: Model, low_rank: bool = False) -> None:
        """ValueError for a model whose weights are held too coarsely to be edited, or come and go.

        Args:
            model: that the edit is made on.
            low_rank: whether factors are trained beside the weights, which may be in bfloat16 then.
        """
        held = [torch.float32, torch.float16, *([torch.bfloat16] if low_rank else [])]
        if "denoiser" in self.edits and getattr(model, "group_offload", False):
            raise ValueError(
                f"method {self.name} edits the denoiser of {model.name}, found with group_offload=true: expected false"
            )
        for key in self.edits:
            found = next(model.components[key].parameters()).dtype
            if found not in held:
                expected = "one of float32, float16 and bfloat16" if low_rank else "float32 or float16"
                beside = ", or parameters=lora" if found == torch.bfloat16 else ""  # which takes it
                raise ValueError(
                    f"method {self.name} edits the {key} of {model.name}, found in {found}: expected {expected}, as"
                    f" with denoiser_dtype=null and denoiser_storage=null{beside}; edit first, then quantise"
                )

    def facts(self, model: Model, edit: Edit) -> dict[str, Any]:
        """How much an edit changed: for the report."""
        sizes = {k: sum(p.numel() for p in model.components[k].parameters()) for k in self.edits}
        return {
            "tensors": len(edit.tensors), "parameters": sum(t.numel() for t in edit.tensors.values()),
            "of": sum(sizes.values()), "components": list(self.edits), "steps": 0, "most_steps": None,
            "stopped": "", "best_step": None,
        }  # fmt: skip
