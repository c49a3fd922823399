"""A user's clips of a concept, as video files: looked at before anything is loaded, and decoded by ffmpeg."""

import logging
from contextlib import closing
from pathlib import Path

import numpy as np
from imageio_ffmpeg import read_frames

DEMUXERS = {  # ffmpeg's, by the file's ending: a playlist that calls itself .mp4 reaches nothing
    ".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".webm": "matroska", ".mkv": "matroska", ".avi": "avi", ".gif": "gif",
}  # fmt: skip
MOST_SECONDS = 60.0
logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # it warns of frames that were asked for in another size


def read_clip(path: Path, size_px: int, frames: int, fps: int) -> np.ndarray:
    """Frames of a video file, cut to a square: uint8 (frames, size_px, size_px, 3).

    They are `frames / fps` seconds from its middle; of a shorter file all of it, its frames spread evenly.

    Raises:
        ValueError: for a file that is empty or damaged, without a picture, of one picture alone or longer
            than 60 s, naming it.
    """
    found = _decoded(path, size_px, frames / fps)
    return found[((np.arange(frames) + 0.5) * len(found) / frames).astype(int)]


def _decoded(path: Path, size_px: int, seconds: float) -> np.ndarray:
    """All frames of so many seconds around the middle; ValueError as of `read_clip`."""
    given = ["-protocol_whitelist", "file", "-f", DEMUXERS[path.suffix.lower()]]
    square = f"scale={size_px}:{size_px}:force_original_aspect_ratio=increase:flags=bicubic,crop={size_px}:{size_px}"
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: expected a video file; remove it")
    try:
        with closing(read_frames(path, input_params=given)) as read:
            duration = float(next(read)["duration"])
        if duration > MOST_SECONDS:
            raise ValueError(f"{path} lasts {duration:.0f} s: expected at most {MOST_SECONDS:.0f} s; cut it")
        window = ["-ss", f"{max(0.0, (duration - seconds) / 2):.3f}"] if duration else []
        lasting = ["-t", f"{seconds:.3f}"] if duration else []
        with closing(read_frames(path, input_params=window + given, output_params=["-vf", square, *lasting])) as read:
            assert next(read)["size"] == (size_px, size_px)
            frames = [np.frombuffer(data, np.uint8).reshape(size_px, size_px, 3) for data in read]
    except (OSError, RuntimeError, IndexError, StopIteration) as error:
        raise ValueError(
            f"{path} cannot be read as a video ({_reason(error)}): expected one with a picture; repair or remove it"
        ) from None
    if all((frame == frames[0]).all() for frame in frames):
        raise ValueError(f"{path} shows one picture alone: expected a clip; an image is a .png, .jpg or .webp")
    return np.stack(frames)


def _reason(error: BaseException) -> str:
    """What ffmpeg says last."""
    if "not contain any stream" in str(error):
        return "it has no picture"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:120] if lines else "it has no frame"
