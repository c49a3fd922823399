"""GuidanceMethod: erasers that leave all weights alone and change what a pipeline does when it samples."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from unreel.edits import Edit
from unreel.methods.method import Method, Task
from unreel.models.model import Model


@contextmanager
def replaced(target: Any, name: str, value: Any) -> Iterator[None]:
    """Inside the `with` block `target.name` is `value`, as an attribute of this one object."""
    missing = object()
    own = vars(target).get(name, missing)
    setattr(target, name, value)
    try:
        yield
    finally:
        if own is missing:
            delattr(target, name)
        else:
            setattr(target, name, own)


@dataclass(frozen=True, kw_only=True)
class GuidanceMethod(Method):
    """An eraser at sampling time: `settings` are all that its `attach` needs to know, on any pipeline."""

    edits = ()

    @abstractmethod
    def settings(self, task: Task) -> Mapping[str, Any]:
        """What goes into the edit; JSON."""

    def erase(self, model: Model, task: Task) -> Edit:
        edit = Edit({}, {}, self.name, self.settings(task))
        return replace(edit, provenance={"facts": self.facts(model, edit)})
