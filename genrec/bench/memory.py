"""Peak memory of a piece of work in this process, and on its GPU where there is one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Filled in at the end of the block, MiB, None where it cannot be measured: peak resident memory, how much of it is
    above the start, and the most that tensors held on the GPU."""

    mib: float | None = None
    above_start_mib: float | None = None
    gpu_mib: float | None = None


def _status(key: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the block: resident memory on Linux, by resetting the kernel's high-water mark; CUDA's own for a GPU."""
    peak, start = Peak(), None
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        RESET.write_text("5")
        start = _status("VmRSS:")
    except OSError:
        pass  # no Linux, or no right to
    yield peak
    if start is not None:
        peak.mib = _status("VmHWM:")
        peak.above_start_mib = peak.mib - start
    if torch.cuda.is_available():
        peak.gpu_mib = torch.cuda.max_memory_allocated() / 2**20
