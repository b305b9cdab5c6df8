"""Cells of a bench: figures that are measured once and kept by what they depend on, so that a run can be resumed."""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

import genrec
from genrec.data.files import write_json

CODE = ("bench", "data", "evaluation", "models", "rivals", "sid", "training", "unlearning")


def code_hash() -> str:
    """SHA-256 of the sources a figure depends on: a cell made by other code is measured again."""
    root, digest = Path(genrec.__file__).parent, hashlib.sha256()
    for path in sorted(path for folder in CODE for path in (root / folder).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def machine() -> str:
    """What seconds were measured on."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores, {platform.machine()}{gpu}"


def content_key(facts: Sequence, arrays: Iterable[np.ndarray]) -> str:
    """32 hexadecimal digits of a SHA-256 over JSON-ready facts and arrays of integers."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array, np.int64).tobytes() + b"|")
    return digest.hexdigest()[:32]


def kept(path: Path, measure: Callable[[], dict]) -> tuple[dict, bool]:
    """The record at `path`, measured and written where there is none; and whether it was there."""
    if path.exists():
        return json.loads(path.read_text()), True
    return write_json(path, measure()), False
