"""`make demo`: one whole night on the embedded shop. A second run reuses what is there and says so."""

import json
from datetime import UTC, datetime

import numpy as np

from genrec.config import Workspace
from genrec.data.sequences import load_dataset
from genrec.data.subjects import Subject
from genrec.errors import DataError
from genrec.registry import CHAMPION, open_registry
from genrec.requests.intake import submit_and_verify
from genrec.requests.store import open_ledger

USERS = 3
FIRST_CONCEPT = "Gambling"


def needs_data(workspace: Workspace) -> bool:
    """Whether the shop has to be simulated. Raises DataError when data/ holds something else."""
    source = workspace.data / "source.json"
    if not source.exists():
        return True
    name = json.loads(source.read_text())["name"]
    if name != "simulated":
        raise DataError(f"data/ holds {name!r}, and the demo would run on it. Use another folder: genrec init DIR.")
    return False


def has_champion(workspace: Workspace) -> str | None:
    """The champion's version when it was built for this catalogue, else None."""
    if not (workspace.prepared / "items.parquet").exists():
        return None
    registry = open_registry(workspace)
    champion = registry.version(CHAMPION)
    if champion is None:
        return None
    same = registry.bundle(champion.number).table.item_ids == load_dataset(workspace.prepared).item_ids
    return champion.number if same else None


def submit_requests(workspace: Workspace) -> list[str]:
    """Three people and one concept nobody asked about before; returns what was asked, for the terminal."""
    dataset, ledger = load_dataset(workspace.prepared), open_ledger(workspace)
    asked = {request.label for request in ledger.requests() if request.kind == "concept"}
    rng = np.random.default_rng(len(ledger.requests()))
    trained = [u for u in range(len(dataset.user_ids)) if len(dataset.training_rows(u)) >= 5]
    lines = []
    for user in rng.choice(trained, USERS, replace=False):
        request = submit_and_verify(
            workspace, Subject("user", user_id=dataset.user_ids[user]), now=datetime.now(UTC), verifier="demo"
        )
        lines.append(f"{request.id}  user     {request.digest[:12]}  {request.state}")
    left = sorted((name for name in dataset.concepts if name not in asked), key=lambda n: (n != FIRST_CONCEPT, n))
    for concept in left[:1]:
        subject = Subject("concept", concept=concept)
        request = submit_and_verify(workspace, subject, now=datetime.now(UTC), verifier="demo")
        lines.append(f"{request.id}  concept  {concept}  {request.state}, its items are off the shelf already")
    return lines
