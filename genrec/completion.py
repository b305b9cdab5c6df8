"""What the shell offers after Tab: requests of the ledger, concepts of the catalogue, sources.

Read-only: completing a word makes no ledger and no key. Where nothing can be read, nothing is offered.
"""

from typing import Annotated

import typer

from genrec.config import workspace
from genrec.errors import GenrecError


def request_ids(incomplete: str) -> list[tuple[str, str]]:
    """Requests, newest first, each with its kind, state and label."""
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    from genrec.requests.database import existing
    from genrec.requests.schema import RequestRow

    columns = (RequestRow.id, RequestRow.kind, RequestRow.state)
    try:
        engine = existing(workspace().ledger_url)
        if engine is None:
            return []
        with engine.connect() as connection:
            rows = connection.execute(select(*columns).order_by(RequestRow.received_at.desc())).all()
    except (GenrecError, SQLAlchemyError):
        return []
    return [(row.id, f"{row.kind}, {row.state}") for row in rows if row.id.startswith(incomplete)]


def concepts(incomplete: str) -> list[str]:
    """Concepts of the prepared catalogue."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        lists = pq.read_table(workspace().prepared / "items.parquet", columns=["concepts"])["concepts"]
    except (OSError, pa.ArrowException):
        return []
    known = {name for tags in lists.to_pylist() for name in tags}
    return sorted(name for name in known if name.lower().startswith(incomplete.lower()))


def sources(incomplete: str) -> list[str]:
    from genrec.data.sources import SOURCES

    return [name for name in ("simulated", "tables", *SOURCES) if name.startswith(incomplete)]


RequestId = Annotated[str, typer.Argument(autocompletion=request_ids)]
Concept = Annotated[str, typer.Argument(autocompletion=concepts)]
