"""A breach: a request that must not wait for its night, because the data it is about came out."""

from datetime import datetime

from sqlalchemy import Engine

from genrec.errors import RequestError
from genrec.requests import audit
from genrec.requests.database import writing
from genrec.requests.refusal import free_text
from genrec.requests.schema import RequestRow, utc
from genrec.requests.states import CLOSED


def expedite(engine: Engine, request_id: str, *, now: datetime, reason: str) -> None:
    """Make an open request due now: no batch leaves it for later. `reason` goes into the audit chain.

    Raises RequestError for a request that is unknown or closed, and for a reason that names the person.
    """
    with writing(engine) as session:
        row = session.get(RequestRow, request_id)
        if row is None or row.state in CLOSED:
            state = row.state if row else "unknown"
            raise RequestError(f"Request {request_id!r} is {state}, not open. See genrec requests list.")
        free_text("reason", reason, row.user_id)
        if row.due_at > utc(now):
            row.due_at = now
            audit.append(session.connection(), "breach", row.id, {"reason": reason}, now=now)
