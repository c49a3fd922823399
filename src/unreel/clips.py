"""Clips as files: mp4 to play, PNG strips to look at, WebP for pages."""

import base64
import errno
import io
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image
from torch import Tensor

from unreel.files import whole

STRIP_FRAMES, STRIP_GAP_PX = 4, 2  # of each clip at most, and between them


def to_uint8(clip: Tensor) -> np.ndarray:
    """A clip (F, C, H, W) in [0, 1] as uint8 (F, H, W, C)."""
    return (clip * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def write_mp4(clip: Tensor, path: Path, fps: int, least_edge: int = 256) -> Path:
    """Writes a clip (F, C, H, W) in [0, 1] as H.264, small ones enlarged by a whole factor; the file appears whole."""
    frames = to_uint8(clip)
    factor = max(1, -(-least_edge // min(frames.shape[1:3])))
    frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]  # H.264 wants even edges
    with whole(path) as aside:
        imageio.imwrite(aside, frames, fps=fps, codec="libx264", macro_block_size=1, output_params=["-crf", "18"])
        if b"moov" not in aside.read_bytes():  # its index, which comes last; ffmpeg's own failure goes unheard
            raise OSError(errno.ENOSPC, "ffmpeg could not finish it", str(path))
    return path


def strip(clips: Sequence[Tensor | np.ndarray], frames: int = STRIP_FRAMES, gap: int = STRIP_GAP_PX) -> Image.Image:
    """Clips, each (F, C, H, W) in [0, 1] or uint8 (F, H, W, C), side by side, `frames` frames of each."""
    shown = []
    for clip in clips:
        pixels = clip if isinstance(clip, np.ndarray) else to_uint8(clip)
        picked = pixels[np.linspace(0, len(pixels) - 1, min(frames, len(pixels))).round().astype(int)]
        shown.append(
            np.concatenate([np.pad(f, ((0, 0), (0, gap), (0, 0)), constant_values=255) for f in picked], axis=1)
        )
        shown.append(np.full((pixels.shape[1], 4 * gap, 3), 255, np.uint8))
    return Image.fromarray(np.concatenate(shown[:-1], axis=1))


def stacked(rows: Sequence[Image.Image], gap: int = STRIP_GAP_PX) -> Image.Image:
    """Pictures of one size below each other, on white."""
    page = Image.new("RGB", (rows[0].width, sum(row.height + gap for row in rows)), "white")
    for i, row in enumerate(rows):
        page.paste(row, (0, i * (row.height + gap)))
    return page


def data_uri(clip: Tensor | np.ndarray, fps: int = 8) -> str:
    """A clip (F, C, H, W) in [0, 1], or uint8 (F, H, W, C), as a moving WebP for the `src` of an <img>.

    Lossless up to 256 x 256 px.
    """
    pixels = clip if isinstance(clip, np.ndarray) else to_uint8(clip)
    first, *others = [Image.fromarray(frame) for frame in pixels]
    data = io.BytesIO()
    small = first.width * first.height <= 256 * 256  # large ones would make pages of hundreds of MB
    first.save(
        data, "webp", lossless=small, quality=80, save_all=True, append_images=others, duration=1000 // fps, loop=0
    )
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
