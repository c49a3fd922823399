"""The door: what a config may say, looked at before anything is built or loaded.

Settings that have no class are listed here. The arguments of all that has one, ours or a user's own, are compared with
the types that its `__init__` declares, so that a new kind of thing needs no line here; what types cannot say
(numbers that must fit each other) its class checks itself.
"""

import inspect
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from unreel.cache import require_space
from unreel.metadata import MOST_PROMPTS

_ABSENT = object()
_LIBRARIES = ("pytorch_lightning.",)  # they check their own arguments
COUNTS = {  # setting -> least and most
    "shots": (0, 1000),
    "seed": (0, 1_000_000),
    "threads": (1, 1024),
    "checkpoint_every": (1, 1_000_000),
    "least_free_mb": (0, 10**12),
    "evaluation.prompts": (2, MOST_PROMPTS),
    "evaluation.seed": (0, 1_000_000),
    "evaluation.batch": (1, 10_000),
}
TEXTS = ("slug", "runs", "cache", "output", "device", "phrase", "kind", "images")
OPTIONAL = ("threads", "output", "phrase", "kind", "images")  # where null says something


def check(config: DictConfig) -> None:
    """ValueError for a setting, or an argument of anything in the config, that will not do."""
    check_settings(config)
    for key in config:
        part = config.get(key)
        if key == "t2i":  # `training` is for the configs of methods
            training = part.get("training") or {}
            for name, value in training.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                    raise ValueError(f"found t2i.training.{name}={value}: expected a number above 0")
            part = OmegaConf.masked_copy(part, [name for name in part if name != "training"])
        check_arguments(part, str(key))
    if not config.get("metric"):
        raise ValueError("no metric: expected metric=NAME, or several as metric=[NAME,NAME]")


def check_settings(config: DictConfig) -> None:
    """ValueError for a setting of a type or size that will not do, naming its key; absent ones are not looked at."""
    for key, (least, most) in COUNTS.items():
        value = OmegaConf.select(config, key, default=_ABSENT)
        if value is not _ABSENT and not (value is None and key in OPTIONAL):
            _check_count(key, value, least, most)
    for key in TEXTS:
        value = OmegaConf.select(config, key, default=_ABSENT)
        number = key == "phrase" and isinstance(value, int | float) and not isinstance(value, bool)  # phrase=1984
        if value is _ABSENT or number or (value is None and key in OPTIONAL):
            continue
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"found {key}={value!r}: expected text{f', or {key}=null' if key in OPTIONAL else ''}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", str(config.slug)):
        raise ValueError(
            f"found slug={config.slug!r}: expected letters, digits, '_', '-', '.' and '+', as slug=my_runs"
        )
    motions = OmegaConf.select(config, "evaluation.motions", default=False)
    if not isinstance(motions, bool):
        raise ValueError(f"found evaluation.motions={motions}: expected true or false")
    steps = OmegaConf.select(config, "evaluation.at_steps", default=_ABSENT)
    if steps is not _ABSENT and not OmegaConf.is_list(steps):
        raise ValueError(f"found evaluation.at_steps={steps}: expected a list, as evaluation.at_steps=[10,50]")
    for step in [] if steps is _ABSENT else steps:
        _check_count("evaluation.at_steps", step, 1, 10**9)


def _check_count(key: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        above = f" and at most {most:,}" if isinstance(value, int) and value > most else ""
        raise ValueError(f"found {key}={value}: expected a whole number, {least} or more{above}")


def check_arguments(config: Any, where: str) -> None:
    """ValueError for arguments that the class or function of a `_target_`, or of one inside it, does not take.

    Args:
        config: a part of a config, such as that of a method; one without a `_target_` may still hold some.
        where: its key.
    """
    if not isinstance(config, DictConfig | Mapping):
        return
    given = {str(key): config[key] for key in config}
    target = given.get("_target_")
    if target is None:
        for key, value in given.items():
            check_arguments(value, f"{where}.{key}")
        return
    if str(target).startswith(_LIBRARIES):
        return
    try:
        called = get_object(str(target))
        parameters = inspect.signature(called).parameters
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"found {where}._target_={target}: {error}") from None
    hints = _hints(called)
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in given.items():
        if key.startswith("_") and key.endswith("_"):
            continue
        if key not in parameters and not takes_more:
            known = ", ".join(name for name in parameters if name != "self")
            raise ValueError(f"found {where}.{key}={value}: {called.__name__} has no such setting; it has {known}")
        if isinstance(value, DictConfig | Mapping) and "_target_" in value:
            check_arguments(value, f"{where}.{key}")
        elif key in hints:
            _check_type(
                hints[key], OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, f"{where}.{key}"
            )


def _hints(called: Any) -> dict[str, Any]:
    """Argument -> declared type, of a class or a function; none where they cannot be told."""
    function = called.func if isinstance(called, partial) else called.__init__ if inspect.isclass(called) else called
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}


def _check_type(hint: Any, value: Any, where: str) -> None:
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return  # a type that pydantic does not know
    try:
        adapter.validate_python(value, strict=not isinstance(value, list | dict))
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        inside = "".join(f".{part}" for part in first["loc"] if isinstance(part, int))
        raise ValueError(f"found {where}{inside}={value!r:.80}: expected {said}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"found {where}={value}: expected a finite number")


def check_space(config: DictConfig) -> None:
    """ValueError when a disk that the run writes to has less space than `least_free_mb`."""
    for folder in (config.output or config.runs, config.cache):
        require_space(Path(folder), config.least_free_mb)
