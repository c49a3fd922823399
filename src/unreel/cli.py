"""What the two commands share at the terminal: errors in one line, quiet libraries, the table at the end."""

import errno
import functools
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import transformers
from hydra.errors import InstantiationException
from rich.console import Console
from rich.table import Table

from unreel.report import score_rows
from unreel.scores import read_scores


def one_line_errors(job: Callable[[Any], None]) -> Callable[[Any], None]:
    """Ends a job with one line instead of a traceback when what the user gave will not do."""

    @functools.wraps(job)
    def guarded(config: Any) -> None:
        try:
            job(config)
        except ValueError as error:
            sys.exit(f"unreel: {error}")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            sys.exit(f"unreel: the disk is full ({error.filename}): free some space and give the same command again")
        except InstantiationException as error:
            if not isinstance(error.__cause__, ValueError | OSError):
                raise
            sys.exit(f"unreel: {' '.join(str(error.__cause__).split())}")

    return guarded


def quiet_libraries() -> None:
    """Their bars and warnings are about things that we set on purpose."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning|torch|diffusers|transformers|wandb|pydantic")


def print_result(folder: Path, seconds: dict[str, float]) -> None:
    """Before and after, where the time went, and the three paths that a user wants."""
    console, table = Console(), Table("clips", "concept", "split", "metric", "before", "after", "n")
    for row in score_rows(read_scores(folder / "scores.jsonl")):
        pair, form = (row["before"], row["after"]), "{:.1%}" if row["percent"] else "{:.1f}"
        shown = ["" if score is None else form.format(score.value) for score in pair]
        table.add_row(*(row[key] for key in ("t2v", "concept", "split", "metric")), *shown, str(row["n"]))
    console.print(table)
    if seconds:
        console.print(
            "seconds: " + ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items()), highlight=False
        )
    for name in ("report.html", "edit.safetensors", "text_encoder"):
        if (folder / name).exists():
            console.print(str(folder / name), soft_wrap=True, highlight=False)
