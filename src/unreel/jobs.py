"""Jobs of a sweep: a record of each, and how a signal reaches the workers that run them."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pydantic import Field

from unreel.files import write_text
from unreel.validation import Parsed, validated


def is_sweep() -> bool:
    """Whether this process runs one of several jobs."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def jobs_of(config: DictConfig) -> Path:
    """Where the records of a sweep's jobs are, one file each."""
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
    write_text(jobs_of(config) / f"{job.job.num:06}.json", json.dumps(record) + "\n")


class Job(Parsed):
    """A job's record as it is read back."""

    overrides: list[str] = Field(default_factory=list)
    folder: str
    process: int | None = None
    error: str


def read_job(path: Path) -> dict[str, Any]:
    """A job's record; of a damaged one that it is, as the job's error."""
    try:
        return validated(Job, json.loads(path.read_text(encoding="utf-8"))).model_dump()
    except ValueError as error:
        return Job(folder="", error=f"{path} is damaged ({error})").model_dump()


def stop_jobs(jobs: Path, number: int, patience_s: float = 20) -> str:
    """Passes a signal on to the workers of a sweep, and waits until they have recorded where they stopped.

    Returns:
        Where they did, as text; "" where this process runs all jobs itself.
    """
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    running = [path for path in jobs.glob("*.json") if read_job(path)["process"] in children]
    for path in running:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(read_job(path)["process"]).send_signal(number)
    until = time.monotonic() + patience_s
    while time.monotonic() < until and any(read_job(path)["process"] for path in running):
        time.sleep(0.1)
    stopped = [read_job(path)["error"] for path in running]
    return "; ".join(sorted({error.partition(" in: ")[2] or error for error in stopped}))
