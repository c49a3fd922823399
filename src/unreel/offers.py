"""Edits that can be tried: those of finished runs, and what each says of itself. It needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, JsonValue
from safetensors import SafetensorError, safe_open

from unreel.erased import made_with
from unreel.metadata import MadeWith, Slug, parse
from unreel.status import read_status

_EXPECTED = "expected the edit.safetensors of a run"


class _Said(MadeWith):
    """What is read of the config of the run that made an edit; of its recipients the names alone."""

    t2v: dict[Slug, JsonValue] = Field(default_factory=dict)


@dataclass(frozen=True)
class Offer:
    """An edit that can be tried.

    Attributes:
        path: its file.
        label: what it erases, how, on which recipients, with which seed.
        recipients: names of configs in conf/t2v, as the edit says them: whether there are such is not looked at.
    """

    path: Path
    label: str
    recipients: list[str]


def offer_of(path: str | Path) -> Offer:
    """What an edit's file says of itself; its tensors are not read.

    Raises:
        ValueError: for a missing or damaged file, or one that does not say what it erases.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{str(path)!r:.300} is missing: {_EXPECTED}")
    try:
        with safe_open(path, "np") as file:
            provenance = parse(file.metadata() or {}).provenance
        config = made_with(provenance.model_dump(exclude_none=True), _Said)
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged, or does not say what it erases ({error}): {_EXPECTED}") from None
    erased = [*(f"{slug} ({concept.kind})" for slug, concept in config.concept.items())]
    erased += [f"{config.phrase} ({config.kind})"] if config.phrase else []
    how = f"{config.method.name}, {config.shots} shots, {config.parameters.name}"
    label = " · ".join([", ".join(erased), how, ", ".join(config.t2v), f"seed {config.seed}"])
    return Offer(path, label, list(config.t2v))


def offers_in(runs: Path) -> tuple[list[Offer], list[str]]:
    """The finished runs in a folder, newest first, also those inside sweeps; and why others were left out."""
    found, damaged = [], []
    for status in [*runs.glob("status.json"), *runs.glob("*/status.json"), *runs.glob("*/*/status.json")]:
        try:
            said = read_status(status.parent)
            if said is not None and said.status == "done":
                found.append((status.stat().st_mtime, offer_of(status.with_name("edit.safetensors"))))
        except (ValueError, OSError) as error:
            damaged.append(str(error))
    return [offer for _, offer in sorted(found, key=lambda pair: -pair[0])], damaged
