"""Metric: the contract of what is measured in judged clips. One file and one YAML each."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from unreel.judges.judge import Judged
from unreel.records import Concept, Prompt, Value


class Metric(ABC):
    """Values of the clips of one concept and split.

    Attributes:
        of_attacks: whether attacked clips are measured too, of which nothing counts but whether they show the concept.
    """

    of_attacks: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, after: Judged, before: Judged | None) -> list[Value]:
        """What is measured; nothing where it does not apply.

        Args:
            after: the clips that are measured, all of one concept and split: at any stage.
            before: the same prompts and seeds on the unedited model, where they are measured after an edit.
        """

    def check(self, prompts: Sequence[Prompt], concepts: Sequence[Concept], num_frames: Sequence[int]) -> None:
        """ValueError for what it cannot measure, before anything is rendered; arguments as in `Judge.check`."""
        return


def mean_of(values: Tensor) -> tuple[float, float | None, int]:
    """Mean, standard error and count of values (B,)."""
    n = len(values)
    return float(values.mean()), float(values.std() / n**0.5) if n > 1 else None, n


def share_of(clips: Sequence[Sequence[float]]) -> tuple[float, float, int]:
    """The mean over all marks in [0, 1], one or more a clip, its standard error as that of a share of clips, and n."""
    p, n = sum(map(sum, clips)) / sum(map(len, clips)), len(clips)
    return p, (p * (1 - p) / n) ** 0.5, n
