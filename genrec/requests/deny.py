"""What serving must not show now: the items of every verified request, whatever the model says."""

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from genrec.errors import RequestError
from genrec.refreshed import Refreshed
from genrec.requests.database import connect
from genrec.requests.schema import DenyRow


def denied(engine: Engine) -> frozenset[str]:
    """Item ids."""
    with Session(engine) as session:
        return frozenset(session.scalars(select(DenyRow.item_id)))


def current_deny(url: str, seconds: float) -> Refreshed[frozenset[str]]:
    """The deny list of the ledger at `url`, at most `seconds` old; reads that one table and writes nothing."""
    engine = connect(url)

    def read(_last: frozenset[str] | None) -> frozenset[str]:
        try:
            return denied(engine)
        except SQLAlchemyError as error:
            raise RequestError(
                f"The ledger's deny list cannot be read ({type(error).__name__}). Start the ledger's database, or "
                "correct GENREC_LEDGER_URL."
            ) from error

    return Refreshed("deny list", read, seconds)
