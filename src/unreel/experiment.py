"""From a resolved config to the parts of a run, every check first; what train.py and evaluate.py share."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO

from unreel.cache import TensorCache, require_space
from unreel.concepts import KINDS, Surroundings, evaluation_prompts, to_concept
from unreel.edits import Edit
from unreel.files import whole
from unreel.records import Concept, Prompt
from unreel.rendering import Renderer
from unreel.runs import Run, is_first_process
from unreel.shots import SHOT_SEEDS, Shots
from unreel.sweeps import is_sweep


def concepts_of(config: DictConfig) -> list[Concept]:
    """The concepts of a config: those of `concept`, and the one that `phrase` and `kind` give on the command line.

    Raises:
        ValueError: when there is none, or one is not well-formed.
    """
    chosen = config.get("concept")  # an empty list of choices leaves no key
    entries: Any = OmegaConf.to_container(chosen, resolve=True) if chosen else {}
    if config.phrase is not None:
        slug = re.sub(r"[^a-z0-9]+", "_", str(config.phrase).lower()).strip("_") or "concept"
        if config.kind not in KINDS:
            raise ValueError(f"found phrase={config.phrase!r} and kind={config.kind}: expected kind={'|'.join(KINDS)}")
        entries[slug] = {"name": str(config.phrase), "kind": config.kind, "images": config.images}
    if not entries:
        hydra_is_on = GlobalHydra.instance().is_initialized()
        names = GlobalHydra.instance().config_loader().get_group_options("concept") if hydra_is_on else []
        raise ValueError(
            f"no concept: expected concept=NAME, or phrase='red bicycle' kind=object; names: {', '.join(names)}"
        )
    return [to_concept(slug, entry) for slug, entry in entries.items()]


@dataclass(frozen=True)
class Questions:
    """What is rendered: one prompt a clip and its seed, of all concepts, checked before anything is loaded."""

    concepts: list[Concept]
    surroundings: Surroundings
    prompts: list[Prompt]
    seeds: list[int]

    @classmethod
    def of(cls, config: DictConfig) -> "Questions":
        """ValueError for a concept, vocabulary or number that will not do."""
        concepts = concepts_of(config)
        count = config.evaluation.prompts
        if not isinstance(count, int) or count < 2:
            raise ValueError(f"found evaluation.prompts={count}: expected a whole number, 2 or more")
        vocabulary: Any = OmegaConf.to_container(config.vocabulary, resolve=True)
        with_motion = config.evaluation.motions or any(concept.kind == "motion" for concept in concepts)
        surroundings = Surroundings(vocabulary, concepts, with_motion)
        prompts = [p for c in concepts for p in evaluation_prompts(c, surroundings, count, config.evaluation.seed)]
        first = 10_000_000 + 100_000 * config.evaluation.seed
        assert first + len(prompts) < SHOT_SEEDS
        return cls(concepts, surroundings, prompts, list(range(first, first + len(prompts))))


def rescoring(edit: Edit, config: DictConfig) -> DictConfig:
    """The config of the run that made an edit, with what is given now in its place.

    What an edit says is data and no program: recipients, judge and metrics are those that are given now.

    Raises:
        ValueError: when the edit does not say what was erased.
    """
    made_with, given = edit.provenance.get("config"), OmegaConf.to_container(config)
    if not isinstance(made_with, dict) or "facts" not in edit.provenance:
        raise ValueError(f"{config.edit} does not say what it erases: expected the edit.safetensors of a run")
    assert isinstance(given, dict)
    chosen = {key: value for key, value in given.items() if value is not None or key == "output"}
    chosen["evaluation"] = made_with["evaluation"] | {k: v for k, v in given["evaluation"].items() if v is not None}
    groups = {key: given.get(key) for key in ("t2v", "judge", "metric")}
    groups["trainer"] = {}  # that of the training might say cpu, and nothing is trained
    return OmegaConf.create({**made_with, **chosen, **groups, "edit": edit.hash})


def device_of(config: DictConfig) -> str:
    """ "auto" is a GPU where there is one, its own of each process, unless the trainer is one for CPUs.

    ValueError for any other device than auto, cpu and cuda, and for a GPU that is not there.
    """
    if config.device == "auto" and OmegaConf.select(config, "trainer.accelerator") == "cpu":
        return "cpu"
    if config.device == "auto":
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if config.device not in ("cpu", "cuda"):
        raise ValueError(
            f"found device={config.device}: expected auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses a GPU"
        )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"found device={config.device}, but torch sees no GPU: expected device=cpu or device=auto")
    return str(config.device)


def check_processes(config: DictConfig, shots: Shots, device: str) -> None:
    """ValueError when several processes cannot share out the batches, or are asked for inside of a sweep."""
    devices = config.trainer.get("devices", 1)
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < -1 or not devices:
        raise ValueError(
            f"found trainer.devices={devices}: expected how many, or -1 for all GPUs that CUDA_VISIBLE_DEVICES has"
        )
    if devices == -1 and device == "cpu":
        raise ValueError(f"found trainer.devices={devices}, all GPUs, on {device}: expected trainer=ddp_cpu, or a GPU")
    processes = devices if devices > 0 else max(torch.cuda.device_count(), 1)
    if processes > 1 and is_sweep():
        raise ValueError(f"found trainer.devices={devices} in a sweep: expected trainer.devices=1, with launcher=NAME")
    if processes > 1 and config.device not in ("auto", "cpu"):
        raise ValueError(f"found device={config.device} for {processes} processes: expected device=auto or device=cpu")
    for name, number in shots.numbers.items():
        if number % processes:
            raise ValueError(f"found {name}={number} for {processes} processes: expected a multiple of {processes}")


def check_space(config: DictConfig) -> None:
    """ValueError when a disk that the run writes to has less space than `least_free_mb`."""
    for folder in (config.output or config.runs, config.cache):
        require_space(Path(folder), config.least_free_mb)


def renderers_of(config: DictConfig, device: str) -> list[Renderer]:
    """The loaded recipients of `t2v`. ValueError unless each has a plain name of its own: folders are called by it."""
    chosen = config.get("t2v") or {}
    names = [entry.get("name") for entry in chosen.values()]
    if not names:
        raise ValueError("no recipient: expected t2v=NAME, or several as t2v=[NAME,NAME]")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", str(name or "")) or names.count(name) > 1:
            raise ValueError(f"t2v: found the name {name!r}: expected letters, digits, '_', '-' and '.', once each")
    device = device if is_first_process() else "cpu"  # which is all that renders
    recipients = [hydra.utils.instantiate(entry, device=device) for entry in chosen.values()]
    return [Renderer(recipient, cache_of(config), config.evaluation.batch) for recipient in recipients]


def judge_of(config: DictConfig, questions: Questions, device: str) -> Any:
    """The judge, after it was asked for every phrase that it will be asked for.

    Raises:
        ValueError: for a phrase that it cannot know.
    """
    judge = hydra.utils.instantiate(config.judge, _convert_="all")
    if callable(judge):
        judge = judge(prompts=questions.prompts, concepts=questions.concepts, device=device)
    for part, phrase in dict.fromkeys(pair for prompt in questions.prompts for pair in prompt.shows):
        if part in judge.parts:
            judge.name_of(part, phrase)
    return judge


def metrics_of(config: DictConfig) -> list[Any]:
    """The metrics of `metric`."""
    return [hydra.utils.instantiate(entry) for entry in config.metric.values()]


def cache_of(config: DictConfig) -> TensorCache:
    """Shots and clips of unedited models, shared by all runs."""
    return TensorCache(Path(config.cache))


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole: Lightning copies them from a temporary folder, which may be on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with whole(Path(path)) as aside:
            torch.save(checkpoint, aside)


def trainer_of(config: DictConfig, run: Run, steps: int, device: str, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer: checkpoints in the run folder, CSV logs always, and the logger of the config."""
    resumptions = len(list(run.folder.glob("logs-*")))
    loggers: list[Any] = [CSVLogger(run.folder, "", f"logs-{resumptions}", flush_logs_every_n_steps=1)]
    if config.get("logger"):
        loggers.append(
            hydra.utils.instantiate(config.logger, save_dir=str(run.folder), name=run.folder.name, id=run.mirror)
        )
    checkpoint = ModelCheckpoint(
        run.folder / "checkpoints",
        save_last=True,
        save_top_k=0,
        every_n_train_steps=config.checkpoint_every,
        enable_version_counter=False,
    )
    return hydra.utils.instantiate(
        config.trainer,
        max_steps=steps,
        accelerator="gpu" if device.startswith("cuda") else "cpu",
        logger=loggers,
        plugins=[WholeCheckpoints()],
        callbacks=[RichProgressBar(), checkpoint, *callbacks],
        _convert_="all",
    )
