"""Intervals: Wilson for rates, bootstrap over users for means, ratios and the attack's AUC."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from genrec.config import Params


@dataclass(frozen=True)
class Measure:
    """A figure, its confidence interval and the number of examples behind it."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict:
        return asdict(self)


NOTHING = Measure(float("nan"), float("-inf"), float("inf"), 0)
"""What is known from no examples."""


@dataclass(frozen=True)
class Bootstrap:
    """Resampling plan: how many, at which confidence, from which seed."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    @classmethod
    def of(cls, params: Params) -> "Bootstrap":
        return cls(params.gates.bootstrap, params.gates.confidence, params.seed)

    def weights(self, n: int, stream: int = 0) -> np.ndarray:
        """How often each of `n` examples is drawn per resample: float64 [resamples, n]; `stream` parts samples."""
        rng = np.random.default_rng([self.seed, stream])
        return rng.multinomial(n, np.full(n, 1 / n), size=self.resamples).astype(np.float64)

    def interval(self, value: float, draws: np.ndarray, n: int) -> Measure:
        """Percentile interval of `draws` [resamples]."""
        tail = 50 * (1 - self.confidence)
        low, high = np.nanpercentile(draws, [tail, 100 - tail])
        return Measure(float(value), float(low), float(high), n)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Measure:
    """Wilson score interval of a rate (Wilson 1927)."""
    if n == 0:
        return NOTHING
    z = stats.norm.ppf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Measure(p, float(max(0.0, centre - half)), float(min(1.0, centre + half)), n)


def mean(x: np.ndarray, plan: Bootstrap) -> Measure:
    """Mean of per-example values [n]."""
    if len(x) == 0:
        return NOTHING
    return plan.interval(x.mean(), plan.weights(len(x)) @ x / len(x), len(x))


def ratio(a: np.ndarray, b: np.ndarray, plan: Bootstrap) -> Measure:
    """mean(a) / mean(b) of paired per-example values [n]; unknown where b is all zero."""
    if len(a) == 0 or b.mean() == 0:
        return Measure(float("nan"), float("-inf"), float("inf"), len(a))
    weights = plan.weights(len(a))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (weights @ a) / (weights @ b)
    return plan.interval(a.mean() / b.mean(), draws, len(a))


def difference(x: np.ndarray, y: np.ndarray, plan: Bootstrap) -> Measure:
    """mean(x) - mean(y) of two groups' per-example values [n], [m], resampling both groups."""
    if len(x) == 0 or len(y) == 0:
        return NOTHING
    draws = plan.weights(len(x), 1) @ x / len(x) - plan.weights(len(y), 2) @ y / len(y)
    return plan.interval(x.mean() - y.mean(), draws, len(x))


def matched_gap(x: np.ndarray, y: np.ndarray, matches: np.ndarray, plan: Bootstrap) -> Measure:
    """Mean over i of x[i] - mean(y[matches[i]]), resampling both groups.

    x [n], y [m], matches int64 [n, k]: the rows of y each x is compared with.
    """
    if len(x) == 0 or len(y) == 0:
        return NOTHING
    wx, wy = plan.weights(len(x), 1), plan.weights(len(y), 2)
    chosen = wy[:, matches]  # [resamples, n, k]
    total = chosen.sum(2)
    plain = y[matches].mean(1)
    with np.errstate(invalid="ignore"):
        reference = np.where(total > 0, (chosen * y[matches]).sum(2) / total, plain)
    draws = (wx * (x - reference)).sum(1) / len(x)
    return plan.interval((x - plain).mean(), draws, len(x))


def auc(positive: np.ndarray, negative: np.ndarray, plan: Bootstrap) -> Measure:
    """P(positive > negative), ties counting half, resampling both groups."""
    if len(positive) == 0 or len(negative) == 0:
        return NOTHING
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    wp, wn = plan.weights(len(positive), 1), plan.weights(len(negative), 2)
    draws = ((wp @ wins) * wn).sum(1) / (len(positive) * len(negative))
    return plan.interval(wins.mean(), draws, len(positive))
