"""From a resolved config to the parts of a run, every check first; what train.py and evaluate.py share."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from unreel.attacks.attack import Attack
from unreel.cache import TensorCache
from unreel.callbacks import TrainingBar
from unreel.door import built, edits_of
from unreel.edits import Edit
from unreel.erased import facts_of, made_with, parts_of
from unreel.evaluation import Evaluation
from unreel.files import whole
from unreel.hashes import code_hash
from unreel.jobs import is_sweep
from unreel.judges.judge import Judge
from unreel.metadata import MadeWith
from unreel.methods.gradient import GradientMethod
from unreel.methods.method import Method
from unreel.metrics.metric import Metric
from unreel.models.model import Model
from unreel.prompts import Questions
from unreel.records import Concept
from unreel.rendering import Renderer
from unreel.runs import Run, is_first_process
from unreel.sharing import Share


def donor_of(config: DictConfig, device: str) -> Model:
    """The donor of `t2i`, not loaded yet; `t2i.training` is for the configs of methods alone.

    ValueError when its weights would come and go, or are kept rounded, which a gradient could not pass.
    """
    for key, expected in {"group_offload": "false", "denoiser_storage": "null"}.items():
        if found := config.t2i.get(key):
            found = str(found).lower()
            raise ValueError(
                f"found t2i.{key}={found}: expected {expected}, as the donor is trained; t2v.NAME may have it"
            )
    return built({key: config.t2i[key] for key in config.t2i if key != "training"}, device=device)


def rescoring(edit: Edit, config: DictConfig) -> DictConfig:
    """The config of the run that made an edit, or of the runs that made a sum, with what is given now in its place.

    What an edit says is data and no program: recipients, judge and metrics are those that are given now.

    Raises:
        ValueError: when the edit does not say what was erased, or says it in another way than a run's edit does.
    """
    named = " + ".join(edits_of(config))
    if not all({"config", "facts"} <= part.keys() for part in parts_of(edit.provenance)):
        raise ValueError(f"{named} does not say what it erases: expected the edit.safetensors of a run")
    try:
        said = made_with(edit.provenance, MadeWith).model_dump()
        facts_of(edit.provenance)
    except ValueError as error:
        raise ValueError(f"{named}: its config: {error}: expected the edit.safetensors of a run") from None
    given: Any = OmegaConf.to_container(config)
    chosen = {key: value for key, value in given.items() if value is not None or key == "output"}
    chosen["evaluation"] = said["evaluation"] | {k: v for k, v in given["evaluation"].items() if v is not None}
    groups = {key: given.get(key) for key in ("t2v", "rendering", "judge", "metric", "attack", "prompts", "logger")}
    groups["trainer"] = {}  # that of the training might say cpu, and nothing is trained
    return OmegaConf.create({**said, **chosen, **groups, "edit": edit.hash})


def device_of(config: DictConfig) -> str:
    """ "auto" is a GPU where there is one, its own of each process, unless the trainer is one for CPUs.

    ValueError for a GPU that is not there.
    """
    if config.device == "auto" and OmegaConf.select(config, "trainer.accelerator") == "cpu":
        return "cpu"
    if config.device == "auto":
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"found device={config.device}, but torch sees no GPU: expected device=cpu or device=auto")
    return str(config.device)


def check_processes(config: DictConfig, method: Method, concepts: int, device: str) -> None:
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
    if processes == 1:
        return
    trained = [member for member in method.members if isinstance(member, GradientMethod)]
    if not trained:
        raise ValueError(
            f"found trainer.devices={devices} for {method.name}, which trains nothing: expected trainer.devices=1"
        )
    for sizes in (member.data for member in trained):
        numbers = {"batch": sizes.batch, "pairs": sizes.pairs, "retain": -(-sizes.retain // concepts) * concepts}
        for name, number in numbers.items():
            if number % processes:
                raise ValueError(f"found {name}={number} for {processes} processes: expected a multiple of {processes}")


def check_trainer(config: DictConfig) -> None:
    """ValueError for settings that Lightning's Trainer does not take, before anything is rendered."""
    try:
        built(config.trainer, max_steps=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    except (InstantiationException, MisconfigurationException) as error:
        said = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"trainer: {said}: expected the arguments of Lightning's Trainer") from None


def recipients_of(config: DictConfig, device: str) -> list[Model]:
    """The recipients of `t2v`, none loaded yet. ValueError unless each has a plain name of its own: folders get it."""
    chosen = config.get("t2v") or {}
    names = [entry.get("name") for entry in chosen.values()]
    if not names:
        raise ValueError("no recipient: expected t2v=NAME, or several as t2v=[NAME,NAME]")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}", str(name or "")) or names.count(name) > 1:
            raise ValueError(
                f"t2v: found the name {name!r:.80}: expected 1 to 60 letters, digits, '_', '-' and '.', once each"
            )
    return [built(entry, device=device) for entry in chosen.values()]


def judge_of(config: DictConfig, questions: Questions, recipients: Sequence[Model], device: str) -> Judge:
    """The judge, after it was asked for everything that it will be asked for. ValueError for what it cannot tell."""
    judge = built(config.judge)
    if callable(judge):
        judge = judge(prompts=questions.prompts, concepts=questions.concepts, device=device)
    judge.check(questions.prompts, questions.concepts, [model.num_frames for model in recipients])
    return judge


def metrics_of(config: DictConfig, questions: Questions, recipients: Sequence[Model]) -> list[Metric]:
    """The metrics of `metric`, each asked for everything that it will be asked for. ValueError for what it cannot."""
    metrics: list[Metric] = [built(entry) for entry in (config.get("metric") or {}).values()]
    for metric in metrics:
        metric.check(questions.prompts, questions.concepts, [model.num_frames for model in recipients])
    return metrics


def attacks_of(config: DictConfig, questions: Questions, eraser: str, attached: bool) -> list[Attack]:
    """The attacks of `attack`, none by default, each asked whether it can attack this.

    Args:
        config, questions: of the run.
        eraser: the method's name.
        attached: whether its edits act when a pipeline samples.

    Raises:
        ValueError: for what one cannot attack.
    """
    attacks: list[Attack] = [built(entry) for entry in (config.get("attack") or {}).values()]
    for attack in attacks:
        attack.check_eraser(eraser, attached)
        attack.check(questions.concepts, questions.prompts)
    return attacks


def check_attacks(attacks: Sequence[Attack], shares: Sequence[Share], concepts: Sequence[Concept], alone: bool) -> None:
    """ValueError when a model on which an attack searches lacks what it needs. `alone`: one model is held at a time."""
    for share in shares if attacks else []:
        for model in dict.fromkeys([share.maker, *share.recipients]):
            for attack in attacks:
                if model is share.maker or attack.searches_on == "recipient":
                    attack.check_looks(model, concepts)
                    attack.check_gradients(model)
                    attack.check_model(model)
            if alone:
                model.release()


def cache_of(config: DictConfig) -> TensorCache:
    """Shots and clips of unedited models, shared by all runs."""
    return TensorCache(Path(config.cache))


def run_of(
    config: DictConfig, questions: Questions, parts: Sequence[Any], content: Sequence[str], steps: int | None
) -> Run:
    """The run folder of these settings, this content and this code: of all `parts`, and of what runs them.

    Args:
        config, questions: what is asked for.
        parts: models, judge, metrics, method: those with a `content` give that, all give their code.
        content: other hashes: of images, or of an edit.
        steps: how many the training may last.
    """
    code = code_hash([*parts, Evaluation, Run])
    contents = [part.content for part in parts if hasattr(part, "content")]
    prompts = [repr((prompt, seed)) for prompt, seed in zip(questions.prompts, questions.seeds, strict=True)]
    return Run(config, questions.concepts, [code, *contents, *content, *prompts], steps)


def loggers_of(config: DictConfig, run: Run, concepts: Sequence[Concept]) -> list[Logger]:
    """CSV logs always, and the logger of the config, which is told what runs are filtered by."""
    resumptions = len(list(run.folder.glob("logs-*")))
    loggers: list[Logger] = [CSVLogger(run.folder, "", f"logs-{resumptions}", flush_logs_every_n_steps=1)]
    if config.get("logger"):
        mirror = built(config.logger, save_dir=str(run.folder), name=run.folder.name, id=run.mirror)
        if isinstance(mirror, WandbLogger):
            mirror._wandb_init.pop("anonymous", None)  # Lightning passes it on unset, and W&B warns of it
        loggers.append(mirror)
    for logger in loggers:
        if isinstance(logger, WandbLogger) and is_first_process():
            logger.log_hyperparams(run.flat(concepts))
    return loggers


def renderers_of(config: DictConfig, recipients: Sequence[Model], run: Run) -> list[Renderer]:
    """What renders with each recipient: this process, or `workers` in its place."""
    cache, own, batch = cache_of(config), TensorCache(run.rendered), config.evaluation.batch
    if config.workers.processes == 1:
        return [Renderer(model, cache, own, batch) for model in recipients]
    from unreel.workers import PooledRenderer, Workers  # with joblib, an extra

    workers = Workers(config.workers.processes, config.workers.backend, device_of(config), config.threads)
    entries: Any = [OmegaConf.to_container(entry, resolve=True) for entry in config.t2v.values()]
    pairs = zip(recipients, entries, strict=True)
    return [PooledRenderer(model, cache, own, batch, workers, entry) for model, entry in pairs]


def evaluation_of(
    config: DictConfig, questions: Questions, recipients: Sequence[Model], judge: Judge, metrics: Sequence[Metric],
    run: Run, loggers: Sequence[Logger],
) -> Evaluation:  # fmt: skip
    """What renders, judges and scores; clips of edits are kept in the run's own folder until it is done."""
    renderers = renderers_of(config, recipients, run)
    return Evaluation(renderers, questions, judge, metrics, run, loggers, one_at_a_time=config.one_model_at_a_time)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole: Lightning copies them from a temporary folder, which may be on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with whole(Path(path)) as aside:
            torch.save(checkpoint, aside)


def checkpoint_in(folder: Path) -> Path | None:
    """The last checkpoint of a training there, if it was killed after it wrote one; a damaged one is told and left."""
    path = folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return None
    try:
        torch.load(path, weights_only=True, map_location="cpu")["erasure"]
    except (RuntimeError, EOFError, KeyError, OSError, UnpicklingError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"unreel: {path} is damaged ({said}): the training starts again", file=sys.stderr)
        return None
    return path


def trainer_of(
    config: DictConfig,
    folder: Path,
    loggers: Sequence[Logger],
    looks: pl.Callback,
    steps: int,
    callbacks: Sequence[pl.Callback],
) -> pl.Trainer:
    """Lightning's Trainer; its checkpoints go to the folder, and `looks` comes after the method's own callbacks."""
    checkpoint = ModelCheckpoint(
        folder / "checkpoints",
        save_last=True,
        save_top_k=0,
        every_n_train_steps=config.checkpoint_every,
        enable_version_counter=False,
    )
    return built(
        config.trainer,
        max_steps=steps,
        accelerator="gpu" if device_of(config).startswith("cuda") else "cpu",
        enable_progress_bar=False,
        logger=list(loggers),
        plugins=[WholeCheckpoints()],
        callbacks=[*callbacks, looks, TrainingBar(), checkpoint],
    )
