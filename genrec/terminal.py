"""What the commands share: the workspace, a flow in this process, and how results, notes and errors look."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from genrec.bars import QUIET
from genrec.config import Workspace
from genrec.config import workspace as current_workspace
from genrec.environment import prepare_environment
from genrec.errors import GenrecError, OutageError
from genrec.evaluation.verdicts import undecided

DEBUG = "GENREC_DEBUG"
UsageError = typer.BadParameter.__base__
"""What the parser raises about a command that was typed wrong."""
COLOURS = {"ok": "green", "warning": "yellow", "broken": "bold red"}


def _only_json(as_json: bool) -> bool:
    if as_json:
        os.environ[QUIET] = "1"
    return as_json


Json = Annotated[
    bool, typer.Option("--json", help="Print JSON instead of text, and nothing beside it.", callback=_only_json)
]


def example(command: str) -> str:
    """The end of a command's help: what somebody would type. A test parses it."""
    return f"Example: {command}"


def note(line: str) -> None:
    """Say on standard error what is going on; nothing where only the result is wanted."""
    if not os.environ.get(QUIET):
        typer.echo(line, err=True)


def fail(error: Exception) -> int:
    """Print one line about `error`; the exit code. Raises it again where a stack trace is wanted."""
    if os.environ.get(DEBUG):
        raise error
    name, says, code = type(error).__name__, str(error), 1
    if isinstance(error, GenrecError):
        code = error.exit_code
    elif isinstance(error, OSError) and error.filename is not None:
        says = f"{error.filename}: {error.strerror}. Correct its owner, its mode or the path, or set GENREC_HOME."
    else:
        says = f"{says.strip().splitlines()[0] if says.strip() else 'no message'}. This is a fault of genrec: "
        says += "`genrec --debug` shows where, please report it."
    _print_error(name, says)
    return code


def misused(error: UsageError) -> int:
    """Print one line about a command that was typed wrong, with how to type it; the exit code."""
    says, context = " ".join(error.format_message().split()), error.ctx
    if not says:  # a group without a command, whose help has been printed
        return error.exit_code
    remedy = "See genrec --help"
    if context is not None:
        remedy = f"See {context.command_path} --help"
        if not isinstance(context.command, typer.core.TyperGroup):
            remedy = context.command.epilog or remedy
    _print_error(UsageError.__name__, f"{says if says[-1] in '.?' else f'{says}.'} {remedy}")
    return error.exit_code


def _print_error(name: str, says: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble((name, "bold red"), f": {says}"), soft_wrap=True)


def coloured(state: str) -> str:
    """`state` of a check in eight columns, in its colour on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout)
    with console.capture() as captured:
        console.print(Text(f"{state:8}", COLOURS[state]), end="")
    return captured.get()


def open_workspace() -> Workspace:
    """The current workspace, with the tools' environment set; Prefect keeps quiet, errors come as one line."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    workspace = current_workspace()
    prepare_environment(workspace)
    if workspace.params_file.exists():
        workspace.params()  # a wrong key is refused by every command, not only by those that use it
    return workspace


def now() -> datetime:
    return datetime.now(UTC)


def run_flow(flow, **parameters):
    """Run a flow in this process, without the heartbeat thread that a worker's run has.

    Raises OutageError when the Prefect server of PREFECT_API_URL is not there.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    logging.getLogger("EventsWorker").setLevel(logging.CRITICAL)  # it says how much it still has to send at the end
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        try:
            return flow(**parameters)
        except RuntimeError as error:
            if "Failed to reach API" not in str(error):
                raise
            raise OutageError(
                f"Prefect does not answer: {error} Start it (prefect server start), or unset PREFECT_API_URL."
            ) from error


def show(value: Any, as_json: bool, rows: list[dict] | None = None, title: str = "") -> None:
    """Print `value` as JSON, or `rows` as a table, or `value` as lines of `key: value`."""
    if as_json:
        typer.echo(json.dumps(value, indent=1, default=str))
        return
    if rows is None:
        pairs = value if isinstance(value, dict) else {title or "result": value}
        for key, item in pairs.items():
            typer.echo(f"{key}: {item if not isinstance(item, dict | list) else json.dumps(item, default=str)}")
        return
    if not rows:
        typer.echo(f"No {title or 'rows'}.")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if v is None else escape(str(v)) for v in row.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def measure_rows(measures: dict) -> list[dict]:
    return [
        {"metric": k, **{x: round(m[x], 4) for x in ("value", "low", "high")}, "n": m["n"]} for k, m in measures.items()
    ]


def named(gates: list[dict]) -> str:
    """The gates that did not pass, each with its verdict."""
    return ", ".join(f"{gate['name']} {gate['verdict']}" for gate in undecided(gates))


def attempt_rows(summary: dict) -> list[dict]:
    return [
        {"group": a["group"], "method": a["method"], "verdict": a["verdict"], "seconds": a["wall_s"],
         "gates that did not pass": named(a["gates"])}
        for a in summary["attempts"]
    ]  # fmt: skip


def request_rows(summary: dict) -> list[dict]:
    return [
        {
            "request": r["id"],
            "kind": r["kind"],
            "about": r["label"] or "a person",
            "state": r["state"],
            "method": r["method"],
        }
        for r in summary["requests"]
    ]
