"""What a run shows at the terminal: nothing of the libraries that a user can't act on, and the table at the end."""

import logging
import os
import warnings

import diffusers
import torch
import transformers
import wandb
from rich.console import Console
from rich.table import Table

from unreel.page import score_rows
from unreel.runs import Run
from unreel.scores import read_scores


def prepare_libraries(threads: int | None) -> None:
    """So many CPU threads, None for torch's own number; and none of the libraries' bars and warnings.

    Those are about things that we set on purpose.
    """
    if threads is not None:
        torch.set_num_threads(threads)
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
