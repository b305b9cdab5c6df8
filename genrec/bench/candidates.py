"""One method on one erasure: run, time, judge against the champion and the retrained model, and audit."""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from genrec.bench.erasures import Erasure
from genrec.bench.memory import peak_memory
from genrec.config import Params
from genrec.data.sequences import Dataset, without
from genrec.errors import UnlearningError
from genrec.evaluation import gates
from genrec.evaluation.forgetting import UserForgetting, concept_mass, holdout_users, user_forgetting
from genrec.evaluation.judge import Erased, Forgotten, Measured, judge, measure
from genrec.evaluation.membership import membership
from genrec.evaluation.ranking import TOP, rank, utility
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
from genrec.models.adapter import Adapter
from genrec.models.bundle import Bundle
from genrec.training.base import adapter_identity
from genrec.unlearning import Problem, method
from genrec.unlearning.descent import forget_rows
from genrec.unlearning.retrain import retrain_rows

ORIGINAL, RETRAINED = "original", "retrain"
RELEARNED = "relearning gains over retrained"
MASS_CASES = 200
"""Test cases on which a concept's whole probability is summed exactly."""


@dataclass(frozen=True)
class Bench:
    """The base model and its hash, its data, and the folder of everything that can be reused."""

    identity: str
    bundle: Bundle
    dataset: Dataset
    embeddings: np.ndarray
    params: Params
    folder: Path


class Case:
    """One erasure with its retrained model and what the champion does on it; both are made once."""

    def __init__(self, bench: Bench, erasure: Erasure):
        self.bench, self.erasure = bench, erasure
        limits, plan = bench.params.gates, Bootstrap.of(bench.params)
        retained = without(bench.dataset, erasure.users, erasure.items)
        self.group = Forgotten(erasure.label, erasure.users, erasure.items)
        self.erased = Erased(retained, bench.dataset, limits, plan, bench.params.bench.max_cases, rules(bench.params))
        self.problem = Problem(
            bench.bundle, bench.params, retained, bench.dataset, erasure.users, erasure.items, bench.embeddings,
            f"bench-{erasure.seed}", erasure.seed,
        )  # fmt: skip

    @cached_property
    def retrained(self) -> tuple[Bundle, float]:
        """The adapter retrained without the rows and the seconds that took; reused when data and parameters agree."""
        from safetensors.torch import load_file, save_file

        bundle, params = self.bench.bundle, self.bench.params
        problem = replace(self.problem, seed=params.seed)  # one for an erasure, whatever the method's seed
        identity = adapter_identity(bundle.backbone, retrain_rows(problem), bundle.table, params, params.seed)
        path = self.bench.folder / "retrained" / f"{identity}.safetensors"
        if not path.exists():
            started = time.perf_counter()
            adapter = method(RETRAINED).run(problem).bundle.adapter
            seconds = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({**adapter.state, "seconds": seconds}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
        state = load_file(path)
        seconds = float(state.pop("seconds"))
        adapter = Adapter(bundle.adapter.rank, bundle.adapter.alpha, state)
        return replace(bundle, adapter=adapter, overlays=()), seconds

    @cached_property
    def champion(self) -> Bundle:
        """The start bundle, with the retraining time of this very run, so that cost is a ratio within it."""
        return self.bench.bundle.with_lineage(retrain_s=self.retrained[1], utility_ratio=1.0)

    @cached_property
    def before(self) -> Measured:
        return measure(self.erased, self.champion, [self.group])

    @cached_property
    def reference(self) -> Measured:
        return measure(self.erased, self.retrained[0], [self.group])

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
        return self.relearned(self.retrained[0])

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
            on_its_sids = self.relearned(replace(self.retrained[0], table=bundle.table))
            gains[f"{RELEARNED}, same SIDs"] = mean(found - on_its_sids, plan)
        return gains


def run(case: Case, name: str) -> dict:
    """The record of one method: verdict, gates, figures, seconds, peak memory; ready for JSON.

    A method that refuses (UnlearningError) gives a record with its reason and no figures.
    """
    exact = name == RETRAINED
    record: dict = {"method": name, "label": case.erasure.label, "seed": case.erasure.seed, "exact": exact}
    retrain_s = case.retrained[1]
    with peak_memory() as peak:
        started = time.perf_counter()
        try:
            if name == ORIGINAL:
                candidate, diagnostics = case.champion, {}
            elif exact:
                candidate, diagnostics = case.retrained[0], {}
            else:
                outcome = method(name).run(replace(case.problem, bundle=case.champion))
                candidate, diagnostics = outcome.bundle, outcome.diagnostics
        except UnlearningError as error:
            return record | {"verdict": "REFUSED", "reason": str(error), "gates": [], "figures": {}}
        seconds = retrain_s if exact else time.perf_counter() - started
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
        "peak_mib": None if exact or math.isnan(peak.mib) else peak.mib,
        "peak_above_start_mib": None if exact or math.isnan(peak.mib) else peak.above_start_mib,
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
    if len(case.erasure.users):
        found |= user_figures(case, candidate, model, after, found[f"recall@{TOP}"])
    return found


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
    for name, other in (("original", case.champion), ("retrained", case.retrained[0])):
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
    """Parts of the staying people's test cases: collateral, popularity of the target, length of the history."""
    cases, data = case.erased.cases, case.erased.retained
    counts = np.bincount(data.items[data.split == 0], minlength=len(data.item_ids))
    order = np.argsort(np.argsort(-counts, kind="stable"))[cases.targets] / len(counts)
    lengths = np.array([len(history) for history in cases.histories])
    found = {
        "head": order < 0.2, "tail": order >= 0.6, "short history": lengths <= np.median(lengths),
        "long history": lengths > np.median(lengths),
    }  # fmt: skip
    if len(case.erasure.items):
        found["sharing SID tokens"] = case.erased.beside(case.champion, case.erasure.items)
    return found
