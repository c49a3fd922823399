"""A user's images or clips of a concept: found, counted and decoded, before anything is loaded."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unreel.records import Concept
from unreel.videos import DEMUXERS, check_clip, read_clip

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_MOST_PIXELS = 64_000_000


def shot_files(folder: Path) -> list[Path]:
    """The images of a user's folder, or the clips, in order of their names. ValueError when there are none, or both."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: expected one with images of the concept")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*SUFFIXES, *DEMUXERS))
    if odd := [path for path in files if not path.is_file()]:
        raise ValueError(f"{odd[0]} is no file: expected an image; remove it")
    if not files:
        raise ValueError(
            f"{folder} has no image: expected files that end in {', '.join(SUFFIXES)}, or clips ({', '.join(DEMUXERS)})"
        )
    if len(set(map(is_clip, files))) > 1:
        raise ValueError(f"{folder} has images and clips: expected one of the two; move the others elsewhere")
    return files


def images_of(concept: Concept, shots: int) -> list[Path]:
    """The files that are the concept's shots, images or clips; none where the donor generates them.

    Raises:
        ValueError: for a folder without that many of them, and for one that cannot be read, naming it.
    """
    if concept.images is None:
        return []
    if not shots:
        raise ValueError(f"found shots=0 and {concept.images}: expected as many shots as images are used")
    files = shot_files(concept.images)
    if len(files) < shots:
        found = f"{len(files)} {'clips' if is_clip(files[0]) else 'images'}"
        raise ValueError(f"{concept.images} has {found}: expected shots={shots}; lower shots or add some")
    for path in files[:shots]:  # they are read again at the donor's size
        if is_clip(path):
            check_clip(path)
        else:
            decoded(path, 8)
    return files[:shots]


def is_clip(path: Path) -> bool:
    """Whether a file is a clip by its name, and no image."""
    return path.suffix.lower() in DEMUXERS


def read_shot(path: Path, size_px: int, frames: int, fps: int) -> np.ndarray:
    """A shot of the user's as a model sees it, uint8 (frames, size_px, size_px, 3).

    An image stands still for all frames. Of a clip it is what `read_clip` reads, its middle frame for one frame alone.

    Raises:
        ValueError: as of `decoded` and `read_clip`.
    """
    if is_clip(path):
        return read_clip(path, size_px, frames, fps)
    return np.stack([np.array(decoded(path, size_px))] * frames)


def decoded(path: Path, size_px: int) -> Image.Image:
    """One image, size_px x size_px, RGB: upright, on white where it is transparent, cut to a square.

    Raises:
        ValueError: when it cannot be decoded or is larger than 64 million pixels, naming it.
    """
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError(
                    f"{path} has {opened.width} x {opened.height} px: expected at most {_MOST_PIXELS:,} px"
                )
            upright = ImageOps.exif_transpose(opened)
            if upright.mode == "F":
                raise ValueError(f"{path} holds fractions for colours: expected whole numbers of 8 or 16 bits")
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
                upright = Image.fromarray((np.asarray(upright) / 257).round().astype(np.uint8))
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            return ImageOps.fit(upright.convert("RGB"), (size_px, size_px), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): repair or remove it") from None
