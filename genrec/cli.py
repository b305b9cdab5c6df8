"""The command line: what one types to run genrec. Errors are one line with the remedy (a trace with --debug).

`genrec.errors.EXIT_CODES` says what it returns.
"""

import json
import os
import sys
from contextlib import closing, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Annotated

import typer

from genrec import __version__
from genrec.bars import QUIET, Bars
from genrec.cli_audit import audit_app, certificate_app
from genrec.cli_bench import bench_app
from genrec.cli_calibration import calibration_app
from genrec.cli_console import console_app
from genrec.cli_models import lineage_app, models_app, purge_app
from genrec.cli_operate import operate_app
from genrec.cli_requests import forget_app, requests_app
from genrec.cli_sid import sid_app
from genrec.completion import sources
from genrec.errors import INTERRUPTED, DataError
from genrec.progress import listening
from genrec.terminal import (
    DEBUG,
    Json,
    UsageError,
    attempt_rows,
    example,
    fail,
    measure_rows,
    misused,
    note,
    open_workspace,
    request_rows,
    run_flow,
    show,
)

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, epilog=example("genrec --quiet train")
)
data_app = typer.Typer(no_args_is_help=True, help="Fetch, check and prepare data.")
stage_app = typer.Typer(no_args_is_help=True, help="The DVC stages, one command each (dvc.yaml calls them).")
for name, group in {
    "data": data_app, "sid": sid_app, "forget": forget_app, "requests": requests_app, "models": models_app,
    "lineage": lineage_app, "purge": purge_app, "audit": audit_app,
    "certificate": certificate_app, "console": console_app, "bench": bench_app, "stage": stage_app,
}.items():  # fmt: skip
    app.add_typer(group, name=name)
app.add_typer(calibration_app)
app.add_typer(operate_app)


@app.callback()
def options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result or the error, nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print a stack trace with an error.")] = False,
) -> None:
    """Train a recommender, and make it forget on schedule. Every command has `--json`; errors name the remedy."""
    for name, wanted in ((QUIET, quiet), (DEBUG, debug)):
        if wanted:
            os.environ[name] = "1"


@app.command(epilog=example("genrec version --json"))
def version(as_json: Json = False) -> None:
    """The version of genrec."""
    show({"version": __version__}, as_json)


@app.command(epilog=example("genrec init shop --from ../my-tables"))
def init(
    directory: Path,
    tables: Annotated[
        Path | None, typer.Option("--from", help="folder with your two tables: params.yaml is written for them")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a workspace: params.yaml, dvc.yaml and a DVC repository in DIRECTORY."""
    from genrec.workspace import create

    made = create(directory, tables)
    if as_json or tables is None:
        show(made, as_json)
        return
    show({"workspace": made["workspace"], **made["seen"]}, False)
    typer.echo("\n".join(["next:", *(f"  {command}" for command in made["next"])]))


# --- data -----------------------------------------------------------------------------------------------------------


@data_app.command("fetch", epilog=example("genrec data fetch ml-100k --from ~/Downloads/ml-100k"))
def data_fetch(
    source: Annotated[
        str,
        typer.Argument(
            help="simulated, ml-100k, ml-latest-small, amazon-beauty, amazon-scientific or tables",
            autocompletion=sources,
        ),
    ],
    from_dir: Annotated[Path | None, typer.Option("--from", help="folder with a local copy of the source")] = None,
    as_json: Json = False,
) -> None:
    """Bring a source into data/ as canonical tables and pin it with DVC (data.dvc)."""
    from dataclasses import asdict

    from flows.unlearn import lease
    from genrec.data.version import data_version
    from genrec.promotion import refuse_open_night
    from genrec.requests.store import open_ledger
    from tasks.data import fetch_and_pin

    workspace = open_workspace()
    with lease(workspace, "fetch") as held:  # else a night that erases would lose its tombstones, or the new rows
        refuse_open_night(open_ledger(held))
        report = fetch_and_pin(held, source, from_dir)
    facts = asdict(report) | {"data_version": data_version(workspace.data_pin)}
    note("Licence: " + "\n         ".join(report.licence))
    keep = ("name", "users", "items", "rows", "data_version")
    show(facts if as_json else {k: facts[k] for k in keep}, as_json)


@data_app.command("check", epilog=example("genrec data check ../my-tables"))
def data_check(directory: Path, as_json: Json = False) -> None:
    """Explain every violation of the schema in a folder with your two tables."""
    from genrec.data.tables import read_tables
    from genrec.validation.run import validate_raw

    workspace = open_workspace()
    report = validate_raw(read_tables(directory), workspace.params(), workspace.pseudonym_key())
    failed = [check for check in report.results if not check.success]
    if as_json:
        typer.echo(report.to_json())
    else:
        rows = [
            {"table": c.suite, "expectation": c.expectation, "ok": c.success, "observed": c.observed}
            for c in report.results
        ]
        show(None, False, rows, "checks")
    if failed:
        report.raise_for_failure()


@data_app.command("prepare", epilog=example("genrec data prepare"))
def data_prepare(as_json: Json = False) -> None:
    """Run the stages prepare and validate of dvc.yaml where they are out of date."""
    from flows.unlearn import lease
    from genrec.data.version import data_version
    from genrec.pipeline import require_data
    from tasks.data import dvc

    workspace = open_workspace()
    require_data(workspace)
    with lease(workspace, "prepare") as held:
        dvc(held, "repro", "prepare", "validate")
    report = json.loads((workspace.prepared / "prepare.json").read_text())
    show(report | {"data_version": data_version(workspace.data_pin)}, as_json)


@data_app.command("concepts", epilog=example("genrec data concepts"))
def data_concepts(as_json: Json = False) -> None:
    """Concepts of the prepared catalogue with their share of items and of interactions."""
    from genrec.data.sequences import load_dataset

    dataset = load_dataset(open_workspace().prepared)
    import numpy as np

    counts = np.bincount(dataset.items, minlength=len(dataset.item_ids))
    rows = [
        {
            "concept": name, "items": len(items), "item_share": round(len(items) / len(dataset.item_ids), 4),
            "interaction_share": round(float(counts[items].sum() / max(1, counts.sum())), 4),
        }
        for name, items in dataset.concepts.items()
    ]  # fmt: skip
    show(rows, as_json, rows, "concepts")


# --- base model -----------------------------------------------------------------------------------------------------


@app.command(epilog=example("genrec train"))
def train(force: Annotated[bool, typer.Option(help="run every stage again")] = False, as_json: Json = False) -> None:
    """Build the base model (dvc repro), register it, and make it the champion when its gates pass."""
    open_workspace()
    from flows.train import train as flow

    result = run_flow(flow, force=force)
    utility = {k: round(m["value"], 4) for k, m in result["utility"].items()}
    show(result if as_json else {"version": result["version"], "verdict": result["verdict"], **utility}, as_json)


@app.command(epilog=example("genrec evaluate --alias previous --exact"))
def evaluate(
    alias: Annotated[str, typer.Option(help="champion, challenger, previous or a version number")] = "champion",
    exact: Annotated[bool, typer.Option(help="score the whole catalogue instead of beam search")] = False,
    as_json: Json = False,
) -> None:
    """Utility of a registered version on the test targets of the current data version."""
    from genrec.evaluate import evaluate_version

    show(result := evaluate_version(open_workspace(), alias, exact), as_json, measure_rows(result["utility"]), alias)


@app.command(epilog=example("genrec demo"))
def demo(as_json: Json = False) -> None:
    """One whole night on an embedded shop: data, base model, four requests, methods, gates, a new champion."""
    import time

    from genrec import demo as steps
    from genrec.data.version import data_version

    started = time.perf_counter()
    shown = redirect_stdout(StringIO()) if os.environ.get(QUIET) else nullcontext()

    def say(line: str) -> None:
        note(f"[{time.perf_counter() - started:5.0f} s] {line}")

    workspace = open_workspace()
    if steps.needs_data(workspace):
        say("simulating a shop into data/ and pinning it with DVC")
        with shown:
            data_fetch("simulated", None, as_json=False)
    else:
        say(f"reusing data/ at version {data_version(workspace.data_pin)}")
    if number := steps.has_champion(workspace):
        say(f"reusing the champion, version {number} in mlruns/")
    else:
        say("building the base model with `dvc repro` (reuses every stage that is up to date)")
        with shown:
            train(force=False, as_json=False)
    say("four requests arrive and are verified:")
    for line in steps.submit_requests(workspace):
        note(f"          {line}")
    say("the night begins")
    night(as_json=as_json)
    say(f"done. Certificates: {workspace.certificates}")


# --- nights and models ----------------------------------------------------------------------------------------------


@app.command(epilog=example("genrec night --json"))
def night(as_json: Json = False) -> None:
    """Serve every queued request now: erase, unlearn, judge, promote, certify, report."""
    workspace = open_workspace()
    from flows.unlearn import unlearn as flow

    summary = run_flow(flow, trigger="command line")
    if as_json:
        show(summary, True)
        return
    show(None, False, attempt_rows(summary), "attempts")
    show(None, False, request_rows(summary), "requests")
    typer.echo(
        f"Outcome: {summary['outcome']}. Champion {summary['champion_before']} -> {summary['champion_after']}. "
        f"Report: {workspace.reports / 'latest' / 'index.html'}"
    )


@app.command(epilog=example("genrec recommend --history i0026,i0027 --k 5"))
def recommend(
    history: Annotated[
        list[str] | None, typer.Option(help="item ids, oldest first, separated by commas; repeat it for more histories")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="one history a line: item ids separated by commas, or a JSON list of them")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="how many items")] = 10,
    as_json: Json = False,
) -> None:
    """Recommend with the champion, without denied and already seen items: a list for each history, in their order."""
    from genrec.histories import from_file, from_options
    from genrec.registry import open_registry
    from genrec.requests.store import open_ledger
    from genrec.served import Served
    from genrec.serving import recommend as serve

    histories = [*from_options(history or ()), *(from_file(file) if file else ())]
    if not histories:
        raise DataError("There is no history. Give --history ID,ID,ID, or --file with one history a line.")
    workspace = open_workspace()
    registry = open_registry(workspace)
    bundle = registry.bundle(registry.champion().number)
    if k > len(bundle.table.item_ids):
        raise DataError(f"--k {k} is more than the {len(bundle.table.item_ids)} items of the catalogue. Lower --k.")
    lists = serve(bundle, Served.of(bundle).model, histories, k, open_ledger(workspace).deny_list())
    rows = [
        ({"history": number} if len(lists) > 1 else {}) | {"rank": rank, **item, "score": round(item["score"], 3)}
        for number, found in enumerate(lists, 1)
        for rank, item in enumerate(found, 1)
    ]
    show(lists, as_json, rows, "recommendations")


def _add_stage(name: str) -> None:
    @stage_app.command(name, help=f"The stage `{name}` of dvc.yaml.")
    def stage(as_json: Json = False) -> None:
        from genrec.pipeline import STAGES

        show(STAGES[name](open_workspace()), as_json)


for _name in ("prepare", "validate", "embed", "sid", "backbone", "train", "evaluate"):
    _add_stage(_name)


def main() -> None:
    """Entry point: bars while long work runs on a terminal, one line for an error, and its exit code."""
    try:
        with closing(Bars()) as bars, listening(bars):
            code = app(prog_name="genrec", standalone_mode=False)  # else the parser prints its errors, in a box
    except UsageError as error:
        code = misused(error)
    except typer.Abort:  # Ctrl-C where something is asked; anywhere else it is no exception here
        code = INTERRUPTED
    except Exception as error:
        code = fail(error)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
