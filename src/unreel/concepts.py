"""YAML -> Concept: what is erased, how it is said, and what must stay."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unreel.metadata import ConceptSaid
from unreel.records import Concept

KINDS = ("character", "style", "object", "face", "motion")
_FORMS = {  # how a bare name is said, by kind
    "character": ("{}",),
    "face": ("{}", "the face of {}", "a portrait of {}"),
    "object": ("{a} {}", "the {}", "one {}"),
    "style": ("in the style of {}", "painted by {}", "{} style"),
    "motion": ("{}",),
}


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"


def _plain(phrases: Sequence[str] | None) -> tuple[str, ...]:
    """Phrases with single spaces, each once."""
    return tuple(dict.fromkeys(" ".join(str(phrase).split()) for phrase in phrases or ()))


def slug_of(phrase: str) -> str:
    """A name fit for files, of a concept that has a phrase alone; of a long one, or one of other letters and signs than
    ASCII's and a text's usual ones, the beginning, and a hash of it all: "C++" and "C#" are two."""
    slug = re.sub(r"[^a-z0-9]+", "_", phrase.lower()).strip("_") or "concept"
    if len(slug) <= 50 and re.fullmatch(r"[a-z0-9\s_.,:;!?'\"()&/-]*", phrase.lower()) and slug != "concept":
        return slug
    return f"{slug[:40].strip('_')}_{hashlib.sha256(phrase.encode()).hexdigest()[:8]}"


def to_concept(slug: str, config: Mapping[str, Any]) -> Concept:
    """A Concept from its YAML: `kind`, and either `name` (said as its kind is usually said) or `phrases`.

    Raises:
        ValueError: for a slug that is no plain name, unknown or missing keys, an unknown kind, or lists that overlap.
    """
    known = {*ConceptSaid.model_fields, "images"}
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}", slug):  # files are named by it
        raise ValueError(f"found the concept name {slug!r:.80}: expected 1 to 60 letters, digits, '_' and '-'")
    if not isinstance(config, Mapping):
        raise ValueError(f"concept {slug}: found {config!r}: expected keys and values, as in conf/concept/cat.yaml")
    if unknown := sorted(set(config) - known):
        raise ValueError(f"concept {slug}: found the keys {', '.join(unknown)}: expected {', '.join(sorted(known))}")
    kind = config.get("kind")
    if kind not in KINDS:
        raise ValueError(f"concept {slug}: found kind {kind!r}: expected one of {', '.join(KINDS)}")
    for key in ("phrases", "neighbours", "other_senses", "prompts"):
        if not isinstance(config.get(key) or (), list | tuple):
            raise ValueError(
                f"concept {slug}: found {key}: {config[key]!r}: expected a list, as in {key}: [a cat, a dog]"
            )
    for key in ("name", "anchor", "images"):
        text = config.get(key)
        if text is not None and (
            isinstance(text, bool)
            or not isinstance(text, str | int | float)
            or (key == "images" and not isinstance(text, str))
        ):
            raise ValueError(f"concept {slug}: found {key}: {text!r}: expected text")
    name, phrases = str(config.get("name") or "").strip(), _plain(config.get("phrases"))
    if bool(name) == bool(phrases):
        raise ValueError(f"concept {slug}: expected either name (as in name: van gogh) or phrases")
    if kind == "object" and re.match(r"(an?|the|one) ", name, re.IGNORECASE):
        raise ValueError(
            f"concept {slug}: found {name!r}: expected it without an article, which captions put before it"
        )
    phrases = phrases or _plain([form.format(name, a=_article(name)) for form in _FORMS[kind]])
    concept = Concept(
        slug=slug,
        kind=kind,
        phrases=phrases,
        anchor=" ".join(str(config.get("anchor") or "").split()),
        neighbours=_plain(config.get("neighbours")),
        other_senses=_plain(config.get("other_senses")),
        images=Path(config["images"]).expanduser() if config.get("images") else None,
        prompts=_plain(config.get("prompts")),
    )
    kept = {phrase.casefold() for phrase in (*concept.neighbours, *concept.other_senses)}
    if both := [phrase for phrase in concept.phrases if phrase.casefold() in kept]:
        raise ValueError(f"concept {slug}: {both[0]!r} is to be forgotten and kept: remove it from one of the lists")
    return concept
