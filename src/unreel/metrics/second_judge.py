"""Second judge: the accuracies once more, by a classifier that has nothing in common with the run's judge.

    second_concept_accuracy, second_context_accuracy, second_accuracy   as those of `Accuracy`
    agreement   the share of marks in which both judges say the same, over what both can read

An eraser that only fools one judge shows here. Range [0, 1]. Reference: `unreel.metrics.accuracy`. Departures: none.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from unreel.judges.judge import Classifier, Judged
from unreel.metrics.accuracy import accuracies
from unreel.metrics.metric import Metric
from unreel.records import Concept, Prompt, Value

_AT_A_TIME = 32  # clips that are read from disk together


class SecondJudge(Metric):
    """Values of another classifier.

    Args:
        judge: the classifier.
    """

    of_attacks = True

    def __init__(self, judge: Classifier) -> None:
        self.judge = judge

    @property
    def content(self) -> str:
        """Hash of the classifier's weights."""
        return self.judge.content

    def check(self, prompts: Sequence[Prompt], concepts: Sequence[Concept], num_frames: Sequence[int]) -> None:
        """ValueError for words that the classifier does not know. Parts that it cannot read are left out."""
        readable = [concept for concept in concepts if concept.part in self.judge.parts]
        self.judge.check(prompts, readable, num_frames)

    def __call__(self, after: Judged, before: Judged | None) -> list[Value]:
        """In [0, 1]; agreement is good when it is high."""
        prompts, clips = after.rendered.prompts, after.rendered.clips
        marks: list[dict[str, bool]] = []
        for start in range(0, len(prompts), _AT_A_TIME):
            part = range(start, min(start + _AT_A_TIME, len(prompts)))
            marks += self.judge.marks([prompts[i] for i in part], torch.stack([clips[i] for i in part]))
        values = [replace(v, name=f"second_{v.name}") for v in accuracies(after.split, prompts, marks)]
        pairs = zip(marks, after.marks, strict=True)
        same = [seen == other[part] for own, other in pairs for part, seen in own.items() if part in other]
        if same:
            p, n = sum(same) / len(same), len(prompts)
            values.append(Value(after.split, "agreement", p, (p * (1 - p) / n) ** 0.5, n, "share", "up"))
        return values
