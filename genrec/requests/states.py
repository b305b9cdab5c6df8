"""The state machine of a request: what may follow what, and what anybody may see of it."""

from dataclasses import asdict, dataclass
from datetime import datetime

from genrec.errors import RequestError
from genrec.requests.audit import Link
from genrec.requests.schema import RequestRow

TRANSITIONS: dict[str, tuple[str, ...]] = {
    "received": ("verified", "held", "rejected", "cancelled"),
    "verified": ("queued",),
    "queued": ("running", "held", "rejected", "cancelled"),
    "running": ("fulfilled", "failed"),
    "failed": ("running", "held", "cancelled"),
    "held": ("received", "queued", "rejected", "cancelled"),
    "fulfilled": (),
    "rejected": (),
    "cancelled": (),
}
CLOSED = tuple(state for state, after in TRANSITIONS.items() if not after)
PERSONAL = ("user", "interaction")


@dataclass(frozen=True)
class Request:
    """A request as anybody may see it. `label` is the concept or the item; None where a person is meant. Times: UTC.

    `requested_by` is the account that submitted it, where accounts are known. `verified_by` and `verified_how` say who
    checked the requester's identity and how. `plan` is the router's reason in the latest batch.
    """

    id: str
    kind: str
    digest: str
    label: str | None
    state: str
    reason: str | None
    attempts: int
    received_at: datetime
    verified_at: datetime | None
    suppressed_at: datetime | None
    unlearned_at: datetime | None
    due_at: datetime
    method: str | None
    plan: str | None
    batch_id: str | None
    requested_by: str | None = None
    verified_by: str | None = None
    verified_how: str | None = None
    extended_at: datetime | None = None
    extension_reason: str | None = None

    def as_dict(self) -> dict[str, str | int | None]:
        """JSON-ready; times as ISO 8601."""
        return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in asdict(self).items()}


def step(row: RequestRow, state: str, **payload: object) -> Link:
    """Move `row` to `state`: the one place where a state changes. The link must join the chain in the same transaction.

    Raises RequestError for a move that TRANSITIONS does not have.
    """
    if state not in TRANSITIONS[row.state]:
        after = ", ".join(TRANSITIONS[row.state]) or "nothing: it is closed"
        raise RequestError(
            f"Request {row.id} is {row.state} and cannot become {state}. From {row.state} it can become {after}."
        )
    link = (state, row.id, {"from": row.state, **payload})
    row.state, row.reason = state, payload.get("reason")
    if state in CLOSED and row.kind in PERSONAL:
        row.user_id = row.item_id = None
    return link


def shown(row: RequestRow) -> Request:
    """The row without what names a person."""
    shared = {name: getattr(row, name) for name in Request.__dataclass_fields__ if name != "label"}
    return Request(label={"concept": row.concept, "item": row.item_id}.get(row.kind), **shared)
