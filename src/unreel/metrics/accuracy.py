"""Accuracy: the share of what prompts say that the judge sees in the clips.

    forget:   concept_accuracy, the clips that still show the concept (lower is better), and context_accuracy of the
              split `context`, what those prompts say besides it
    retain:   accuracy over all that the prompts say; likewise other_sense, whose concept_accuracy is of the kept sense

Reference: the two sides of Fuchi & Takagi 2024 (arXiv 2405.07288); UnlearnCanvas (Zhang et al. 2024, arXiv 2402.11846)
calls them unlearning accuracy and in-domain / cross-domain retain accuracy. Range [0, 1].
Departures: judged zero-shot among the phrases of a vocabulary, not by a classifier that was trained for it.
"""

from collections.abc import Iterable
from typing import Any

from unreel.rendering import Rendered


def _share(hits: Iterable[bool], n: int) -> tuple[float, float | None, int]:
    marks = list(hits)
    p = sum(marks) / len(marks)
    return p, (p * (1 - p) / len(marks)) ** 0.5, n


def marks_of(judge: Any, rendered: Rendered) -> list[dict[str, bool]]:
    """For each clip, whether each part that its prompt says is seen; parts that the judge cannot read are left out."""
    said = {part for prompt in rendered.prompts for part, _ in prompt.shows}
    seen = {part: judge.names(part, rendered.clips) for part in judge.parts if part in said}
    return [
        {part: seen[part][i] == judge.name_of(part, phrase) for part, phrase in prompt.shows if part in seen}
        for i, prompt in enumerate(rendered.prompts)
    ]


class Accuracy:
    """Rows of accuracy."""

    def __call__(self, judge: Any, rendered: Rendered) -> dict[tuple[str, str], tuple[float, float | None, int]]:
        """(split, metric) -> (value in [0, 1], standard error, clips)."""
        marks = marks_of(judge, rendered)
        rows: dict[tuple[str, str], tuple[float, float | None, int]] = {}
        for split in dict.fromkeys(prompt.split for prompt in rendered.prompts):
            chosen = [i for i, prompt in enumerate(rendered.prompts) if prompt.split == split]
            named = [right for i in chosen for part, right in marks[i].items() if part == rendered.prompts[i].part]
            others = [right for i in chosen for part, right in marks[i].items() if part != rendered.prompts[i].part]
            if named:
                rows[split, "concept_accuracy"] = _share(named, len(chosen))
            if split == "forget" and others:
                rows["context", "accuracy"] = _share(others, len(chosen))
            elif split != "forget":
                rows[split, "accuracy"] = _share(named + others, len(chosen))
        return rows
