"""The edit on W&B: an artifact of type `edit`, logged by the run that made it and used by those that score it again."""

from collections.abc import Sequence

import wandb
from pytorch_lightning.loggers import Logger, WandbLogger
from wandb.errors import CommError

from unreel.edits import Edit
from unreel.exports.card import CARD, Made, base_hashes, headline
from unreel.records import Concept
from unreel.runs import Run
from unreel.scores import read_scores

_TYPE = "edit"


def name_of(edit: Edit) -> str:
    """What W&B calls it: by its content, so that whoever holds the file finds the artifact."""
    return f"edit-{edit.hash}"


def log(run: Run, edits: Sequence[Made], concepts: Sequence[Concept], loggers: Sequence[Logger]) -> None:
    """Logs each edit that a run made, and its card where there is one.

    Offline the artifact is in the offline run; `wandb sync` sends the edit from where it is, the run's folder.

    Args:
        run: its folder, with scores.
        edits: what it made.
        concepts: what they erase.
        loggers: Lightning's; those of W&B are told.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for where, edit, _ in edits:
                metadata = {
                    "concept": [concept.slug for concept in concepts], "method": edit.method, "edit": edit.hash,
                    "base": base_hashes(edit), "run": run.folder.name,
                    "scores": headline(read_scores(run.folder / "scores.jsonl")),
                }  # fmt: skip
                artifact = wandb.Artifact(name_of(edit), _TYPE, metadata=metadata)
                artifact.add_file(
                    str(where / "edit.safetensors"), policy="immutable", skip_cache=True
                )  # no copies of it
                if (card := run.folder / CARD).is_file():
                    artifact.add_file(str(card))
                logger.experiment.log_artifact(artifact)


def use(edit: Edit, loggers: Sequence[Logger]) -> None:
    """Says on W&B that a run scores this edit: its hash among the settings, and online the artifact, if it is there."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_hyperparams({"edit": edit.hash})
            if not logger.experiment.offline:
                try:
                    logger.experiment.use_artifact(f"{name_of(edit)}:latest", type=_TYPE)
                except (CommError, ValueError):  # made elsewhere: nothing to be linked with
                    continue
