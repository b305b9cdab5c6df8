"""From the base bundle that DVC built to a registered version, and to the champion when its gates pass."""

import json
from dataclasses import replace
from datetime import datetime

from pydantic import BaseModel

from genrec import promotion
from genrec.config import Workspace
from genrec.data.subjects import read_tombstones
from genrec.data.version import data_version
from genrec.errors import DataError, RegistryError
from genrec.models.bundle import load_bundle, save_bundle
from genrec.registry import CHAMPION, PREVIOUS, open_registry
from genrec.requests.store import open_ledger


def register(workspace: Workspace) -> dict:
    """Log `artefacts/bundle` with the metrics and gates of the evaluate stage; the same bundle is logged once.

    What the ledger suppresses goes into its deny list. Returns {version, verdict, utility}. Raises DataError when the
    bundle was not built on the current data version, or this is an old one that lacks a fulfilled request's tombstone:
    either could know what was erased since.
    """
    path = workspace.artefacts / "metrics.json"
    if not path.exists():
        raise DataError("The base model is not evaluated yet. Build it: dvc repro.")
    result = json.loads(path.read_text())
    bundle = load_bundle(workspace.artefacts / "bundle")
    current = data_version(workspace.data_pin)
    if bundle.lineage.data_version != current:
        raise DataError(
            f"The base bundle is of data version {bundle.lineage.data_version}, not {current}: run dvc repro."
        )
    stones = read_tombstones(workspace.data)
    lacking = sum(
        len(digests - stones.get(kind, frozenset())) for kind, digests in open_ledger(workspace).tombstones().items()
    )
    if lacking:
        raise DataError(
            f"Data version {current} lacks the tombstones of {lacking} fulfilled requests: it is an old one. Bring "
            "back the newest data.dvc, then dvc checkout data.dvc and genrec train."
        )
    directory = workspace.var / "base"
    save_bundle(replace(bundle, deny=tuple(sorted(open_ledger(workspace).deny_list()))), directory)
    tags = {
        "method": "base", "batch_id": "", "attempt": "0", "verdict": result["verdict"], "parent": "",
        "data_version": bundle.lineage.data_version, "code_version": bundle.lineage.code_version,
        **{f"gate.{gate['name']}": gate["verdict"] for gate in result["gates"]},
    }  # fmt: skip
    flat = {}
    for section, values in workspace.params():
        leaves = values.model_dump() if isinstance(values, BaseModel) else {"value": values}
        flat |= {f"{section}.{name}": str(leaf) for name, leaf in leaves.items()}
    metrics = {name: figure["value"] for name, figure in result["utility"].items()}
    version = open_registry(workspace).register(
        directory, metrics=metrics, params=flat, tags=tags,
        artefacts={"metrics.json": json.dumps(result, indent=1)},
    )  # fmt: skip
    return {"version": version, "verdict": result["verdict"], "utility": result["utility"]}


def promote(workspace: Workspace, version: str, now: datetime) -> str | None:
    """Make a base version the champion; returns the number of `previous`.

    Raises RegistryError when its gates did not pass, and while a night is open, which goes on from its own champion.
    """
    registry = open_registry(workspace)
    found = registry.version(version)
    if found is None or found.tags.get("verdict") != "PASS":
        verdict = found.tags.get("verdict") if found else "absent"
        raise RegistryError(
            f"Version {version} is {verdict}, not PASS: the champion stays. See its gates.json in MLflow."
        )
    promotion.refuse_open_night(open_ledger(workspace))
    before = registry.version(CHAMPION)
    promotion.promote(workspace, version, before.number if before else None, now=now, trained=True)
    previous = registry.version(PREVIOUS)
    return previous.number if previous else None
