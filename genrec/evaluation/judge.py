"""Candidates of one erasure, measured and judged: what a night, a calibration and the bench have in common.

Everything is measured on the bare model (no deny list, no output filter). Where a retrained model is at hand (bench and
calibration have one, a night has not), the forgetting gates may also be met by equivalence to it, which is paired and
therefore far more powerful than the comparison with never-seen users.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import nn

from genrec.config import GateParams
from genrec.data.sequences import TEST, Dataset, ForgetSet
from genrec.evaluation import gates
from genrec.evaluation.forgetting import UserForgetting, concept_exposure, user_forgetting
from genrec.evaluation.gates import Gate
from genrec.evaluation.ranking import TOP, Cases, Ranking, held_out, rank
from genrec.evaluation.robustness import int8, unmerged
from genrec.evaluation.rules import Judged, NamedRule
from genrec.evaluation.statistics import Bootstrap, Measure
from genrec.models.bundle import Bundle

SHARED_LEVELS = 2
"""A test target is in the collateral slice when it shares at least this many SID tokens with a forgotten item."""

GAP, ATTACK = "user NLL gap", "membership AUC"


@dataclass(frozen=True, eq=False)
class Forgotten:
    """What is forgotten together. users: indices into the restored dataset; items: item indices; one may be empty."""

    label: str
    users: np.ndarray
    items: np.ndarray


@dataclass(frozen=True, eq=False)
class Erased:
    """One erasure: the data without the forgotten rows, the data with them, and how to measure on them.

    max_cases: test cases to measure on, a sample by a hash of the user where there are more; None for all.
    rules: gates of other packages. split: whose rows are measured on, TEST, or VALID where something is tuned.
    """

    retained: Dataset
    restored: Dataset
    limits: GateParams
    plan: Bootstrap
    max_cases: int | None = None
    rules: Sequence[NamedRule] = ()
    split: int = TEST

    @cached_property
    def cases(self) -> Cases:
        """Targets of the people who stay, on the data as it will be."""
        return self._sample(held_out(self.retained, self.split), self.retained)

    def _sample(self, cases: Cases, dataset: Dataset) -> Cases:
        if self.max_cases is None or len(cases.targets) <= self.max_cases:
            return cases
        hashes = [hashlib.sha256(f"{self.plan.seed}|{dataset.user_ids[u]}".encode()).digest() for u in cases.users]
        keep = np.zeros(len(hashes), bool)
        keep[sorted(range(len(hashes)), key=hashes.__getitem__)[: self.max_cases]] = True
        return cases.select(keep)

    @cached_property
    def provoking(self) -> Cases:
        """Their cases with the concept still in the histories: what a serving log may send."""
        cases = held_out(self.restored, self.split)
        staying = set(self.retained.user_ids)
        there = np.array([self.restored.user_ids[u] in staying for u in cases.users], bool)
        return self._sample(cases.select(there), self.restored)

    def beside(self, bundle: Bundle, items: np.ndarray) -> np.ndarray:
        """The collateral slice, bool [cases]: targets that share SID tokens with `items` in the bundle's own SIDs."""
        return bundle.table.sharing(items, SHARED_LEVELS)[self.cases.targets]


@dataclass(frozen=True, eq=False)
class Measured:
    """A bundle on one erasure: utility per case, forgetting figures by name, and the likelihoods behind the users' and
    the ranking of the provoking cases behind the concepts', None where they were not kept."""

    ranking: Ranking
    forgetting: dict[str, Measure]
    users: dict[str, UserForgetting] = field(default_factory=dict)
    provoked: Ranking | None = None


def sh_name(group: Forgotten) -> str:
    return f"sh@{TOP} {group.label}"


def forgetting(erased: Erased, bundle: Bundle, model: nn.Module, groups: Sequence[Forgotten]) -> Measured:
    """The forgetting figures of `groups` alone; the ranking is that of the provoking cases, empty without concepts."""
    figures: dict[str, Measure] = {}
    users: dict[str, UserForgetting] = {}
    ranking = Ranking(np.empty((0, TOP), np.int64), np.empty(0, np.int64), np.empty(0))
    concepts = [group for group in groups if len(group.items)]
    if concepts:
        ranking = rank(bundle, model, erased.provoking)
        for group in concepts:
            measure = concept_exposure(ranking, erased.provoking, group.items, TOP, erased.limits.confidence)
            figures[sh_name(group)] = measure
    for group in groups:
        if len(group.users):
            likelihood = user_forgetting(bundle, model, erased.restored, group.users)
            users[group.label] = likelihood
            figures |= {GAP: likelihood.gap(erased.plan), ATTACK: likelihood.membership(erased.plan)}
    return Measured(ranking, figures, users)


def measure(erased: Erased, bundle: Bundle, groups: Sequence[Forgotten]) -> Measured:
    """Rank the staying people's targets and take the forgetting figures of `groups`."""
    model = bundle.model()
    found = forgetting(erased, bundle, model, groups)
    return Measured(rank(bundle, model, erased.cases), found.forgetting, found.users, found.ranking)


def forgetting_gates(
    erased: Erased, found: Measured, groups: Sequence[Forgotten], reference: Measured | None = None
) -> list[Gate]:
    """The gates concept, user-nll, membership and over-forgetting, against `reference` as well where there is one."""
    limits, result = erased.limits, []
    for group in groups:
        if len(group.items):
            name = sh_name(group)
            retrained = reference.forgetting[name] if reference else None
            result.append(gates.concept_gate(found.forgetting[name], limits, group.label, retrained))
        if len(group.users):
            retrained = reference.users[group.label] if reference else None
            result.extend(gates.user_gates(found.users[group.label], limits, erased.plan, retrained))
    return result


def robustness_gates(
    erased: Erased, bundle: Bundle, groups: Sequence[Forgotten], reference: Measured | None = None
) -> list[Gate]:
    """The forgetting gates again on the model in int8 and with its adapter kept apart: one gate each, the worst one."""
    result = []
    for form, model in (("int8", int8(bundle.model())), ("unmerged", unmerged(bundle))):
        found = forgetting_gates(erased, forgetting(erased, bundle, model, groups), groups, reference)
        if found:
            result.append(gates.robustness_gate(form, found))
    return result


def judge(
    erased: Erased, groups: Sequence[Forgotten], start: Bundle, champion: Bundle, before: Measured, candidate: Bundle,
    *, exact: bool, wall_s: float, forget: ForgetSet | None = None, reference: Measured | None = None,
) -> tuple[list[Gate], Measured]:  # fmt: skip
    """All gates of `groups` for a candidate made from `start`, against the champion (measured as `before`)."""
    limits, after = erased.limits, measure(erased, candidate, groups)
    movable = np.concatenate([group.items for group in groups])
    forgotten = forgetting_gates(erased, after, groups, reference)
    found = [gates.integrity(start, candidate, erased.retained, forget, movable)]
    found += [gates.by_construction(gate) for gate in forgotten] if exact else forgotten
    found.append(
        gates.utility_gate(
            "utility", before.ranking, after.ranking, limits.utility_ratio, limits.utility_nll, erased.plan
        )
    )
    if len(movable):
        beside = erased.beside(champion, movable)
        found.append(
            gates.utility_gate(
                "collateral", before.ranking.select(beside), after.ranking.select(beside), limits.collateral_ratio,
                limits.collateral_nll, erased.plan,
            )
        )  # fmt: skip
    judged = Judged(erased, groups, champion, before, candidate, after, exact)
    found += [gate for rule in erased.rules for gate in rule.judge(judged)]
    if not exact and gates.decide(found, exact) != "FAIL":
        found += robustness_gates(erased, candidate, groups, reference)
    so_far = 1.0 if exact else champion.lineage.utility_ratio
    found.append(gates.drift_gate(before.ranking, after.ranking, so_far, limits, erased.plan))
    if champion.lineage.retrain_s:
        found.append(gates.cost_gate(wall_s, champion.lineage.retrain_s, limits))
    return found, after
