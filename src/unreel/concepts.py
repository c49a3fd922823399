"""YAML -> Concept, and the prompts that are made from it.

A prompt is put together from parts: "a cat" + "jumping" + "on the beach" + "in the style of van gogh". The parts that
surround a concept are shared out between training and evaluation, and so are the sentences around them, so that no text
of the training is ever evaluated.
"""

import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unreel.records import PARTS, Concept, Prompt

KINDS = ("character", "style", "object", "face", "motion")
_FORMS = {  # how a bare name is said, by kind
    "character": ("{}",),
    "face": ("{}", "the face of {}", "a portrait of {}"),
    "object": ("{a} {}", "the {}", "one {}"),
    "style": ("in the style of {}", "painted by {}", "{} style"),
    "motion": ("{}",),
}
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
NEUTRAL = {"subject": "something", "motion": "", "scene": "", "style": ""}  # what stands where a part is left out


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"


def _plain(phrases: Sequence[str] | None) -> tuple[str, ...]:
    """Phrases with single spaces, each once."""
    return tuple(dict.fromkeys(" ".join(str(phrase).split()) for phrase in phrases or ()))


def to_concept(slug: str, config: Mapping[str, Any]) -> Concept:
    """A Concept from its YAML: `kind`, and either `name` (said as its kind is usually said) or `phrases`.

    Raises:
        ValueError: for a slug that is no plain name, unknown or missing keys, an unknown kind, or lists that overlap.
    """
    known = {"kind", "name", "phrases", "anchor", "neighbours", "other_senses", "images"}
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", slug):
        raise ValueError(f"found the concept name {slug!r}: expected letters, digits, '_' and '-'")
    if not isinstance(config, Mapping):
        raise ValueError(f"concept {slug}: found {config!r}: expected keys and values, as in conf/concept/cat.yaml")
    if unknown := sorted(set(config) - known):
        raise ValueError(f"concept {slug}: found the keys {', '.join(unknown)}: expected {', '.join(sorted(known))}")
    kind = config.get("kind")
    if kind not in KINDS:
        raise ValueError(f"concept {slug}: found kind {kind!r}: expected one of {', '.join(KINDS)}")
    for key in ("phrases", "neighbours", "other_senses"):
        if not isinstance(config.get(key) or (), list | tuple):
            raise ValueError(
                f"concept {slug}: found {key}: {config[key]!r}: expected a list, as in {key}: [a cat, a dog]"
            )
    name, phrases = str(config.get("name") or "").strip(), _plain(config.get("phrases"))
    if bool(name) == bool(phrases):
        raise ValueError(f"concept {slug}: expected either name (as in name: van gogh) or phrases")
    phrases = phrases or _plain([form.format(name, a=_article(name)) for form in _FORMS[kind]])
    concept = Concept(
        slug=slug,
        kind=kind,
        phrases=phrases,
        anchor=" ".join(str(config.get("anchor") or "").split()),
        neighbours=_plain(config.get("neighbours")),
        other_senses=_plain(config.get("other_senses")),
        images=Path(config["images"]) if config.get("images") else None,
    )
    kept = {phrase.casefold() for phrase in (*concept.neighbours, *concept.other_senses)}
    if both := [phrase for phrase in concept.phrases if phrase.casefold() in kept]:
        raise ValueError(f"concept {slug}: {both[0]!r} is to be forgotten and kept: remove it from one of the lists")
    return concept


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
        self.vocabulary = {p: self._kept(vocabulary.get(p, ())) for p in PARTS}
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
        parts = [p for p in PARTS if p not in (without, "style") and (p != "motion" or self.with_motion)]
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
        return self._kept(concept.neighbours) or self.vocabulary[concept.part]

    def _kept(self, phrases: Sequence[str]) -> list[str]:
        return [phrase for phrase in phrases if phrase.casefold() not in self.erased]


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
    kept = prompts("retain", near, (count + 1) // 2, concept.part) + prompts("retain", far, count // 2, "")
    other = prompts("other_sense", concept.other_senses, count, concept.part) if concept.other_senses else []
    return prompts("forget", concept.phrases, count, concept.part) + kept + other


class TrainingCaptions:
    """Captions of the training: with the concept, the same without it, and others that must not move.

    Args:
        concept: what is erased.
        surroundings: what else they say.
    """

    def __init__(self, concept: Concept, surroundings: Surroundings) -> None:
        self.concept, self.surroundings = concept, surroundings
        rng = np.random.default_rng([zlib.crc32(concept.slug.encode()), 2])
        contexts = surroundings.contexts(concept.part, False, rng, 96)
        self.contexts = [context for context in contexts if self._is_free(context, concept.phrases[0])]
        self.near = [*surroundings.neighbours(concept), *concept.other_senses]

    def pair(self, rng: np.random.Generator, shot: int | None = None) -> tuple[str, str]:
        """A caption that names the concept, and the same one with its anchor in its place.

        Args:
            rng: chooses wording and surroundings.
            shot: the shot whose surroundings it says, as `shot_prompts` did; None for any.
        """
        sentence = SENTENCES[rng.integers(len(SENTENCES))]
        phrase = self.concept.phrases[rng.integers(len(self.concept.phrases))]
        context = self._context(rng, phrase) if shot is None else self.contexts[shot % len(self.contexts)]
        anchor = self.concept.anchor or NEUTRAL[self.concept.part]
        named, anchored = ({**context, self.concept.part: said} for said in (phrase, anchor))
        return sentence.format(say(named)), sentence.format(say(anchored))

    def shot_prompts(self, count: int, seed: int) -> list[str]:
        """What the donor is given for `count` shots: the concept in the first contexts of the training."""
        rng = np.random.default_rng([seed, 4])
        phrases = self.concept.phrases
        said = [
            {**self.contexts[i % len(self.contexts)], self.concept.part: phrases[i % len(phrases)]}
            for i in range(count)
        ]
        return [SENTENCES[rng.integers(len(SENTENCES))].format(say(parts)) for parts in said]

    def retain(self, rng: np.random.Generator, count: int) -> list[str]:
        """`count` captions that must keep their meaning: of near things, far ones, other senses, and of nothing."""
        captions = []
        far = self.surroundings.vocabulary[self.concept.part] or [""]
        for i in range(count):
            choices = (self.near, far, self.concept.other_senses or self.near, [NEUTRAL[self.concept.part]])[i % 4]
            phrase = str(choices[rng.integers(len(choices))]) if choices else ""
            text = say({**self._context(rng, phrase), self.concept.part: phrase})
            captions.append(SENTENCES[rng.integers(len(SENTENCES))].format(text) if rng.random() < 0.8 else "")
        return captions

    def _context(self, rng: np.random.Generator, phrase: str) -> dict[str, str]:
        """Some of the parts around a phrase, each left out now and then, as no evaluation says them."""
        while True:
            whole = self.contexts[rng.integers(len(self.contexts))]
            context = {part: said for part, said in whole.items() if rng.random() < 0.8}
            if self._is_free(context, phrase):
                return context

    def _is_free(self, context: dict[str, str], phrase: str) -> bool:
        """Whether no evaluation says the phrase, or the anchor, exactly so."""
        said = [{**context, self.concept.part: each} if each else context for each in (phrase, self.concept.anchor)]
        return not any(map(self.surroundings.is_evaluated, said))
