"""Files that appear whole: written aside, then renamed, so that no reader ever finds half of one; and room for them."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ASIDE = ".partial_"  # how the names of unfinished files begin
_UMASK = os.umask(0o022)
os.umask(_UMASK)
_MODE = 0o666 & ~_UMASK  # as of every file that the user makes


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The path to write to inside a `with` block; afterwards it is `path`, or gone when the block failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{ASIDE}{uuid.uuid4().hex[:12]}_{path.name}")
    try:
        yield aside
        aside.chmod(_MODE)  # some libraries write files that nobody else may read
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The folder to write to inside a `with` block; afterwards it is `path`, in place of an older one, or gone when the
    block failed."""
    aside, old = path.with_name(f".unfinished_{path.name}"), path.with_name(f".old_{path.name}")
    if old.exists() and not path.exists():  # a process was killed between its two renames
        old.rename(path)
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for written in aside.rglob("*"):
            if written.is_file() and not written.is_symlink():
                written.chmod(_MODE)
        if path.exists():
            path.rename(old)
        aside.rename(path)
    finally:
        if old.exists() and not path.exists():  # it was stopped between the two renames
            old.rename(path)
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def clear_asides(folder: Path, older_than_s: float = 0) -> None:
    """Removes the unfinished files of killed processes below a folder: those not written to for so long."""
    for path in folder.rglob(f"{ASIDE}*"):
        with suppress(FileNotFoundError):  # finished meanwhile
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file, UTF-8."""
    with whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def require_space(folder: Path, megabytes: int) -> None:
    """ValueError when `folder` cannot be made or written to, or when its disk has less than that free."""
    existing = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "cannot be written to" if existing.is_dir() else "is a file"
        raise ValueError(f"{folder}: {existing} {what}: expected a folder of yours; choose another")
    free = shutil.disk_usage(existing).free // 1_000_000
    if free < megabytes:
        raise ValueError(f"{existing} has {free} MB free: expected {megabytes} MB; free some, or choose another folder")
