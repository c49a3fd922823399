"""Hashes: names for content. Of tensors, of models' files, of the code and library versions that results depend on."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

LIBRARIES = ("torch", "diffusers", "transformers")  # a new version of these may compute something else
_MODEL_FILES = (".json", ".txt", ".model", ".jinja", ".safetensors")


def content_key(**content: Any) -> str:
    """A name for whatever is made from this content: 24 hex digits."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def tensor_hash(tensor: Tensor, dtype: torch.dtype = torch.float16) -> str:
    """sha256 of a tensor's shape and values, rounded to `dtype`: with half precision, fp16 and fp32 copies agree."""
    values = tensor.detach().to("cpu", dtype).contiguous()
    return hashlib.sha256(str(tuple(values.shape)).encode() + values.view(torch.uint8).numpy().tobytes()).hexdigest()


def plain_name(name: str) -> str:
    """A parameter's name without the prefix that older transformers put before it."""
    return name.removeprefix("text_model.")


def parameter_hashes(module: nn.Module) -> dict[str, str]:
    """Parameter name -> `tensor_hash` of all of a module's parameters; names start below any `text_model.` prefix."""
    return {plain_name(name): tensor_hash(p) for name, p in module.named_parameters()}


def differing(base: Mapping[str, str], found: Mapping[str, str], more: bool = False) -> list[str]:
    """Names of tensors whose hashes differ, or that only one of the two has; with `more`, `found` may have others."""
    names = base.keys() if more else base.keys() | found.keys()
    return sorted(name for name in names if base.get(name) != found.get(name))


@cache
def _file_hash(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file, as hex; read again only when its size or time has changed."""
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


def folder_hash(folder: Path) -> str:
    """Content hash of a model's folder: names and contents of its configs, vocabularies and weights."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in _MODEL_FILES and p.is_file())
    return content_key(files={p.relative_to(folder).as_posix(): file_hash(p) for p in files})


def library_versions() -> dict[str, str]:
    """The versions of the libraries that results depend on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


@cache
def _imports(path: Path) -> frozenset[str]:
    """The modules of unreel that a source file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in found if name.split(".")[0] == "unreel")


def _source(module: str) -> Path | None:
    """The file of a module's source; None of what is no module, or was typed into an interpreter."""
    loaded = sys.modules.get(module)
    try:
        origin = getattr(loaded or importlib.util.find_spec(module), "__file__" if loaded else "origin", None)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(origin) if origin and Path(origin).suffix == ".py" else None


@cache
def _as_loaded(_module: ModuleType | None, path: Path, _name: str) -> str:
    """sha256 of a module's source, read once for each time that it is loaded: what is edited later does not run."""
    return file_hash(path)


def code_hash(objects: Iterable[object]) -> str:
    """Hash of the code that these objects run: the source of their modules and of what those import of unreel.

    Args:
        objects: instances, classes or functions; a class of the user's own counts like one of ours.
    """
    waiting = {getattr(o, "__module__", type(o).__module__) for o in objects}
    seen: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        path = None if module in seen else _source(module)
        if path is not None:
            seen[module] = _as_loaded(sys.modules.get(module), path, module)
            waiting |= _imports(path)
    return content_key(code=seen)
