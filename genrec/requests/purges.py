"""What is to be purged and what was, as the audit chain has it: rows `purge listed` and `purged`, nothing besides."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from genrec.requests import audit
from genrec.requests.database import writing
from genrec.requests.schema import AuditRow

LISTED, PURGED, SUBJECT = "purge listed", "purged", "purge"


@dataclass(frozen=True)
class Item:
    """Something that still holds what was forgotten.

    kind: `version` (name: its number), `run` (an MLflow run whose bundle became no version), `objects` (a directory in
    DVC's stores, by its hash), `file` or `folder` (a path under var/). holds: ids of the fulfilled requests. due: from
    when it is removed, UTC. facts: what stays known of it afterwards, JSON.
    """

    kind: str
    name: str
    holds: tuple[str, ...]
    due: datetime
    facts: Mapping = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name

    def as_dict(self) -> dict:
        """JSON-ready; the time as ISO 8601."""
        return {
            "kind": self.kind, "name": self.name, "holds": list(self.holds), "due": self.due.isoformat(),
            "facts": dict(self.facts),
        }  # fmt: skip


@dataclass(frozen=True)
class Record:
    """The newest listing of every item by key, and when each that is gone was purged (ISO 8601)."""

    listed: Mapping[tuple[str, str], Item]
    purged: Mapping[tuple[str, str], str]

    @property
    def waiting(self) -> dict[tuple[str, str], Item]:
        return {key: item for key, item in self.listed.items() if key not in self.purged}


def read(engine: Engine) -> Record:
    """What the chain says now. An item that is listed again after it was purged has come back: it waits again."""
    listed, purged = {}, {}
    query = select(AuditRow).where(AuditRow.subject == SUBJECT).order_by(AuditRow.seq)
    with Session(engine) as session:
        for row in session.scalars(query):
            payload = json.loads(row.payload)
            if row.event == PURGED:
                purged[payload["kind"], payload["name"]] = row.at
                continue
            for told in payload["items"]:
                due = datetime.fromisoformat(told["due"])
                item = Item(told["kind"], told["name"], tuple(told["holds"]), due, told["facts"])
                listed[item.key] = item
                purged.pop(item.key, None)
    return Record(listed, purged)


def list_items(engine: Engine, items: Sequence[Item], *, now: datetime) -> None:
    """One row with all of `items`; none for no items."""
    if items:
        _append(engine, LISTED, {"items": [item.as_dict() for item in items]}, now)


def mark_purged(engine: Engine, item: Item, *, now: datetime) -> None:
    _append(engine, PURGED, {"kind": item.kind, "name": item.name}, now)


def _append(engine: Engine, event: str, payload: Mapping, now: datetime) -> None:
    with writing(engine) as session:
        audit.append(session.connection(), event, SUBJECT, payload, now=now)
