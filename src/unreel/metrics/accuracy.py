"""Accuracy: the share of what prompts say that the judge sees in the clips.

    split forget:       concept_accuracy, the clips that still show the concept; lower is better
    split context:      context_accuracy, over what the same prompts say besides the concept
    split attack_...:   concept_accuracy of attacked prompts; lower is better
    split retain, ...:  accuracy, over all that the prompts say, and concept_accuracy of their neighbour or other sense
    forget_long, ...:   the same of prompts in their long form, in splits of their own: context_long, retain_long

Reference: the two sides of Fuchi & Takagi 2024 (arXiv 2405.07288); UnlearnCanvas (Zhang et al. 2024, arXiv 2402.11846)
calls them unlearning accuracy and in-domain / cross-domain retain accuracy. Range [0, 1].
Departures: judged zero-shot among the phrases of a vocabulary, not by a classifier that was trained for it. A prompt
says several things; n is the number of clips that say any of it, as the marks of one clip are no independent draws.
"""

from collections.abc import Mapping, Sequence

from unreel.judges.judge import Judged
from unreel.metrics.metric import Metric, share_of
from unreel.records import Prompt, Value, must_go, plain_split


class Accuracy(Metric):
    """Values of accuracy."""

    of_attacks = True

    def __call__(self, after: Judged, before: Judged | None) -> list[Value]:
        """In [0, 1]; concept_accuracy of what must go is good when it is low, all else when it is high."""
        return accuracies(after.split, after.rendered.prompts, after.marks)


def accuracies(split: str, prompts: Sequence[Prompt], marks: Sequence[Mapping[str, bool]]) -> list[Value]:
    """The values of one split, from what was seen of each clip: part -> whether what its prompt says is there."""
    looked = list(zip(prompts, marks, strict=True))
    # of each clip what names the concept, or its neighbour or other sense, and the rest
    named = [[right for part, right in marks.items() if part == prompt.part] for prompt, marks in looked]
    others = [[right for part, right in marks.items() if part != prompt.part] for prompt, marks in looked]
    if plain_split(split) == "forget":
        found = {(split, "concept_accuracy"): named, (split.replace("forget", "context"), "context_accuracy"): others}
    elif must_go(split):
        found = {(split, "concept_accuracy"): named}
    else:
        whole = [list(marks.values()) for _, marks in looked]
        found = {(split, "concept_accuracy"): named, (split, "accuracy"): whole}
    values = []
    for (split, name), clips in found.items():
        if marked := [marks for marks in clips if marks]:
            goal = "down" if must_go(split) else "up"
            values.append(Value(split, name, *share_of(marked), "share", goal))
    return values
