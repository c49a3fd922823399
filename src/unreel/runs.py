"""Run folders: the truth about a run. W&B is a mirror of it."""

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from unreel.files import ASIDE, clear_asides, write_text
from unreel.hashes import content_key, library_versions
from unreel.jobs import is_sweep
from unreel.metadata import MOST_TEXT
from unreel.records import Concept, Score
from unreel.scores import write_scores
from unreel.signals import Stopped
from unreel.status import Status, read_status

# Settings that don't affect results and are left out of a run's identity.
_NO_RESULTS = {"output", "runs", "cache", "logger", "device", "least_free_mb", "threads", "objectives"}
_NO_RESULTS |= {"one_model_at_a_time", "workers", "export", "lora_keeps", "licence"}
_NO_RESULTS |= {"onto"}  # whose content counts, wherever it lies


def identity(config: DictConfig, content: Sequence[str]) -> str:
    """A run's identity, 8 hex digits: its settings as far as they affect results, its content, and library versions.

    Args:
        config: the config, resolved.
        content: hashes of what the config only points to: models, images, prompt files, and the code that is run.
    """
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    settings = {key: value for key, value in resolved.items() if key not in _NO_RESULTS}
    if isinstance(source := settings.get("prompts"), dict):
        settings["prompts"] = {key: value for key, value in source.items() if key not in _NO_RESULTS}
    return content_key(config=settings, content=list(content), libraries=library_versions())[:8]


def _commit() -> str:
    """The commit that this code is, with a + when files differ from it; "" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        return ""


def _command() -> str:
    """What makes this run again: of a sweep the one job, whichever program its worker was started by."""
    if not HydraConfig.initialized():
        return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    hydra = HydraConfig.get()
    own = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    given = [f"--config-dir={path}" for path in own] + list(hydra.overrides.task)
    given += ["hydra.mode=RUN"] if hydra.mode == RunMode.MULTIRUN else []
    return shlex.join(["python", f"{hydra.job.name}.py", *given])


def _setting() -> str:
    """What was given of method and rendering, on the command line or by a sweep: "data.epochs=5 rendering=fast"."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    own = (o.lstrip("+") for o in given)
    return " ".join(sorted(o.removeprefix("method.") for o in own if o.startswith(("method.", "rendering"))))


def is_first_process() -> bool:
    """Whether this is the one of a training's processes that keeps the run folder."""
    return not getattr(rank_zero_only, "rank", 0)


@dataclass
class Phase:
    """A part of a run's work; what it says of itself when it is through, one line for the terminal."""

    said: str = ""


class Run:
    """One run folder.

    Args:
        config: the resolved config.
        concepts: what is erased.
        content: as in `identity`.
        steps: how many steps the training may last.

    The folder is `config.output`, or else one below `config.runs` that says what the run is.

    Raises:
        ValueError: when the folder belongs to another config, or is a folder of something else.
    """

    def __init__(
        self, config: DictConfig, concepts: Sequence[Concept], content: Sequence[str], steps: int | None
    ) -> None:
        self.config, self.id, self.steps = config, identity(config, content), steps
        named = "+".join(concept.slug for concept in concepts)[:60]
        name = f"{named}-{config.method.name}-{config.parameters.name}-shots{config.shots}-seed{config.seed}-{self.id}"
        below = Path(config.runs) / config.slug / re.sub(r"[^A-Za-z0-9_+.-]", "_", name)
        self.folder = Path(config.output) if config.output else below
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: expected output=FOLDER, a new one or that of this run")
        status = read_status(self.folder)
        ours = (ASIDE, ".lock")
        if status is None and self.folder.is_dir() and any(not f.name.startswith(ours) for f in self.folder.iterdir()):
            raise ValueError(f"{self.folder} holds other files: expected an empty folder, or one of this run")
        self._check_owner(status)
        self.timings = dict(status.seconds) if status else dict[str, float]()
        self.message = status.message if status else ""  # how it ended, where that needs saying
        self.mirror = (status.mirror if status else "") or secrets.token_hex(4)  # its id on W&B, new in a new folder
        self.setting = _setting()
        self._inner = 0.0

    def _check_owner(self, status: Status | None) -> None:
        if status is not None and status.id != self.id:
            raise ValueError(
                f"{self.folder} belongs to another config (run {status.id}, not {self.id}): choose another output,"
                " or repeat the command that it was made with"
            )

    @property
    def rendered(self) -> Path:
        """Where the clips of its edits are kept until it is done."""
        return self.folder / "rendered"

    def is_done(self) -> bool:
        status = read_status(self.folder)
        return status is not None and status.status == "done"

    @contextmanager
    def timed(self, name: str) -> Iterator[Phase]:
        """Adds the seconds of a `with` block, less those of timed blocks in it, to what the run spent on `name`.

        What the block says of itself is told at the terminal when it is through, unless the run is one of a sweep's.
        """
        started, outer, self._inner, phase = time.perf_counter(), self._inner, 0.0, Phase()
        try:
            yield phase
        except Stopped as stopped:
            stopped.where = stopped.where or name
            raise
        finally:
            spent = time.perf_counter() - started
            self.spend(name, spent - self._inner)
            if phase.said and is_first_process() and not is_sweep():
                print(f"{name:<13} {phase.said:<56} {spent - self._inner:6.1f} s", flush=True)
            self._inner = outer + spent
            if (status := read_status(self.folder)) and status.status == "running":
                self._write_status("running")

    def spend(self, name: str, seconds: float) -> None:
        """Adds to what the run spent on `name`."""
        self.timings[name] = round(self.timings.get(name, 0.0) + seconds, 2)

    @contextmanager
    def working(self) -> Iterator[bool]:
        """Says in `status.json` that the run is running, and after the `with` block that it is done, or why not.

        Waits while another process works on the same run, and gives False when that one has finished it.
        """
        if not is_first_process():
            yield True
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:  # which the system opens again when this process is killed
            fcntl.flock(lock, fcntl.LOCK_EX)
            status = read_status(self.folder)
            self._check_owner(status)  # a command that came first may have taken the folder meanwhile
            self.mirror = (status.mirror if status else "") or self.mirror
            if status is not None and status.status == "done":
                self.timings, self.message = dict(status.seconds), status.message
                yield False
            else:
                with self._running():
                    yield True

    @contextmanager
    def _running(self) -> Iterator[None]:
        clear_asides(self.folder)
        self.message = ""  # that of an attempt before this one
        self._write_status("running")
        write_text(self.folder / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
        try:
            yield
        except BaseException as error:
            if isinstance(error, Stopped):
                error.where = error.where or "between two phases"
                self.message = str(error)
            else:
                self.message = f"{type(error).__name__}: {error}"
            self._write_status("stopped" if isinstance(error, Stopped) else "failed")
            raise
        shutil.rmtree(self.rendered, ignore_errors=True)
        self._write_status("done")

    @rank_zero_only
    def _write_status(self, status: str) -> None:
        """running | done | failed | stopped, and why; how to repeat it goes beside it."""
        record = {
            "id": self.id, "mirror": self.mirror, "status": status, "message": self.message, "seconds": self.timings,
            **self.provenance, "host": platform.node(), "process": os.getpid(),
        }  # fmt: skip
        write_text(self.folder / "status.json", json.dumps(record, indent=2) + "\n")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """How to repeat it: command, commit, versions, hardware, seed."""
        packages = (
            "unreel",
            "torch",
            "diffusers",
            "transformers",
            "pytorch-lightning",
            "hydra-core",
            "open-clip-torch",
        )
        asked = {self.config.get("device"), OmegaConf.select(self.config, "trainer.accelerator")}
        on_gpu = torch.cuda.is_available() and "cpu" not in asked
        return {
            "run": self.folder.name,
            "command": _command()[:MOST_TEXT],
            "commit": _commit(),
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "hardware": torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} CPUs",
            "seed": self.config.seed,
        }

    def keys(self, concept: Concept) -> dict[str, Any]:
        """The keys that all scores of one concept share."""
        config = self.config
        return {
            "slug": config.slug, "run": self.folder.name, "t2i": config.t2i.name, "concept": concept.slug,
            "kind": concept.kind, "method": config.method.name, "parameters": config.parameters.name,
            "shots": config.shots, "seed": config.seed, "steps": self.steps, "setting": self.setting,
        }  # fmt: skip

    FLAT = ("slug", "t2i", "t2v", "concept", "kind", "method", "parameters", "shots", "steps", "seed")

    def flat(self, concepts: Sequence[Concept]) -> dict[str, Any]:
        """What runs are filtered and grouped by on a dashboard: the keys of FLAT."""
        own = self.keys(concepts[0]) | {
            "t2v": "+".join(sorted(self.config.t2v)),
            "concept": "+".join(concept.slug for concept in concepts),
            "kind": "+".join(sorted({concept.kind for concept in concepts})),
        }
        return {key: own[key] for key in self.FLAT}

    def write_scores(self, scores: Sequence[Score]) -> None:
        write_scores(self.folder / "scores.jsonl", scores)
