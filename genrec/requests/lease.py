"""A lease: at most one holder of a name at a time, kept alive by a heartbeat, taken over when its holder dies.

`token` grows with each acquisition. A holder that slept past its lease notices nothing by itself, so it writes through
its `fence`, which is compared in the transaction of every write (`genrec.requests.database.writing`).
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from genrec.errors import RequestError
from genrec.requests.database import writing
from genrec.requests.fence import Fence
from genrec.requests.schema import LeaseRow, utc

log = logging.getLogger(__name__)

NIGHT = "unlearn"
"""The lease of whatever needs the champion to stay as it is: nights, trainings, calibrations, purges."""


@dataclass(frozen=True)
class Held:
    """A lease that is alive. Times: UTC."""

    holder: str
    acquired_at: datetime
    expires_at: datetime


def held(engine: Engine, name: str, now: datetime) -> Held | None:
    """Who holds the lease `name` at `now`; None for nobody."""
    with Session(engine) as session:
        row = session.get(LeaseRow, name)
        return Held(row.holder, row.acquired_at, row.expires_at) if row and row.expires_at > now else None


class Lease:
    """A held lease: `with Lease.acquire(...) as lease:` releases it at the end, whatever happens inside."""

    def __init__(
        self, engine: Engine, name: str, holder: str, token: int, now_fn: Callable[[], datetime], ttl_seconds: float
    ):
        self.name, self.holder, self.token = name, holder, token
        self._engine, self._now, self._ttl = engine, now_fn, timedelta(seconds=ttl_seconds)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{name}", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls, engine: Engine, name: str, holder: str, now_fn: Callable[[], datetime], ttl_seconds: float
    ) -> "Lease":
        """Take the lease `name`, which dies `ttl_seconds` after its last heartbeat (one every third of that).

        Raises RequestError naming the holder and the expiry while somebody else's lease is alive.
        """
        with writing(engine) as session:
            now = utc(now_fn())
            row = session.get(LeaseRow, name)
            if row and row.expires_at > now:
                raise RequestError(
                    f"Lease {name!r} is held by {row.holder!r} until {row.expires_at.isoformat()}. "
                    "Wait for it to finish; a dead holder's lease can be taken over after that time."
                )
            token = row.token + 1 if row else 1
            expires = now + timedelta(seconds=ttl_seconds)
            session.merge(LeaseRow(name=name, holder=holder, token=token, acquired_at=now, expires_at=expires))
        return cls(engine, name, holder, token, now_fn, ttl_seconds)

    @property
    def fence(self) -> Fence:
        return Fence(self.name, self.token)

    def renew(self) -> None:
        """Move the expiry to now + ttl. Raises RequestError when the lease has been taken over."""
        if not self._set_expiry(self._ttl):
            raise RequestError(
                f"Lease {self.name!r} (token {self.token}) is no longer held by {self.holder!r}. "
                "Stop this run: another one may have begun."
            )

    def release(self) -> None:
        """Stop the heartbeat and free the lease; does nothing to a lease that is another's by now."""
        self._stop.set()
        self._thread.join()
        self._set_expiry(timedelta(0))

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *exc_info) -> None:
        self.release()

    def _set_expiry(self, ttl: timedelta) -> bool:
        with writing(self._engine) as session:
            now = utc(self._now())
            mine = (LeaseRow.name == self.name) & (LeaseRow.token == self.token)
            return session.execute(update(LeaseRow).where(mine).values(expires_at=now + ttl)).rowcount == 1

    def _beat(self) -> None:
        while not self._stop.wait(self._ttl.total_seconds() / 3):
            try:
                self.renew()
            except RequestError as error:
                log.error("%s", error)
                return
            except SQLAlchemyError as error:  # a busy database: the next beat may come through in time
                log.warning("Heartbeat of lease %r failed: %s", self.name, error)
