"""Sweeps: what became of every job, and at the end the tables of the experiment.

A job that fails is recorded with its error, the others go on, and the sweep ends with an error when all are through.
The same command again runs what is not finished.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from unreel.figures import lines_or_bars, save, scatter
from unreel.files import write_text
from unreel.scores import write_scores
from unreel.tables import differing_in, finished_scores, groups_of, in_images, markdown


def is_sweep() -> bool:
    """Whether this process runs one of several jobs."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _jobs(config: DictConfig) -> Path:
    return Path(config.runs) / config.slug / "jobs"


def record_job(config: DictConfig, folder: str, error: str) -> None:
    """One file a job, written by whatever process ran it: its overrides, and its run folder or its error."""
    job = HydraConfig.get()
    record = {"overrides": list(job.overrides.task), "folder": folder, "error": error}
    write_text(_jobs(config) / f"{job.job.num:06}.json", json.dumps(record) + "\n")


def write_tables(runs: Iterable[Path], folder: Path, bars: Mapping[str, float], images: str = "", by: str = "") -> None:
    """Writes `scores.jsonl`, `table.md` and figures of all finished runs to an experiment's folder.

    Args:
        runs: run folders.
        folder: of the experiment.
        bars: column -> what is asked of it: at most, of forget and the gap; at least, of the others.
        images: the recipient whose clips are the donor's images, for the transfer gap.
        by: what the runs differ in: a key of scores (shots, parameters, steps, t2v), or concepts: how many in one edit.

    Raises:
        ValueError: when no run has finished.
    """
    scores = finished_scores(runs)
    if not scores:
        raise ValueError(f"no finished run to put into {folder}: expected at least one")
    groups = groups_of(scores)
    write_scores(folder / "scores.jsonl", scores)
    asked = ", ".join(
        f"{column} {'≤' if column in ('forget', 'transfer gap') else '≥'} {bar:.0%}" for column, bar in bars.items()
    )
    singles = [s for s in scores if groups[s.run] == s.kind]
    text = f"After the edit, ± 95 % over runs{f'; asked: {asked}' if asked else ''}\n\n"
    still = in_images(scores, images)
    text += markdown(singles, lambda s: (s.method, s.t2v), ("all single concepts", "clips"), still)
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


class Sweep(Callback):
    """Hydra callback: counts a sweep's jobs, writes its tables and ends it with an error when one failed.

    Args:
        folder: of the experiment, e.g. experiments/claims; null for no tables.
        bars, images, by: as in `write_tables`.
    """

    def __init__(
        self, folder: str | None = None, bars: Mapping[str, float] | None = None, images: str = "", by: str = ""
    ) -> None:
        self.folder, self.bars, self.images, self.by = folder, bars or {}, images, by

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        shutil.rmtree(_jobs(config), ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        records = [json.loads(path.read_text()) for path in sorted(_jobs(config).glob("*.json"))]
        failed = [record for record in records if record["error"]]
        done = [Path(record["folder"]) for record in records if not record["error"]]
        console = Console(stderr=bool(failed))
        if self.folder and done:
            write_tables(done, Path(self.folder), self.bars, self.images, self.by)
            console.print(str(Path(self.folder) / "table.md"), soft_wrap=True, highlight=False)
        console.print(f"{len(done)} of {len(records)} runs done", highlight=False)
        for record in failed:
            line = f"failed: {' '.join(record['overrides'])}: {record['error']}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        if failed:
            sys.exit(1)
