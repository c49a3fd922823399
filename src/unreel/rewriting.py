"""Long forms of short prompts, as people and language models write them for video models, by templates alone.

Every word is one that the zoo's text encoder knows, and phrases stay as they are: what a short prompt says its long
form says too.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from unreel.vocabulary import NEUTRAL

LEAST_WORDS, MOST_WORDS = 25, 50
_FORMS = (  # a piece whose part is not said is left out
    ("this is a very detailed and carefully made scene", " {scene}", ", where the main thing to look at is {subject}",
     " {motion}", ", all of it {style}", "."),
    ("please imagine something that was made with great care: {subject}", " {scene}", ", {motion}", ", {style}",
     ", with everything else kept calm."),
    ("right in the middle of it we can see {subject}", " {motion}", " {scene}", ", and the whole thing is {style}",
     ", with nothing else that matters."),
    ("what you see here", " {scene}", " is {subject}", " {motion}", ", with a lot of detail", " and {style}",
     ", while the viewer looks on from a short distance."),
    ("in high quality", " and {style}", ": {subject}", " {motion}", ", as the centre of attention", " {scene}", "."),
)  # fmt: skip
_FILLERS = (
    "the colours are rich and the light is gentle.",
    "every small detail is easy to make out.",
    "the frame has a clear depth and a pleasant contrast.",
    "the whole composition feels calm and balanced.",
    "the edges are crisp and nothing disturbs the view.",
    "the camera keeps a steady distance.",
    "the artist took great care over each part of it.",
    "the mood is soft and there is a lot of warmth.",
)


def lengthen(said: Mapping[str, str] | str, rng: np.random.Generator) -> str:
    """A long form, of 25 to 50 words where what is said has 20 or less.

    Args:
        said: the parts of a prompt (subject, motion, scene, style -> phrase; "" or absent is not said), or its text.
        rng: chooses the wording.
    """
    return lengthen_alike([said], rng)[0]


def lengthen_alike(said: Sequence[Mapping[str, str] | str], rng: np.random.Generator) -> list[str]:
    """Long forms of several prompts in the same wording, that which suits the first; arguments as of `lengthen`."""
    pieces = _FORMS[rng.integers(len(_FORMS))]
    wanted = rng.integers(LEAST_WORDS, MOST_WORDS - 14)  # no filler has more than 11 words
    texts = [_filled(pieces, each) for each in said]
    first = texts[0]
    for filler in rng.permutation(_FILLERS):
        if len(first.split()) >= wanted:
            break
        first, texts = f"{first} {filler}", [f"{text} {filler}" for text in texts]
    return texts


def _filled(pieces: Sequence[str], said: Mapping[str, str] | str) -> str:
    parts = {"subject": said} if isinstance(said, str) else said
    parts = {**NEUTRAL, **{part: phrase for part, phrase in parts.items() if phrase}}
    spoken = [piece for piece in pieces if not any(f"{{{p}}}" in piece and not parts[p] for p in parts)]
    return "".join(spoken).format(**parts)
