"""The gates of evaluation.md: each has a name, a limit, a figure, an interval, n and one of three verdicts.

An interval that straddles the limit is INCONCLUSIVE. An approximate method passes only when every blocking gate does.
An exact method (a retrained adapter never saw the data) is forgotten by construction: its forgetting gates inform
only, and it passes unless a gate FAILs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from genrec.config import GateParams
from genrec.data.sequences import Dataset, ForgetSet
from genrec.evaluation.ranking import Ranking
from genrec.evaluation.statistics import Bootstrap, Measure, mean, ratio
from genrec.models.bundle import Bundle

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Gate:
    """One gate's outcome. `limit` is a number or a (low, high) pair; `blocking` gates decide the attempt.

    check: how the verdict follows from the interval: `high <= limit`, `low >= limit` or `inside limit`.
    """

    name: str
    verdict: Verdict
    value: float
    low: float
    high: float
    limit: float | tuple[float, float]
    n: int
    check: str
    rule: str
    blocking: bool = True

    def as_dict(self) -> dict:
        return asdict(self)


def at_most(m: Measure, limit: float) -> Verdict:
    if m.high <= limit:
        return "PASS"
    return "FAIL" if m.low > limit else "INCONCLUSIVE"


def at_least(m: Measure, limit: float) -> Verdict:
    if m.low >= limit:
        return "PASS"
    return "FAIL" if m.high < limit else "INCONCLUSIVE"


def inside(m: Measure, low: float, high: float) -> Verdict:
    """Equivalence: PASS when the interval lies in [low, high], FAIL when it lies wholly outside."""
    if low <= m.low and m.high <= high:
        return "PASS"
    return "FAIL" if m.low > high or m.high < low else "INCONCLUSIVE"


def either(*verdicts: Verdict) -> Verdict:
    """PASS when one passes, FAIL when all fail."""
    if "PASS" in verdicts:
        return "PASS"
    return "FAIL" if all(v == "FAIL" for v in verdicts) else "INCONCLUSIVE"


AT_MOST, AT_LEAST, INSIDE = "high <= limit", "low >= limit", "inside limit"


def _gate(
    name: str, m: Measure, check: str, limit: float | tuple[float, float], rule: str, *,
    verdict: Verdict | None = None, blocking: bool = True,
) -> Gate:  # fmt: skip
    if verdict is None:
        verdict = inside(m, *limit) if check == INSIDE else (at_most if check == AT_MOST else at_least)(m, limit)
    return Gate(name, verdict, m.value, m.low, m.high, limit, m.n, check, rule, blocking)


def decide(gates: Sequence[Gate], exact: bool) -> Verdict:
    """The attempt's verdict from its blocking gates."""
    verdicts = {gate.verdict for gate in gates if gate.blocking}
    if "FAIL" in verdicts:
        return "FAIL"
    return "PASS" if exact or verdicts <= {"PASS"} else "INCONCLUSIVE"


def by_construction(gate: Gate) -> Gate:
    """A forgetting gate of an exact method: the figure is shown, the verdict does not hang on it."""
    return replace(gate, blocking=False, rule=f"{gate.rule}; holds by construction, shown for information")


def integrity(before: Bundle, after: Bundle, dataset: Dataset, forget: ForgetSet | None, movable: np.ndarray) -> Gate:
    """Counts violations: backbone changed, SID not one-to-one, index not covering the catalogue, rows not found or
    still there, SID of a retained item moved. `movable`: item indices whose SID the method may change."""
    problems = [
        before.backbone.hash != after.backbone.hash,
        len(np.unique(after.table.sids, axis=0)) != len(after.table.item_ids),
        after.table.item_ids != dataset.item_ids,
        not np.array_equal(np.sort(after.index.leaf_item.numpy()), np.arange(len(dataset.item_ids))),
    ]
    frozen = np.setdiff1d(np.arange(len(before.table.item_ids)), movable)
    problems.append(not np.array_equal(before.table.sids[frozen], after.table.sids[frozen]))
    if forget is not None:
        owners = {user: i for i, user in enumerate(dataset.user_ids)}
        rows = np.repeat(np.array([owners.get(u, -1) for u in forget.user_ids], np.int64), np.diff(forget.offsets))
        kept = np.repeat(np.arange(len(dataset.user_ids)), np.diff(dataset.offsets)) * len(dataset.item_ids)
        overlap = np.isin(rows * len(dataset.item_ids) + forget.items, kept + dataset.items) & (rows >= 0)
        problems += [len(forget.items) == 0, bool(overlap.any())]
    bad = float(sum(problems))
    measure = Measure(bad, bad, bad, len(problems))
    return _gate("integrity", measure, AT_MOST, 0.0, "no violation")


def beats_popularity(ranking: Ranking, popularity: np.ndarray, plan: Bootstrap) -> Gate:
    """A base model must rank better than popularity: lower bound of the NDCG@10 difference above 0."""
    other = Ranking(ranking.top, np.where(popularity < 10, popularity, -1), ranking.nll)
    measure = mean(ranking.ndcg(10) - other.ndcg(10), plan)
    return _gate("base", measure, AT_LEAST, 0.0, "NDCG@10 above popularity's")


def concept_gate(exposure: Measure, params: GateParams, label: str) -> Gate:
    rule = f"upper bound of SH@10 of {label} on the bare model"
    return _gate("concept", exposure, AT_MOST, params.concept_sh10, rule)


def user_gates(gap: Measure, membership: Measure, params: GateParams) -> list[Gate]:
    """user-nll (two-sided), membership, and over-forgetting (the upper side of user-nll, by name)."""
    bound, (low, high) = params.user_nll, params.membership
    return [
        _gate("user-nll", gap, INSIDE, (-bound, bound), "NLL gap to never-seen users, nat/token"),
        _gate("membership", membership, INSIDE, (low, high), "AUC of the loss attack"),
        _gate("over-forgetting", gap, AT_MOST, bound, "not pushed beyond never-seen users, nat/token"),
    ]


def utility_gate(
    name: str, before: Ranking, after: Ranking, ratio_limit: float, nll_limit: float, plan: Bootstrap
) -> Gate:
    """NDCG@10 ratio's lower bound, or the paired test-NLL increase's upper bound: either is enough.

    The figure shown is the one that passed, else the NLL increase (it has the narrower interval).
    """
    ndcg = ratio(after.ndcg(10), before.ndcg(10), plan)
    nll = mean(after.nll - before.nll, plan)
    by_ratio, by_nll = at_least(ndcg, ratio_limit), at_most(nll, nll_limit)
    verdict = either(by_ratio, by_nll)
    if by_ratio == "PASS":
        return _gate(name, ndcg, AT_LEAST, ratio_limit, "NDCG@10 ratio to the champion", verdict=verdict)
    return _gate(name, nll, AT_MOST, nll_limit, "test NLL increase over the champion, nat/token", verdict=verdict)


def drift_gate(before: Ranking, after: Ranking, so_far: float, params: GateParams, plan: Bootstrap) -> Gate:
    """Cumulative NDCG@10 loss since the last full training; past the budget a full training is due (not blocking)."""
    m = ratio(after.ndcg(10), before.ndcg(10), plan)
    loss = Measure(1 - so_far * m.value, 1 - so_far * m.high, 1 - so_far * m.low, m.n)
    return _gate("drift", loss, AT_MOST, params.drift, "NDCG@10 lost since the last full training", blocking=False)


def cost_gate(wall_s: float, retrain_s: float, params: GateParams) -> Gate:
    share = wall_s / retrain_s
    measure = Measure(share, share, share, 1)
    return _gate("cost", measure, AT_MOST, params.cost_share, "wall time as a share of retraining", blocking=False)
