"""A clone of this repository, as a newcomer has it."""

import subprocess
from pathlib import Path

from tests.snippets import ROOT


def git(*arguments: str, folder: Path, **options) -> bytes:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, **options).stdout


def clone(folder: Path) -> None:
    """This repository at HEAD, and on top of it what the working tree has changed and added."""
    git("clone", "--quiet", str(ROOT), str(folder), folder=ROOT)
    if changes := git("diff", "--binary", "HEAD", folder=ROOT):
        git("apply", "--whitespace=nowarn", folder=folder, input=changes)
    for name in git("ls-files", "--others", "--exclude-standard", "-z", folder=ROOT).decode().split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
