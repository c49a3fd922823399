"""What the two commands share at the terminal: errors in one line, quiet libraries, the table at the end."""

import errno
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import transformers
import wandb
from hydra.errors import InstantiationException
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from unreel.report import score_rows
from unreel.runs import Run
from unreel.scores import read_scores


def one_line_errors(job: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Ends a job with one line instead of a traceback when what the user gave will not do."""

    @functools.wraps(job)
    def guarded(config: Any) -> Any:
        try:
            return job(config)
        except ValueError as error:
            sys.exit(f"unreel: {error}")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            sys.exit(f"unreel: the disk is full ({error.filename}): free some space and give the same command again")
        except SafetensorError as error:
            if "os error 28" not in str(error):
                raise
            sys.exit("unreel: the disk is full: free some space and give the same command again")
        except InstantiationException as error:
            if not isinstance(error.__cause__, ValueError | OSError):
                raise
            sys.exit(f"unreel: {' '.join(str(error.__cause__).split())}")
        finally:
            wandb.finish()  # or, after an error, the next run of a sweep would write into this one

    return guarded


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
    """Before and after, how it ended, where the time went, and the three paths that a user wants."""
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
    for name in ("report.html", "edit.safetensors", "text_encoder"):
        if (folder / name).exists():
            console.print(str(folder / name), soft_wrap=True, highlight=False)
