"""Sweeps: what became of every job, and at the end the tables of the experiment.

A job that fails is recorded with its error, the others go on, and the sweep ends with an error when all are through.
What a worker process that dies (out of memory, a kill) does to the others is up to the launcher: joblib ends the sweep.
The same command again runs what is not finished.
"""

import fcntl
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from unreel.columns import column_of
from unreel.files import clear_asides
from unreel.jobs import jobs_of, read_job, stop_jobs
from unreel.signals import are_set, stop_on_signals

_WHERE_AND_HOW = {"experiment", "launcher", "threads", "runs", "cache", "device", "logger", "least_free_mb"}
_WHERE_AND_HOW |= {"one_model_at_a_time", "workers", "export", "lora_keeps", "licence"}
_OF_ALL_JOBS = {"slug", "runs", "experiment"}  # they say where a sweep keeps its records


class Sweep(Callback):
    """Hydra callback: counts a sweep's jobs, writes its tables and ends it with an error when something failed.

    Args:
        folder: of the experiment, e.g. experiments/claims; null for no tables. A sweep that differs from what the
            experiment says, or of which a run failed, leaves it alone and writes its tables to its folder of runs.
        bars, images, by: as in `write_tables`.
    """

    def __init__(
        self, folder: str | None = None, bars: Mapping[str, float] | None = None, images: str = "", by: str = ""
    ) -> None:
        self.folder, self.bars, self.images, self.by = folder, bars or {}, images, by
        self.jobs: Path | None = None  # where records are, once the sweep is on

    def __getstate__(self) -> dict[str, Any]:
        """Workers get the callback, but not the lock. Whoever starts them has set signal handlers of its own by now."""
        if self.jobs and not are_set():
            stop_on_signals(partial(stop_jobs, self.jobs))
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Hydra only warns of what a callback raises, so that it has to exit."""
        try:
            check_sweep(config)
        except ValueError as error:
            sys.exit(f"unreel: {error}")
        os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # its own ends in an abort
        jobs = self.jobs = jobs_of(config)
        jobs.mkdir(parents=True, exist_ok=True)
        self.lock = (jobs / ".lock").open("w")  # until the process ends
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.close()
            sys.exit(f"unreel: another sweep is at work in {jobs.parent}: wait for it, or choose another slug=NAME")
        for record in jobs.glob("*.json"):
            record.unlink()
        stop_on_signals(partial(stop_jobs, jobs))
        if self.folder:
            clear_asides(Path(self.folder))
        clear_asides(Path(config.cache), older_than_s=600)  # other sweeps may be writing to it

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        records = [read_job(path) for path in sorted(jobs_of(config).glob("*.json"))]
        failed = [f"failed: {' '.join(r['overrides'])}: {r['error']}" for r in records if r["error"]]
        failed += [] if records else ["failed: no run was recorded"]
        done = [Path(record["folder"]) for record in records if not record["error"]]
        try:
            self._write(config, records, done)
        except Exception as error:
            traceback.print_exc()
            failed.append(f"failed: the tables: {error}")
        console = Console(stderr=bool(failed))
        console.print(f"{len(done)} of {len(records)} runs done", highlight=False)
        for line in failed:
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        if failed:
            sys.exit(1)

    def _write(self, config: DictConfig, records: list[dict[str, Any]], done: list[Path]) -> None:
        from unreel import results, tables  # plots and statistics take seconds to import

        scores = tables.finished_scores(done)
        if not self.folder or not scores:
            return
        whole = _as_written(sys.argv[1:]) and not any(record["error"] for record in records)
        folder = Path(self.folder) if whole else Path(config.runs) / config.slug / "tables"
        if config.get("objectives"):
            results.write_search(records, scores, folder, self.bars)
        else:
            results.write_tables(scores, folder, self.bars, self.images, self.by)
        Console().print(str(folder / "table.md"), soft_wrap=True, highlight=False, markup=False)


def objectives_of(config: DictConfig) -> list[str]:
    """What a sweeper is to be told. ValueError for what no run tells."""
    given = config.get("objectives") or []
    objectives = [given] if isinstance(given, str) else list(given)
    if not objectives:
        return []
    for name in objectives:
        try:
            column_of(str(name))
        except ValueError as error:
            raise ValueError(str(error).replace("found ", "found objectives=", 1)) from None
    return objectives


def check_sweep(config: DictConfig) -> None:
    """ValueError for objectives that do not fit the sweeper, and for several values of what all jobs must share."""
    objectives, direction = objectives_of(config), OmegaConf.select(config, "hydra.sweeper.direction")
    if direction is not None:
        asked = len(direction) if OmegaConf.is_list(direction) else 1
        if asked != len(objectives):
            raise ValueError(
                f"found {len(objectives)} objectives for {asked} of hydra.sweeper.direction: expected as many"
            )
    given = OmegaConf.select(config, "hydra.overrides.task") or []
    for override in OverridesParser.create().parse_overrides(list(given)):
        if override.key_or_group in _OF_ALL_JOBS and override.is_sweep_override():
            raise ValueError(f"found {override.input_line} in a sweep: expected one value, and a command for each")


def _as_written(arguments: Sequence[str]) -> bool:
    """Whether a command line leaves an experiment as it is written: it only says where and how it runs."""
    keys = {argument.partition("=")[0].lstrip("+~") for argument in arguments if not argument.startswith("-")}
    launcher = ("hydra/launcher", "hydra.launcher.")
    return all(key.split(".")[0] in _WHERE_AND_HOW or key.startswith(launcher) for key in keys)
