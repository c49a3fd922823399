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
from rich.console import Console
from rich.table import Table

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
        except Exception as error:
            cause = error.__cause__  # hydra wraps what a constructor raises
            if type(error).__name__ == "InstantiationException" and isinstance(cause, ValueError | OSError):
                sys.exit(f"unreel: {cause}")
            raise

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
    scores = read_scores(folder / "scores.jsonl")
    value = {(s.t2v, s.concept, s.split, s.metric, s.stage): s for s in scores}
    console, table = Console(), Table("clips", "concept", "split", "metric", "before", "after", "n")
    for t2v, concept, split, metric in dict.fromkeys(key[:4] for key in value):
        pair = [value.get((t2v, concept, split, metric, stage)) for stage in ("before", "after")]
        shown = ["" if s is None else f"{s.value:.1%}" if "accuracy" in metric else f"{s.value:.1f}" for s in pair]
        table.add_row(t2v, concept, split, metric, *shown, str(next(s.n for s in pair if s is not None)))
    console.print(table)
    if seconds:
        console.print(
            "seconds: " + ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items()), highlight=False
        )
    for name in ("report.html", "edit.safetensors", "text_encoder"):
        console.print(str(folder / name), soft_wrap=True, highlight=False)
