"""What the two commands share at the terminal: errors in one line, quiet libraries, the table at the end."""

import errno
import functools
import logging
import math
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from unreel.page import score_rows
from unreel.runs import Run
from unreel.scores import read_scores
from unreel.signals import Stopped, stop_on_signals
from unreel.sweeps import is_sweep, objectives_of, record_job
from unreel.tables import left

_MOST_SAID = 1000  # characters of an error


def command(main: Callable[[], Any]) -> None:
    """Runs a Hydra command; `key=~/folder` means the home folder, which no shell puts there and Hydra cannot read."""
    home = str(Path.home())
    sys.argv = [re.sub(r"^([\w.@+/]+=)~(?=/|$)", lambda found: found[1] + home, argument) for argument in sys.argv]
    stop_on_signals()
    try:
        main()
    except Stopped as stopped:
        print(f"unreel: {stopped}. The same command goes on where it can", file=sys.stderr)
        sys.exit(stopped.status)


def as_job(main: Callable[[DictConfig], Run]) -> Callable[[DictConfig], Any]:
    """A command as Hydra runs it, alone or as one of a sweep.

    Ends with one line instead of a traceback when what the user gave will not do; in a sweep the others go on. Returns
    what a sweeper asks for: the figures of `objectives`, None of a run that failed or lacks one.
    """

    @functools.wraps(main)
    def job(config: DictConfig) -> Any:
        if is_sweep():
            os.chdir(HydraConfig.get().runtime.cwd)  # launchers start their workers anywhere
            record_job(config)
            if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # a worker's
                stop_on_signals(again=signal.SIG_IGN)  # Ctrl-C reaches it from the terminal, and is passed on to it
        folder, error, status = "", "", 1
        try:
            objectives = objectives_of(config)
            if (threads := config.get("threads")) is not None:
                if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
                    raise ValueError(f"found threads={threads}: expected a whole number, 1 or more")
                torch.set_num_threads(threads)
            run = main(config)
            folder, status = str(run.folder), 0
        except Stopped as stopped:
            error, status = str(stopped), stopped.status
            raise
        except Exception as caught:
            error = one_line(caught)
            if not is_sweep():
                if not error:
                    raise
                sys.exit(f"unreel: {error}")
            if not error:
                traceback.print_exc()
                error = f"{type(caught).__name__}: {caught}"
            print(f"unreel: {error}", file=sys.stderr)
        finally:
            wandb.finish(status)  # or, after an error, the next run of a sweep would write into this one
            if is_sweep():
                record_job(config, folder, error or ("" if folder else "it ended early"))
        if error or not objectives:
            return None
        scores = read_scores(run.folder / "scores.jsonl")
        values = [left(scores, column) for column in objectives]
        if any(map(math.isnan, values)):
            return None
        return values if len(values) > 1 else values[0]

    return job


def one_line(error: BaseException) -> str:
    """What a user can do something about, as one line of a length that can be read; "" for all else."""
    said = " ".join(_said(error).split())
    return said if len(said) <= _MOST_SAID else f"{said[: _MOST_SAID // 2]} ... {said[-_MOST_SAID // 2 :]}"


def _said(error: BaseException | None) -> str:
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing: expected {error.full_key}=..."
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "os error 28" in str(error):
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}: free some space and give the same command again"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}: expected a place that can be read and written"
    if isinstance(error, wandb.Error):
        return f"W&B: {error}: expected `wandb login`, logger.offline=true or logger=none"
    if isinstance(error, ValueError | OSError | OmegaConfBaseException):
        return str(error)
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return _said(error.__cause__)
    return ""


def quiet_libraries() -> None:
    """Their bars and warnings are about things that we set on purpose."""
    os.environ.setdefault("WANDB_QUIET", "true")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning|torch|diffusers|transformers|wandb|pydantic")


def print_result(run: Run) -> None:
    """Before and after, how it ended, where the time went, and the paths that a user wants."""
    wandb.finish()  # its own last words come first
    folder = run.folder
    console, tables = Console(), dict[str, Table]()
    for row in score_rows(read_scores(folder / "scores.jsonl")):
        title = f"{row['concept']} in clips of {row['t2v']}"
        table = tables.setdefault(title, Table("split", "metric", "before", "after", "clips", title=title))
        form = "{:.1%}" if row["percent"] else "{:.1f}"
        shown = ["" if score is None else form.format(score.value) for score in (row["before"], row["after"])]
        table.add_row(row["split"], row["metric"], *shown, str(row["n"]))
    console.print(*tables.values())
    if run.message:
        console.print(f"ended early: {run.message}", highlight=False, markup=False)
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in run.timings.items())
    console.print(f"seconds: {spent}", highlight=False)
    for name in ("report.html", "edit.safetensors", "text_encoder", "unet", "transformer"):
        if (folder / name).exists():
            console.print(str(folder / name), soft_wrap=True, highlight=False)
