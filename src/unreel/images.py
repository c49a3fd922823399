"""A user's images of a concept: found, counted and decoded, before anything is loaded."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unreel.records import Concept

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_MOST_PIXELS = 64_000_000


def image_files(folder: Path) -> list[Path]:
    """The image files of a user's folder, in order of their names. ValueError when there are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: expected one with images of the concept")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if odd := [path for path in files if not path.is_file()]:
        raise ValueError(f"{odd[0]} is no file: expected an image; remove it")
    if not files:
        raise ValueError(f"{folder} has no image: expected files that end in {', '.join(SUFFIXES)}")
    return files


def images_of(concept: Concept, shots: int) -> list[Path]:
    """The files that are the concept's shots; none where the donor generates them.

    Raises:
        ValueError: for a folder without that many images, and for one that cannot be read, naming it.
    """
    if concept.images is None:
        return []
    if not shots:
        raise ValueError(f"found shots=0 and {concept.images}: expected as many shots as images are used")
    files = image_files(concept.images)
    if len(files) < shots:
        raise ValueError(f"{concept.images} has {len(files)} images: expected shots={shots}; lower shots or add some")
    for path in files[:shots]:  # they are read again at the donor's size
        decoded(path, 8)
    return files[:shots]


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
