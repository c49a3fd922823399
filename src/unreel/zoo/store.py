"""The shipped models: where they are, whether they are whole, and how to load them.

`models/t2i` is a diffusers folder of StableDiffusionPipeline (tokenizer, text_encoder, vae, unet, scheduler);
`models/motion_adapter` turns it into an AnimateDiffPipeline, `models/unet3d` into a TextToVideoSDPipeline;
`models/pixart` is one of PixArtAlphaPipeline (its own tokenizer and T5, the same VAE), which `models/latte` turns into
a LattePipeline;
`models/judge`, `models/motion_judge`, `models/verb_judge` and `models/cnn_judge` look at clips.
`models/SHA256SUMS` has the hash of every file.
"""

from functools import cache
from pathlib import Path

from unreel.files import write_text
from unreel.hashes import file_hash

MODELS = Path(__file__).with_name("models")
SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS over every other file below `folder`, in the format of sha256sum."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    lines = [f"{file_hash(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / SUMS, "".join(lines))


def read_sums(folder: Path = MODELS) -> dict[str, str]:
    """Relative path -> sha256 of every shipped file.

    Raises:
        ValueError: when the list itself is missing.
    """
    if not (folder / SUMS).is_file():
        raise ValueError(f"{folder / SUMS} is missing: the zoo has no models; run `make zoo` or restore the folder")
    pairs = (line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines())
    return {path: digest for digest, path in pairs}


@cache
def verified(name: str, folder: Path = MODELS) -> Path:
    """The folder of one model, after every file in it was found whole.

    Args:
        name: "t2i", "motion_adapter", "unet3d", "pixart", "latte", "judge", "motion_judge", "verb_judge", "cnn_judge".
        folder: where the models are.

    Raises:
        ValueError: for an unknown name, and for a missing or damaged file, naming it.
    """
    sums = read_sums(folder)
    names = sorted({path.split("/")[0] for path in sums if "/" in path})
    if name not in names:
        raise ValueError(f"unknown zoo model {name!r}: expected one of {', '.join(names)}")
    for path, digest in sums.items():
        if path.startswith(f"{name}/"):
            if not (folder / path).is_file():
                raise ValueError(f"{folder / path} is missing: run `make zoo` or restore the file")
            if file_hash(folder / path) != digest:
                raise ValueError(
                    f"{folder / path} is damaged (its sha256 is not the one in {SUMS}): run `make zoo` or restore it"
                )
    return folder / name


def zoo_tokenizer(folder: Path = MODELS) -> Path:
    """The folder of the tokenizer that the first family and the judges share."""
    return verified("t2i", folder) / "tokenizer"
