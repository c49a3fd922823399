"""What a run shows at the terminal: what it is about to do, and the table at the end."""

from collections.abc import Callable, Sequence
from pathlib import Path

import wandb
from pytorch_lightning.loggers import Logger, WandbLogger
from rich.console import Console
from rich.table import Table

from unreel.edits import check_edits
from unreel.exports.card import CARD
from unreel.exports.components import FOLDERS
from unreel.jobs import is_sweep
from unreel.page import doubts, score_rows
from unreel.records import Concept
from unreel.runs import Run, is_first_process
from unreel.scores import read_scores


def announce(run: Run, concepts: Sequence[Concept]) -> None:
    """The first lines of a run: what it erases, how, and where it puts everything; nothing in a sweep."""
    if is_first_process() and not is_sweep():
        config, named = run.config, ", ".join(f"{concept.slug} ({concept.kind})" for concept in concepts)
        told = [config.method.name, f"{config.shots} shots", config.parameters.name, f"seed {config.seed}"]
        print(f"unreel: {named}; {', '.join(told)}\n{run.folder}", flush=True)


def told_of(loggers: Sequence[Logger]) -> None:
    """Where W&B has the run: an address, or the folder that `wandb sync` sends."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and is_first_process() and not is_sweep():
            mirror = logger.experiment
            print(f"W&B           {mirror.url or f'offline: wandb sync {Path(mirror.dir).parent}'}", flush=True)


def was_done(run: Run, lacking: Callable[[], list[str]] = list) -> bool:
    """Whether the run is finished already, and has all exports; then its result is printed.

    Args:
        run: its folder.
        lacking: which exports it lacks, once it is finished.

    Raises:
        ValueError: when its edit was harmed since.
    """
    if not run.is_done():
        return False
    check_edits(run.folder)
    if lacking():
        return False
    print_result(run)
    return True


def print_result(run: Run) -> None:
    """Before and after, how it ended, where the time went, and the paths that a user wants."""
    wandb.finish()  # its own last words come first
    folder = run.folder
    console, tables, scores = Console(), dict[str, Table](), read_scores(folder / "scores.jsonl")
    for row in score_rows(scores):
        title = f"{row['concept']} in clips of {row['t2v']}"
        table = tables.setdefault(title, Table("split", "metric", "before", "after", "clips", title=title))
        form = "{:.1%}" if row["percent"] else "{:.1f}"
        shown = ["" if score is None else form.format(score.value) for score in (row["before"], row["after"])]
        table.add_row(row["split"], row["metric"], *shown, str(row["n"]))
    console.print(*tables.values())
    if run.message:
        console.print(f"ended early: {run.message}", highlight=False, markup=False)
    for doubt in doubts(scores):
        console.print(f"nothing forgotten? {doubt}", highlight=False, markup=False)
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in run.timings.items())
    console.print(f"seconds: {spent}", highlight=False)
    for name in ("report.html", "edit.safetensors", *FOLDERS, "comfyui", "lora", "pipeline", CARD):
        if (folder / name).exists():
            console.print(str(folder / name), soft_wrap=True, highlight=False, markup=False)
