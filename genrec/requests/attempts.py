"""What rungs did for concepts and items in past nights, read from the batches' recorded attempts.

An attempt speaks for its model family: the same backbone, the same parameters of the method and of the gates. One that
refused was not judged: it says something of its request, not of the method.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from genrec.requests.schema import BatchRow

PEOPLE, WHOLE = ("users", "interactions"), "final"
"""Groups whose attempts are not about concepts or items, and the judgement of a batch as a whole, which is no rung."""


@dataclass(frozen=True)
class Tried:
    """One judged rung of a closed batch. at: when the batch was closed, UTC; wall_s: seconds of the method."""

    method: str
    verdict: str
    wall_s: float
    at: datetime


def tried(engine: Engine, families: Mapping[str, str], since: datetime) -> dict[str, list[Tried]]:
    """The judged attempts of each method on this model family in batches closed `since` then, newest first.

    families: the model family by method, as `genrec.planning.plan` recorded it with each batch.
    """
    found: dict[str, list[Tried]] = {}
    with Session(engine) as session:
        query = select(BatchRow).where(BatchRow.closed_at >= since).order_by(BatchRow.closed_at.desc(), BatchRow.id)
        for batch in session.scalars(query):
            theirs = batch.details.get("families", {})
            for attempt in reversed(batch.details.get("attempts", [])):
                name = attempt["method"]
                about = attempt["group"] not in (*PEOPLE, WHOLE)
                if about and attempt["gates"] and name in families and theirs.get(name) == families[name]:
                    one = Tried(name, attempt["verdict"], attempt["wall_s"], batch.closed_at)
                    found.setdefault(name, []).append(one)
    return found
