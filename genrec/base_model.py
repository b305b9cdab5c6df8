"""From the base bundle that DVC built to a registered version, and to the champion when its gates pass."""

import json

from genrec.config import Workspace
from genrec.errors import DataError, RegistryError
from genrec.models.bundle import load_bundle
from genrec.night import open_registry


def register(workspace: Workspace) -> dict:
    """Log `artefacts/bundle` with the metrics and gates of the evaluate stage; the same bundle is logged once.

    Returns {version, verdict, utility}.
    """
    path = workspace.artefacts / "metrics.json"
    if not path.exists():
        raise DataError("The base model is not evaluated yet. Build it: dvc repro.")
    result = json.loads(path.read_text())
    bundle = load_bundle(workspace.artefacts / "bundle")
    tags = {
        "method": "base", "batch_id": "", "attempt": "0", "verdict": result["verdict"], "parent": "", "requests": "",
        "data_version": bundle.lineage.data_version, "code_version": bundle.lineage.code_version,
        **{f"gate.{gate['name']}": gate["verdict"] for gate in result["gates"]},
    }  # fmt: skip
    flat = {f"{section}.{k}": v for section, values in workspace.params() for k, v in _leaves(section, values)}
    metrics = {name: figure["value"] for name, figure in result["utility"].items()}
    version = open_registry(workspace).register(
        workspace.artefacts / "bundle", metrics=metrics, params=flat, tags=tags,
        artefacts={"metrics.json": json.dumps(result, indent=1)},
    )  # fmt: skip
    return {"version": version, "verdict": result["verdict"], "utility": result["utility"]}


def promote(workspace: Workspace, version: str) -> str | None:
    """Make a base version the champion. Raises RegistryError when its gates did not pass. Returns the old champion."""
    registry = open_registry(workspace)
    found = registry.version(version)
    if found is None or found.tags.get("verdict") != "PASS":
        verdict = found.tags.get("verdict") if found else "absent"
        raise RegistryError(
            f"Version {version} is {verdict}, not PASS: the champion stays. See its gates.json in MLflow."
        )
    return registry.promote(version)


def _leaves(name: str, value) -> list[tuple[str, str]]:
    if hasattr(value, "model_fields_set"):
        return [(key, str(leaf)) for key, leaf in value.model_dump().items()]
    return [("value", str(value))]
