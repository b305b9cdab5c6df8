"""Token buckets, in this process: one that is restarted starts with full ones, and two do not share theirs."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST_KEYS = 10_000


@dataclass(frozen=True)
class Rate:
    """`burst` at once, and `per_second` in the long run."""

    burst: int
    per_second: float


class Throttle:
    """One bucket per key (an account, an address). clock: seconds."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic):
        self._rate, self._clock = rate, clock
        self._left: dict[str, tuple[float, float]] = {}  # what is left, and when that was
        self._lock = threading.Lock()

    def wait_s(self, key: str) -> int:
        """0, and one is taken; else the seconds until there is one again."""
        with self._lock:
            now = self._clock()
            if len(self._left) >= MOST_KEYS:
                self._left = {one: was for one, was in self._left.items() if self._now(one, now) < self._rate.burst}
            left = self._now(key, now)
            self._left[key] = (left - 1 if left >= 1 else left, now)
            return 0 if left >= 1 else math.ceil((1 - left) / self._rate.per_second)

    def _now(self, key: str, now: float) -> float:
        left, at = self._left.get(key, (self._rate.burst, now))
        return min(self._rate.burst, left + (now - at) * self._rate.per_second)
