"""Replacing files and folders so that a reader sees the old or the new one, whatever kills the writer."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, write: Callable, mode: int = 0o644) -> None:
    """Call `write(file)` on a temporary sibling opened for binary writing, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def recover(target: Path) -> None:
    """Finish or undo a replacement of `target` that was cut short. Does nothing otherwise."""
    new, old = _siblings(target)
    if old.exists() and not target.exists():
        os.replace(old, target)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


@contextmanager
def replaced_directory(target: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that takes the place of `target` when the block ends without an error."""
    recover(target)
    new, old = _siblings(target)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    if old.exists():
        shutil.rmtree(old)


def _siblings(target: Path) -> tuple[Path, Path]:
    return target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
