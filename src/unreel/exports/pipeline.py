"""pipeline: a folder that `DiffusionPipeline.from_pretrained` loads, edited, of every model that got the edit.

What the edit changes and the schedule are files of its own; all else are links to the files that the model was loaded
from (the zoo's, a local folder's, the hub cache's), so that it takes little room and lasts as long as they do.

Its clips are the run's to the last bit once its weights are frozen (`requires_grad_(False)`), as a run's are; torch
takes other kernels for weights that might be trained, which differ by 3e-7 of the pixels' range.

A Text2Video-Zero pipeline without a safety checker is one that diffusers saves, but does not load again unless it is
told `safety_checker=None, feature_extractor=None`; `absent_parts` names such arguments.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unreel.edits import Edit
from unreel.exports.components import file_name, name_in
from unreel.files import whole_folder, write_text
from unreel.models.outline import folder_of

_INDEX = "model_index.json"
_LINKED = (".json", ".txt", ".jinja", ".model", ".safetensors")  # no pickles
_WRITTEN = ("scheduler", "guider")  # what models may have changed since it was loaded, or may not have had in a folder


def _sources(model: Any, parts: Sequence[str]) -> dict[str, Path]:
    """Part of the pipeline -> the folder that it was loaded from, of those that have one."""
    told = {key: folder_of(source) for key, source in getattr(model, "sources", {}).items()}
    folders = {key: folder for key, folder in told.items() if folder is not None}
    found = {part: folders[part] if part in folders else folders[""] / part for part in parts if folders}
    return {part: folder for part, folder in found.items() if folder.is_dir()}


def _link(source: Path, folder: Path) -> str | None:
    """Links a part's files into a folder; the class that its config says it is, where it says one."""
    folder.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _LINKED:
            (folder / path.name).symlink_to(path)
    config = folder / "config.json"
    return json.loads(config.read_text(encoding="utf-8")).get("_class_name") if config.is_file() else None


def absent_parts(pipeline: Any) -> list[str]:
    """The parts which a pipeline has not and its class demands: `from_pretrained` has to be told that they are None."""
    own = set(pipeline._optional_components)
    return sorted(name for name, part in pipeline.components.items() if part is None and name not in own)


def write(models: Sequence[Any], edit: Edit, folder: Path) -> None:
    """Writes a pipeline folder of each model, by its name, with the edit in it.

    Args:
        models: Models that hold the weights that the edit was made from; of two with one name the second counts.
        edit: applied to each while it is written.
        folder: they are written below it, all or none.
    """
    with whole_folder(folder) as aside:
        for name, model in {file_name(model.name): model for model in models}.items():
            with edit.applied(model):
                _write_one(model, edit, aside / name)


def _write_one(model: Any, edit: Edit, folder: Path) -> None:
    pipeline = model.pipeline
    pipeline.save_config(folder)
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    index.pop("_name_or_path", None)  # a path of this machine
    parts = [name for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None]
    edited = {name_in(model, key) for key in edit.components}
    sources = _sources(model, [part for part in parts if part not in edited and part not in _WRITTEN])
    for part in parts:
        if part in sources:
            index[part][1] = _link(sources[part], folder / part) or index[part][1]
        else:
            getattr(pipeline, part).save_pretrained(folder / part, safe_serialization=True)
    write_text(folder / _INDEX, json.dumps(index, indent=2) + "\n")
