"""A new workspace: params.yaml with every key explained, dvc.yaml, and a DVC repository without git."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel

from genrec.config import Params
from genrec.errors import ConfigError


def create(directory: Path) -> dict:
    """Make DIRECTORY a workspace. Raises ConfigError when it is one already."""
    if (directory / "params.yaml").exists():
        raise ConfigError(f"{directory} is a workspace already (it has params.yaml). Choose another folder.")
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"]
    subprocess.run(command, cwd=directory, check=True)
    (directory / "dvc.yaml").write_text(files("genrec").joinpath("resources/dvc.yaml").read_text())
    (directory / "params.yaml").write_text(params_yaml())
    return {
        "workspace": str(directory),
        "next": f"cd {directory} && genrec data fetch tables --from YOUR_DIR && genrec train",
    }


def params_yaml(params: Params | None = None) -> str:
    """All parameters with their descriptions as comments, in the order of the tree."""
    return "\n".join(_lines(params or Params(), 0)) + "\n"


def _lines(section: BaseModel, depth: int) -> list[str]:
    lines, pad = [], "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines += [f"{pad}{name}:", *_lines(value, depth + 1)]
            continue
        shown = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else "null" if value is None else value
        if isinstance(value, dict):
            shown = json.dumps(value)
        lines.append(f"{pad}{name}: {shown}" + (f"  # {field.description}" if field.description else ""))
    return lines
