"""Replacing files and folders so that a reader sees the old or the new one, whatever kills the writer."""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from genrec.errors import OutageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write says that finds no room: on the disk, in a quota, under a limit of the process."""


def write_atomically(path: Path, write: Callable, mode: int = 0o644) -> None:
    """Call `write(file)` on a temporary sibling opened for binary writing, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def finite(value: Any) -> Any:
    """The same tree with None for NaN and infinity, which strict JSON and the audit chain do not hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def write_json(path: Path, value: dict) -> dict:
    """Write `finite(value)` to `path` by rename, its folder made where it is missing; returns what a reader gets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(value), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    return json.loads(text)


@contextmanager
def room() -> Iterator[None]:
    """Raises OutageError where a write finds the disk full; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise no_room(error) from error


def no_room(error: Exception) -> OutageError:
    return OutageError(f"A file cannot be written: {error}. Make room (genrec doctor, genrec purge run), then go on.")


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
