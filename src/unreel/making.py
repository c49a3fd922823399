"""Making: the edits of a run, each part once on each model; what they are made on top of, and what they may change."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from unreel import assembly
from unreel.callbacks import RenderClips
from unreel.door import built
from unreel.edits import Edit
from unreel.evaluation import Evaluation
from unreel.methods.gradient import GradientMethod
from unreel.methods.lora import LoRA
from unreel.methods.method import Method, Task
from unreel.models.model import Model
from unreel.sharing import Share


def load_onto(config: DictConfig, method: Method) -> Edit | None:
    """The edit of `onto`, if one is given. ValueError for one that nothing can be trained on top of."""
    if config.onto is None:
        return None
    onto = Edit.load(config.onto)
    if onto.is_attached:
        raise ValueError(
            f"found onto={config.onto}, made by {onto.method}, which acts while the pipeline samples: expected an edit"
            " that changes weights; make the new one without `onto`, and evaluate.py edit=[A,B]"
        )
    if onto.is_low_rank:
        raise ValueError(
            f"found onto={config.onto}, which holds low-rank factors, on top of which no other edit can be put in one"
            " file: expected an edit made without parameters=lora"
        )
    if method.attaches:
        raise ValueError(
            f"found onto={config.onto} for {method.name}, which attaches itself: expected method=NAME of one that"
            " changes weights; or make its edit without `onto`, and evaluate.py edit=[A,B]"
        )
    return onto


def check_looks(config: DictConfig, method: Method) -> None:
    """ValueError for clips during the training of a method whose parts are trained one after the other."""
    if config.evaluation.at_steps and len(method.members) > 1:
        raise ValueError(
            f"found evaluation.at_steps={list(config.evaluation.at_steps)} for {method.name}, whose parts are trained"
            " one after the other, each from step 0: expected at_steps=[]"
        )


def check_onto(onto: Edit | None, shares: Sequence[Share], one_at_a_time: bool) -> None:
    """ValueError for a model that cannot hold the edit on top of which it is to be trained, or that is to get it."""
    if onto is None:
        return
    for model in dict.fromkeys(model for share in shares for model in (*share.makers, *share.recipients)):
        try:
            onto.check(model)
        except ValueError as error:
            raise ValueError(f"{model.name} and the edit of `onto`: {error}") from None
        if one_at_a_time:
            model.release()


def lora_of(config: DictConfig, method: Method) -> LoRA | None:
    """The LoRA of `parameters`, if that is one. ValueError for a method that trains no weights of the model."""
    if not config.parameters.get("lora"):
        return None
    if not isinstance(method, GradientMethod) or method.attaches:
        raise ValueError(
            f"found parameters={config.parameters.name} for {method.name}, which trains no weights of the model:"
            " expected parameters=NAME without lora, or another method, as method=few_shot"
        )
    return built(config.parameters.lora)


def changes_of(lora: LoRA | None, maker: Model, roles: Sequence[str]) -> list[str]:
    """The weights "component/parameter" that an edit made on this model may change. ValueError where LoRA fits none."""
    return maker.select(roles) if lora is None else lora.matrices(maker, roles)


@dataclass
class Making:
    """Makes the edits of a run: each part once on each model, whichever shares get it.

    Attributes:
        config, evaluation, task: of the run.
        method: its members make the parts.
        shares: who is edited for whom.
        onto: what the models hold already, if anything.
    """

    config: DictConfig
    evaluation: Evaluation
    task: Task
    method: Method
    shares: Sequence[Share]
    onto: Edit | None
    made: dict[tuple[int, Model], Edit] = field(default_factory=dict)

    def edit(self, share: Share, where: Path) -> Edit:
        """The edit of a share, without what it is on top of; checkpoints and logs are in the folder `where`."""
        members = self.method.members
        for place, maker in enumerate(share.makers):
            if (place, maker) not in self.made:
                below = where if len(members) == 1 else where / "parts" / members[place].name
                with self.onto.applied(maker) if self.onto else nullcontext():
                    self.made[place, maker] = self._part(place, maker, below)
        return self.method.joined([self.made[each] for each in enumerate(share.makers)])

    def _part(self, place: int, maker: Model, where: Path) -> Edit:
        member = self.method.members[place]
        getting = [r for share in self.shares if share.makers[place] is maker for r in share.recipients]
        names, trained = [r.name for r in getting], [r.name for r in getting if r is maker]
        readings = [r for share in self.shares if share.makers[place] is maker for r in share.readings]
        looks = RenderClips(self.evaluation, names, self.config.evaluation.at_steps, self.onto, trained)
        return member.erase(maker, replace(
            self.task, roles=self.method.roles_of(member, maker, self.task.roles),
            readings=list(dict.fromkeys(readings)) if "text_encoder" in member.edits else [],
            trainer=partial(assembly.trainer_of, self.config, where, self.evaluation.loggers, looks),
            checkpoint=assembly.checkpoint_in(where),
        ))  # fmt: skip
