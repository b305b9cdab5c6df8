"""The audit chain: an append-only table whose every row carries the SHA-256 of the row before.

A change or a gap breaks the chain. Rows cut off at its end leave a shorter chain that is whole, and somebody who can
rewrite the table can rewrite all of it: so keep `head` outside the database from time to time, as each night's summary
does, and give it to `verify_chain`. Payloads must never hold a raw user id: nothing is ever removed from here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, Engine, insert, select

from genrec.errors import RequestError
from genrec.requests.schema import AuditRow, utc

START = "0" * 64  # `previous` of the first row
Link = tuple[str, str, Mapping[str, object]]
"""Event, the id it is about, payload."""


def canonical_json(value: object) -> str:
    """The one text of a JSON value: sorted keys, no spaces, no escapes. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def append(connection: Connection, event: str, subject: str, payload: Mapping[str, object], *, now: datetime) -> str:
    """Add one row about `subject` (the id of a request or a batch) and return its hash. See `append_all`."""
    return append_all(connection, [(event, subject, payload)], now=now)


def append_all(connection: Connection, links: Sequence[Link], *, now: datetime) -> str:
    """Add one row per link, in order, and return the last one's hash.

    `connection` must hold the writers' lock of `genrec.requests.database.writing`: one writer at a time.
    """
    last = connection.execute(select(AuditRow.seq, AuditRow.hash).order_by(AuditRow.seq.desc()).limit(1)).first()
    length, previous = (last.seq, last.hash) if last else (0, START)
    rows = []
    for seq, (event, subject, payload) in enumerate(links, length + 1):
        row = {
            "seq": seq,
            "at": utc(now).isoformat(),
            "event": event,
            "subject": subject,
            "payload": canonical_json(payload),
            "previous": previous,
        }
        previous = _digest(row)
        rows.append(row | {"hash": previous})
    connection.execute(insert(AuditRow), rows)
    return previous


def newest(engine: Engine) -> tuple[int, str]:
    """Number and hash of the newest row: what to keep elsewhere."""
    with engine.connect() as connection:
        last = connection.execute(select(AuditRow.seq, AuditRow.hash).order_by(AuditRow.seq.desc()).limit(1)).first()
    return (last.seq, last.hash) if last else (0, START)


def head(engine: Engine) -> str:
    """The hash of `newest`."""
    return newest(engine)[1]


def rows(engine: Engine, about: str | None = None) -> list[dict]:
    """The rows, oldest first, or those whose subject is `about`."""
    query = select(*AuditRow.__table__.columns).order_by(AuditRow.seq)
    with engine.connect() as connection:
        found = connection.execute(query.where(AuditRow.subject == about) if about else query)
        return [dict(row._mapping) for row in found]


def verify_chain(engine: Engine, kept_head: str | None = None) -> int:
    """Recompute the chain; the number of rows checked.

    `kept_head`, a hash that `head` gave earlier, must still be in it. Raises RequestError naming the first row that is
    missing or changed.
    """
    previous, count, found = START, 0, kept_head in (None, START)
    with engine.connect() as connection:
        for row in connection.execution_options(yield_per=1000).execute(
            select(*AuditRow.__table__.columns).order_by(AuditRow.seq)
        ):
            count += 1
            if row.seq != count:
                raise _broken(count, f"it is missing; the next one is {row.seq}")
            if row.previous != previous:
                raise _broken(count, "it does not continue the row before")
            if row.hash != _digest({k: v for k, v in row._mapping.items() if k != "hash"}):
                raise _broken(count, "its content does not match its hash")
            previous = row.hash
            found = found or row.hash == kept_head
    if not found:
        raise _broken(count + 1, f"the chain ends before the kept head {kept_head}")
    return count


def _digest(row: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical_json(dict(row)).encode()).hexdigest()


def _broken(seq: int, what: str) -> RequestError:
    return RequestError(
        f"Audit row {seq} is broken: {what}. The rows before it are sound; compare with a backup of the ledger."
    )
