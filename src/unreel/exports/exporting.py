"""The formats that a finished edit is written in, for where people generate, and the card that tells of them.

They follow from the saved edit alone: a finished run that is given other formats gets those too, without training.
"""

from collections.abc import Sequence
from pathlib import Path

from diffusers import UNet2DConditionModel
from omegaconf import DictConfig

from unreel.door import exports_of
from unreel.edits import Edit
from unreel.exports import card, comfyui, components, lora, pipeline
from unreel.models.model import Model
from unreel.records import Concept
from unreel.runs import Run
from unreel.sharing import Share


def wanted_of(config: DictConfig, changes: Sequence[str], attaches: bool) -> list[str]:
    """The formats that a config asks for, of a method that changes these components and may attach itself.

    Raises:
        ValueError: where weights are asked for of a method that is more than changed weights.
    """
    wanted = exports_of(config)
    if (attaches or not changes) and (wrong := [name for name in wanted if name != "transformers"]):
        raise ValueError(
            f"found export={','.join(wrong)}: {config.method.name} acts while the pipeline samples, which no file of"
            " weights holds; leave it out and apply edit.safetensors"
        )
    return [] if attaches or not changes else wanted


def check(wanted: Sequence[str], maker: Model, names: Sequence[str]) -> None:
    """ValueError for a format that cannot hold a change of these tensors "component/parameter" of a model."""
    changed = tuple(dict.fromkeys(name.partition("/")[0] for name in names))
    if "comfyui" in wanted:
        comfyui.check(maker, changed)
    if "lora" in wanted:
        lora.check(maker, names)


def plainest(models: Sequence[Model]) -> Model:
    """The model that an edit is best exported from: one with an image's UNet, which most loaders know, or the first."""
    plain = [model for model in models if isinstance(model.components["denoiser"], UNet2DConditionModel)]
    return (plain or list(models))[0]


def folder_of(run: Run, shares: Sequence[Share], share: Share) -> Path:
    """Where the edit of a share is: the first's in the run folder, the others' below it."""
    return run.folder if share is shares[0] else run.folder / "edits" / share.maker.name


def folders_of(run: Path) -> list[Path]:
    """The folders of all edits of a run that is there."""
    return [run, *sorted(path.parent for path in run.glob("edits/*/edit.safetensors"))]


def _is_there(name: str, folder: Path, keeps: float) -> bool:
    if name == "transformers":
        return any((folder / part).is_dir() for part in components.FOLDERS)
    if name == "lora":
        return lora.said_in(folder / name).get("unreel_keeps") == str(keeps)
    return (folder / name).is_dir()


def lacking(run: Path, wanted: Sequence[str], config: DictConfig) -> list[str]:
    """Which of the wanted formats a finished run's folder lacks, or has with other settings; "card" likewise."""
    found = [n for n in wanted if not all(_is_there(n, folder, config.lora_keeps) for folder in folders_of(run))]
    return found + (["card"] if wanted and not card.is_there(run, config.get("licence")) else [])


def made_in(run: Run, shares: Sequence[Share]) -> list[card.Made]:
    """The saved edits of a run."""
    folders = [folder_of(run, shares, share) for share in shares]
    return [card.Made(f, Edit.load(f / "edit.safetensors"), share) for f, share in zip(folders, shares, strict=True)]


def export(run: Run, edits: Sequence[card.Made], concepts: Sequence[Concept], todo: Sequence[str]) -> None:
    """Writes some formats of a run's edits, and the card, whose scores and whose other formats are there.

    Raises:
        ValueError: for an edit that a format cannot hold.
    """
    if not todo:
        return
    named = components.file_name(f"{run.config.t2i.name}_without_{'+'.join(concept.slug for concept in concepts)}")
    with run.timed("exports") as phase:
        for made in edits:
            _export_one(made, todo, named, run.config.lora_keeps)
        card.write(run, edits, concepts, run.config.get("licence"))
        phase.said = ", ".join([name for name in todo if name != "card"] + ["card"])


def _export_one(made: card.Made, todo: Sequence[str], name: str, keeps: float) -> None:
    where, edit, share = made
    if "lora" in todo:
        lora.write(share.maker, edit, keeps, name, where / "lora")
    if "pipeline" in todo:
        pipeline.write([share.maker, *share.recipients], edit, where / "pipeline")
    with edit.applied(share.maker):
        if "transformers" in todo:
            components.export_components(share.maker, edit.components, where)
        if "comfyui" in todo:
            comfyui.write(share.maker, edit.components, name, where / "comfyui")
