"""Moving the champion: one at a time over all processes, and only from the champion the mover has judged against."""

from datetime import datetime

from sqlalchemy import select

from genrec.config import Workspace
from genrec.errors import RegistryError
from genrec.registry import PREVIOUS, open_registry
from genrec.requests import audit
from genrec.requests.database import writing
from genrec.requests.ledger import Ledger
from genrec.requests.schema import AuditRow
from genrec.requests.store import open_ledger

PROMOTED = "promoted"


def refuse_open_night(ledger: Ledger) -> None:
    """Raise RegistryError while a night is open: it has judged its candidates against the champion of now."""
    if batch := ledger.open_batch():
        raise RegistryError(f"Night {batch.id} is not finished: the champion stays. Finish it: genrec night.")


def promote(workspace: Workspace, number: str, expected: str | None, *, now: datetime, **why: object) -> None:
    """Make `number` the champion, provided that the champion is still `expected` (None: there is none yet).

    MLflow cannot compare and set an alias, so the ledger's write lock, which every process shares, is held meanwhile.
    The move and `why` go into the audit chain. Repeating a move adds what a kill cut off, nothing when it was whole.
    Raises RegistryError when another version has become the champion since.
    """
    registry = open_registry(workspace)
    with writing(open_ledger(workspace).engine) as session:
        connection = session.connection()  # only now is the lock taken
        of_moves = select(AuditRow.subject).where(AuditRow.event == PROMOTED).order_by(AuditRow.seq.desc()).limit(1)
        moved, subject = registry.promote(number, expected), f"version {number}"
        if moved or connection.scalar(of_moves) != subject:
            previous = registry.version(PREVIOUS)
            payload = {"champion": number, "previous": previous.number if previous else None, **why}
            audit.append(connection, PROMOTED, subject, payload, now=now)
