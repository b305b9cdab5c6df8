"""What a night's report shows beside the gates, of rankings and likelihoods that were taken for them: aggregates only.

The ROC of the loss attack, and which retained items next to the forgotten ones people are shown more or less often.
"""

from dataclasses import asdict, dataclass

import numpy as np

from genrec.evaluation.forgetting import UserForgetting
from genrec.evaluation.membership import FPRS, roc, tpr_at_fpr
from genrec.evaluation.ranking import Ranking
from genrec.evaluation.statistics import Measure
from genrec.sid.table import SidTable

LEAST = 20
"""People on either side of a curve: with fewer, each step of it is more than 5 % and near to being one person."""

MOVED = 20
"""Neighbours listed, those whose exposure changed most."""


@dataclass(frozen=True)
class Curve:
    """The loss attack on `forgotten` against `unseen` people, counts. points: (FPR, TPR), and with them the figures
    `auc` and `tpr` (at 1 % FPR); all missing where either side has fewer than `least` people."""

    forgotten: int
    unseen: int
    least: int
    auc: Measure | None = None
    tpr: Measure | None = None
    points: tuple[tuple[float, float], ...] = ()

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Neighbour:
    """A retained item that shares `shared` SID tokens with a forgotten one.

    before, after: share of the lists that hold it; place_before, place_after: its mean place there, 1 is the first,
    NaN where no list holds it.
    """

    item_id: str
    title: str
    shared: int
    before: float
    after: float
    place_before: float
    place_after: float


@dataclass(frozen=True)
class Neighbours:
    """The `MOVED` neighbours whose exposure changed most, of `total` that share at least `least` of `levels` SID tokens
    with a forgotten item, in the top 10 of `lists` test cases of the people who stay."""

    total: int
    least: int
    levels: int
    lists: int
    items: tuple[Neighbour, ...]

    def as_dict(self) -> dict:
        return asdict(self)


def curve(found: UserForgetting, auc: Measure, confidence: float) -> Curve:
    """The ROC of the loss attack, whose area is `auc`, or only the counts where there are too few people for one."""
    counts = (len(found.forgotten), len(found.unseen), LEAST)
    if min(counts[:2]) < LEAST:
        return Curve(*counts)
    positive, negative = -found.forgotten, -found.unseen
    points = tuple(zip(FPRS.round(4).tolist(), roc(positive, negative).round(4).tolist(), strict=True))
    return Curve(*counts, auc, tpr_at_fpr(positive, negative, confidence), points)


def neighbours(
    table: SidTable, titles: tuple[str, ...], forgotten: np.ndarray, gone: np.ndarray, least: int, before: Ranking,
    after: Ranking,
) -> Neighbours:  # fmt: skip
    """Neighbours of the `forgotten` items in the SIDs of `table`, by two rankings of the same cases.

    gone: bool [items], items that are no retained ones.
    """
    shared = table.shared(forgotten)
    near = np.flatnonzero((shared >= least) & ~gone)
    shares, places = zip(*(_exposure(ranking, len(shared)) for ranking in (before, after)), strict=True)
    order = near[np.argsort(-np.abs(shares[1] - shares[0])[near], kind="stable")][:MOVED]
    items = tuple(
        Neighbour(
            table.item_ids[i], titles[i], int(shared[i]),
            *(float(values[i]) for values in (*shares, *places)),
        )
        for i in order
    )  # fmt: skip
    return Neighbours(len(near), least, table.vocabulary.levels - 1, len(before.top), items)


def _exposure(ranking: Ranking, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of the lists that hold each item, and its mean place there (NaN where none does): float64 [items] each."""
    places = np.broadcast_to(np.arange(1, ranking.top.shape[1] + 1), ranking.top.shape)
    there = ranking.top >= 0
    held = np.bincount(ranking.top[there], minlength=items)
    total = np.bincount(ranking.top[there], places[there], minlength=items)
    mean = np.divide(total, held, out=np.full(items, np.nan), where=held > 0)
    return held / max(len(ranking.top), 1), mean
