"""Serving: users per second and latency of `recommend`, which the command line, the MLflow model and a server call."""

from dataclasses import asdict, dataclass

import numpy as np
import torch

from genrec.bench.decode import in_turns
from genrec.models.bundle import Bundle
from genrec.served import Served
from genrec.serving import recommend

BATCHES = (1, 8, 64)
COMPARES = "users per second at this batch over those one by one, in the same turns"


@dataclass(frozen=True)
class Load:
    """Calls of one batch size; milliseconds are of a whole call."""

    batch: int
    calls: int
    ratio: float
    compares: str
    users_per_s: float
    p50_ms: float
    p95_ms: float


def run(bundle: Bundle, history: int, calls: int, seed: int, k: int = 10) -> dict:
    """`calls` calls of each batch size in turns, histories of `history` items drawn at random, top `k` asked for."""
    model, rng = Served.of(bundle).model, np.random.default_rng(seed)
    drawn = rng.choice(np.array(bundle.table.item_ids), size=(max(BATCHES), history)).tolist()
    took = in_turns(
        {str(batch): lambda batch=batch: recommend(bundle, model, drawn[:batch], k) for batch in BATCHES}, calls
    )
    loads = []
    for batch in BATCHES:
        ms = took[str(batch)] * 1000
        p50, p95 = np.quantile(ms, (0.5, 0.95))
        ratio = float(np.median(took["1"] / took[str(batch)])) * batch
        loads.append(
            Load(batch, calls, round(ratio, 2), COMPARES, round(1000 * batch / p50, 1), round(p50, 2), round(p95, 2))
        )
    return {
        "device": str(model.device), "threads": torch.get_num_threads(), "items": len(bundle.table.item_ids),
        "history": history, "beam": bundle.params.decoding.beam, "k": k, "loads": [asdict(load) for load in loads],
    }  # fmt: skip
