"""Which certificate was issued for a request, as the audit chain has it: rows `certified` with the certificate's hash.

A certificate that nobody signed can be changed and hashed anew; the chain then names another hash.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, select

from genrec.errors import RequestError
from genrec.requests import audit
from genrec.requests.certificates import recomputed_hash
from genrec.requests.database import writing
from genrec.requests.schema import AuditRow

CERTIFIED = "certified"


@dataclass(frozen=True)
class Agreement:
    """How many certificates of a folder are those of the chain, and the ids of the requests whose certificates it does
    not name: an earlier version issued them."""

    agree: int
    unnamed: tuple[str, ...]


def record(engine: Engine, issued: Mapping[str, str], *, now: datetime) -> None:
    """Append that these certificates, hash by request, were issued; nothing about what the chain names already."""
    with writing(engine) as session:
        named = _named(session.connection())
        new = {request: digest for request, digest in issued.items() if named.get(request) != digest}
        links = [(CERTIFIED, request, {"sha256": digest}) for request, digest in new.items()]
        if links:
            audit.append_all(session.connection(), links, now=now)


def compare(engine: Engine, directory: Path) -> Agreement:
    """The certificates in a folder against the chain. Raises RequestError for one that is not the one it names."""
    with engine.connect() as connection:
        named = _named(connection)
    agree, unnamed = 0, []
    for path in sorted(directory.glob("*.json")):
        if path.stem not in named:
            unnamed.append(path.stem)
        elif (found := recomputed_hash(path)) == named[path.stem]:
            agree += 1
        else:
            raise RequestError(
                f"{path.name} is not the certificate that was issued: its content has the hash {found}, the audit "
                f"chain names {named[path.stem]}. Restore it from a copy, and find out who changed it."
            )
    return Agreement(agree, tuple(unnamed))


def _named(connection: Connection) -> dict[str, str]:
    """The newest hash by request."""
    query = select(AuditRow.subject, AuditRow.payload).where(AuditRow.event == CERTIFIED).order_by(AuditRow.seq)
    return {subject: json.loads(payload)["sha256"] for subject, payload in connection.execute(query)}
