"""From a subject to a queued request: what the data knows of it, and what serving must stop showing.

`submit` and `verify` are the two steps, for two people; `submit_and_verify` is both at once, for an operator's shell.
"""

from dataclasses import replace
from datetime import datetime

import pyarrow.compute as pc

from genrec.config import Workspace
from genrec.data.sequences import Dataset, load_dataset
from genrec.data.subjects import Subject
from genrec.data.tables import Tables, read_tables
from genrec.requests.ledger import Known, Request
from genrec.requests.store import open_ledger


def known_of(dataset: Dataset) -> Known:
    """What the prepared tables know."""

    def interacted(user: str, item: str) -> bool:
        return dataset.holds(Subject("interaction", user, item))

    concepts = {name: len(items) for name, items in dataset.concepts.items()}
    return Known(dataset.user_index, dataset.item_index, concepts, len(dataset.item_ids), interacted)


def known(workspace: Workspace, dataset: Dataset, subject: Subject) -> Known:
    """`known_of`, and what the raw tables know besides: they hold what k-core keeps out of the prepared ones.

    They are read only for a subject that is not in these.
    """
    prepared = known_of(dataset)
    if dataset.holds(subject) or not workspace.data.exists():
        return prepared
    raw = read_tables(workspace.data)
    tags = {tag: 0 for tags in raw.items["concepts"].to_pylist() for tag in tags}  # of no item of the catalogue
    return replace(
        prepared,
        users=frozenset(pc.unique(raw.interactions["user_id"]).to_pylist()) | prepared.users.keys(),
        items=frozenset(raw.items["item_id"].to_pylist()) | prepared.items.keys(),
        concepts=tags | prepared.concepts,
        interactions=lambda user, item: prepared.interactions(user, item) or _interacted(raw, user, item),
    )


def _interacted(raw: Tables, user: str, item: str) -> bool:
    return bool(Subject("interaction", user, item).matches(raw.interactions, raw.items).any())


def submit(
    workspace: Workspace, subject: Subject, *, now: datetime, idempotency_key: str | None = None,
    requested_by: str | None = None,
) -> Request:  # fmt: skip
    """`Ledger.submit` against the current data version."""
    return open_ledger(workspace).submit(
        subject, known(workspace, load_dataset(workspace.prepared), subject), now=now, idempotency_key=idempotency_key,
        requested_by=requested_by,
    )  # fmt: skip


def verify(workspace: Workspace, request_id: str, *, now: datetime, verifier: str, how: str) -> Request:
    """`Ledger.verify`, with the items that carry the request's concept to be denied."""
    ledger = open_ledger(workspace)
    request = ledger.get(request_id)
    items = _carrying(workspace, load_dataset(workspace.prepared), request.label) if request.kind == "concept" else []
    return ledger.verify(request_id, now=now, verifier=verifier, how=how, deny_items=items)


def _carrying(workspace: Workspace, dataset: Dataset, concept: str) -> list[str]:
    """Items of the catalogue, or of the raw table where none of the catalogue carries it."""
    if concept in dataset.concepts or not workspace.data.exists():
        return [dataset.item_ids[i] for i in dataset.concepts.get(concept, ())]
    items = read_tables(workspace.data).items
    tagged = zip(items["item_id"].to_pylist(), items["concepts"].to_pylist(), strict=True)
    return [item for item, tags in tagged if concept in tags]


def submit_and_verify(
    workspace: Workspace, subject: Subject, *, now: datetime, verifier: str, how: str = "not recorded",
    idempotency_key: str | None = None,
) -> Request:  # fmt: skip
    """Submit, and verify at once as `verifier` did, in the way `how`: a concept's items are suppressed from here on.

    A request that is past `received` already (the same one again) is returned as it is.
    """
    dataset, ledger = load_dataset(workspace.prepared), open_ledger(workspace)
    asked = known(workspace, dataset, subject)
    request = ledger.submit(subject, asked, now=now, idempotency_key=idempotency_key)
    if request.state != "received":
        return request
    items = _carrying(workspace, dataset, subject.concept) if subject.kind == "concept" else []
    return ledger.verify(request.id, now=now, verifier=verifier, how=how, deny_items=items)
