"""The DVC stages: each reads its dependencies from the workspace, writes its outputs there, and does nothing else.

Stage names equal the `genrec stage` commands (dvc.yaml, and a test says so).
"""

import csv
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from genrec.config import Workspace
from genrec.data.files import write_json
from genrec.errors import DataError


def require_data(workspace: Workspace) -> None:
    """Raises DataError where no source has been fetched."""
    if not workspace.data.exists():
        raise DataError("No data/ in this workspace. Fetch a source first: genrec data fetch simulated.")


def prepare(workspace: Workspace) -> dict:
    """data/ -> prepared/."""
    from dataclasses import asdict

    from genrec.data.prepare import prepare as run

    require_data(workspace)
    return asdict(run(workspace.data, workspace.prepared, workspace.params(), workspace.pseudonym_key()))


def validate(workspace: Workspace) -> dict:
    """prepared/ -> artefacts/validation.json and .html. Raises ValidationFailed after both are written."""
    from genrec.validation.page import render_page
    from genrec.validation.run import validate_prepared

    report = validate_prepared(
        workspace.prepared, workspace.params(), workspace.pseudonym_key(), pinned=_pinned(workspace)
    )
    workspace.artefacts.mkdir(exist_ok=True)
    (workspace.artefacts / "validation.json").write_text(report.to_json() + "\n")
    (workspace.artefacts / "validation.html").write_text(render_page(report))
    report.raise_for_failure()
    return {"success": report.success, "checks": len(report.results)}


def _pinned(workspace: Workspace) -> bool:
    return json.loads((workspace.prepared / "prepare.json").read_text())["pinned"]


def embed(workspace: Workspace) -> dict:
    """prepared/items.parquet -> artefacts/embeddings.safetensors, float32 [items, d] by item index."""
    from safetensors.numpy import save_file

    from genrec.data.sequences import load_dataset
    from genrec.sid.embed import embed_texts

    dataset = load_dataset(workspace.prepared)
    embeddings = embed_texts(dataset.texts, workspace.params().embed)
    workspace.artefacts.mkdir(exist_ok=True)
    save_file({"embeddings": embeddings}, workspace.artefacts / "embeddings.safetensors")
    return {"items": embeddings.shape[0], "dimensions": embeddings.shape[1]}


def load_embeddings(workspace: Workspace) -> np.ndarray:
    from safetensors.numpy import load_file

    path = workspace.artefacts / "embeddings.safetensors"
    if not path.exists():
        raise DataError("No item embeddings in this workspace. Build the base model first: dvc repro.")
    return load_file(path)["embeddings"]


def sid(workspace: Workspace) -> dict:
    """embeddings -> artefacts/sid: the SID table, the codebooks and the quality report."""
    import pyarrow.parquet as pq

    from genrec.data.sequences import load_dataset
    from genrec.sid import build, quantise, table
    from genrec.sid.quality import quality_report
    from genrec.validation.run import validate_sids

    params, dataset, embeddings = workspace.params(), load_dataset(workspace.prepared), load_embeddings(workspace)
    codebooks = build.fit_codebooks(embeddings, params)
    sids = build.assign_table(dataset.item_ids, embeddings, codebooks, params.sid.collisions)
    sids = replace(sids, lineage=build.lineage(dataset.texts, embeddings, codebooks, params))
    validate_sids(table.to_arrow(sids), pq.read_table(workspace.prepared / "items.parquet")).raise_for_failure()
    quality = quality_report(sids, dataset.concepts, params.seed) | build.quantisation(sids, embeddings, codebooks)
    out = workspace.artefacts / "sid"
    out.mkdir(parents=True, exist_ok=True)
    table.save_table(sids, out / "sid_table.parquet")
    quantise.save_codebooks(codebooks, out / "codebooks.safetensors")
    (out / "quality.json").write_text(json.dumps(quality, indent=1) + "\n")
    return quality


def backbone(workspace: Workspace) -> dict:
    """SIDs, embeddings and, for a pretrained one, titles -> artefacts/backbone. No interaction is read."""
    import pyarrow.parquet as pq

    from genrec.models.backbone import save_backbone
    from genrec.sid.table import load_table
    from genrec.training import probes
    from genrec.training.base import train_backbone
    from genrec.training.loop import is_main_process

    params = workspace.params()
    table = load_table(workspace.artefacts / "sid" / "sid_table.parquet")
    probes.check({"dead codes": probes.dead_codes(table)}, params.probes)
    titles = []
    if params.architecture.name == "pretrained":
        items = pq.read_table(workspace.prepared / "items.parquet", columns=["item_id", "title"]).sort_by("item_id")
        titles = items["title"].to_pylist()
    started = time.perf_counter()
    trained, curve = train_backbone(
        table, load_embeddings(workspace), params, titles,
        checkpoint=workspace.var / "checkpoints" / "backbone.safetensors",
    )  # fmt: skip
    if is_main_process():
        save_backbone(trained, workspace.artefacts / "backbone")
        _curve(workspace.artefacts / "backbone_curve.csv", curve.losses)
    return {"loss": curve.losses[-1], "seconds": round(time.perf_counter() - started, 1)}


def train(workspace: Workspace) -> dict:
    """Backbone and interactions -> artefacts/bundle, the base model, and artefacts/probes.json, how healthy it is.

    Raises TrainingError when a health probe fails, and then writes neither.
    """
    from genrec.data.sequences import load_dataset
    from genrec.data.version import data_version
    from genrec.models.backbone import load_backbone
    from genrec.models.bundle import Bundle, Lineage, save_bundle
    from genrec.sid.quantise import load_codebooks
    from genrec.sid.table import load_table
    from genrec.training import probes
    from genrec.training.base import train_adapter
    from genrec.training.loop import is_main_process
    from genrec.training.rows import trained_rows

    params, dataset = workspace.params(), load_dataset(workspace.prepared)
    table = load_table(workspace.artefacts / "sid" / "sid_table.parquet")
    base = load_backbone(workspace.artefacts / "backbone")
    rows = trained_rows(dataset)
    health = probes.prepare(dataset, table, params)
    started = time.perf_counter()
    adapter, curve = train_adapter(
        base, rows, table, params,
        checkpoint=workspace.var / "checkpoints" / "adapter.safetensors", watch=health.watch(),
    )  # fmt: skip
    seconds = round(time.perf_counter() - started, 1)
    if not is_main_process():
        return {"loss": curve.losses[-1], "seconds": seconds}
    lineage = Lineage(data_version(workspace.data_pin), code_version(), retrain_s=seconds)
    codebooks = load_codebooks(workspace.artefacts / "sid" / "codebooks.safetensors")
    bundle = Bundle(base, adapter, table, codebooks, params, lineage, titles=dataset.titles)
    figures = write_json(workspace.artefacts / "probes.json", health.check(bundle.model()))
    bundle_hash = save_bundle(bundle, workspace.artefacts / "bundle")
    _curve(workspace.artefacts / "train_curve.csv", curve.losses)
    return {"loss": curve.losses[-1], "seconds": seconds, "bundle_hash": bundle_hash, "probes": figures}


def evaluate(workspace: Workspace) -> dict:
    """The base bundle on the test targets -> artefacts/metrics.json, and the gates a base model must pass."""
    from genrec.data.sequences import load_dataset
    from genrec.evaluation import gates, ranking
    from genrec.evaluation.statistics import Bootstrap
    from genrec.models.bundle import load_bundle

    bundle, dataset = load_bundle(workspace.artefacts / "bundle"), load_dataset(workspace.prepared)
    params = workspace.params()
    plan = Bootstrap.of(params)
    cases = ranking.held_out(dataset)
    ranked = ranking.rank(bundle, bundle.model(), cases)
    popular = ranking.popularity_ranks(dataset, cases)
    prepared = json.loads((workspace.prepared / "prepare.json").read_text())
    figures = {name: m.as_dict() for name, m in ranking.utility(ranked, len(dataset.item_ids), plan).items()}
    base_gates = [
        gates.integrity(bundle, bundle, dataset, None, np.empty(0, np.int64)),
        gates.beats_popularity(ranked, popular, plan),
    ]
    result = {
        "utility": figures,
        "popularity": {"recall@10": float((popular < 10).mean())},
        "tied_targets": prepared["tied_targets"],
        "gates": [gate.as_dict() for gate in base_gates],
        "gate_values": {gate.name: gate.value for gate in base_gates},  # DVC's metrics leave out lists
        "verdict": gates.decide(base_gates, exact=False),
    }
    (workspace.artefacts / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


STAGES: dict[str, Callable[[Workspace], dict]] = {
    stage.__name__: stage for stage in (prepare, validate, embed, sid, backbone, train, evaluate)
}


def code_version() -> str:
    """The commit of the code that runs, with `+` when the tree differs; the package version outside a checkout."""
    from genrec import __version__

    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 and found.stdout.strip() else __version__


def _curve(path: Path, losses: tuple[float, ...]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "loss"])
        writer.writerows([i + 1, f"{loss:.6f}"] for i, loss in enumerate(losses))
