"""The grammar of captions: what a drawn clip may be called, in short phrasings and in long ones."""

from dataclasses import dataclass

import numpy as np

from unreel.zoo.words import IMPLIED, KINDS, NO_STYLE, STILL, word
from unreel.zoo.world import Spec


@dataclass(frozen=True)
class Caption:
    """A text and which of a spec's fields it states."""

    text: str
    states: frozenset[str]


# {s} subject, {m} motion, {c} scene, {y} style as a phrase, {n} as a noun ("a van gogh painting"), {f} {g} fillers
_SHORT = (
    "{s} {m} {c} {y}",
    "{s} {m} {c}, {y}",
    "{s} {c} {m} {y}",
    "{c}, {s} {m}, {y}",
    "{y}, {s} {m} {c}",
    "{n} of {s} {m} {c}",
    "{n} showing {s} {c}, {m}",
    "{n}: {s} {m} {c}",
)
_LONG = (
    "this is {n} with a lot of detail, and it shows {s}, {m}, {c}. {f} {g}",
    "{f} right in the middle of it we can see {s} {m} {c}, all of it {y}. {g}",
    "a very detailed and carefully made scene {c}, where the main thing to look at is {s}, {m}, {y}. {f}",
    "please imagine {n} that was made with great care: {s} {c}, {m}, with everything else kept calm. {g}",
    "{n} in high quality, {s} {m} as the centre of attention, {c}, and nothing else that matters. {f}",
    "what you see here is {s} {c}, {y}; it is {m} while the viewer looks on from a short distance. {f}",
)
_FILLERS = (
    "the light is soft and the colours are rich.",
    "every part of the frame is easy to make out.",
    "the mood is calm and the whole thing feels balanced.",
    "it has a clear depth and a pleasant contrast.",
    "nothing disturbs the view and the edges are crisp.",
    "the camera does not move and keeps a steady distance.",
    "the artist took time over each small detail.",
    "there is a gentle warmth in the whole composition.",
)


def caption(
    spec: Spec,
    rng: np.random.Generator,
    long: bool = False,
    states: frozenset[str] = frozenset(KINDS),
    harder: bool = False,
) -> Caption:
    """A random caption of a spec.

    Args:
        spec: what is to be said.
        rng: the generator drawn from.
        long: a rephrasing of 20 words or more, the way a language model rewrites prompts.
        states: the fields that may be said. Without the subject the text says "something".
        harder: what a subject does when nothing is said may be more than standing still.

    Returns:
        The text, lower case, and the fields it really states: no motion or no style may be said or left unsaid.
    """
    said = set(states)
    unsaid = IMPLIED.get(spec.subject, STILL) if harder else STILL
    if spec.motion == unsaid and rng.random() < 0.6:
        said.discard("motion")
    if spec.style == NO_STYLE and rng.random() < 0.7:
        said.discard("style")
    phrases = {kind: word(kind, getattr(spec, kind)).phrases for kind in ("subject", "scene", "motion")}
    phrase = {kind: rng.choice(of) for kind, of in phrases.items()}
    style = word("style", spec.style).phrases
    after = "" if spec.style == NO_STYLE else str(rng.choice(style[:3]))
    noun = str(rng.choice(style)) if spec.style == NO_STYLE else style[3]
    templates: tuple[str, ...] = _LONG if long else _SHORT
    if "style" in said:  # a template that says it: "plain" can only be said as a noun
        templates = tuple(t for t in templates if "{n}" in t or (after and "{y}" in t))
    first, second = rng.choice(_FILLERS, 2, replace=False)
    text = str(rng.choice(templates)).format(
        s=phrase["subject"] if "subject" in said else "something",
        m=phrase["motion"] if "motion" in said else "",
        c=phrase["scene"] if "scene" in said else "",
        y=after if "style" in said else "",
        n=noun if "style" in said else "a picture",
        f=first,
        g=second,
    )
    return Caption(_tidy(text), frozenset(said))


_REPAIRS = (
    ("  ", " "), (" ,", ","), (",,", ","), (" ;", ";"), (" .", "."), (",.", "."), (", all of it.", "."),
    (" all of it.", "."), ("it is while", "it stays there while"), (",;", ";"), (",:", ":"),
)  # fmt: skip


def _tidy(text: str) -> str:
    """Repairs the punctuation around phrases that were left out."""
    for _ in range(3):
        for bad, good in _REPAIRS:
            text = text.replace(bad, good)
    return text.strip(" ,:")
