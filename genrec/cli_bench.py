"""`genrec bench`: measurements, each written to JSON."""

from pathlib import Path
from typing import Annotated

import typer

from genrec.config import Settings, Workspace
from genrec.terminal import open_workspace, show

bench_app = typer.Typer(no_args_is_help=True, help="Measure methods against each other.")


@bench_app.command("unlearn")
def bench_unlearn(
    scenario: Annotated[str, typer.Option(help="users, concept or stream")] = "users",
    methods: Annotated[str, typer.Option(help="methods, separated by commas")] = "ucan,ucan_plus",
    data: Annotated[
        Path | None, typer.Option(help="a workspace, or a folder with a source's raw files or two tables")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="how many draws or runs")] = 3,
    concepts: Annotated[str, typer.Option(help="concepts, separated by commas; default: chosen by share")] = "",
    tuning: Annotated[bool, typer.Option("--tuning", help="the users and concepts that methods are tuned on")] = False,
    file: Annotated[Path | None, typer.Option("--json", help="write everything here, and a plot next to it")] = None,
) -> None:
    """Forgetting, utility, robustness and cost of methods on the same erasures, against retraining.

    An interrupted run goes on where it stopped: finished cells and retrained models are kept by content.
    """
    from genrec.bench import unlearn
    from genrec.night import open_registry

    order = unlearn.Order(scenario, _names(methods), seeds, _names(concepts), tuning)
    unlearn.check(order)
    home = open_workspace()
    workspace = bench_workspace(home, data)
    from tasks.data import dvc

    typer.echo("base model: dvc repro (reuses what is up to date)", err=True)
    dvc(workspace, "repro", quiet=False)
    result = unlearn.run(workspace, order, lambda line: typer.echo(line, err=True))
    file = file or workspace.reports / "bench" / f"{scenario}.json"
    files = unlearn.write(result, file)
    tags = {"scenario": scenario, "code_version": result["code_version"], "bundle_hash": result["bundle_hash"]}
    open_registry(home).log_bench(f"bench {scenario}", tags, unlearn.children(result), files)
    show(None, False, unlearn.summary_rows(result), scenario)
    typer.echo(f"Everything: {', '.join(map(str, files))}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def bench_workspace(home: Workspace, data: Path | None) -> Workspace:
    """The workspace to measure in: `home`, a workspace named by `data`, or one made for the source in `data`.

    What is made lies in HOME/var/bench/workspaces and has the parameters of `home`.
    """
    from genrec.bench.unlearn import source_of
    from genrec.workspace import create, params_yaml
    from tasks.data import fetch_and_pin

    if data is None:
        return home
    if (data / "params.yaml").exists():
        return Settings(home=data).workspace
    params, name = home.params(), source_of(data)
    root = home.var / "bench" / "workspaces" / f"{name}-{data.resolve().name}"
    if not (root / "params.yaml").exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        create(root)
    workspace = Settings(home=root).workspace
    workspace.params_file.write_text(params_yaml(params))
    report = fetch_and_pin(workspace, name, data)
    typer.echo("Licence: " + " ".join(report.licence), err=True)
    return workspace


@bench_app.command("ledger")
def bench_ledger(
    requests: Annotated[int, typer.Option(min=8, help="how many different people ask")] = 100_000,
    processes: Annotated[int, typer.Option(min=1, help="how many processes submit at the same time")] = 8,
    url: Annotated[str | None, typer.Option(help="a PostgreSQL database; default: a new SQLite file")] = None,
    file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Submit from many processes at once, verify and claim a batch: counts, seconds, and a check of the audit chain.

    Works in a schema of its own and leaves nothing behind.
    """
    from genrec.bench import ledger
    from genrec.data.files import write_json
    from genrec.pipeline import code_version

    with ledger.scratch(url) as place:
        load = ledger.run(place, requests, processes).as_dict()
    result = {"code_version": code_version(), **load}
    if file:
        write_json(file, result)
    show(result, False)
