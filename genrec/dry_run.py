"""What a request would take: the checks, counts and routing of a real one, with nothing stored."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

import numpy as np

from genrec.config import Workspace
from genrec.data.sequences import Dataset, load_dataset
from genrec.data.subjects import Subject
from genrec.data.version import data_version
from genrec.evaluation.judge import SHARED_LEVELS
from genrec.planning import family, record, trained_without
from genrec.registry import Registry, Version, open_registry
from genrec.requests.calibrations import Calibration
from genrec.requests.intake import known
from genrec.requests.router import RETRAIN, absent, route
from genrec.requests.store import open_ledger
from genrec.unlearning.untouched import UNTOUCHED


@dataclass(frozen=True)
class DryRun:
    """What would leave the prepared data, and what the next night would do about it.

    rows, users: interactions, and people that lose one. items: those of the concept, the item, or what a person used.
    sid_neighbours: retained items that share at least two SID tokens with one to be forgotten; people move no SIDs.
    open_request: the one about the same subject that a submission would return. method: the router's first rung.
    expected_s: seconds of that rung, from what `expected_from` names; None where it was never run.
    """

    kind: str
    rows: int
    users: int
    items: int
    sid_neighbours: int
    open_request: str | None
    method: str
    reason: str
    expected_s: float | None
    expected_from: str

    def as_dict(self) -> dict:
        return asdict(self)


def dry_run(workspace: Workspace, subject: Subject, now: datetime) -> DryRun:
    """Look, and store nothing. Raises RequestError where a submission would, RegistryError without a champion."""
    dataset, ledger, params = load_dataset(workspace.prepared), open_ledger(workspace), workspace.params()
    existing = ledger.open_request(subject, known(workspace, dataset, subject))
    registry = open_registry(workspace)
    champion = registry.champion()
    bundle = registry.bundle(champion.number)
    rows, users, items = _covered(dataset, subject)
    ladders = {"user": params.unlearning.user_ladder, "interaction": (RETRAIN,)}
    calibrations = family(workspace, bundle.backbone.hash)
    others = sum(
        request.kind == subject.kind and request.state in ("queued", "failed") and request != existing
        for request in ledger.requests()
    )
    if dataset.holds(subject):
        plan = route(
            subject.kind, others + 1, ladders.get(subject.kind, params.unlearning.concept_ladder), calibrations,
            now=now, calibration=params.calibration, router=params.router,
            tried=record(workspace, bundle.backbone.hash, now), retrain_s=bundle.lineage.retrain_s,
        )  # fmt: skip
    else:
        unseen = trained_without(workspace, champion.number, data_version(workspace.data_pin))
        plan = absent(champion.number, unseen=unseen, ladder=(UNTOUCHED, RETRAIN))
    seconds, source = _cost(plan.ladder[0], calibrations, registry, champion, bundle.lineage.retrain_s)
    forgotten = {dataset.item_ids[i] for i in items} if subject.kind in ("concept", "item") else set()
    gone = [bundle.table.index[item] for item in forgotten & bundle.table.index.keys()]
    beside = bundle.table.sharing(gone, SHARED_LEVELS).sum() - len(gone)
    return DryRun(
        kind=subject.kind, rows=rows, users=users, items=len(items),
        sid_neighbours=int(beside), open_request=existing and existing.id,
        method=plan.ladder[0], reason=plan.reason, expected_s=seconds, expected_from=source,
    )  # fmt: skip


def _covered(dataset: Dataset, subject: Subject) -> tuple[int, int, np.ndarray]:
    """Interactions, people, and items (indices)."""
    owner = np.repeat(np.arange(len(dataset.user_ids)), np.diff(dataset.offsets))
    rows = np.ones(len(dataset.items), bool)
    if subject.user_id:
        rows &= owner == next((i for i, user in enumerate(dataset.user_ids) if user == subject.user_id), -1)
    named = [i for i, item in enumerate(dataset.item_ids) if item == subject.item_id]
    if subject.kind == "concept":
        named = dataset.concepts.get(subject.concept, [])
    if subject.kind != "user":
        rows &= np.isin(dataset.items, named)
    items = np.unique(dataset.items[rows]) if subject.kind == "user" else np.array(named, int)
    return int(rows.sum()), len(np.unique(owner[rows])), items


def _cost(
    method: str, calibrations: Mapping[str, Calibration], registry: Registry, champion: Version, retrain_s: float | None
) -> tuple[float | None, str]:
    """Seconds of `method`, and where the figure is from: the last full training, a calibration, or an ancestor."""
    if method == RETRAIN and retrain_s is not None:
        return retrain_s, f"the last full training before version {champion.number}"
    if method in calibrations:
        last = calibrations[method]
        return last.wall_s, f"the calibration of {last.at:%Y-%m-%d} on {last.n} users"
    version: Version | None = champion
    while version:
        if version.tags.get("method") == method and "wall_s" in version.metrics:
            return version.metrics["wall_s"], f"version {version.number}, made by {method}"
        version = registry.version(version.tags["parent"]) if version.tags.get("parent") else None
    return None, f"nothing: no version before {champion.number} was made by {method}"
