"""One method on one erasure: run, time, judge against the champion and the retrained model, and audit."""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from genrec.bench.erasures import Erasure
from genrec.bench.memory import peak_memory
from genrec.bench.retrained import RETRAINED, Retrained, retrained
from genrec.config import Params
from genrec.data.sequences import TEST, Dataset, without
from genrec.errors import UnlearningError
from genrec.evaluation import gates
from genrec.evaluation.forgetting import UserForgetting, concept_exposure, concept_mass, holdout_users, user_forgetting
from genrec.evaluation.judge import SHARED_LEVELS, Erased, Forgotten, Measured, judge, measure
from genrec.evaluation.membership import membership
from genrec.evaluation.ranking import TOP, rank, training_counts, utility
from genrec.evaluation.robustness import extraction, relearn, relearn_sample
from genrec.evaluation.rules import rules
from genrec.evaluation.shift import (
    forget_set_ranking,
    perplexity,
    token_shift,
    top_item_shift,
    trade_off,
    user_rows,
)
from genrec.evaluation.statistics import Bootstrap, Measure, mean, ratio
from genrec.models.bundle import Bundle
from genrec.unlearning import Problem, method
from genrec.unlearning.descent import forget_rows

ORIGINAL = "original"
RELEARNED = "relearning gains over retrained"
MASS_CASES = 200
"""Cases on which a concept's whole probability is summed exactly."""


@dataclass(frozen=True)
class Bench:
    """The base model and its hash, its data, and the folder of everything that can be reused.

    split: whose rows everything is measured on, VALID where methods are tuned.
    """

    identity: str
    bundle: Bundle
    dataset: Dataset
    embeddings: np.ndarray
    params: Params
    folder: Path
    split: int = TEST


class Case:
    """One erasure with its retrained model and what the champion does on it; both are made once."""

    def __init__(self, bench: Bench, erasure: Erasure):
        self.bench, self.erasure = bench, erasure
        limits, plan = bench.params.gates, Bootstrap.of(bench.params)
        retained = without(bench.dataset, erasure.users, erasure.items)
        self.group = Forgotten(erasure.label, erasure.users, erasure.items)
        self.erased = Erased(
            retained, bench.dataset, limits, plan, bench.params.bench.max_cases, rules(bench.params), bench.split
        )
        self.problem = Problem(
            bench.bundle, bench.params, retained, bench.dataset, erasure.users, erasure.items, bench.embeddings,
            f"bench-{erasure.seed}", erasure.seed,
        )  # fmt: skip

    @cached_property
    def retrained(self) -> Retrained:
        """The adapter retrained without the rows, one for an erasure, whatever the method's seed."""
        return retrained(self.bench.folder / "retrained", replace(self.problem, seed=self.bench.params.seed))

    @cached_property
    def champion(self) -> Bundle:
        """The start bundle, with the retraining seconds of this code on this machine: cost is a ratio of like to like.

        They may be of an earlier run; `retrained` says of which day.
        """
        return self.bench.bundle.with_lineage(retrain_s=self.retrained.seconds, utility_ratio=1.0)

    @cached_property
    def before(self) -> Measured:
        return measure(self.erased, self.champion, [self.group])

    @cached_property
    def reference(self) -> Measured:
        return measure(self.erased, self.retrained.bundle, [self.group])

    @cached_property
    def original_recall(self) -> float:
        """Recall@10 of the champion on the forgotten users' last training items."""
        erasure, data = self.erasure, self.bench.dataset
        ranked = forget_set_ranking(self.champion, self.champion.model(), data, erasure.users, self.erased.plan)
        return ranked.recall.value

    def relearned(self, bundle: Bundle) -> np.ndarray | UserForgetting:
        """What a little training on a share of the forget rows brings back.

        Concepts: per person who asked for something else, whether the concept is back in the top 10: float64 [n].
        Users: how much more likely sequences become, nat per token, of the other forgotten people and of never-seen
        ones: a model that was only damaged recovers on both alike, one that remembers does so on the forgotten.
        """
        rows, params, seed = forget_rows(self.problem), self.bench.params.relearn, self.erasure.seed
        after = relearn(bundle, rows, params, seed)
        if len(self.erasure.items):
            return self._exposed(after) - self._exposed(bundle)
        held = {rows[i].user for i in relearn_sample(rows, params.share, seed)}
        others = [u for u in self.erasure.users if int(u) not in held]
        was, now = (user_forgetting(b, b.model(), self.bench.dataset, others) for b in (bundle, after))
        return UserForgetting(was.forgotten - now.forgotten, was.unseen - now.unseen, was.matches)

    def _exposed(self, bundle: Bundle) -> np.ndarray:
        cases = self.erased.provoking
        other = ~np.isin(cases.targets, self.erasure.items)
        shown = np.isin(rank(bundle, bundle.model(), cases).top[other], self.erasure.items)
        return shown.any(1).astype(np.float64)

    @cached_property
    def reference_relearned(self) -> np.ndarray | UserForgetting:
        return self.relearned(self.retrained.bundle)

    def relearn_gains(self, bundle: Bundle) -> dict[str, Measure]:
        """What relearning brings back to `bundle` beyond what it brings to the retrained model, paired.

        Where a method moved SIDs, also beyond the retrained model on those SIDs, which it never saw either: new SIDs
        may be easier to learn than the old ones, and that is no memory.
        """
        found, plan = self.relearned(bundle), self.erased.plan
        if isinstance(found, UserForgetting):
            return {RELEARNED: found.gap_over(self.reference_relearned, plan)}
        gains = {RELEARNED: mean(found - self.reference_relearned, plan)}
        if (bundle.table.sids != self.bench.bundle.table.sids).any():
            on_its_sids = self.relearned(replace(self.retrained.bundle, table=bundle.table))
            gains[f"{RELEARNED}, same SIDs"] = mean(found - on_its_sids, plan)
        return gains


def run(case: Case, name: str) -> dict:
    """The record of one method: verdict, gates, figures, seconds, peak memory; ready for JSON.

    A method that refuses (UnlearningError) gives a record with its reason and no figures.
    """
    exact = name == RETRAINED
    record: dict = {"method": name, "label": case.erasure.label, "seed": case.erasure.seed, "exact": exact}
    retrain_s = case.retrained.seconds
    with peak_memory() as peak:
        started = time.perf_counter()
        try:
            if name == ORIGINAL:
                candidate, diagnostics = case.champion, {}
            elif exact:
                candidate, diagnostics = case.retrained.bundle, {}
            else:
                outcome = method(name).run(replace(case.problem, bundle=case.champion))
                candidate, diagnostics = outcome.bundle, outcome.diagnostics
        except UnlearningError as error:
            return record | {"verdict": "REFUSED", "reason": str(error), "gates": [], "figures": {}}
        seconds = time.perf_counter() - started
    if exact:
        seconds, peak = retrain_s, case.retrained.peak
    found, after = judge(
        case.erased, [case.group], case.champion, case.champion, case.before, candidate,
        exact=exact, wall_s=seconds, reference=None if exact else case.reference,
    )  # fmt: skip
    gains = {} if exact else case.relearn_gains(candidate)
    if gains:
        found.append(gates.relearn_gate(gains[RELEARNED], case.erased.limits))
    return record | {
        "verdict": gates.decide(found, exact),
        "seconds": seconds, "share_of_retraining": seconds / retrain_s,
        "peak_mib": peak.mib, "peak_above_start_mib": peak.above_start_mib, "peak_gpu_mib": peak.gpu_mib,
        "gates": [gate.as_dict() for gate in found],
        "figures": {key: m.as_dict() for key, m in (figures(case, candidate, after) | gains).items()},
        "diagnostics": diagnostics,
    }  # fmt: skip


def figures(case: Case, candidate: Bundle, after: Measured) -> dict[str, Measure]:
    """Everything evaluation.md asks of a candidate, by name; users and concepts have figures of their own."""
    plan, before, erased = case.erased.plan, case.before, case.erased
    model, restored = candidate.model(), case.bench.dataset
    found = utility(after.ranking, len(restored.item_ids), plan) | after.forgetting
    found["ndcg@10 ratio"] = ratio(after.ranking.ndcg(TOP), before.ranking.ndcg(TOP), plan)
    found["test NLL increase"] = mean(after.ranking.nll - before.ranking.nll, plan)
    found["test NLL over retrained"] = mean(after.ranking.nll - case.reference.ranking.nll, plan)
    found["prediction shift"] = top_item_shift(before.ranking, after.ranking, plan.confidence)
    for name, mask in slices(case).items():
        found[f"test NLL increase, {name}"] = mean((after.ranking.nll - before.ranking.nll)[mask], plan)
    if len(case.erasure.items):
        cases = erased.provoking.select(np.arange(len(erased.provoking.targets)) < MASS_CASES)
        found["target mass"] = concept_mass(candidate, model, cases, case.erasure.items, plan)
        exposed = np.isin(after.ranking.top, case.erasure.items).sum(1) / TOP
        found["exposure share"] = mean(exposed, plan)
        found |= exposure_by_taste(case, after)
    if len(case.erasure.users):
        found |= user_figures(case, candidate, model, after, found[f"recall@{TOP}"])
    return found


def exposure_by_taste(case: Case, after: Measured) -> dict[str, Measure]:
    """SH@10 of the people whose history holds the concept, and of the rest."""
    cases, items = case.erased.provoking, case.erasure.items
    likes = np.array([np.isin(history, items).any() for history in cases.histories], bool)
    return {
        f"{who} sh@{TOP}": concept_exposure(
            after.provoked.select(mask), cases.select(mask), items, TOP, case.erased.limits.confidence
        )
        for who, mask in (("likers", likes), ("others", ~likes))
    }


def user_figures(
    case: Case, candidate: Bundle, model: nn.Module, after: Measured, recall: Measure
) -> dict[str, Measure]:
    """Likelihood, attacks, divergence, perplexity and extraction of the forgotten users."""
    plan, restored, users = case.erased.plan, case.bench.dataset, case.erasure.users
    label = case.group.label
    found = {"user NLL gap over retrained": after.users[label].gap_over(case.reference.users[label], plan)}
    attacks = membership(candidate, model, restored, users, plan)
    for name in ("loss", "calibrated", "min_k"):
        found[f"membership {name} AUC"] = getattr(attacks, name).auc
        found[f"membership {name} TPR@1%FPR"] = getattr(attacks, name).tpr
    rows = user_rows(candidate, restored, users)
    for name, other in (("original", case.champion), ("retrained", case.retrained.bundle)):
        shift = token_shift((other, other.model()), (candidate, model), rows, plan)
        found |= {f"KL from {name}": shift.kl, f"prediction shift from {name}": shift.changed}
    found["perplexity forgotten"] = perplexity(candidate, model, restored, users, plan)
    forgotten = forget_set_ranking(candidate, model, restored, users, plan)
    found |= {"forget recall@10": forgotten.recall, "forget ndcg@10": forgotten.ndcg}
    before = float(case.before.ranking.recall(TOP).mean())
    value = trade_off(case.original_recall, forgotten.recall.value, before, recall.value)
    found["trade-off@10"] = Measure(value, float("nan"), float("nan"), len(users))
    prompted = extraction(candidate, model, restored, users, holdout_users(restored), plan)
    return found | {"extraction@50": prompted.forgotten, "extraction@50 over unseen": prompted.difference}


def slices(case: Case) -> dict[str, np.ndarray]:
    """Parts of the staying people's cases: popularity of the target, length of the history, and for a concept how many
    SID tokens the target shares with its items; two and more are the collateral gate's."""
    cases, counts = case.erased.cases, training_counts(case.erased.retained)
    order = np.argsort(np.argsort(-counts, kind="stable"))[cases.targets] / len(counts)
    lengths = np.array([len(history) for history in cases.histories])
    found = {
        "head": order < 0.2, "mid": (order >= 0.2) & (order < 0.6), "tail": order >= 0.6,
        "short history": lengths <= np.median(lengths), "long history": lengths > np.median(lengths),
    }  # fmt: skip
    if len(case.erasure.items):
        shared = case.champion.table.shared(case.erasure.items)[cases.targets]
        found |= {"sharing 1 SID token": shared == 1, f"sharing {SHARED_LEVELS}+ SID tokens": shared >= SHARED_LEVELS}
    return found
