"""The gates of evaluation.md: each has a name, a limit, a figure, an interval, n and one of three verdicts.

An interval that straddles the limit is INCONCLUSIVE. An approximate method passes only when every blocking gate does.
An exact method (a retrained adapter never saw the data) is forgotten by construction: its forgetting gates inform
only, and it passes unless a gate FAILs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Literal

import numpy as np

from genrec.config import GateParams
from genrec.data.sequences import Dataset, ForgetSet
from genrec.evaluation.forgetting import UserForgetting
from genrec.evaluation.ranking import Ranking
from genrec.evaluation.statistics import Bootstrap, Measure, mean, ratio
from genrec.models.bundle import Bundle

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Gate:
    """One gate's outcome. `limit` is a number or a (low, high) pair; `blocking` gates decide the attempt.

    check: how the verdict follows from the interval: `high <= limit`, `low >= limit`, `inside limit`
    or `overlaps limit`.
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


AT_MOST, AT_LEAST, INSIDE, OVERLAPS = "high <= limit", "low >= limit", "inside limit", "overlaps limit"
CHECKS = (AT_MOST, AT_LEAST, INSIDE)
"""Checks whose verdict follows from the figures, so that a certificate's reader can do it again."""
IN_WORDS = "in words"
"""The check of a verdict that needs more than the figures."""

SHIPPED = (
    "integrity", "concept", "user-nll", "membership", "over-forgetting", "utility", "collateral", "robustness int8",
    "robustness unmerged", "relearn", "drift", "cost", "base",
)  # fmt: skip
"""Names of genrec's own gates."""


def verdict_of(m: Measure, check: str, limit: float | tuple[float, float]) -> Verdict:
    """The verdict of a figure by one of CHECKS."""
    return inside(m, *limit) if check == INSIDE else (at_most if check == AT_MOST else at_least)(m, limit)


def from_measure(
    name: str, m: Measure, check: str, limit: float | tuple[float, float], rule: str, *,
    verdict: Verdict | None = None, blocking: bool = True,
) -> Gate:  # fmt: skip
    """A gate whose verdict follows from its figure, unless a `verdict` is given (then with the check IN_WORDS)."""
    return Gate(name, verdict or verdict_of(m, check, limit), m.value, m.low, m.high, limit, m.n, check, rule, blocking)


def decide(gates: Sequence[Gate], exact: bool) -> Verdict:
    """The attempt's verdict from its blocking gates."""
    verdicts = {gate.verdict for gate in gates if gate.blocking}
    if "FAIL" in verdicts:
        return "FAIL"
    return "PASS" if exact or verdicts <= {"PASS"} else "INCONCLUSIVE"


def by_construction(gate: Gate) -> Gate:
    """A forgetting gate of an exact method: the figure is shown, the verdict does not hang on it."""
    return replace(gate, blocking=False, rule=f"{gate.rule}; holds by construction, shown for information")


NOBODY_UNSEEN = "there are no never-seen people: split.holdout_users was 0"
USER_FORGETTING = ("user-nll", "membership", "over-forgetting")
CARRIED = "carried by the calibration of"


def by_calibration(gate: Gate, calibrated_at: datetime, n: int) -> Gate:
    """A forgetting gate that a small group leaves INCONCLUSIVE, carried by the method's calibration on `n` users.

    Every other gate comes back as it is: a FAIL stays a FAIL, and concept, integrity, utility and collateral gates do
    not get their power from the number of people forgotten.
    """
    about = gate.rule.partition(" after ")[0] if gate.name.startswith("robustness ") else gate.name
    if gate.verdict != "INCONCLUSIVE" or about not in USER_FORGETTING:
        return gate
    return replace(gate, blocking=False, rule=f"{gate.rule}; {CARRIED} {calibrated_at:%Y-%m-%d} on {n} users")


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
    return from_measure("integrity", measure, AT_MOST, 0.0, "no violation")


def beats_popularity(ranking: Ranking, popularity: np.ndarray, plan: Bootstrap) -> Gate:
    """A base model must rank better than popularity: lower bound of the NDCG@10 difference above 0."""
    other = Ranking(ranking.top, np.where(popularity < 10, popularity, -1), ranking.nll)
    measure = mean(ranking.ndcg(10) - other.ndcg(10), plan)
    return from_measure("base", measure, AT_LEAST, 0.0, "NDCG@10 above popularity's")


def concept_gate(exposure: Measure, params: GateParams, label: str, retrained: Measure | None = None) -> Gate:
    """Upper bound of SH@10 at most `concept_sh10`, or that much above the retrained model's where this is more."""
    limit = params.concept_sh10
    if retrained is not None:
        limit = max(limit, retrained.value + params.concept_margin)
    return from_measure("concept", exposure, AT_MOST, limit, f"upper bound of SH@10 of {label} on the bare model")


def user_gates(
    found: UserForgetting, params: GateParams, plan: Bootstrap, retrained: UserForgetting | None = None
) -> list[Gate]:
    """user-nll (two-sided), membership, and over-forgetting (the upper side of user-nll, by name).

    Fewer than `min_users` people are INCONCLUSIVE whatever their intervals: a bootstrap over so few is far too narrow
    (of groups of three perfectly forgotten people a fifth would FAIL). With a retrained model at hand each may also be
    met by equivalence to it; the gate shows the route that passed, else the comparison with the retrained model. All
    of them need never-seen people, and are INCONCLUSIVE without any.
    """
    bound, (low, high) = params.user_nll, params.membership
    gap, attack = found.gap(plan), found.membership(plan)
    result = [
        from_measure("user-nll", gap, INSIDE, (-bound, bound), "NLL gap to never-seen users, nat/token"),
        from_measure("membership", attack, INSIDE, (low, high), "AUC of the loss attack"),
        from_measure("over-forgetting", gap, AT_MOST, bound, "not pushed beyond never-seen users, nat/token"),
    ]
    too_few = ""
    if len(found.forgotten) < params.min_users:
        too_few = f"; fewer than {params.min_users} people decide nothing"
    elif len(found.unseen) == 0:
        too_few = f"; {NOBODY_UNSEEN}"
    if too_few:
        return [replace(gate, verdict="INCONCLUSIVE", rule=gate.rule + too_few) for gate in result]
    if retrained is None:
        return result
    over, theirs, margin = found.gap_over(retrained, plan), retrained.membership(plan), params.user_nll_retrained
    overlap: Verdict = "PASS" if attack.low <= theirs.high and theirs.low <= attack.high else "FAIL"
    by_retrained = [
        from_measure("user-nll", over, INSIDE, (-margin, margin), "NLL gap over the retrained model's, nat/token"),
        from_measure(
            "membership", attack, OVERLAPS, (theirs.low, theirs.high), "AUC of the loss attack against the retrained "
            "model's interval", verdict=overlap,
        ),
        from_measure("over-forgetting", over, AT_MOST, margin, "not pushed beyond the retrained model, nat/token"),
    ]  # fmt: skip
    return [_either(*routes) for routes in zip(result, by_retrained, strict=True)]


def _either(first: Gate, second: Gate) -> Gate:
    """The gate that passed, else the second with the verdict of both."""
    verdict = either(first.verdict, second.verdict)
    return first if first.verdict == "PASS" else replace(second, verdict=verdict)


def robustness_gate(form: str, found: Sequence[Gate]) -> Gate:
    """The forgetting gates on another form of the model (int8, unmerged) as one: the worst of them.

    Among equals the concept's, which no calibration can carry.
    """
    severity = ("FAIL", "INCONCLUSIVE", "PASS")
    worst = min(found, key=lambda gate: (severity.index(gate.verdict), gate.name in USER_FORGETTING))
    return replace(worst, name=f"robustness {form}", rule=f"{worst.name} after {form}: {worst.rule}")


def relearn_gate(extra: Measure, params: GateParams) -> Gate:
    """`extra`: what a few steps on a part of the forget set bring back, minus the same for the retrained model; a share
    of SH@10 for concepts, nat per token for users."""
    return from_measure("relearn", extra, AT_MOST, params.relearn_gain, "relearning gains over the retrained model")


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
        return from_measure(name, ndcg, AT_LEAST, ratio_limit, "NDCG@10 ratio to the champion", verdict=verdict)
    return from_measure(
        name, nll, AT_MOST, nll_limit, "test NLL increase over the champion, nat/token", verdict=verdict
    )


def drift_gate(before: Ranking, after: Ranking, so_far: float, params: GateParams, plan: Bootstrap) -> Gate:
    """Cumulative NDCG@10 loss since the last full training; past the budget a full training is due (not blocking)."""
    m = ratio(after.ndcg(10), before.ndcg(10), plan)
    loss = Measure(1 - so_far * m.value, 1 - so_far * m.high, 1 - so_far * m.low, m.n)
    return from_measure(
        "drift", loss, AT_MOST, params.drift, "NDCG@10 lost since the last full training", blocking=False
    )


def cost_gate(wall_s: float, retrain_s: float, params: GateParams) -> Gate:
    """Wall time as a share of retraining's (not blocking)."""
    share = wall_s / retrain_s
    measure = Measure(share, share, share, 1)
    return from_measure(
        "cost", measure, AT_MOST, params.cost_share, "wall time as a share of retraining", blocking=False
    )
