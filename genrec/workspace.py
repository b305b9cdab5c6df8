"""A new workspace: params.yaml with every key explained, dvc.yaml, and a DVC repository without git."""

import json
import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel

from genrec.config import Params
from genrec.errors import ConfigError

if TYPE_CHECKING:
    from genrec.first_look import FirstLook


def create(directory: Path, tables: Path | None = None) -> dict:
    """Make DIRECTORY a workspace, with parameters for the two files in the folder `tables` where one is given.

    Raises ConfigError when it is one already, DataError (and makes nothing) for files that are not the two tables.
    """
    if (directory / "params.yaml").exists():
        raise ConfigError(f"{directory} is a workspace already (it has params.yaml). Choose another folder.")
    look = _look(tables) if tables else None
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"]
    subprocess.run(command, cwd=directory, check=True)
    (directory / "dvc.yaml").write_text(files("genrec").joinpath("resources/dvc.yaml").read_text())
    (directory / "params.yaml").write_text(params_yaml(look.params, look.notes) if look else params_yaml())
    source = os.path.relpath(tables, directory) if tables else "YOUR_DIR"
    fetch = f"genrec data fetch tables --from {shlex.quote(source)}"
    if look is None:
        return {"workspace": str(directory), "next": f"cd {directory} && {fetch} && genrec train"}
    check = f"cd {shlex.quote(str(directory))} && genrec data check {shlex.quote(source)}"
    return {"workspace": str(directory), "seen": look.notes, "next": [check, fetch, "genrec train"]}


def _look(tables: Path) -> "FirstLook":
    from genrec.data.tables import read_tables
    from genrec.first_look import first_look

    return first_look(read_tables(tables))


def params_yaml(params: Params | None = None, notes: Mapping[str, str] = MappingProxyType({})) -> str:
    """All parameters with their descriptions as comments, in the order of the tree; above a key what `notes` say."""
    return "\n".join(_lines(params or Params(), (), notes)) + "\n"


def _lines(section: BaseModel, path: tuple[str, ...], notes: Mapping[str, str]) -> list[str]:
    lines, pad = [], "  " * len(path)
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), ".".join((*path, name))
        if isinstance(value, BaseModel):
            lines += [f"{pad}{name}:", *_lines(value, (*path, name), notes)]
            continue
        if key in notes:
            prefix = f"{pad}# "
            lines += textwrap.wrap(f"Seen: {notes[key]}.", 118, initial_indent=prefix, subsequent_indent=prefix)
        shown = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else "null" if value is None else value
        if isinstance(value, dict):
            shown = json.dumps(value)
        lines.append(f"{pad}{name}: {shown}  # {field.description}")
    return lines
