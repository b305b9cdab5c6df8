"""RQ-KMeans against plain faiss k-means: how much the residual recipe and exact codes cost."""

import os
import time
from dataclasses import asdict, dataclass

import numpy as np

from genrec.config import SidParams
from genrec.sid import quantise
from genrec.sid.quantise import Codebooks, squared_distances

LEVELS, CODES = 3, 256
CHECKED = 10_000
COMPARES = "seconds of RQ-KMeans, fit and assign, over those of one plain faiss k-means per level, train and assign"


@dataclass(frozen=True)
class QuantiserSpeed:
    """One run, in seconds. equal_codes: share of a sample's rows with the codes of float64 brute force."""

    items: int
    dim: int
    levels: int
    codes: int
    iterations: int
    cpus: int
    plain_s: float
    fit_s: float
    assign_s: float
    equal_codes: float

    @property
    def ratio(self) -> float:
        return (self.fit_s + self.assign_s) / self.plain_s

    def as_dict(self) -> dict:
        """JSON-ready, with the ratio and what it compares."""
        return {"ratio": round(self.ratio, 3), "compares": COMPARES, **asdict(self)}


def run(items: int, dim: int, seed: int) -> QuantiserSpeed:
    """Both on the same `items` vectors of `dim` dimensions, from 2,000 clusters, with the same k-means settings."""
    iterations = SidParams().iterations
    vectors = simulated(items, dim, seed)
    quantise.cluster(vectors[:CODES], CODES, 1, seed)  # faiss starts its threads
    started = time.perf_counter()
    for level in range(LEVELS):
        quantise.cluster(vectors, CODES, iterations, seed + level).assign(vectors)
    plain_s = time.perf_counter() - started
    started = time.perf_counter()
    codebooks = quantise.fit(vectors, LEVELS, CODES, iterations, seed)
    fit_s = time.perf_counter() - started
    started = time.perf_counter()
    codes = quantise.assign(vectors, codebooks)
    assign_s = time.perf_counter() - started
    checked = np.random.default_rng(seed).choice(items, min(items, CHECKED), replace=False)
    equal = (codes[checked] == brute_force(vectors[checked], codebooks)).all(1)
    times = (round(seconds, 2) for seconds in (plain_s, fit_s, assign_s))
    return QuantiserSpeed(items, dim, LEVELS, CODES, iterations, os.cpu_count() or 1, *times, float(equal.mean()))


def simulated(items: int, dim: int, seed: int) -> np.ndarray:
    """Vectors around 2,000 centres, float32 [items, dim]."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2000, dim), np.float32)
    vectors = rng.standard_normal((items, dim), np.float32)
    for part in quantise.chunks(items):
        vectors[part] += centres[rng.integers(2000, size=len(vectors[part]))]
    return vectors


def brute_force(vectors: np.ndarray, codebooks: Codebooks) -> np.ndarray:
    """Codes int64 [n, levels] with every distance in float64."""
    residuals, codes = codebooks.entering(vectors), []
    for level, centroids in enumerate(codebooks.centroids):
        codes.append(squared_distances(residuals, centroids).argmin(1))
        residuals = codebooks.left_over(residuals, level, codes[-1])
    return np.stack(codes, 1)
