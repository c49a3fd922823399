"""transformers: each edited component as the folder that `from_pretrained` of transformers or diffusers loads."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unreel.files import whole_folder
from unreel.weights import DENOISERS

FOLDERS = ("text_encoder", "text_encoder_2", "text_encoder_3", *DENOISERS)


def file_name(text: str) -> str:
    """A text as the name of a file: letters, digits, "_", "+", "-" and ".", none of them a first dot; 100 at most."""
    return re.sub(r"[^A-Za-z0-9_+.-]+", "_", text)[:100].lstrip(".") or "model"


def name_in(target: Any, component: str) -> str:
    """What the pipeline of a Model, or a plain one, calls a component; a denoiser is its "unet" or "transformer"."""
    if hasattr(target, "part"):
        return target.part(component)
    if component != "denoiser":
        return component
    return next(name for name in DENOISERS if getattr(target, name, None) is not None)


def forget_paths(folder: Path) -> None:
    """Takes out of every config below a folder where on this machine its model was loaded from."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def export_components(target: Any, names: Sequence[str], folder: Path) -> list[Path]:
    """Writes components of a model as they are now, each whole: folder/text_encoder, folder/unet; their folders.

    Args:
        target: a Model, or a plain diffusers pipeline.
        names: of components, as edits have them.
        folder: where.
    """
    pipeline, written = getattr(target, "pipeline", target), []
    for name in (name_in(target, key) for key in names):
        with whole_folder(folder / name) as aside:
            getattr(pipeline, name).save_pretrained(aside, safe_serialization=True)
            forget_paths(aside)
        written.append(folder / name)
    return written
