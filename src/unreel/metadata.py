"""What the file of an edit says beside its tensors, parsed strictly: a downloaded edit is data, whoever wrote it."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, StringConstraints

from unreel.validation import Ignoring, Parsed, validated

FORMATS = ("unreel-edit-1", "unreel-edit-2", "unreel-edit-3")
MOST_CHARACTERS = 10_000_000  # of one entry of the metadata
MOST_PROMPTS = 10_000  # that an evaluation may ask for, a concept

MOST_TEXT = 10_000  # characters of one text

Text = Annotated[str, StringConstraints(max_length=MOST_TEXT)]
Slug = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=200)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _literal(text: str) -> str:
    if "${" in text:  # which OmegaConf would fill in, with the environment's secrets say
        raise ValueError("has an interpolation, ${...}: expected text as it was used")
    return text


def _named(said: Any) -> Any:
    """A number as text: YAML reads a name such as 1984 as one."""
    return str(said) if isinstance(said, int | float) and not isinstance(said, bool) else said


Said = Annotated[Text, AfterValidator(_literal), BeforeValidator(_named)]
Phrases = Annotated[list[Said], Field(max_length=10_000)]


class Named(Ignoring):
    """A part of a config of which the name alone is used."""

    name: Said


class ConceptSaid(Ignoring):
    """A concept as in conf/concept, but for its images, which an evaluation does not read."""

    kind: Said
    name: Said | None = None
    phrases: Phrases | None = None
    anchor: Said | None = None
    neighbours: Phrases | None = None
    other_senses: Phrases | None = None
    prompts: Phrases | None = None


class Asked(Ignoring):
    """`evaluation` of a config."""

    prompts: Annotated[int, Field(ge=2, le=MOST_PROMPTS)]
    motions: bool
    seed: Seed
    batch: Annotated[int, Field(ge=1, le=10_000)]


class MadeWith(Ignoring):
    """What an evaluation reads of the config of the run that made an edit; all else of it is not looked at."""

    concept: dict[Slug, ConceptSaid] = Field(default_factory=dict)
    phrase: Said | None = None
    kind: Said | None = None
    vocabulary: Annotated[dict[Said, Phrases], Field(max_length=100)]
    evaluation: Asked
    method: Named
    parameters: Named
    t2i: Named
    shots: Annotated[int, Field(ge=0)]
    seed: Seed


class Facts(Ignoring):
    """What an evaluation reads of how the training ended."""

    steps: Annotated[int, Field(ge=0)] | None = None
    most_steps: Annotated[int, Field(ge=0)] | None = None


class Counted(Facts):
    """What is read of facts that are counted together, of edits that are added."""

    tensors: Annotated[int, Field(ge=0)]
    parameters: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=0)]
    components: Annotated[list[Text], Field(max_length=100)] = Field(default=["text_encoder"])  # of the first format
    attached: bool = False
    stopped: Text = ""


class Made(Parsed):
    """How one edit was made. `note` is free text of whoever made it."""

    run: Text | None = None
    command: Text | None = None
    commit: Text | None = None
    python: Text | None = None
    versions: dict[Text, Text] | None = None
    hardware: Text | None = None
    seed: int | None = None
    note: Text | None = None
    config: dict[str, JsonValue] | None = None
    facts: dict[str, JsonValue] | None = None


class Provenance(Made):
    """How an edit was made; of a sum of edits, how each of them was."""

    parts: Annotated[list[Made], Field(max_length=1000)] | None = None


class Metadata(Parsed):
    """All of it; `base`, `settings` and `provenance` are JSON in the file."""

    format: Literal["unreel-edit-1", "unreel-edit-2", "unreel-edit-3"]
    hash: Annotated[str, StringConstraints(max_length=64)]
    seal: str | None = None
    component: Literal["text_encoder"] = "text_encoder"  # of the first format, which knew no other
    method: Text = ""
    base: dict[Annotated[str, StringConstraints(max_length=1000)], Annotated[str, StringConstraints(max_length=64)]]
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    provenance: Provenance = Provenance()


_ONE_PATH = re.compile(r"(?P<key>[\w.+~-]*=)?(~|[A-Za-z]:)?[/\\].*[/\\](?P<last>[^/\\]+)[/\\]?")
_FOLDER = r"""[^/\\\s'",=\[\]{}()][^/\\'",=\[\]{}()]*"""
_FOLDERS = re.compile(rf"(?<![\w./~\\-])(~|[A-Za-z]:)?[/\\]({_FOLDER}[/\\])+(?=[^/\\\s])")  # in a list


def without_folders(said: Any) -> Any:
    """What a command or a config says, with only the last part of every absolute path: an edit goes to others, and
    whose machine it was made on, and where its files lay there, is none of their business."""
    if isinstance(said, Mapping):
        return {key: without_folders(value) for key, value in said.items()}
    if isinstance(said, list):
        return [without_folders(value) for value in said]
    if not isinstance(said, str):
        return said
    one = _ONE_PATH.fullmatch(said)
    return (one["key"] or "") + one["last"] if one else _FOLDERS.sub("", said)


def shareable(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """How a run was made, as its edit says it: with `without_folders` of its command and its config, but for the words
    that prompts are made of, whatever they look like; an evaluation of the edit asks by them."""
    config = provenance["config"]
    told = without_folders(config) | {key: config[key] for key in ("phrase", "vocabulary") if key in config}
    if concepts := config.get("concept"):
        told["concept"] = {n: {**c, "images": without_folders(c.get("images"))} for n, c in concepts.items()}
    try:
        words = shlex.split(provenance["command"])
    except ValueError:  # a long one, cut within quotation marks
        words = provenance["command"].split()
    return {
        **provenance,
        "command": shlex.join(without_folders(words)),
        "config": told,
    }


def seal(texts: Mapping[str, str]) -> str:
    """sha256 over all that a file's metadata says, `seal` itself left out, so that no word of it changes unseen."""
    told = json.dumps({key: text for key, text in texts.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def parse(texts: Mapping[str, str]) -> Metadata:
    """The metadata of a safetensors file.

    Raises:
        ValueError: for anything but what the format has, naming the entry.
    """
    read: dict[str, Any] = {}
    for name, text in texts.items():
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"{name[:40]} has {len(text):,} characters, expected at most {MOST_CHARACTERS:,}")
        read[name] = json.loads(text) if name in ("base", "settings", "provenance") else text
        if name in ("base", "settings", "provenance") and not isinstance(read[name], dict):
            raise ValueError(f"{name} is {type(read[name]).__name__}, expected keys and values")
    found: Metadata = validated(Metadata, read)
    if texts["format"] == FORMATS[-1] and found.seal != seal(texts):
        raise ValueError("its words were changed after it was written")
    return found
