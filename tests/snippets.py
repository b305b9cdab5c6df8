"""The fenced blocks of the documentation, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import typer

from genrec.cli import app

ROOT = Path(__file__).parents[1]
ROOT_COMMAND = typer.main.get_command(app)
FENCE = re.compile(r"^```(\w*) ?(?:title=\"([^\"\n]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

NOT_RUN = re.compile(r"# not run by the tests: (.+)\n")
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "deploy" / "README.md"]


@dataclass(frozen=True)
class Block:
    """One fenced block: its language ("" when none is named), its title, its text."""

    language: str
    title: str | None
    text: str

    @property
    def not_run(self) -> str | None:
        """Why the tests do not run it, as its first line says to whoever reads it; None when they do."""
        said = NOT_RUN.match(self.text)
        return said and said[1]


def blocks(page: Path) -> list[Block]:
    return [Block(language, title or None, text) for language, title, text in FENCE.findall(page.read_text())]


def runnable(page: Path) -> list[str]:
    """The shell blocks of a page that the tests run."""
    return [block.text for block in blocks(page) if block.language == "bash" and not block.not_run]


def commands(text: str) -> list[list[str]]:
    """The words of each command of shell lines; what a line pipes to or chains with && is a command of its own."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;()")
        lexer.whitespace_split = True
        found.append([])
        for word in lexer:
            if set(word) <= set("&|;()"):
                found.append([])
            else:
                found[-1].append(word)
    return [words for words in found if words]


def parse(words: list[str]) -> None:
    """Parse a `genrec` command as the command line would, without running it; raises a usage error."""
    command, rest = ROOT_COMMAND, words[1:]
    while hasattr(command, "commands") and not (command.invoke_without_command and (rest or ["-"])[0][0] == "-"):
        assert rest, f"{' '.join(words)} is a group, not a command"
        assert rest[0] in command.commands, f"{' '.join(words)}: no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[0], list(rest))
