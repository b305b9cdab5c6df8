"""Write the reference pages from the code: `python docs/generate.py`. A test fails when they are out of date."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from genrec.cli import app
from genrec.config import GateParams, Params, Settings
from genrec.data import tables
from genrec.errors import EXIT_CODES
from genrec.evaluation import forgetting, gates, membership, metrics, ranking, robustness

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py: change the code, not this page. -->\n"
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
MEASURED = (
    gates.integrity, gates.concept_gate, gates.user_gates, gates.utility_gate, gates.robustness_gate,
    gates.relearn_gate, gates.drift_gate, gates.cost_gate, gates.beats_popularity, gates.decide,
    gates.by_construction, gates.by_calibration, ranking.utility, forgetting.UserForgetting.gap,
    forgetting.UserForgetting.gap_over, forgetting.UserForgetting.membership, forgetting.concept_exposure,
    membership.membership, robustness.int8, robustness.unmerged, robustness.relearn, robustness.extraction,
)  # fmt: skip


def pages() -> dict[str, str]:
    """Every reference page by file name."""
    return {
        "cli.md": cli(), "params.md": params(), "tables.md": table_schemas(), "metrics.md": metric_page(),
        "gates.md": gate_page(),
    }  # fmt: skip


def cli() -> str:
    root = typer.main.get_command(app)
    parts = [NOTE, "# Command line\n", f"{root.help}\n", *preface(root)]
    for path, command in leaves(root, ("genrec",)):
        parts.append(f"## {' '.join(path)}\n\n{paragraphs(command.help or '')}\n")
        if command.epilog:
            parts.append(f"Example: `{command.epilog.removeprefix('Example: ')}`\n")
        rows = [(names(p), _text(p.help or ""), default(p)) for p in command.params]
        parts.append(table(("argument or option", "what", "default"), rows))
    return "\n".join(parts)


def preface(root) -> list[str]:
    """The options before a command, and the exit codes."""
    rows = [(names(p), _text(p.help or ""), default(p)) for p in root.params]
    codes = [(f"`{code}`", says) for code, says in EXIT_CODES.items()]
    return [
        "## Before any command\n", "`genrec [OPTIONS] COMMAND ...`; `GENREC_QUIET` and `GENREC_DEBUG` do the same.\n",
        table(("option", "what", "default"), rows),
        "Progress bars and colours are for a terminal alone, without colours where `NO_COLOR` is set.\n",
        "## Exit codes\n", table(("code", "what"), codes),
    ]  # fmt: skip


def leaves(command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every command under `command` that does something, with its words."""
    if not hasattr(command, "commands") or command.invoke_without_command:
        yield path, command
    if not hasattr(command, "commands"):
        return
    for name, child in command.commands.items():
        yield from leaves(child, (*path, name))


def names(parameter) -> str:
    shown = [*parameter.opts, *parameter.secondary_opts]
    return ", ".join(f"`{name if name.startswith('-') else name.upper()}`" for name in shown)


def default(parameter) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.default in (None, False, "") else f"`{parameter.default}`"


def params() -> str:
    parts = [
        NOTE,
        "# Parameters and settings\n",
        "`params.yaml` holds what changes a result; a key that is not here is refused. `genrec init` writes all.\n",
    ]
    for path, section in sections(Params, ()):
        fields = [(name, f) for name, f in section.model_fields.items() if not is_section(f)]
        rows = [(f"`{name}`", f"`{shown(f.default)}`", bounds(f), _text(f.description or "")) for name, f in fields]
        own = vars(section)["__doc__"]
        parts += [f"## {'.'.join(path) or 'top level'}\n", *([f"{paragraphs(own)}\n"] if own else [])]
        parts.append(table(("key", "default", "allowed", "what"), rows))
    rows = [(f"`GENREC_{name.upper()}`", _text(f.description)) for name, f in Settings.model_fields.items()]
    parts += ["## Environment\n", f"{paragraphs(Settings.__doc__)}\n", table(("variable", "what"), rows)]
    return "\n".join(parts)


def sections(section: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    yield path, section
    for name, field in section.model_fields.items():
        if is_section(field):
            yield from sections(field.annotation, (*path, name))


def is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def bounds(field: FieldInfo) -> str:
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in BOUNDS.items() if hasattr(m, name)]
    kind = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
    return _text(", ".join([re.sub(r"typing\.|<class '|'>", "", kind), *limits]))


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)


def table_schemas() -> str:
    parts = [NOTE, "# Tables\n", f"{paragraphs(tables.__doc__)}\n"]
    for name, schema in tables.SCHEMAS.items():
        parts += [f"## {name}\n", table(("column", "type"), _columns(schema)), "After an erasure also:\n"]
        parts.append(table(("column", "type"), _columns([tables.PINS[name]])))
    parts += ["## prepared interactions\n", table(("column", "type"), _columns(tables.PREPARED))]
    parts.append(f"A `split` is one of {', '.join(f'`{split}`' for split in tables.SPLITS)}.\n")
    return "\n".join(parts)


def _columns(fields) -> list[tuple[str, str]]:
    return [(f"`{field.name}`", f"`{field.type}`") for field in fields]


def metric_page() -> str:
    rows = [
        tuple(_text(cell) for cell in (f"`{m.name}`", m.formula, m.unit, m.used, m.recbole, m.torchmetrics))
        for m in metrics.METRICS
    ]
    parts = [NOTE, "# Metrics\n", f"{paragraphs(metrics.__doc__)}\n"]
    return "\n".join([*parts, table(("name", "formula", "unit", "where", "RecBole", "torchmetrics"), rows)])


def gate_page() -> str:
    limits = [
        (f"`gates.{name}`", f"`{shown(f.default)}`", _text(f.description or ""))
        for name, f in GateParams.model_fields.items()
    ]
    about = paragraphs(gates.__doc__).partition("\n\n")[2]
    parts = [NOTE, "# Gates\n", f"{about}\n", "## Limits\n"]
    parts.append(table(("key", "default", "what"), limits))
    for function in MEASURED:
        module = function.__module__.removeprefix("genrec.evaluation.")
        parts.append(f"## {module}.{function.__name__}\n\n{paragraphs(inspect.getdoc(function))}\n")
    return "\n".join(parts)


def paragraphs(text: str) -> str:
    return inspect.cleandoc(text).strip()


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" if rows else ""


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    for name, content in pages().items():
        (FOLDER / name).write_text(content)
