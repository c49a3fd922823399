"""Partnered: an edit of the text encoder, and another one of the denoiser, which meets what enters behind the encoder.

    (phi, psi) <- (phi + d_phi, psi + d_psi)        phi: text encoder, d_phi by one method; psi: denoiser, by another

Both are made on the unedited model, so that the partner sees the embeddings which the unedited denoiser understands.
Neither needs the other: the sum is the same in any order. A recipient that holds the donor's denoiser gets both; one
that shares the encoder alone gets that part, and the partner is made on its own denoiser.

Reference: ours. What it combines is said in the files of the two methods.
Departures: none; there is no paper to depart from.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from unreel.edits import Edit
from unreel.erased import together
from unreel.methods.method import Method, Task
from unreel.models.model import Model
from unreel.models.roles import split_name
from unreel.validation import checked


@checked
class Partnered(Method):
    """The method; which two it combines is in conf/method/*_partnered.yaml.

    Attributes:
        encoder: changes weights of the text encoder alone.
        denoiser: its partner, changes weights of the denoiser alone.

    Raises:
        ValueError: for methods that change anything else, or that act while a pipeline samples.
    """

    encoder: Method
    denoiser: Method
    edits = ("text_encoder", "denoiser")

    def __post_init__(self) -> None:
        for member, component in zip(self.members, self.edits, strict=True):
            if tuple(member.edits) != (component,) or member.attaches:
                found = "acts while the pipeline samples" if member.attaches else f"edits {' and '.join(member.edits)}"
                raise ValueError(
                    f"{self.name}: found {member.name}, which {found or 'no weights'}: expected a method that changes"
                    f" weights of the {component} alone"
                )

    @property
    def members(self) -> Sequence[Method]:
        return (self.encoder, self.denoiser)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset[str]().union(*(member.needs for member in self.members))

    def roles_of(self, member: Method, model: Model, roles: Sequence[str]) -> list[str]:
        """Those that select weights of the member's component alone."""
        return [role for role in roles if {split_name(n)[0] for n in model.select([role])} == set(member.edits)]

    def check(self, model: Model, roles: Sequence[str]) -> None:
        for member in self.members:
            own = self.roles_of(member, model, roles)
            if not own:
                raise ValueError(
                    f"method {self.name} cannot change the {member.edits[0]}, for which parameters.roles={list(roles)}"
                    " has no role of its own: expected some of the text encoder and some of the denoiser, as"
                    " parameters=mlp_final_attention_cross_attention"
                )
            member.check(model, own)

    def most_steps(self, concepts: int, shots: int) -> int | None:
        each = [member.most_steps(concepts, shots) for member in self.members]
        return sum(steps for steps in each if steps is not None) if any(steps is not None for steps in each) else None

    def joined(self, edits: Sequence[Edit]) -> Edit:
        first, second = edits
        facts: dict[str, Any] = together([edit.provenance["facts"] for edit in edits])
        return replace(first + second, method=self.name, provenance={"facts": facts})

    def erase(self, model: Model, task: Task) -> Edit:
        tasks = [replace(task, roles=self.roles_of(member, model, task.roles)) for member in self.members]
        return self.joined([member.erase(model, own) for member, own in zip(self.members, tasks, strict=True)])
