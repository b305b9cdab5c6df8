"""Judged candidates on their way into the registry."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from genrec import unlearning
from genrec.config import Workspace
from genrec.evaluation import rules
from genrec.evaluation.gates import Gate
from genrec.evaluation.statistics import Measure
from genrec.models.bundle import Bundle, Lineage, save_bundle
from genrec.registry import Registry, open_registry


def figures(measures: dict[str, Measure]) -> dict[str, dict]:
    """Measures by name, ready for JSON."""
    return {name: m.as_dict() for name, m in measures.items()}


def providers(method_name: str, found: Sequence[Gate]) -> dict[str, str]:
    """Tags for what is not genrec's own: distribution and version, as `provider.method` and `provider.gate.<name>`."""
    methods, others = unlearning.plugins(), rules.plugins()
    made = {"provider.method": methods[method_name].provider} if method_name in methods else {}
    return made | {f"provider.gate.{gate.name}": others[gate.name].provider for gate in found if gate.name in others}


def register_candidate(
    registry: Registry, folder: Path, lineage: Lineage, result: dict, metrics: Mapping[str, float], seed: int,
    **tags: str,
) -> str:  # fmt: skip
    """Register the bundle in `folder` with what its lineage and its judgement say; its number.

    result: its `number`, `verdict` and `gates` as dictionaries.
    """
    return registry.register(
        folder,
        metrics=metrics,
        params={"seed": str(seed), "method": lineage.method},
        tags={
            "batch_id": lineage.batch_id, "attempt": str(result["number"]), "method": lineage.method,
            "verdict": result["verdict"], "data_version": lineage.data_version, "code_version": lineage.code_version,
            "parent": lineage.parent, **tags,
            **{f"gate.{gate['name']}": gate["verdict"] for gate in result["gates"]},
        },
        artefacts={"gates.json": json.dumps(result["gates"], indent=1)},
    )  # fmt: skip


def register_judged(
    workspace: Workspace,
    name: str,
    candidate: Bundle,
    found: Sequence[Gate],
    verdict: str,
    measures: dict[str, Measure],
) -> str:
    """Register a candidate that is no night's; its number. name: of the folder in var/ that it lies in meanwhile."""
    folder = workspace.var / name
    save_bundle(candidate, folder)
    result = {"number": 1, "verdict": verdict, "gates": [gate.as_dict() for gate in found]}
    metrics = {name: figure["value"] for name, figure in figures(measures).items()}
    seed = workspace.params().seed
    lineage, made_by = candidate.lineage, providers(candidate.lineage.method, found)
    number = register_candidate(open_registry(workspace), folder, lineage, result, metrics, seed, **made_by)
    shutil.rmtree(folder)
    return number
