"""Moving the champion: one at a time over all processes, and only from the champion the mover has judged against."""

from datetime import datetime

from genrec.config import Workspace
from genrec.night import open_registry
from genrec.requests import audit
from genrec.requests.database import writing
from genrec.requests.store import open_ledger


def promote(workspace: Workspace, number: str, expected: str | None, *, now: datetime, **why: object) -> None:
    """Make `number` the champion, provided that the champion is still `expected` (None: there is none yet).

    MLflow cannot compare and set an alias, so the ledger's write lock, which every process shares, is held meanwhile.
    The move and `why` go into the audit chain. Repeating a move that was made does nothing. Raises RegistryError when
    another version has become the champion since.
    """
    registry = open_registry(workspace)
    with writing(open_ledger(workspace).engine) as session:
        connection = session.connection()  # only now is the lock taken
        if registry.promote(number, expected):
            payload = {"champion": number, "previous": expected, **why}
            audit.append(connection, "promoted", f"version {number}", payload, now=now)
