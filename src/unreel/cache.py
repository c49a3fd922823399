"""Generated tensors kept on disk under the hash of what they were generated from; safe under parallel writers."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
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
            return load_file(self._path(key))
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
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
