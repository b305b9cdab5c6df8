"""Nights in a row: does utility drift, and is what the first night forgot still forgotten after the last?

Every night forgets a few users and some nights a concept as well, each method starting from the night before's model.
All measures are taken on the same test cases, those of whoever is still there after the last night, so that a figure's
change over the nights is the model's and not the sample's. At the end every night's request is judged again on the last
model, against the adapter retrained without any of them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from genrec.bench.candidates import Bench, Case
from genrec.bench.erasures import NOTHING, Erasure, choose_concepts, user_pool
from genrec.data.sequences import without
from genrec.errors import DataError
from genrec.evaluation.forgetting import user_nll
from genrec.evaluation.gates import Gate, utility_gate
from genrec.evaluation.judge import Erased, Forgotten, Measured, forgetting, forgetting_gates, measure
from genrec.evaluation.ranking import TOP, Ranking, rank, target_nll
from genrec.evaluation.statistics import mean, ratio
from genrec.models.adapter import combine
from genrec.models.bundle import Bundle
from genrec.progress import tracked
from genrec.unlearning import Problem, method


@dataclass(frozen=True, eq=False)
class Night:
    """What one night forgets: users of the dataset, and items of a concept (or none) with its name."""

    number: int
    users: np.ndarray
    items: np.ndarray
    concept: str | None

    @property
    def groups(self) -> tuple[Forgotten, ...]:
        users = Forgotten(f"night {self.number}", self.users, NOTHING)
        return (users, Forgotten(self.concept, NOTHING, self.items)) if self.concept else (users,)


def draw_nights(bench: Bench, seed: int) -> list[Night]:
    """Disjoint users, their share drawn per night from `bench.night_users`; the rarest concepts, evenly spread."""
    params, rng = bench.params.bench, np.random.default_rng([seed, 23])
    pool = rng.permutation(user_pool(bench.dataset, params, tuning=False))
    people = len(bench.dataset.user_ids)
    sizes = [max(1, round(share * people)) for share in rng.uniform(*params.night_users, params.nights)]
    if sum(sizes) > len(pool):
        raise DataError(f"{params.nights} nights ask for {sum(sizes)} users of {len(pool)}. Lower bench.night_users.")
    concepts = choose_concepts(bench.dataset, params)[: params.concept_nights]
    with_concept = np.linspace(0, params.nights, len(concepts), endpoint=False).astype(int).tolist()
    nights, ends = [], np.cumsum([0, *sizes])
    for i in range(params.nights):
        name = concepts[with_concept.index(i)] if i in with_concept else None
        items = bench.dataset.concepts[name].astype(np.int64) if name else NOTHING
        nights.append(Night(i + 1, np.sort(pool[ends[i] : ends[i + 1]]), items, name))
    return nights


class Stream:
    """A sequence of nights on one base model."""

    def __init__(self, bench: Bench, nights: list[Night], seed: int):
        self.bench, self.nights, self.seed = bench, nights, seed
        gone = Erasure(
            "everything", seed, np.concatenate([n.users for n in nights]),
            np.unique(np.concatenate([n.items for n in nights])),
        )  # fmt: skip
        self.final = Case(bench, gone)

    def problem(self, bundle: Bundle, night: Night, users: np.ndarray, items: np.ndarray) -> Problem:
        """One group of a night: everything of the nights before is gone already, as in the data."""
        before = self.nights[: night.number - 1]
        gone_users = np.concatenate([NOTHING, *(n.users for n in before)])
        gone_items = np.concatenate([NOTHING, *(n.items for n in before)])
        earlier = without(self.bench.dataset, gone_users, gone_items)
        index = {name: i for i, name in enumerate(earlier.user_ids)}
        here = np.array([index[self.bench.dataset.user_ids[u]] for u in users], np.int64)
        return Problem(
            bundle, self.bench.params, without(earlier, here, items), earlier, here, items, self.bench.embeddings,
            f"night-{night.number}", self.seed,
        )  # fmt: skip

    def run_night(self, bundle: Bundle, night: Night, user_method: str, concept_method: str) -> tuple[Bundle, float]:
        started = time.perf_counter()
        if night.concept:
            bundle = method(concept_method).run(self.problem(bundle, night, NOTHING, night.items)).bundle
        bundle = method(user_method).run(self.problem(bundle, night, night.users, NOTHING)).bundle
        return bundle, time.perf_counter() - started

    def judged(self, bundle: Bundle, nights: list[Night], reference: Bundle) -> list[dict]:
        """Forgetting gates of each night's requests on `bundle`, against the model retrained without any of them."""
        erased = self.final.erased
        rows = []
        groups = [(night, group) for night in nights for group in night.groups]
        everyone = Forgotten("all nights", np.concatenate([n.users for n in nights]), NOTHING)
        for number, group in [*((n.number, g) for n, g in groups), (0, everyone)]:
            found, retrained = (forgetting(erased, b, b.model(), [group]) for b in (bundle, reference))
            judged = forgetting_gates(erased, found, [group], retrained)
            rows.append({"night": number, "label": group.label, "gates": [gate.as_dict() for gate in judged]})
        return rows


def utility_row(erased: Erased, before: Ranking, after: Ranking) -> dict:
    """NDCG@10 ratio, test NLL increase and drift of a ranking of the final cases against the champion's."""
    ndcg = ratio(after.ndcg(TOP), before.ndcg(TOP), erased.plan)
    nll = mean(after.nll - before.nll, erased.plan)
    limits = erased.limits
    gate: Gate = utility_gate("utility", before, after, limits.utility_ratio, limits.utility_nll, erased.plan)
    drift = {"value": 1 - ndcg.value, "low": 1 - ndcg.high, "high": 1 - ndcg.low, "n": ndcg.n}
    return {"drift": drift, "test NLL increase": nll.as_dict(), "utility": gate.verdict}


def run_stream(
    bench: Bench, seed: int, user_method: str, concept_method: str, say: Callable[[str], None] = print
) -> dict:
    """All nights, then everything judged again; ready for JSON."""
    stream = Stream(bench, draw_nights(bench, seed), seed)
    erased, (retrained, retrain_s) = stream.final.erased, stream.final.retrained
    before = measure(erased, bench.bundle, [])
    bundle, rows, first = bench.bundle, [], None
    for night in tracked("nights", stream.nights):
        bundle, seconds = stream.run_night(bundle, night, user_method, concept_method)
        first = first or bundle
        ranking = rank(bundle, bundle.model(), erased.cases)
        row = {"night": night.number, "users": len(night.users), "concept": night.concept, "seconds": seconds}
        rows.append(row | utility_row(erased, before.ranking, ranking))
        drift = rows[-1]["drift"]["value"]
        say(f"stream, seed {seed}, night {night.number}: {seconds:.1f} s, drift {drift:+.3f}")
    reference: Measured = measure(erased, retrained, [])
    return {
        "seed": seed, "user_method": user_method, "concept_method": concept_method, "retrain_s": retrain_s,
        "nights": rows, "retrained": utility_row(erased, before.ranking, reference.ranking),
        "first_night_after_night_1": stream.judged(first, stream.nights[:1], retrained),
        "requests_at_the_end": stream.judged(bundle, stream.nights, retrained),
        "order": order_independence(bench, stream, user_method),
    }  # fmt: skip


def order_independence(bench: Bench, stream: Stream, user_method: str) -> list[dict]:
    """The first two nights' users as A then B, B then A, and both at once: how far do the three models differ?

    `scale`: largest difference of the combined overlays where the method leaves any (min-combination); `test NLL`,
    `forgotten NLL`: largest difference of the means, nat per token.
    """
    a, b = (night.users for night in stream.nights[:2])
    both = np.sort(np.concatenate([a, b]))
    rows = []
    for name in dict.fromkeys(("ucan", user_method)):
        ends = []
        for order in ((a, b), (b, a), (both,)):
            nights = [Night(i + 1, users, NOTHING, None) for i, users in enumerate(order)]
            part, bundle = Stream(bench, nights, stream.seed), bench.bundle
            for night in nights:
                # The batch id follows the users, not the night: an overlay is the same whenever it is made.
                problem = replace(part.problem(bundle, night, night.users, NOTHING), batch_id=f"b{night.users[0]}")
                bundle = method(name).run(problem).bundle
            ends.append(bundle)
        rows.append({"method": name, **_spread(bench, ends, both)})
    return rows


def _spread(bench: Bench, ends: list[Bundle], users: np.ndarray) -> dict[str, float]:
    case = Case(bench, Erasure("both", 0, users, NOTHING))
    combined = [combine(bundle.overlays) for bundle in ends]
    scale = max(
        (float((x[key] - y[key]).abs().max()) for x in combined for y in combined for key in x.keys() & y.keys()),
        default=float("nan"),
    )
    models = [(bundle, bundle.model()) for bundle in ends]
    test = [target_nll(bundle, model, case.erased.cases).mean() for bundle, model in models]
    forgotten = [user_nll(bundle, model, bench.dataset, users)[0].mean() for bundle, model in models]
    return {"scale": scale, "test NLL": float(np.ptp(test)), "forgotten NLL": float(np.ptp(forgotten))}
