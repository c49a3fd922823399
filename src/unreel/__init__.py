"""unreel: make text-to-video diffusion models forget a concept."""

from unreel.edits import Edit

__all__ = ["Edit"]
