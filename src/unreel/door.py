"""The door: what a config may say, looked at before anything is built or loaded; it needs neither torch nor diffusers.

Settings that have no class are listed here. The arguments of all that has one, ours or a user's own, are compared with
the types that it declares, so that a new kind of thing needs no line here; what types cannot say (numbers that must fit
each other) its class checks itself, a few seconds later.
"""

import importlib.util
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from unreel.concepts import KINDS, slug_of, to_concept
from unreel.declarations import arguments_of
from unreel.files import require_space
from unreel.images import images_of
from unreel.jobs import is_sweep
from unreel.metadata import MOST_PROMPTS
from unreel.prompts import Questions
from unreel.records import Concept
from unreel.validation import STRICT, told

OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)  # "${times:1.0e-5,10}" in YAML
OmegaConf.register_new_resolver("part", lambda a, b: max(1, round(a * b)), replace=True)  # "${part:25,0.5}": 12 steps

_ABSENT = object()
_CONF = Path(__file__).parents[2] / "conf"
_OTHERS = ("pytorch_lightning.Trainer", "pytorch_lightning.strategies.")  # they check their own arguments
COUNTS = {  # setting -> least and most
    "shots": (0, 1000),
    "seed": (0, 1_000_000),
    "threads": (1, 1024),
    "checkpoint_every": (1, 1_000_000),
    "least_free_mb": (0, 10**12),
    "port": (1, 65535),
    "workers.processes": (1, 1024),
    "evaluation.prompts": (2, MOST_PROMPTS),
    "evaluation.seed": (0, 1_000_000),
    "evaluation.batch": (1, 10_000),
}
TEXTS = ("slug", "runs", "cache", "output", "device", "phrase", "kind", "images", "edit", "onto", "licence")
OPTIONAL = ("threads", "output", "phrase", "kind", "images", "edit", "onto", "licence")  # where null says something
WORKERS = {"loky": "joblib", "ray": "ray"}  # what starts them -> the extra that installs it
EXPORTS = ("transformers", "comfyui", "lora", "pipeline")  # what unreel.exports can write


def check(config: DictConfig, partial: bool = False) -> None:
    """Looks at all settings, at the arguments of everything in the config, and at the disks.

    Args:
        config: of a run.
        partial: whether null stands for what an edit says, as in evaluate.yaml.

    Raises:
        ValueError: for the first that will not do, naming its key.
    """
    check_settings(config, partial)
    for key in config:
        part = config.get(key)
        if key == "t2i":  # `training` is for the configs of methods
            training = part.get("training") or {}
            for name, value in training.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                    raise ValueError(f"found t2i.training.{name}={value}: expected a number above 0")
            part = {name: part[name] for name in part if name != "training"}
        check_arguments(part, str(key), partial)
    if config.get("onto") and not Path(config.onto).expanduser().is_file():
        raise ValueError(f"onto={config.onto} is missing: expected the edit.safetensors of a run")
    if not config.get("metric"):
        raise ValueError("no metric: expected metric=NAME, or several as metric=[NAME,NAME]")
    for folder in (config.output or config.runs, config.cache):
        require_space(Path(folder), config.least_free_mb)


def check_settings(config: DictConfig, partial: bool = False) -> None:
    """ValueError for a setting of a type or size that will not do, naming its key; absent ones are not looked at."""
    for key, (least, most) in COUNTS.items():
        value = OmegaConf.select(config, key, default=_ABSENT)
        open_yet = key in OPTIONAL or (partial and key.startswith("evaluation."))
        if value is not _ABSENT and not (value is None and open_yet):
            _check_count(key, value, least, most)
    for key in TEXTS:
        value = OmegaConf.select(config, key, default=_ABSENT)
        if key == "edit" and OmegaConf.is_list(value):  # several
            continue
        number = key == "phrase" and isinstance(value, int | float) and not isinstance(value, bool)  # phrase=1984
        if value is _ABSENT or number or (value is None and key in OPTIONAL):
            continue
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"found {key}={value!r}: expected text{f', or {key}=null' if key in OPTIONAL else ''}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", str(config.slug)):
        raise ValueError(
            f"found slug={config.slug!r}: expected letters, digits, '_', '-', '.' and '+', as slug=my_runs"
        )
    if config.device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"found device={config.device}: expected auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses a GPU"
        )
    part = OmegaConf.select(config, "rendering.steps", default=1.0)
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 10:
        raise ValueError(f"found rendering.steps={part}: expected a factor of the models' steps above 0, up to 10")
    motions = OmegaConf.select(config, "evaluation.motions", default=False)
    if not isinstance(motions, bool) and not (motions is None and partial):
        raise ValueError(f"found evaluation.motions={motions}: expected true or false")
    alone = OmegaConf.select(config, "one_model_at_a_time", default=False)
    if not isinstance(alone, bool):
        raise ValueError(f"found one_model_at_a_time={alone}: expected true or false")
    check_workers(config)
    exports_of(config)
    keeps = config.get("lora_keeps", 1)
    if isinstance(keeps, bool) or not isinstance(keeps, int | float) or not 0 < keeps <= 1:
        raise ValueError(f"found lora_keeps={keeps}: expected a share above 0 and at most 1, as lora_keeps=0.99")
    if config.get("licence") and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,59}", config.licence):
        raise ValueError(f"found licence={config.licence!r:.80}: expected its name on the hub, as licence=apache-2.0")
    steps = OmegaConf.select(config, "evaluation.at_steps", default=_ABSENT)
    if steps is not _ABSENT and not OmegaConf.is_list(steps):
        raise ValueError(f"found evaluation.at_steps={steps}: expected a list, as evaluation.at_steps=[10,50]")
    for step in [] if steps is _ABSENT else steps:
        _check_count("evaluation.at_steps", step, 1, 10**9)
    if alone and steps is not _ABSENT and len(steps):
        raise ValueError(
            f"found evaluation.at_steps={steps} with one_model_at_a_time, which renders nothing while the donor is"
            " trained: expected evaluation.at_steps=[], or one_model_at_a_time=false"
        )


def check_workers(config: DictConfig) -> None:
    """ValueError for workers that there are not, that are not installed, or inside of a sweep, which has its own."""
    processes = OmegaConf.select(config, "workers.processes", default=1)
    backend = OmegaConf.select(config, "workers.backend", default="loky")
    if backend not in WORKERS:
        raise ValueError(f"found workers.backend={backend}: expected {' or '.join(WORKERS)}")
    if processes == 1:
        return
    for module in ("joblib", *(["ray"] if backend == "ray" else [])):
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f'found workers.processes={processes}, but {module} is missing: pip install -e ".[{WORKERS[backend]}]"'
            )
    if is_sweep():
        raise ValueError(
            f"found workers.processes={processes} in a sweep: expected workers.processes=1, with launcher=NAME"
        )


def exports_of(config: DictConfig) -> list[str]:
    """The formats of `export`, each once; none for null or []. ValueError for an unknown one, listing all."""
    given = config.get("export")
    chosen = [given] if isinstance(given, str) else given if given is not None else []
    if not (isinstance(chosen, list) or OmegaConf.is_list(chosen)):
        raise ValueError(f"found export={given}: expected a list, as export=[transformers,lora]")
    for name in chosen:
        if name not in EXPORTS:
            raise ValueError(f"found export={name}: expected some of {', '.join(EXPORTS)}")
    return list(dict.fromkeys(chosen))


def _check_count(key: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        above = f" and at most {most:,}" if isinstance(value, int) and value > most else ""
        raise ValueError(f"found {key}={value}: expected a whole number, {least} or more{above}")


def edits_of(config: DictConfig) -> list[str]:
    """The files of `edit`: one, or several that are added. ValueError unless all are there; they are read later."""
    given = config.edit
    paths = list(given) if OmegaConf.is_list(given) else [given] if given is not None else []
    if not paths:
        raise ValueError("no edit: expected edit=runs/.../edit.safetensors, or several that are added as edit=[A,B]")
    for path in paths:
        if not isinstance(path, str) or not Path(path).expanduser().is_file():
            raise ValueError(f"{path} is missing: expected the edit.safetensors of a run")
    return paths


def config_folders(group: str) -> list[Path]:
    """Where a config group's YAMLs are: in conf and in the user's --config-dir, in the order that Hydra reads."""
    folders = [_CONF]
    if GlobalHydra.instance().is_initialized():
        sources = GlobalHydra.instance().config_loader().get_search_path().get_path()
        folders = [Path(str(source.path).removeprefix("file://")) for source in sources] + folders
    return [folder / group for folder in folders]


def check_arguments(config: Any, where: str, partial: bool = False) -> None:
    """ValueError for arguments that the class or function of a `_target_`, or of one inside it, does not take.

    Args:
        config: a part of a config, such as that of a method; one without a `_target_` may still hold some.
        where: its key.
        partial: whether null may stand for anything.
    """
    if not isinstance(config, DictConfig | Mapping):
        return
    open_yet = {key for key in config if partial and OmegaConf.is_interpolation(config, key)}  # the edit may say what
    given = {str(key): config[key] for key in config if key not in open_yet}
    target = given.get("_target_")
    if target is None:
        for key, value in given.items():
            check_arguments(value, f"{where}.{key}", partial)
        return
    if str(target).startswith(_OTHERS):
        return
    try:
        arguments = arguments_of(str(target))
    except (ValueError, OSError, SyntaxError) as error:
        raise ValueError(f"found {where}._target_={target}: {error}") from None
    for key, value in given.items():
        if (key.startswith("_") and key.endswith("_")) or (partial and value is None):
            continue
        if isinstance(value, DictConfig | Mapping) and "_target_" in value:
            check_arguments(value, f"{where}.{key}", partial)
        elif arguments is not None and key in arguments.types:
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            _check_type(arguments.types[key], plain, f"{where}.{key}")
        if arguments is not None and key not in arguments.types and not arguments.more:
            known = ", ".join(arguments.types)
            raise ValueError(f"found {where}.{key}={value}: {arguments.called} has no such setting; it has {known}")


def _check_type(declared: Any, value: Any, where: str) -> None:
    try:
        adapter = TypeAdapter(declared, config=STRICT)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return  # a type that pydantic does not know
    try:
        adapter.validate_python(value, strict=not isinstance(value, list | dict))
    except ValidationError as error:
        raise ValueError(told(error, where)) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"found {where}={value}: expected a finite number")


def concepts_of(config: DictConfig) -> list[Concept]:
    """The concepts of a config: those of `concept`, and the one that `phrase` and `kind` give on the command line.

    `images` are of the phrase, or else of the one concept.

    Raises:
        ValueError: when there is none, or one is not well-formed.
    """
    chosen = config.get("concept")  # an empty list of choices leaves no key
    entries: Any = OmegaConf.to_container(chosen, resolve=True) if chosen else {}
    if config.phrase is not None:
        slug = slug_of(str(config.phrase))
        if config.kind not in KINDS:
            raise ValueError(f"found phrase={config.phrase!r} and kind={config.kind}: expected kind={'|'.join(KINDS)}")
        if slug in entries:
            raise ValueError(f"found phrase={config.phrase!r} and concept={slug}: expected one of the two")
        entries[slug] = {"name": str(config.phrase), "kind": config.kind, "images": config.get("images")}
    elif config.get("kind") is not None:
        raise ValueError(f"found kind={config.kind} without a phrase: expected phrase='red bicycle' kind={config.kind}")
    elif config.get("images") is not None and entries:
        if len(entries) > 1 or any(isinstance(e, dict) and e.get("images") for e in entries.values()):
            raise ValueError(
                f"found images={config.images} for {', '.join(entries)}: expected concept.NAME.images=FOLDER"
            )
        entries = {slug: {**entry, "images": config.images} for slug, entry in entries.items()}
    if not entries:
        hydra_is_on = GlobalHydra.instance().is_initialized()
        names = GlobalHydra.instance().config_loader().get_group_options("concept") if hydra_is_on else []
        raise ValueError(
            f"no concept: expected concept=NAME, or phrase='red bicycle' kind=object; names: {', '.join(names)}"
        )
    concepts = [to_concept(slug, entry) for slug, entry in entries.items()]
    for concept in concepts:
        if concept.anchor.casefold() in {phrase.casefold() for phrase in concept.phrases}:
            raise ValueError(
                f"concept {concept.slug}: found the anchor {concept.anchor!r}, which is the concept itself"
            )
    return concepts


def questions_of(config: DictConfig) -> Questions:
    """What is rendered, of which concepts.

    Raises:
        ValueError: for a concept, an image, a vocabulary, a prompt or a number that will not do.
    """
    concepts = concepts_of(config)
    for concept in concepts:
        images_of(concept, config.shots)
    source = built(config.prompts)
    vocabulary: Any = OmegaConf.to_container(config.vocabulary, resolve=True)
    return Questions.of(concepts, source, vocabulary, config.evaluation.motions, config.evaluation.seed)


def built(config: Any, **more: Any) -> Any:
    """The object that a config describes by its `_target_`."""
    return hydra.utils.instantiate(config, **more, _convert_="all")
