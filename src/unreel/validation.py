"""What values may be: types that say more than Python's own, and what is wrong with one, in one line.

Classes that a YAML builds declare their arguments with these and with pydantic's (`PositiveInt`, `Literal`, ...), so
that one declaration serves the door, which reads it without importing anything, and whoever builds one in Python.
"""

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
C = TypeVar("C")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def checked(cls: type[C]) -> type[C]:
    """A frozen dataclass with keyword arguments alone, whose values must be of the declared types: else ValueError."""
    return cast(type[C], dataclass(frozen=True, kw_only=True, config=STRICT)(cls))


_CONFIGS = ("model_index.json", "config.json")  # what diffusers finds in a folder of a pipeline, and of one model


def is_local(folder: str | Path) -> bool:
    """Whether this is a local folder, present or not, and not the id of a hub model."""
    return Path(folder).expanduser().exists() or str(folder).startswith((".", "/", "~"))


def check_model_folder(folder: str | Path) -> str | Path:
    """The same again. ValueError for a local path that is no folder of a diffusers pipeline or model.

    One whose text encoder is quantised will not do either: its weights are those of no other copy.
    """
    path = Path(folder).expanduser()
    if is_local(folder) and not any((path / name).is_file() for name in _CONFIGS):
        raise ValueError(f"{folder}: expected a diffusers folder with a model_index.json, or the id of a hub model")
    encoder = path / "text_encoder" / "config.json"
    if is_local(folder) and encoder.is_file() and "quantization_config" in encoder.read_text(encoding="utf-8"):
        raise ValueError(f"{folder}: its text encoder is quantised: expected one in float16 or float32; quantise later")
    return folder


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,59}$")]
"""A plain name, fit for a folder."""

ModelFolder = Annotated[str | Path, AfterValidator(check_model_folder)]
"""A local folder of a diffusers pipeline or model, or the id of one on the hub."""


Budget = Annotated[int, Field(ge=1, le=100_000)]
"""How many steps a search may take."""


def told(error: ValidationError, where: str = "") -> str:
    """What pydantic found first, as one line: "found data.batch=0: expected greater than or equal to 1".

    Args:
        error: what it raised.
        where: the key of what it looked at.
    """
    first = error.errors()[0]
    key = ".".join([*([where] if where else []), *(str(part) for part in first["loc"] if part != "[key]")])[:200]
    said = re.sub(r"\s+", " ", first["msg"]).removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{key} is missing"
    if "expected" in said:
        return f"{key}: {said}" if key else said
    said = re.sub("^Input should be ", "expected ", said)
    return f"found {key}={first['input']!r:.80}: {said}" if key else f"found {first['input']!r:.80}: {said}"


class Parsed(BaseModel):
    """What is read back from a file; of unknown keys and other types than the declared ones it takes none."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Ignoring(Parsed):
    """One that other keys may stand beside: they are not read."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


def validated(model: type[BaseModel], found: Any) -> Any:
    """What was found as the model, or ValueError: one line that names the first key that will not do."""
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise ValueError(told(error)) from None
