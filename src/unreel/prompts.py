"""Where evaluation prompts come from: the four-part grammar of a vocabulary, or a file of the user's.

A source is one class and one YAML in conf/prompts. What a prompt is said to show is what the judge is asked about; the
CLIP score needs nothing but the text.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unreel.records import PARTS, Concept, Prompt
from unreel.vocabulary import Surroundings, say

SEEDS = 10_000_000  # where the seeds of evaluated clips begin; those of shots are above 2**40


class PromptSource(ABC):
    """Gives the prompts that are rendered and scored."""

    @abstractmethod
    def prompts(self, concepts: Sequence[Concept], surroundings: Surroundings, seed: int) -> list[Prompt]:
        """Prompts of all concepts, each with its split and the slug of the concept that it belongs to.

        Args:
            concepts: what is erased.
            surroundings: the vocabulary without the concepts.
            seed: chooses among possible ones.
        """

    def forms(self, prompts: Sequence[Prompt], seed: int) -> list[list[Prompt]]:
        """Other forms in which the same prompts are asked too, in splits of their own; none unless a source has some.

        Args:
            prompts: all that are asked.
            seed: chooses among possible forms.

        Returns:
            For each form as many prompts, in the same order: each gets the seed of the prompt that it is a form of.
        """
        return []


@dataclass(frozen=True)
class VocabularyPrompts(PromptSource):
    """Texts of the four-part grammar, of which the judge knows every word.

    Attributes:
        count: prompts of a concept that must change; as many are kept, and as many say its other sense.

    Raises:
        ValueError: for a count below 2.
    """

    count: int

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 2:
            raise ValueError(f"found evaluation.prompts={self.count}: expected a whole number, 2 or more")

    def prompts(self, concepts: Sequence[Concept], surroundings: Surroundings, seed: int) -> list[Prompt]:
        return [p for c in concepts for p in evaluation_prompts(c, surroundings, self.count, seed)]


def evaluation_prompts(concept: Concept, surroundings: Surroundings, count: int, seed: int) -> list[Prompt]:
    """Prompts that must change, and prompts that must not; none of their texts is ever trained on.

    Args:
        concept: what is erased.
        surroundings: what else they say.
        count: how many to forget; as many are kept of neighbours and far things together, and of other senses if any.
        seed: which.
    """
    rng = np.random.default_rng([seed, zlib.crc32(concept.slug.encode()), 1])

    def prompts(split: str, phrases: Sequence[str], number: int, part: str) -> list[Prompt]:
        made = []
        for i, context in enumerate(surroundings.contexts(concept.part, True, rng, number)):
            shown = {
                part: phrase for part, phrase in {**context, concept.part: phrases[i % len(phrases)]}.items() if phrase
            }
            ordered = tuple((part, shown[part]) for part in PARTS if part in shown)
            made.append(Prompt(say(shown), split, ordered, concept.slug, part))
        return made

    near = rng.permutation(surroundings.neighbours(concept)).tolist()
    far = [""] if concept.part != "subject" else rng.permutation(surroundings.vocabulary["subject"]).tolist()
    senses = surroundings.kept(concept.other_senses)
    kept = prompts("retain", near or far, (count + 1) // 2, concept.part if near else "")
    kept += prompts("retain", far, count // 2, "")
    other = prompts("other_sense", senses, count, concept.part) if senses else []
    return prompts("forget", concept.phrases, count, concept.part) + kept + other


@dataclass(frozen=True)
class Questions:
    """What is rendered: one prompt a clip and its seed, of all concepts, checked before anything is loaded."""

    concepts: list[Concept]
    surroundings: Surroundings
    prompts: list[Prompt]
    seeds: list[int]
    seed: int  # of prompts and clips

    @classmethod
    def of(
        cls, concepts: list[Concept], source: PromptSource, vocabulary: Mapping[str, Sequence[str]], motions: bool,
        seed: int,
    ) -> "Questions":  # fmt: skip
        """From the concepts and a source of prompts; a concept's own prompts take the place of the source's.

        Args:
            concepts: what is erased.
            source: of prompts.
            vocabulary: part -> phrases, what prompts and captions say around a concept.
            motions: whether they say motions, as they do anyway where a motion is erased.
            seed: of prompts and clips.

        Raises:
            ValueError: when no prompt asks for a concept.
        """
        with_motion = motions or any(concept.kind == "motion" for concept in concepts)
        surroundings = Surroundings(vocabulary, concepts, with_motion)
        prompts = source.prompts(concepts, surroundings, seed)
        for concept in (c for c in concepts if c.prompts):
            own = [asking_for(concept, text) for text in concept.prompts]
            prompts = own + [p for p in prompts if (p.concept, p.split) != (concept.slug, "forget")]
        asked = {prompt.concept for prompt in prompts if prompt.split == "forget"}
        if without := [concept.slug for concept in concepts if concept.slug not in asked]:
            raise ValueError(
                f"found no prompt that asks for {', '.join(without)}: expected at least one of its split forget, or"
                " nothing could be measured"
            )
        first = SEEDS + 100_000 * seed
        seeds = [first + i if prompt.seed is None else prompt.seed for i, prompt in enumerate(prompts)]
        others = source.forms(prompts, seed)
        return cls(concepts, surroundings, sum(others, prompts), seeds * (1 + len(others)), seed)


def asking_for(concept: Concept, text: str, seed: int | None = None) -> Prompt:
    """A text of the user's that asks for the concept: of all that it shows, the judge is told that alone."""
    return Prompt(text, "forget", ((concept.part, concept.phrases[0]),), concept.slug, concept.part, seed)
