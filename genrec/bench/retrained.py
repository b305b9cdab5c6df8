"""The retrained model of an erasure: trained once per code and machine, and kept with what that cost."""

import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from genrec.bench.cells import code_hash, content_key, kept, machine
from genrec.bench.memory import Peak, peak_memory
from genrec.models.adapter import Adapter
from genrec.models.bundle import Bundle
from genrec.training.base import adapter_identity
from genrec.unlearning import Problem, method
from genrec.unlearning.retrain import retrain_rows

RETRAINED = "retrain"


@dataclass(frozen=True, eq=False)
class Retrained:
    """The bundle with the retrained adapter; seconds and peak memory of its training, and when and where that was."""

    bundle: Bundle
    seconds: float
    peak: Peak
    date: str
    machine: str


def retrained(folder: Path, problem: Problem) -> Retrained:
    """Retrain for `problem`, or read from `folder` what the same code has trained on this machine from the same rows.

    Other code may train faster, so what it took is no measure of this one's methods.
    """
    from safetensors.torch import load_file, save_file

    bundle = problem.bundle
    identity = adapter_identity(bundle.backbone, retrain_rows(problem), bundle.table, problem.params, problem.seed)
    weights = folder / f"{content_key([identity, code_hash(), machine()], [])}.safetensors"

    def train() -> dict:
        """Write the weights, and say what they cost: this record comes last, so that where it is, they are."""
        with peak_memory() as peak:
            started = time.perf_counter()
            adapter = method(RETRAINED).run(problem).bundle.adapter
            seconds = time.perf_counter() - started
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(adapter.state), weights.with_suffix(".tmp"))
        weights.with_suffix(".tmp").rename(weights)
        date = datetime.now(UTC).date().isoformat()
        return {"seconds": seconds, "peak": asdict(peak), "date": date, "machine": machine()}

    told, _ = kept(weights.with_suffix(".json"), train)
    adapter = Adapter(bundle.adapter.rank, bundle.adapter.alpha, load_file(weights))
    again = replace(bundle, adapter=adapter, overlays=())
    return Retrained(again, told["seconds"], Peak(**told["peak"]), told["date"], told["machine"])
