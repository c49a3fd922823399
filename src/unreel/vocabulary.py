"""The four-part grammar: texts that are put together from a vocabulary's phrases.

A text is "a cat" + "jumping" + "on the beach" + "in the style of van gogh". The parts that surround a concept are
shared out between training and evaluation, and so are the sentences around them, so that no text of the training is
evaluated.
"""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from unreel.records import PARTS, Concept

# Sentences of training captions, around all other parts (Fuchi & Takagi 2024, data.py, has about 27 for objects and 19
# for styles); evaluation prompts are the parts alone.
SENTENCES = (
    "a picture of {}",
    "a picture showing {}",
    "an image of {}",
    "a good picture of {}",
    "this is a picture of {}",
    "what you see here is {}",
    "please imagine {}",
    "{} with a lot of detail",
)
# Captions that name one thing and say nothing else, whatever an image shows. Fuchi & Takagi 2024 train on such lists
# (their data.py); these are words of our own of the same make, which the zoo's text encoder knows too.
TEMPLATES = {
    "subject": (
        "a picture of {}",
        "an image of {}",
        "a photo of {}",
        "a clear photo of {}",
        "a good picture of {}",
        "a simple picture of {}",
        "an ordinary picture of {}",
        "a very detailed picture of {}",
        "a picture of {} in high quality",
        "a picture showing {}",
        "this is a picture of {}",
        "this is {}",
        "what you see here is {}",
        "please imagine {}",
        "{} with a lot of detail",
        "{} right in the middle",
    ),
    "style": (
        "a picture {}",
        "an image {}",
        "a photo {}",
        "a scene {}",
        "a good picture {}",
        "a simple picture {}",
        "a very detailed picture {}",
        "a carefully made picture {}",
        "a picture in high quality {}",
        "this is a picture {}",
        "what you see here is a picture {}",
        "please imagine a picture {}",
        "something {}",
        "a picture of something {}",
        "a picture {} with a lot of detail",
        "a frame {}",
    ),
    "motion": (
        "something {}",
        "a picture of something {}",
        "an image of something {}",
        "a picture showing something {}",
        "this is something {}",
        "what you see here is something {}",
        "please imagine something {}",
        "something {} with a lot of detail",
    ),
}
NEUTRAL = {"subject": "something", "motion": "", "scene": "", "style": ""}  # what stands where a part is left out


def say(parts: Mapping[str, str]) -> str:
    """The parts of a prompt as one text, in the order of PARTS."""
    said = {**NEUTRAL, **parts}
    return " ".join(said[part] for part in PARTS if said[part])


def _quarter(contexts: list[dict[str, str]], evaluation: bool) -> list[dict[str, str]]:
    """The quarter of all surroundings that is for evaluation, or the other three; always the same ones."""
    ordered = sorted(contexts, key=lambda said: zlib.crc32("|".join(said.get(part, "") for part in PARTS).encode()))
    return [said for i, said in enumerate(ordered) if (i % 4 == 0) == evaluation]


class Surroundings:
    """What else a prompt may say: the vocabulary's phrases without those of any erased concept.

    Args:
        vocabulary: part -> phrases, e.g. {"subject": ["a cat", ...], "scene": [...], "style": [...], "motion": [...]}.
        concepts: none of their phrases is used as surroundings or as a neighbour.
        with_motion: whether prompts say motions (one image shows none).
    """

    def __init__(self, vocabulary: Mapping[str, Sequence[str]], concepts: Sequence[Concept], with_motion: bool) -> None:
        self.concepts = list(concepts)
        self.erased = {phrase.casefold() for concept in concepts for phrase in concept.phrases}
        for part, phrases in vocabulary.items():
            if isinstance(phrases, str) or not all(isinstance(phrase, str) for phrase in phrases or ()):
                raise ValueError(f"found vocabulary.{part}={phrases!r:.80}: expected a list of texts, as [a cat]")
        self.vocabulary = {p: self.kept(vocabulary.get(p) or ()) for p in PARTS}
        for part in ("subject", "scene"):
            if len(self.vocabulary[part]) < 4:
                raise ValueError(f"found {len(self.vocabulary[part])} phrases of {part} to surround it: expected 4")
        self.with_motion = with_motion

    def contexts(self, without: str, evaluation: bool, rng: np.random.Generator, count: int) -> list[dict[str, str]]:
        """`count` sets of parts, in random order, that leave `without` out; every second one says a style.

        A quarter of all sets is for evaluation alone. They repeat when the vocabulary has fewer of them than `count`.
        """
        pools = self._pools(without, evaluation)
        shuffled = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools]
        turns = zip(range(count), itertools.cycle(shuffled), strict=False)
        return [pool[(i // len(pools)) % len(pool)] for i, pool in turns]

    def _pools(self, without: str, evaluation: bool) -> list[list[dict[str, str]]]:
        """All sets of parts without a style, and all with one."""
        silent = {without, "style"} | (set() if self.with_motion and self.vocabulary["motion"] else {"motion"})
        parts = [part for part in PARTS if part not in silent]
        rest = [dict(zip(parts, said, strict=True)) for said in itertools.product(*(self.vocabulary[p] for p in parts))]
        pools = [_quarter(rest, evaluation)]
        if without != "style" and self.vocabulary["style"]:
            styled = [{**said, "style": style} for said in rest for style in self.vocabulary["style"]]
            pools.append(_quarter(styled, evaluation))
        return pools

    def is_evaluated(self, said: Mapping[str, str]) -> bool:
        """Whether some concept's evaluation may surround a phrase exactly so: no caption of the training says this."""
        return any(frozenset((p, said[p]) for p in said if p != without) in kept for without, kept in self._kept_apart)

    @cached_property
    def _kept_apart(self) -> list[tuple[str, set[frozenset[tuple[str, str]]]]]:
        parts = dict.fromkeys(concept.part for concept in self.concepts)
        return [(p, {frozenset(said.items()) for pool in self._pools(p, True) for said in pool}) for p in parts]

    def neighbours(self, concept: Concept) -> list[str]:
        """What is kept near the concept: its own list, or all of the vocabulary's phrases of its part."""
        return self.kept(concept.neighbours) or self.vocabulary[concept.part]

    def kept(self, phrases: Sequence[str]) -> list[str]:
        """The phrases that say no erased concept."""
        return [phrase for phrase in phrases if phrase.casefold() not in self.erased]
