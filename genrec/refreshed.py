"""A value that is read again when it is asked for and has become old: no thread, no push."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from genrec.errors import GenrecError, ServingError

T = TypeVar("T")
LATE = 10  # a value this many times as old as it should be is a problem, whether or not reading has failed

log = logging.getLogger(__name__)


class Refreshed(Generic[T]):
    """What `read` gave, at most `seconds` old; while reading fails the last value stays, and `problem` says so.

    read: the last value (`first` at first) -> the present one. One thread reads at a time and the others go on with the
    last value, so that a slow reading holds up one request.
    """

    def __init__(
        self, what: str, read: Callable[[T | None], T], seconds: float, clock: Callable[[], float] = time.monotonic,
        first: T | None = None,
    ):  # fmt: skip
        self._what, self._read, self._seconds, self._clock = what, read, seconds, clock
        self._lock = threading.Lock()
        self._value: T | None = first
        self._error: str | None = None
        self._due = self._read_at = float("-inf")

    def value(self) -> T:
        """The present value, or the last one. Raises ServingError while there has been none."""
        if self._clock() >= self._due and self._lock.acquire(blocking=self._value is None):
            try:
                if self._clock() >= self._due:  # nobody has read it while we waited for the lock
                    self._refresh()
            finally:
                self._lock.release()
        if self._value is None:
            raise ServingError(self._error)
        return self._value

    @property
    def problem(self) -> str | None:
        """Why the value may be old, in one line; None while it is fresh."""
        age = self._clock() - self._read_at
        late = f"The {self._what} was last read {age:.0f} s ago." if age > LATE * self._seconds else None
        return self._error or late

    def _refresh(self) -> None:
        started, error = self._clock(), None
        try:
            self._value = self._read(self._value)
            self._read_at = started
        except GenrecError as refusal:
            error = str(refusal)
        except Exception as failure:  # whatever is wrong with the present one, the last one goes on
            error = f"The {self._what} cannot be read ({type(failure).__name__}). See the log."
            log.exception("Reading the %s", self._what)
        if error and error != self._error:
            log.warning("%s", error)
        self._error, self._due = error, started + self._seconds
