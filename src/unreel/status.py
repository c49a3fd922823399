"""status.json of a run folder: which run it is, and how far it came."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from unreel.validation import Ignoring, validated


class Status(Ignoring):
    """What is read back of it; it says more to people: how to repeat the run, on what machine it ran.

    Attributes:
        id: identity of the run.
        mirror: its id on W&B.
        status: running | done | failed | stopped.
        message: how it ended, where that needs saying.
        seconds: what it spent on each phase.
    """

    id: str = ""
    mirror: str = ""
    status: Literal["running", "done", "failed", "stopped"]
    message: str = ""
    seconds: dict[str, float] = Field(default_factory=dict)


def read_status(folder: Path) -> Status | None:
    """What `status.json` in there says, None without one. ValueError when it is damaged, naming it."""
    path = folder / "status.json"
    if not path.is_file():
        return None
    try:
        return validated(Status, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove that folder, or choose another output") from None
