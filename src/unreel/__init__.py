"""unreel: make text-to-video diffusion models forget a concept."""

from typing import Any

__all__ = ["Edit"]


def __getattr__(name: str) -> Any:
    """`unreel.Edit`, imported when it is asked for: PyTorch comes with it, and an error at the door needs none."""
    if name == "Edit":
        from unreel.edits import Edit

        return Edit
    raise AttributeError(f"module 'unreel' has no attribute {name!r}")
