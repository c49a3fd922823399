"""Sweeps: what became of every job, and at the end the tables of the experiment.

A job that fails is recorded with its error, the others go on, and the sweep ends with an error when all are through.
What a worker process that dies (out of memory, a kill) does to the others is up to the launcher: joblib ends the sweep.
The same command again runs what is not finished.
"""

import fcntl
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from unreel.figures import lines_or_bars, pareto, save, scatter
from unreel.files import clear_asides, write_text
from unreel.records import Score
from unreel.scores import write_scores
from unreel.signals import stop_on_signals
from unreel.tables import (
    COLUMNS,
    columns_of,
    differing_in,
    finished_scores,
    groups_of,
    in_images,
    left,
    markdown,
    pooled,
    smallest_difference,
)

_WHERE_AND_HOW = {"experiment", "launcher", "threads", "runs", "cache", "device", "logger", "least_free_mb"}
_OF_ALL_JOBS = {"slug", "runs", "experiment"}  # they say where a sweep keeps its records


def is_sweep() -> bool:
    """Whether this process runs one of several jobs."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _jobs(config: DictConfig) -> Path:
    return Path(config.runs) / config.slug / "jobs"


def record_job(config: DictConfig, folder: str = "", error: str = "") -> None:
    """One file a job, written by whatever process runs it: its overrides, and its run folder or its error.

    A job that begins has neither: should its process die, the record says so.
    """
    job = HydraConfig.get()
    running = not folder and not error
    record = {
        "overrides": list(job.overrides.task), "folder": folder, "process": os.getpid() if running else None,
        "error": "its process was ended from outside (out of memory?)" if running else error,
    }  # fmt: skip
    write_text(_jobs(config) / f"{job.job.num:06}.json", json.dumps(record) + "\n")


def stop_jobs(jobs: Path, number: int, patience_s: float = 20) -> str:
    """Passes a signal on to the workers of a sweep, and waits until they have recorded where they stopped.

    Returns:
        Where they did, as text; "" where this process runs all jobs itself.
    """
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    running = [path for path in jobs.glob("*.json") if json.loads(path.read_text())["process"] in children]
    for path in running:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(json.loads(path.read_text())["process"]).send_signal(number)
    until = time.monotonic() + patience_s
    while time.monotonic() < until and any(json.loads(path.read_text())["process"] for path in running):
        time.sleep(0.1)
    stopped = [json.loads(path.read_text())["error"] for path in running]
    return "; ".join(sorted({error.partition(" in: ")[2] or error for error in stopped}))


def write_tables(
    scores: Sequence[Score], folder: Path, bars: Mapping[str, float], images: str = "", by: str = ""
) -> None:
    """Writes `scores.jsonl`, `table.md` and figures of many runs to an experiment's folder.

    Args:
        scores: of all runs.
        folder: of the experiment.
        bars: column -> what is asked of it: at most, of forget and of the gap's size; at least, of the others.
        images: the recipient whose clips are the donor's images, for the transfer gap.
        by: what the runs differ in: a key of scores (shots, parameters, steps, t2v), or concepts: how many in one edit.
    """
    groups = groups_of(scores)
    write_scores(folder / "scores.jsonl", scores)
    still = in_images(scores, images)
    signs = {"forget": "forget ≤", "transfer gap": "size of the transfer gap ≤"}
    asked = ", ".join(
        f"{signs.get(name, f'{name} ≥')} {bar:.0%}" for name, bar in bars.items() if still or name != "transfer gap"
    )
    singles = [s for s in scores if groups[s.run] == s.kind]
    text = f"After the edit, ± 95 % over seeds{f'; asked: {asked}' if asked else ''}\n\n"
    if over := pooled(scores):
        text += f"Means over {' and '.join(over)} wherever a table has no column of it\n\n"
    text += markdown(singles, lambda s: (s.method, s.t2v), ("all single concepts", "clips"), still)
    text += told(singles)
    if by:
        differ = differing_in(scores, by)
        text += f"\nBy {by}\n\n"
        text += markdown(scores, lambda s: (s.method, differ[s.run, s.t2v], s.t2v), ("method", by, "clips"), still)
        save(lines_or_bars(scores, differ, by), folder / f"{by}.png")
    text += "\nBy what is erased\n\n"
    text += markdown(scores, lambda s: (s.method, groups[s.run], s.t2v), ("method", "erased", "clips"), still)
    text += "\nBy concept\n\n"
    text += markdown(
        scores, lambda s: (s.method, groups[s.run], s.concept, s.t2v), ("method", "erased", "concept", "clips"), still
    )
    write_text(folder / "table.md", text)
    save(scatter(scores, bars), folder / "forget_retain.png")


def told(scores: Sequence[Score]) -> str:
    """For each recipient the smallest differences between methods that the seeds can show, as text."""
    lines = []
    for t2v in sorted({s.t2v for s in scores}):
        here = [s for s in scores if s.t2v == t2v]
        rows = [[s for s in here if s.method == method] for method in dict.fromkeys(s.method for s in here)]
        found = {column: smallest_difference(rows, column) for column in columns_of(here)}
        said = [f"{column} {value:.1%}" for column, value in found.items() if not math.isnan(value)]
        lines += [f"- {t2v}: {', '.join(said)}"] if len(rows) > 1 and said else []
    head = "\nThe smallest differences between two methods that these seeds can show (95 %, pooled variance):\n\n"
    return head + "\n".join(lines) + "\n" if lines else ""


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

    def __getstate__(self) -> dict[str, Any]:
        """Workers get the callback, but not the lock."""
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Hydra only warns of what a callback raises, so that it has to exit."""
        try:
            check_sweep(config)
        except ValueError as error:
            sys.exit(f"unreel: {error}")
        jobs = _jobs(config)
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
        records = [json.loads(path.read_text()) for path in sorted(_jobs(config).glob("*.json"))]
        failed = [f"failed: {' '.join(r['overrides'])}: {r['error']}" for r in records if r["error"]]
        failed += [] if records else ["failed: no run was recorded"]
        done = [Path(record["folder"]) for record in records if not record["error"]]
        try:
            self._write(config, records, finished_scores(done))
        except Exception as error:
            traceback.print_exc()
            failed.append(f"failed: the tables: {error}")
        console = Console(stderr=bool(failed))
        console.print(f"{len(done)} of {len(records)} runs done", highlight=False)
        for line in failed:
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        if failed:
            sys.exit(1)

    def _write(self, config: DictConfig, records: list[dict[str, Any]], scores: list[Score]) -> None:
        if not self.folder or not scores:
            return
        whole = _as_written(sys.argv[1:]) and not any(record["error"] for record in records)
        folder = Path(self.folder) if whole else Path(config.runs) / config.slug / "tables"
        if config.get("objectives"):  # the runs of a search are no repetitions of each other
            write_scores(folder / "scores.jsonl", scores)
            save(scatter(scores, self.bars), folder / "forget_retain.png")
            write_text(folder / "table.md", trials(records, scores))
        else:
            write_tables(scores, folder, self.bars, self.images, self.by)
        Console().print(str(folder / "table.md"), soft_wrap=True, highlight=False)


def objectives_of(config: DictConfig) -> list[str]:
    """What a sweeper is to be told. ValueError for what no run tells."""
    given = config.get("objectives") or []
    objectives = [given] if isinstance(given, str) else list(given)
    if unknown := [name for name in objectives if name not in COLUMNS]:
        raise ValueError(f"found objectives={','.join(map(str, unknown))}: expected some of {', '.join(COLUMNS)}")
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


def trials(records: Sequence[Mapping[str, Any]], scores: Sequence[Score]) -> str:
    """A table of a search: what the trials differ in, and what each forgot and kept; * is the Pareto front."""
    given = [{key: value for key, _, value in (o.partition("=") for o in r["overrides"])} for r in records]
    keys = [key for key in dict.fromkeys(key for own in given for key in own) if len({g.get(key) for g in given}) > 1]
    rows = []
    for record, choices in zip(records, given, strict=True):
        name = Path(record["folder"]).name
        if own := [s for s in scores if s.run == name]:
            cells = [*(_rounded(choices.get(key, "")) for key in keys), f"`{name.rpartition('-')[2]}`"]
            rows.append((left(own, "forget"), left(own, "retain"), " | ".join(cells)))
    front = pareto(np.array([row[:2] for row in rows if not math.isnan(row[1])]).reshape(-1, 2)).tolist()
    lines = [
        f"| {f:.1%} | {'–' if math.isnan(r) else f'{r:.1%}'} | {'*' if [f, r] in front else ''} | {cells} |"
        for f, r, cells in sorted(rows)
    ]
    header = ["forget", "retain", "front", *(f"`{key}`" for key in keys), "run ends in"]
    return "\n".join([f"| {' | '.join(header)} |", "| --- " * len(header) + "|", *lines, ""])


def _rounded(value: str) -> str:
    """A number to three digits, which `config.yaml` has in full; all else as code."""
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return f"`{value}`"
