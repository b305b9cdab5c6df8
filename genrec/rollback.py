"""Rollback that never brings back what was forgotten.

An older version knows what was forgotten after it. The ids and rows of those requests are gone for good, so their
nights cannot be run again; and an edit of the weights could not be aimed. What can be done is exact: with `reapply` the
older version's adapter is trained anew on the current data, which is without all of them (checked by their tombstones
against the rows themselves), on its backbone, which never holds user data, and with its SIDs. What the ledger denies is
denied. SIDs that a night moved away from a concept come back with the older version, as they do where a night ends in
`retrain`: no weight has learnt them from a forgotten row. The result is judged and registered like any candidate.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow.parquet as pq

from genrec.candidates import register_judged
from genrec.config import Workspace
from genrec.data.sequences import Dataset, load_dataset
from genrec.data.subjects import present
from genrec.data.version import data_version
from genrec.errors import DataError, RegistryError
from genrec.evaluation import gates
from genrec.evaluation.judge import Erased, Forgotten, judge, measure
from genrec.evaluation.ranking import utility
from genrec.evaluation.rules import rules
from genrec.evaluation.statistics import Bootstrap
from genrec.lineage import history
from genrec.pipeline import code_version, load_embeddings
from genrec.promotion import promote, refuse_open_night
from genrec.registry import PREVIOUS, Version, open_registry
from genrec.requests.ledger import Ledger
from genrec.requests.router import RETRAIN
from genrec.requests.states import Request
from genrec.requests.store import open_ledger
from genrec.unlearning import Problem, method


def rollback(workspace: Workspace, to: str | None = None, *, now: datetime, reapply: bool = False) -> dict:
    """Make version `to` (default: `previous`) the champion: {champion, previous, rolled_back_to, reapplied}.

    The lease must be held. With `reapply`, a version that knows fulfilled requests is retrained without them first.
    Raises RegistryError for such a version otherwise, for one that did not pass its gates, and while a night is open;
    DataError when the current data is not without what was forgotten.
    """
    registry, ledger = open_registry(workspace), open_ledger(workspace)
    target = registry.version(to or PREVIOUS)
    if target is None:
        raise RegistryError(f"No version {to or PREVIOUS!r} to roll back to. See genrec models list.")
    refuse_open_night(ledger)
    if target.tags.get("verdict") != "PASS":
        raise RegistryError(f"Version {target.number} never passed its gates ({target.tags.get('verdict')}).")
    champion, number = registry.champion().number, target.number
    knows = sorted(history(workspace).knows(target.number))
    if knows and not reapply:
        raise RegistryError(
            f"Version {target.number} is older than {len(knows)} fulfilled requests ({', '.join(knows[:3])}"
            f"{', ...' if len(knows) > 3 else ''}) and knows what they forgot. Retrain it without them: "
            f"genrec models rollback {target.number} --reapply. Or train anew: genrec train."
        )
    if knows:
        number = _retrained(workspace, target, champion, [ledger.get(request) for request in knows], now)
    promote(workspace, number, champion, now=now, rolled_back_to=target.number, reapplied=knows)
    return {"champion": number, "previous": champion, "rolled_back_to": target.number, "reapplied": knows}


def _retrained(workspace: Workspace, target: Version, champion: str, requests: Sequence[Request], now: datetime) -> str:
    """`target` without `requests`, judged against the champion and registered; its number.

    Raises RegistryError when a gate FAILs or the catalogue is another one.
    """
    registry, ledger, params = open_registry(workspace), open_ledger(workspace), workspace.params()
    _check_rows(workspace, ledger)
    data, bundle = load_dataset(workspace.prepared), registry.bundle(target.number)
    if bundle.table.item_ids != data.item_ids:
        raise RegistryError(f"Version {target.number} is of another catalogue. Train anew: genrec train.")
    batch_id = f"rollback {target.number} {now:%Y-%m-%dT%H:%M:%S}"
    nobody = np.empty(0, np.int64)
    problem = Problem(
        bundle, params, data, data, nobody, nobody, load_embeddings(workspace), batch_id, params.seed
    )  # fmt: skip
    exact, started = method(RETRAIN), time.perf_counter()
    outcome = exact.run(problem)
    wall = round(time.perf_counter() - started, 2)
    candidate = replace(
        outcome.bundle, deny=tuple(sorted({*bundle.deny, *ledger.deny_list()})), params=params
    ).with_lineage(
        data_version=data_version(workspace.data_pin), code_version=code_version(), parent=target.number,
        batch_id=batch_id, method=RETRAIN, requests=tuple(request.id for request in requests), utility_ratio=1.0,
        retrain_s=wall,
    )  # fmt: skip
    groups = _groups(data, requests)
    erased = Erased(data, data, params.gates, Bootstrap.of(params), rules=rules(params))
    served = registry.bundle(champion)
    before = measure(erased, served, groups)
    found, after = judge(erased, groups, bundle, served, before, candidate, exact=exact.exact, wall_s=wall)
    verdict = gates.decide(found, exact.exact)
    taken = utility(after.ranking, len(data.item_ids), Bootstrap.of(params)) | after.forgetting
    number = register_judged(workspace, "rollback", candidate, found, verdict, taken)
    if verdict != "PASS":
        failed = ", ".join(gate.name for gate in found if gate.blocking and gate.verdict == "FAIL")
        raise RegistryError(
            f"Version {number}, {target.number} retrained, is {verdict} ({failed}). The champion stays."
        )
    return number


def _check_rows(workspace: Workspace, ledger: Ledger) -> None:
    """Raise DataError unless no prepared row is about a fulfilled request, whose id is known as an HMAC alone."""
    rows, items = (pq.read_table(workspace.prepared / f"{name}.parquet") for name in ("interactions", "items"))
    stones = ledger.tombstones()
    there = present(rows, items, stones.keys(), workspace.pseudonym_key())
    back = sum(len(digests & there) for digests in stones.values())
    if back:
        raise DataError(
            f"The prepared data holds what {back} fulfilled requests forgot: it is an old version. Bring back the "
            "newest data.dvc, then: dvc checkout data.dvc && genrec data prepare."
        )


def _groups(data: Dataset, requests: Sequence[Request]) -> list[Forgotten]:
    """The items that are to stay forgotten, one group a request; people leave nothing to measure on."""
    nobody = np.empty(0, np.int64)
    groups = [Forgotten("people", nobody, nobody)]  # and what the catalogue does not have
    groups += [
        Forgotten(f"concept: {r.label}", nobody, data.concepts[r.label])
        for r in requests
        if r.kind == "concept" and r.label in data.concepts
    ]
    return groups + [
        Forgotten(f"item: {r.label}", nobody, np.array([data.item_index[r.label]]))
        for r in requests
        if r.kind == "item" and r.label in data.item_index
    ]
