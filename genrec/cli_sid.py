"""Commands about semantic IDs: their quality, what moved between two versions, and new items."""

import json
from pathlib import Path
from typing import Annotated

import typer

from genrec.config import Settings
from genrec.errors import DataError
from genrec.terminal import Json, example, now, open_workspace, show

sid_app = typer.Typer(no_args_is_help=True, help="Semantic IDs.")

SHOWN = 20
"""Moved items that are printed; --json has all."""


@sid_app.command("report", epilog=example("genrec sid report --data ../other-shop"))
def sid_report(
    data: Annotated[
        Path | None, typer.Option(help="another workspace, or a published SID file (.json, .json.gz)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Quality report of the workspace's SIDs, or of others."""
    workspace = open_workspace() if data is None or data.is_file() else Settings(home=data).workspace
    report = _published(data) if data is not None and data.is_file() else _built(workspace.artefacts / "sid")
    if as_json:
        show(report, True)
        return
    show({k: v for k, v in report.items() if k != "levels"}, False)
    rows = [{k: round(v, 3) if isinstance(v, float) else v for k, v in level.items()} for level in report["levels"]]
    show(None, False, [{k: row.get(k) for k in rows[0]} for row in rows], "levels")


def _built(folder: Path) -> dict:
    from dataclasses import asdict

    from genrec.sid.table import load_table

    if not (folder / "quality.json").exists():
        raise DataError("No SIDs in this workspace. Build them: dvc repro sid.")
    lineage = load_table(folder / "sid_table.parquet").lineage
    return json.loads((folder / "quality.json").read_text()) | {"lineage": asdict(lineage) if lineage else None}


def _published(file: Path) -> dict:
    from genrec.sid.published import read_published
    from genrec.sid.quality import quality_report

    return quality_report(read_published(file), {})


@sid_app.command("diff", epilog=example("genrec sid diff previous champion"))
def sid_diff(
    before: Annotated[str, typer.Argument(help="version, alias or bundle folder")],
    after: Annotated[str, typer.Argument(help="version, alias or bundle folder")],
    as_json: Json = False,
) -> None:
    """Which items have other SIDs in AFTER than in BEFORE, from which level on, and why."""
    from genrec.sid_changes import changes

    told = changes(open_workspace(), before, after)
    if as_json:
        show(told, True)
        return
    counts = {name: value for name, value in told.items() if name not in ("moved", "added", "removed")}
    show(counts | {name: len(told[name]) for name in ("added", "removed")}, False)
    columns = ("item_id", "title", "level", "before", "after", "why")
    show(None, False, [{name: move[name] for name in columns} for move in told["moved"][:SHOWN]], "moved items")
    if len(told["moved"]) > SHOWN:
        typer.echo(f"... and {len(told['moved']) - SHOWN} more: --json.")


@sid_app.command("append", epilog=example("genrec sid append"))
def sid_append(as_json: Json = False) -> None:
    """Give the prepared catalogue's new items SIDs in the champion, without training and without moving others."""
    workspace = open_workspace()
    from flows.unlearn import lease
    from genrec.sid_append import append_catalogue
    from tasks.data import dvc

    with lease(workspace, "append") as held:
        dvc(held, "repro", "embed")
        show(append_catalogue(held, now()), as_json)
