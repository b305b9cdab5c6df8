"""A terminal for the tests: what a block exports, and where it goes to, is still so for the next one."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.commands import program
from tests.servers import BIN, background, wait_for

NOTE = 'trap \'echo "$BASH_COMMAND" >> "$NOTES/failed"\' ERR\ntrap \'env -0 > "$NOTES/environment"\' EXIT\n'
UP_S = 240
"""For a program that does not end by itself to be there."""
PATIENT = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600"}
"""A flow's own server starts beside other tests."""


class Terminal:
    """Starts in `folder`, without the settings of the tests' own process, nor those of the `make` that runs them.

    Its `genrec`, the one that DVC's stages call too, is forked from the server of `tests.commands`, unless the
    variables given have a PATH of their own.
    """

    def __init__(self, folder: Path, **environment: str):
        self.notes = Path(tempfile.mkdtemp(prefix="genrec-terminal-", dir=folder.parent))
        (bin := self.notes / "bin").mkdir()
        program(bin)
        ours = {
            name: value
            for name, value in os.environ.items()
            if not re.match("GENREC_|PREFECT_|MLFLOW_T|MAKE|MFLAGS", name)
        }
        path = os.pathsep.join([str(bin), str(BIN), os.environ["PATH"]])
        python = os.pathsep.join(filter(None, sys.path))
        self.environment = {**ours, **PATIENT, "PATH": path, "PYTHONPATH": python, "NOTES": str(self.notes)}
        self.environment |= environment
        self.folder = folder

    def run(self, text: str, typed: str = "", refused: Sequence[str] = ()) -> str:
        """Run shell lines; all they printed. Just the commands `refused` end with another code than 0."""
        (failed := self.notes / "failed").write_text("")
        command = ["bash", "-uo" if refused else "-euo", "pipefail", "-c", NOTE + text]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, input=typed, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert failed.read_text().splitlines() == list(refused), f"{text}\n{done.stdout}"
        left = (self.notes / "environment").read_text().split("\0")[:-1]
        self.environment = dict(pair.split("=", 1) for pair in left)
        self.folder = Path(self.environment["PWD"])
        return done.stdout

    @contextmanager
    def keep(self, text: str, until: Callable[[], object]) -> Iterator[None]:
        """Run shell lines whose last does not end by itself, until it is up, and end it with the block."""
        *before, last = text.splitlines()
        self.run("\n".join(before))
        own = self.environment | {"PATH": self.environment["PATH"].removeprefix(f"{self.notes / 'bin'}{os.pathsep}")}
        command = ["bash", "-c", f'cd "$1" && {last}', "bash", str(self.folder)]
        with background(command, log := self.notes / "log", own) as process:
            wait_for(lambda: process.poll() is not None or until(), UP_S)
            assert process.poll() is None, f"{text}\n{log.read_text()}"
            yield


def filled(text: str, values: Mapping[str, str]) -> str:
    """`text` with each of the words `values` replaced where it stands for itself."""
    for word, value in values.items():
        found = re.compile(rf"(?<![\w-]){re.escape(word)}(?!\w)")
        assert found.search(text), f"{word} is not in\n{text}"
        text = found.sub(lambda _, value=value: value, text)
    return text
