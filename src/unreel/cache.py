"""Generated tensors kept on disk under the hash of what they were generated from; safe under parallel writers."""

import fcntl
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unreel.files import whole


class TensorCache:
    """Named tensors by content key, one safetensors file each.

    Args:
        folder: where they are kept; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def load(self, key: str) -> dict[str, Tensor] | None:
        """The tensors, or None when they were never written or their file is damaged."""
        try:
            with safe_open(self._path(key), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors if (file.metadata() or {}).get("sum") == _sum(tensors) else None
        except (FileNotFoundError, SafetensorError):
            return None

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Inside the `with` block no other process holds the same key: what is made there is made once."""
        path = self._path(key).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def save(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Writes them; the file appears whole, and of parallel writers the last one wins (they write the same)."""
        with whole(self._path(key)) as aside:
            whole_ones = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(whole_ones, aside, {"sum": _sum(whole_ones)})


def _sum(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values: a disk that lies is found out."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
