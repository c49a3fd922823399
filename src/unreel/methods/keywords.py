"""Keywords: the words that say a concept, and which tokens of a prompt they are."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unreel.records import Concept

# Words of phrases that say no concept: "the" of "the drum". At a phrase's ends they are left out.
_FUNCTION_WORDS = {"a", "an", "and", "as", "at", "by", "for", "in", "is", "of", "on", "one", "or", "the", "to", "with"}


def _content(words: Sequence[str]) -> list[str]:
    """The words without function words at their ends."""
    places = [i for i, word in enumerate(words) if word.casefold() not in _FUNCTION_WORDS]
    return list(words[places[0] : places[-1] + 1]) if places else []


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    """All runs of words, the longest first."""
    count = len(words)
    return [tuple(words[i : i + size]) for size in range(count, 0, -1) for i in range(count - size + 1)]


def keywords_of(concept: Concept) -> list[str]:
    """The longest run of words that all phrases of a concept share ("van gogh" of "in the style of van gogh" and
    "painted by van gogh"); where they share none, each phrase. Articles and the like at the ends are left out.
    """
    phrases = [re.findall(r"[^\s,;:.]+", phrase) for phrase in concept.phrases]
    folded = [{tuple(word.casefold() for word in run) for run in _runs(phrase)} for phrase in phrases]
    for run in _runs(phrases[0]):
        shared = tuple(word.casefold() for word in run)
        if (content := _content(run)) and all(shared in runs for runs in folded):
            return [" ".join(content)]
    whole = [phrase.split() for phrase in concept.phrases]  # with their commas, as prompts say them
    return list(dict.fromkeys(" ".join(_content(phrase) or phrase) for phrase in whole))


def name_of(concept: Concept) -> str:
    """The words that all phrases of a concept share: "van gogh", "cat"; where they share none, those of the first."""
    return keywords_of(concept)[0]


def said_with(text: str, concept: Concept, other: str) -> str:
    """A text with something else wherever it says the concept; at the concept's end where no known way says it."""
    ways = "|".join(re.escape(way) for way in sorted([*concept.phrases, name_of(concept)], key=len, reverse=True))
    said, times = re.subn(rf"(?<!\w)(?:{ways})(?!\w)", lambda _: other, text, flags=re.IGNORECASE)
    if times:
        return " ".join(said.split())
    return " ".join((f"{other} {text}" if concept.part == "subject" else f"{text} {other}").split())


def marked(tokenizer: Any, texts: Sequence[str], keywords: Sequence[str], length: int) -> Tensor:
    """Which tokens of B texts, padded or cut to `length` tokens, are those of a keyword: booleans (B, length)."""
    wanted = []
    for keyword in keywords:
        for said in (keyword, f" {keyword}"):  # some tokenizers tell the first word of a text from others
            ids = tokenizer(said, add_special_tokens=False).input_ids
            if ids and ids not in wanted:
                wanted.append(ids)
    read = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length).input_ids
    found = torch.zeros(len(read), length, dtype=torch.bool)
    for row, ids in enumerate(read):
        for own in wanted:
            for start in range(length - len(own) + 1):
                if list(ids[start : start + len(own)]) == own:
                    found[row, start : start + len(own)] = True
    return found
