"""Peak memory of a piece of work in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Filled in at the end of the block: peak resident memory in MiB, and how much of it is above the start."""

    mib: float = float("nan")
    above_start_mib: float = float("nan")


def _status(key: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the block on Linux by resetting the kernel's high-water mark; elsewhere both figures stay nan."""
    peak = Peak()
    try:
        RESET.write_text("5")
        start = _status("VmRSS:")
    except OSError:
        yield peak
        return
    yield peak
    peak.mib = _status("VmHWM:")
    peak.above_start_mib = peak.mib - start
