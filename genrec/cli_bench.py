"""`genrec bench`: measurements, each written to JSON."""

from pathlib import Path
from typing import Annotated

import typer

from genrec.config import Settings, Workspace
from genrec.terminal import example, note, now, open_workspace, show

SEED = 0
"""Of what a measurement draws that does not take its seed from a workspace."""
bench_app = typer.Typer(no_args_is_help=True, help="Measure methods against each other.")

Data = Annotated[Path | None, typer.Option(help="a workspace, or a folder with a source's raw files or two tables")]


@bench_app.command(
    "unlearn", epilog=example("genrec bench unlearn --scenario concept --methods tracer --seeds 1 --json horror.json")
)
def bench_unlearn(
    scenario: Annotated[str, typer.Option(help="users, concept or stream")] = "users",
    methods: Annotated[
        str,
        typer.Option(
            help="methods, separated by commas; default: ucan,ucan_plus for users, tracer for concepts, one of either "
            "(ucan_plus,tracer) for a stream"
        ),
    ] = "",
    data: Data = None,
    seeds: Annotated[int, typer.Option(min=1, help="how many draws or runs")] = 3,
    concepts: Annotated[str, typer.Option(help="concepts, separated by commas; default: chosen by share")] = "",
    tuning: Annotated[
        bool,
        typer.Option("--tuning", help="users and concepts that methods are tuned on, measured on validation items"),
    ] = False,
    file: Annotated[Path | None, typer.Option("--json", help="write everything here, and a plot next to it")] = None,
) -> None:
    """Forgetting, utility, robustness and cost of methods on the same erasures, against retraining.

    An interrupted run goes on where it stopped: finished cells and retrained models are kept by content.
    """
    from genrec.bench import unlearn
    from genrec.registry import open_registry

    chosen = _names(methods) or unlearn.DEFAULT_METHODS.get(scenario, ())
    order = unlearn.Order(scenario, chosen, seeds, _names(concepts), tuning)
    unlearn.check(order)
    home = open_workspace()
    workspace = bench_workspace(home, data)
    _reproduce(workspace)
    result = unlearn.run(workspace, order, note)
    file = file or workspace.reports / "bench" / f"{scenario}.json"
    files = unlearn.write(result, file)
    tags = {"scenario": scenario, "code_version": result["code_version"], "bundle_hash": result["bundle_hash"]}
    open_registry(home).log_bench(f"bench {scenario}", tags, unlearn.children(result), files)
    show(None, False, unlearn.summary_rows(result), scenario)
    typer.echo(f"Everything: {', '.join(map(str, files))}")


def _reproduce(workspace: Workspace, *stages: str) -> None:
    from tasks.data import dvc

    note("base model: dvc repro (reuses what is up to date)")
    dvc(workspace, "repro", *stages, quiet=False)


def _kept(result: dict, file: Path | None, seed: int | None) -> dict:
    """`result` with code version, seed (None: nothing is drawn), date and machine, also written to `file`."""
    import os
    import platform

    from genrec.data.files import write_json
    from genrec.models.device import best_device
    from genrec.pipeline import code_version

    machine = f"{os.cpu_count()} cores, {platform.machine()}, {best_device()}"
    facts = {"code_version": code_version(), "seed": seed, "date": now().date().isoformat(), "machine": machine}
    result = {**facts, **result}
    if file:
        write_json(file, result)
    return result


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
    note("Licence: " + " ".join(report.licence))
    return workspace


@bench_app.command("ledger", epilog=example("genrec bench ledger --requests 10000 --processes 4"))
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

    with ledger.scratch(url) as place:
        load = ledger.run(place, requests, processes).as_dict()
    show(_kept(load, file, None), False)


@bench_app.command("sid", epilog=example("genrec bench sid --items 100000"))
def bench_sid(
    items: Annotated[int, typer.Option(min=256, help="how many vectors")] = 1_000_000,
    dim: Annotated[int, typer.Option(min=2, help="dimensions of a vector")] = 384,
    file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """RQ-KMeans (3 x 256) against three plain faiss k-means on the same simulated vectors, in one run."""
    from genrec.bench import sid

    show(_kept(sid.run(items, dim, SEED).as_dict(), file, SEED), False)


Measured = Annotated[str, typer.Option("--bundle", help="untrained, champion, or a bundle's folder of this workspace")]
History = Annotated[int, typer.Option(min=1, help="items in the history of a user")]
Items = Annotated[int, typer.Option(min=100, help="items of the untrained model")]


@bench_app.command("decode", epilog=example("genrec bench decode --bundle champion"))
def bench_decode(
    items: Items = 12_000,
    batch: Annotated[int, typer.Option(min=1, help="users searched at once")] = 64,
    beam: Annotated[int, typer.Option(min=1)] = 20,
    history: History = 20,
    repeats: Annotated[int, typer.Option(min=1, help="how often everything is timed")] = 5,
    large: Annotated[int, typer.Option(min=100, help="items of the large simulated catalogue")] = 1_000_000,
    bundle: Measured = "untrained",
    users: Annotated[int, typer.Option(min=1, help="test users of a trained model to score exactly")] = 256,
    file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Beam search against `generate` of Hugging Face, the prompt alone, no masks and (trained models) exact scoring."""
    from genrec.bench import decode

    measured, histories = _measured(bundle, items, users)
    setting = decode.Setting(batch, beam, history, repeats)
    result = decode.run(measured, setting, histories, large, SEED)
    result = _kept({"bundle": bundle, **result}, file, SEED)
    rows = [{key: c[key] for key in ("name", "ratio", "bar", "holds", "compares")} for c in result["claims"]]
    show(result, False, rows, "decoding")


@bench_app.command("serve", epilog=example("genrec bench serve --items 12000 --repeats 20"))
def bench_serve(
    items: Items = 12_000,
    history: History = 20,
    repeats: Annotated[int, typer.Option(min=2, help="calls of each batch size")] = 50,
    bundle: Measured = "untrained",
    file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Users per second and latency of `recommend` at batch 1, 8 and 64 on this device."""
    from genrec.bench import serve

    measured, _ = _measured(bundle, items, 0)
    result = serve.run(measured, history, repeats, SEED)
    result = _kept({"bundle": bundle, **result}, file, SEED)
    show(result, False, result["loads"], "serving")


def _measured(name: str, items: int, users: int):
    """The bundle to measure, and the test histories of `users` users, drawn by SEED; none for an untrained model."""
    import numpy as np

    from genrec.bench.decode import random_bundle
    from genrec.data.sequences import load_dataset
    from genrec.errors import BundleError
    from genrec.evaluation.ranking import held_out
    from genrec.models.bundle import load_bundle
    from genrec.registry import open_registry

    if name == "untrained":
        return random_bundle(items, SEED), []
    workspace = open_workspace()
    if name == "champion":
        registry = open_registry(workspace)
        bundle = registry.bundle(registry.champion().number)
    else:
        bundle = load_bundle(Path(name))
    dataset = load_dataset(workspace.prepared)
    if dataset.item_ids != bundle.table.item_ids:
        raise BundleError(f"--bundle {name} is not of the catalogue in {workspace.prepared}. Run it in its workspace.")
    cases = held_out(dataset).histories
    drawn = np.random.default_rng(SEED).permutation(len(cases))[:users]
    return bundle, [cases[case] for case in drawn]


@bench_app.command("quality", epilog=example("genrec bench quality --seeds 1 --rivals item_knn,popularity"))
def bench_quality(
    data: Data = None,
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds, from that of the workspace on")] = 3,
    rivals: Annotated[
        str, typer.Option(help="rivals, separated by commas; sasrec always takes part")
    ] = "sasrec,item_knn,popularity",
    whole: Annotated[bool, typer.Option("--whole", help="the architecture with all weights trained as well")] = False,
    file: Annotated[Path | None, typer.Option("--json", help="write everything here")] = None,
) -> None:
    """Recall, NDCG and MRR of the served model and its rivals on the test items, full ranking, each against SASRec.

    An interrupted run goes on where it stopped: finished models are kept by content.
    """
    import json

    from genrec.bench import quality
    from genrec.bench.unlearn import open_bench
    from genrec.rivals import check_rivals

    order = quality.Order(seeds, check_rivals(_names(rivals)), whole)
    workspace = bench_workspace(open_workspace(), data)
    _reproduce(workspace, "train")
    result = quality.run(open_bench(workspace), order, note)
    prepared = json.loads((workspace.prepared / "prepare.json").read_text())
    result = _kept({"tied_targets": prepared["tied_targets"], **result}, file, workspace.params().seed)
    show(None, False, quality.summary_rows(result), "quality")


@bench_app.command("train", epilog=example("genrec bench train --minutes 5"))
def bench_train(
    data: Data = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="of ours; default: train.epochs")] = None,
    loop_epochs: Annotated[int, typer.Option(min=1, help="of the Trainer loop")] = 3,
    minutes: Annotated[float, typer.Option(min=0, help="time limit of either training")] = 30,
    batch: Annotated[int, typer.Option(min=1, help="samples per step of the Trainer loop")] = 128,
    users: Annotated[int, typer.Option(min=1, help="validation users that are ranked at each look")] = 1000,
    file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Our training against transformers.Trainer over sliding windows: time to the same NDCG@10, tokens per second."""
    from genrec.bench import train
    from genrec.data.sequences import load_dataset
    from genrec.models.bundle import load_bundle

    workspace = bench_workspace(open_workspace(), data)
    _reproduce(workspace, "train")
    bundle = load_bundle(workspace.artefacts / "bundle")
    setting = train.Setting(epochs or bundle.params.train.epochs, loop_epochs, minutes, batch, users)
    result = train.run(bundle, load_dataset(workspace.prepared), setting, note)
    result = _kept(result, file, bundle.params.seed)
    show({key: value for key, value in result.items() if not isinstance(value, dict)}, False)
