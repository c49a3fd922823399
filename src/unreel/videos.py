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
_FAILURES = (OSError, RuntimeError, IndexError, KeyError, StopIteration)  # whatever imageio_ffmpeg ends with
logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # it warns of frames that were asked for in another size


def read_clip(path: Path, size_px: int, frames: int, fps: int) -> np.ndarray:
    """Frames of a video file, cut to a square: uint8 (frames, size_px, size_px, 3).

    They are `frames / fps` seconds from its middle, at that rate; of a shorter file all of it, spread evenly.

    Raises:
        ValueError: for a file that is empty or damaged, without a picture or longer than 60 s, naming it.
    """
    duration = seconds_of(path)
    rate = fps if duration >= frames / fps else frames / duration
    found = _decoded(path, size_px, rate, max(0, (round(duration * rate) - frames) // 2), frames)
    return found[((np.arange(frames) + 0.5) * len(found) / frames).astype(int)]


def check_clip(path: Path) -> None:
    """ValueError as of `read_clip`, and for a file that shows one picture alone."""
    duration = seconds_of(path)
    found = _decoded(path, 64, 8, 0, max(2, round(duration * 8)))
    if all((frame == found[0]).all() for frame in found):
        raise ValueError(f"{path} shows one picture alone: expected a clip; an image is a .png, .jpg or .webp")


def seconds_of(path: Path) -> float:
    """How long a video file lasts, in s, above 0; ValueError as of `read_clip`."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: expected a video file; remove it")
    try:
        with closing(read_frames(path, input_params=_given(path))) as read:
            duration = float(next(read)["duration"])
    except _FAILURES as error:
        raise _unreadable(path, _reason(error)) from None
    if duration > MOST_SECONDS:
        raise ValueError(f"{path} lasts {duration:.0f} s: expected at most {MOST_SECONDS:.0f} s; cut it")
    if duration <= 0:
        raise _unreadable(path, "it does not say how long it lasts")
    return duration


def _decoded(path: Path, size_px: int, rate: float, first: int, count: int) -> np.ndarray:
    """`count` frames from frame `first` on, at `rate` frames a second; fewer where it ends. ValueError if none is."""
    square = f"scale={size_px}:{size_px}:force_original_aspect_ratio=increase:flags=bicubic,crop={size_px}:{size_px}"
    chosen = f"fps={rate:.6f}:eof_action=pass,trim=start_frame={first}:end_frame={first + count}"
    try:
        with closing(read_frames(path, input_params=_given(path), output_params=["-vf", f"{chosen},{square}"])) as read:
            assert next(read)["size"] == (size_px, size_px)
            frames = [np.frombuffer(data, np.uint8).reshape(size_px, size_px, 3) for data in read]
    except _FAILURES as error:
        raise _unreadable(path, _reason(error)) from None
    if not frames:
        raise _unreadable(path, "it has no frame")
    return np.stack(frames)


def _given(path: Path) -> list[str]:
    return ["-protocol_whitelist", "file", "-f", DEMUXERS[path.suffix.lower()]]


def _unreadable(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} cannot be read as a video ({why}): expected one with a picture; repair or remove it")


def _reason(error: BaseException) -> str:
    """What ffmpeg says last."""
    if "not contain any stream" in str(error):
        return "it has no picture"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:120] if lines else "it has no frame"
