"""From a subject to a queued request: what the data knows of it, and what serving must stop showing.

`submit` and `verify` are the two steps, for two people; `submit_and_verify` is both at once, for an operator's shell.
"""

from datetime import datetime

from genrec.config import Workspace
from genrec.data.sequences import Dataset, load_dataset
from genrec.data.subjects import Subject
from genrec.requests.ledger import Known, Request
from genrec.requests.store import open_ledger


def known_of(dataset: Dataset) -> Known:
    """What the current data version knows."""
    index = {item: i for i, item in enumerate(dataset.item_ids)}
    users = {user: i for i, user in enumerate(dataset.user_ids)}

    def interacted(user: str, item: str) -> bool:
        return user in users and item in index and index[item] in dataset.history(users[user])

    concepts = {name: len(items) for name, items in dataset.concepts.items()}
    return Known(users, index, concepts, len(index), interacted)


def submit(
    workspace: Workspace, subject: Subject, *, now: datetime, idempotency_key: str | None = None,
    requested_by: str | None = None,
) -> Request:  # fmt: skip
    """`Ledger.submit` against the current data version."""
    known = known_of(load_dataset(workspace.prepared))
    return open_ledger(workspace).submit(
        subject, known, now=now, idempotency_key=idempotency_key, requested_by=requested_by
    )


def verify(workspace: Workspace, request_id: str, *, now: datetime, verifier: str, how: str) -> Request:
    """`Ledger.verify`, with the items that carry the request's concept to be denied."""
    ledger = open_ledger(workspace)
    request = ledger.get(request_id)
    items = _carrying(load_dataset(workspace.prepared), request.label) if request.kind == "concept" else []
    return ledger.verify(request_id, now=now, verifier=verifier, how=how, deny_items=items)


def _carrying(dataset: Dataset, concept: str) -> list[str]:
    return [dataset.item_ids[i] for i in dataset.concepts.get(concept, ())]


def submit_and_verify(
    workspace: Workspace, subject: Subject, *, now: datetime, verifier: str, how: str = "not recorded",
    idempotency_key: str | None = None,
) -> Request:  # fmt: skip
    """Submit, and verify at once as `verifier` did, in the way `how`: a concept's items are suppressed from here on.

    A request that is past `received` already (the same one again) is returned as it is.
    """
    dataset, ledger = load_dataset(workspace.prepared), open_ledger(workspace)
    request = ledger.submit(subject, known_of(dataset), now=now, idempotency_key=idempotency_key)
    if request.state != "received":
        return request
    items = _carrying(dataset, subject.concept) if subject.kind == "concept" else []
    return ledger.verify(request.id, now=now, verifier=verifier, how=how, deny_items=items)
