"""How many people or test cases a gate needs before a method that truly forgets is likely to PASS it.

A gate passes when its whole interval lies within the limit. For a figure whose true value is 0 (or 1/2, for an AUC),
normal with standard error SE, an interval of +- z SE with z = z(1/2 + confidence/2) lies within +- d with probability
`power` when

    SE <= d / (z + z((1 + power) / 2))          two-sided (equivalence)
    SE <= d / (z + z(power))                    one-sided (its upper bound alone counts)

(two one-sided tests: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657; sample sizes: Chow, Shao and Wang, Sample
Size Calculations in Clinical Research, chapter 3). The rest is how SE depends on the numbers of people.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import norm

from genrec.evaluation.forgetting import MATCHES, UserForgetting
from genrec.evaluation.statistics import Measure


@dataclass(frozen=True)
class Need:
    """What a gate needs. needed: the smallest number of `unit` that is conclusive, None when no number is.

    holdout: where none is, the size of the never-seen group with which as many forgotten users would do.
    """

    gate: str
    unit: str
    needed: int | None
    holdout: int | None = None
    note: str = ""

    def as_dict(self) -> dict:
        return asdict(self)


def equivalence_se(bound: float, confidence: float, power: float) -> float:
    """Largest standard error at which an interval lies within +- `bound` of a true 0 with probability `power`."""
    return bound / (norm.ppf(0.5 + confidence / 2) + norm.ppf((1 + power) / 2))


def one_sided_se(bound: float, confidence: float, power: float) -> float:
    """Largest standard error at which an interval's upper end is at most `bound` with probability `power`, truth 0."""
    return bound / (norm.ppf(0.5 + confidence / 2) + norm.ppf(power))


def user_nll(spread: UserForgetting, bound: float, confidence: float, power: float) -> Need:
    """The gate user-nll against never-seen people, two-sided.

    spread: likelihoods of the champion, whose trained users stand for people to forget. The bootstrap of
    `statistics.matched_gap` draws both groups anew, so with x - r the difference of a user to their matches (standard
    deviation s over users) and w_j the share of never-seen user j in all matches,

        SE^2 = s^2 / n + s_y^2 sum_j w_j^2,    sum_j w_j^2 = W + (1 - W) / (MATCHES n)

    where W is the sum for infinitely many users: what the holdout group alone costs, whatever n is.
    """
    unit = "forgotten users, against never-seen ones"
    if len(spread.unseen) < 2:
        return Need("user-nll", unit, None, note=f"{len(spread.unseen)} never-seen users: raise split.holdout_users")
    limit = equivalence_se(bound, confidence, power) ** 2
    difference = spread.forgotten - spread.unseen[spread.matches].mean(1)
    shares = np.bincount(spread.matches.ravel(), minlength=len(spread.unseen)) / spread.matches.size
    many = float((shares**2).sum())
    unseen = float(spread.unseen.var(ddof=1))
    per_user = float(difference.var(ddof=1)) + unseen * (1 - many) / MATCHES
    floor = unseen * many
    if floor >= limit:
        # floor shrinks as 1 / holdout: n = holdout = k solves per_user / k + floor m / k = limit
        size = math.ceil((per_user + floor * len(spread.unseen)) / limit)
        return Need("user-nll", unit, None, size, f"{len(spread.unseen)} never-seen users are too few for any number")
    return Need("user-nll", unit, math.ceil(per_user / (limit - floor)))


def membership(holdout: int, band: tuple[float, float], confidence: float, power: float) -> Need:
    """The gate membership: an AUC of 1/2 whose interval lies in `band`, against `holdout` never-seen people.

    Variance of the AUC (Hanley and McNeil 1982, Radiology 143:29) at 1/2, where Q1 = Q2 = 1/3:

        SE^2 = (n + m + 1) / (12 n m)
    """
    limit = equivalence_se(min(0.5 - band[0], band[1] - 0.5), confidence, power) ** 2
    unit = "forgotten users, against never-seen ones"
    if 12 * holdout * limit <= 1:
        # n = m = k: 12 limit k^2 - 2 k - 1 = 0
        size = math.ceil((1 + math.sqrt(1 + 12 * limit)) / (12 * limit))
        return Need("membership", unit, None, size, f"{holdout} never-seen users are too few for any number")
    return Need("membership", unit, math.ceil((holdout + 1) / (12 * holdout * limit - 1)))


def concept(limit: float, confidence: float) -> Need:
    """The gate concept: test cases for which the Wilson upper bound of no hit at all, z^2 / (n + z^2), is in `limit`.

    Wilson 1927, J. Am. Stat. Assoc. 22:209. No chance is involved: a single hit needs more.
    """
    unit = "test cases that ask for something else, none of which shows the concept"
    if limit <= 0:
        return Need("concept", unit, None, note="a limit of 0 is below every upper bound")
    z2 = norm.ppf(0.5 + confidence / 2) ** 2
    return Need("concept", unit, math.ceil(z2 * (1 - limit) / limit))


def from_interval(gate: str, unit: str, seen: Measure, largest_se: float, confidence: float) -> Need:
    """Numbers scaled from a measured paired interval: its width shrinks as 1 / sqrt(n).

    Where a never-seen group of fixed size is part of the figure, its share does not shrink, so this is a lower bound.
    """
    se = (seen.high - seen.low) / (2 * norm.ppf(0.5 + confidence / 2))
    return Need(gate, unit, math.ceil(seen.n * (se / largest_se) ** 2))
