"""`genrec bench unlearn`: open the base model, run the scenario, write JSON and plot, log to MLflow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from genrec.bench import matrix
from genrec.bench.candidates import ORIGINAL, Bench
from genrec.bench.cells import machine
from genrec.bench.erasures import check_scenario, concept_erasures, user_draws
from genrec.bench.plot import write_plot
from genrec.bench.stream import run_stream
from genrec.config import Workspace
from genrec.data.files import write_json
from genrec.data.sequences import TEST, VALID, load_dataset
from genrec.data.sources import SOURCES
from genrec.data.tables import table_file
from genrec.errors import ConfigError, DataError
from genrec.models.bundle import load_bundle, read_manifest
from genrec.pipeline import code_version, load_embeddings


@dataclass(frozen=True)
class Order:
    """What is asked of the bench."""

    scenario: str
    methods: tuple[str, ...]
    seeds: int
    concepts: tuple[str, ...] = ()
    tuning: bool = False


DEFAULT_METHODS = {"users": ("ucan", "ucan_plus"), "concept": ("tracer",), "stream": ("ucan_plus", "tracer")}
"""Methods of a scenario where none is named."""


def check(order: Order) -> None:
    """Refuse what the bench does not know or would not use, before anything is trained. Raises ConfigError."""
    check_scenario(order.scenario)
    matrix.check_methods(order.methods)
    if order.concepts and order.scenario != "concept":
        raise ConfigError(f"--concepts names what --scenario concept forgets, not {order.scenario}. Leave it out.")
    if order.scenario == "stream":
        left = [name for name in order.methods if name not in stream_methods(order.methods) or name == ORIGINAL]
        if left:
            raise ConfigError(
                f"A stream has one method for people and one for concepts (tracer...), so not also {', '.join(left)}. "
                "Run it again for another pair."
            )
        if order.tuning:
            raise ConfigError("A stream is for reporting and knows no --tuning. Tune with --scenario users or concept.")


def source_of(directory: Path) -> str:
    """The source whose raw files `directory` holds, or `tables` for a pair of canonical tables."""
    for name, source in SOURCES.items():
        if all((directory / file).exists() or (directory / f"{file}.gz").exists() for file in source.files):
            return name
    try:
        table_file(directory, "interactions")
    except DataError as error:
        raise DataError(
            f"{directory} is no workspace and holds neither two canonical tables nor the files of "
            f"{', '.join(SOURCES)}. See genrec data fetch --help."
        ) from error
    return "tables"


def open_bench(workspace: Workspace) -> Bench:
    """The base bundle that DVC built in `workspace`, with its data."""
    path = workspace.artefacts / "bundle"
    return Bench(
        read_manifest(path)["bundle_hash"], load_bundle(path), load_dataset(workspace.prepared),
        load_embeddings(workspace), workspace.params(), workspace.var / "bench",
    )  # fmt: skip


def run(workspace: Workspace, order: Order, say: Callable[[str], None]) -> dict:
    """The bench's result as written to JSON: facts of the run, `records` and `table`, or the streams."""
    check(order)
    bench, seeds = replace(open_bench(workspace), split=VALID if order.tuning else TEST), range(order.seeds)
    result: dict = {
        "scenario": order.scenario, "seeds": order.seeds, "tuning": order.tuning,
        "measured_on": "validation items" if order.tuning else "test items", "code_version": code_version(),
        "bundle_hash": bench.identity, "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "users": len(bench.dataset.user_ids), "items": len(bench.dataset.item_ids), "rows": len(bench.dataset.items),
    }  # fmt: skip
    if order.scenario == "stream":
        users, concept = stream_methods(order.methods)
        return result | {"streams": [run_stream(bench, seed, users, concept, say) for seed in seeds]}
    if order.scenario == "users":
        erasures = user_draws(bench.dataset, bench.params.bench, seeds, order.tuning)
    else:
        erasures = concept_erasures(bench.dataset, bench.params.bench, seeds, order.concepts, order.tuning)
    records = matrix.fill(bench, erasures, order.methods, say)
    return result | {"records": records, "table": matrix.table(records)}


def stream_methods(methods: Sequence[str]) -> tuple[str, str]:
    """The methods a stream uses for users and for concepts: the first TRACER among `methods`, and the first other."""
    concept = next((name for name in methods if name.startswith("tracer")), "tracer")
    return next((name for name in methods if not name.startswith("tracer")), "ucan_plus"), concept


def write(result: dict, file: Path) -> list[Path]:
    """The JSON and, next to it, the plot (not for streams); returns both paths."""
    write_json(file, result)
    if "table" not in result:
        return [file]
    return [file, write_plot(result["table"], result["scenario"], file.with_suffix(".html"))]


def children(result: dict) -> list[dict]:
    """One MLflow child per method and seed (per night of a stream): {name, tags, metrics}."""
    found = []
    for r in result.get("records", ()):
        metrics = {name: m["value"] for name, m in r["figures"].items()}
        metrics |= {key: r[key] for key in matrix.COSTS if key in r}
        tags = {"label": r["label"], "method": r["method"], "seed": r["seed"], "verdict": r["verdict"]}
        tags |= {f"gate.{gate['name']}": gate["verdict"] for gate in r["gates"]}
        name = f"{r['label']} {r['method']} {r['seed']}"
        found.append({"name": name, "tags": tags, "metrics": {k: v for k, v in metrics.items() if v is not None}})
    for stream in result.get("streams", ()):
        for night in stream["nights"]:
            metrics = {"seconds": night["seconds"], "drift": night["drift"]["value"]}
            metrics = {name: value for name, value in metrics.items() if value is not None}
            tags = {"method": stream["user_method"], "seed": stream["seed"], "utility": night["utility"]}
            found.append({"name": f"night {night['night']} {stream['seed']}", "tags": tags, "metrics": metrics})
    return found


def summary_rows(result: dict) -> list[dict]:
    """What the terminal shows."""
    rows = []
    for row in result.get("table", ()):
        figures = row.get("figures", {})
        forgetting = {"sh@10": f"sh@10 {row['label']}", "gap": "user NLL gap over retrained", "AUC": "membership AUC"}
        shown = {short: _shown(figures.get(name)) for short, name in forgetting.items() if name in figures}
        rows.append(
            {"label": row["label"], "method": row["method"], **shown,
             "test NLL": _shown(figures.get("test NLL increase")),
             "seconds": _seconds(row.get("seconds")),
             "verdict": " ".join(f"{name} {count}" for name, count in row["verdicts"].items())}
        )  # fmt: skip
    for stream in result.get("streams", ()):
        rows += [
            {"seed": stream["seed"], "night": n["night"], "users": n["users"], "concept": n["concept"],
             "seconds": round(n["seconds"], 1), "drift": _shown(n["drift"]), "test NLL": _shown(n["test NLL increase"]),
             "at the end": _at_the_end(stream, n["night"])}
            for n in stream["nights"]
        ]  # fmt: skip
        rows.append({"seed": stream["seed"], "night": "all people", "at the end": _at_the_end(stream, 0)})
    return rows


def _at_the_end(stream: dict, night: int) -> str:
    """The verdicts of a night's requests on the last model, people first."""
    return ", ".join(row["verdict"] for row in stream["requests_at_the_end"] if row["night"] == night)


def _seconds(spread: dict | None) -> str:
    return "" if spread is None else f"{spread['mean']:.1f} [{spread['min']:.1f}, {spread['max']:.1f}]"


def _shown(figure: dict | None) -> str:
    if figure is None or figure["value"] is None:
        return ""
    if figure["low"] is None:
        return f"{figure['value']:.4f}"
    return f"{figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]"
