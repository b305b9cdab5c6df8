"""Nights in a row: does utility drift, and is what the first night forgot still forgotten after the last?

Every night forgets a few users and some nights a concept as well, each method starting from the night before's model.
All measures are taken on the same test cases, those of whoever is still there after the last night, so that a figure's
change over the nights is the model's and not the sample's. At the end every night's request is judged again on the last
model, against the adapter retrained without any of them; where a night has fewer people than `gates.min_users` it has
no verdict of its own, and all nights' people together are what can be told. A night is kept with its model, so that an
interrupted stream goes on where it stopped.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from genrec.bench.candidates import Bench, Case
from genrec.bench.cells import code_hash, content_key, kept
from genrec.bench.erasures import NOTHING, Erasure, choose_concepts, user_pool
from genrec.bench.matrix import shared_facts
from genrec.data.sequences import without
from genrec.errors import DataError
from genrec.evaluation.forgetting import user_nll
from genrec.evaluation.gates import Gate, decide, utility_gate
from genrec.evaluation.judge import Erased, Forgotten, Measured, forgetting, forgetting_gates, measure
from genrec.evaluation.ranking import TOP, Ranking, rank, target_nll
from genrec.evaluation.statistics import mean, ratio
from genrec.models.adapter import combine
from genrec.models.bundle import Bundle, load_bundle, save_bundle
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
    """Disjoint users, their share drawn per night from `bench.night_users`; the rarest concepts, evenly spread.

    Where the upper end of that is enough people for a verdict, no night has fewer.
    """
    params, rng = bench.params.bench, np.random.default_rng([seed, 23])
    pool = rng.permutation(user_pool(bench.dataset, params, tuning=False))
    people = len(bench.dataset.user_ids)
    low, high = params.night_users
    enough = bench.params.gates.min_users / people
    shares = rng.uniform(max(low, enough) if enough <= high else low, high, params.nights)
    sizes = [max(1, round(share * people)) for share in shares]
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
        names = [self.bench.dataset.user_ids[u] for u in users]
        here = np.array([index[name] for name in names if name in index], np.int64)  # some went with a concept's rows
        return Problem(
            bundle, self.bench.params, without(earlier, here, items), earlier, here, items, self.bench.embeddings,
            f"night-{night.number}", self.seed,
        )  # fmt: skip

    def run_night(self, bundle: Bundle, night: Night, user_method: str, concept_method: str) -> tuple[Bundle, float]:
        started = time.perf_counter()
        if night.concept:
            bundle = method(concept_method).run(self.problem(bundle, night, NOTHING, night.items)).bundle
        people = self.problem(bundle, night, night.users, NOTHING)
        if len(people.users):
            bundle = method(user_method).run(people).bundle
        return bundle, time.perf_counter() - started

    def judged(self, bundle: Bundle, nights: list[Night], reference: Bundle) -> list[dict]:
        """Verdict and forgetting gates of each night's requests on `bundle`, against the model retrained without any of
        them; night 0 is all nights' people at once."""
        erased = self.final.erased
        rows = []
        groups = [(night, group) for night in nights for group in night.groups]
        everyone = Forgotten("all nights", np.concatenate([n.users for n in nights]), NOTHING)
        for number, group in [*((n.number, g) for n, g in groups), (0, everyone)]:
            found, retrained = (forgetting(erased, b, b.model(), [group]) for b in (bundle, reference))
            judged = forgetting_gates(erased, found, [group], retrained)
            rows.append(
                {
                    "night": number, "label": group.label, "people": len(group.users),
                    "verdict": decide(judged, exact=False), "gates": [gate.as_dict() for gate in judged],
                }
            )  # fmt: skip
        return rows


def utility_row(erased: Erased, before: Ranking, after: Ranking) -> dict:
    """NDCG@10 ratio, test NLL increase and drift of a ranking of the final cases against the champion's."""
    ndcg = ratio(after.ndcg(TOP), before.ndcg(TOP), erased.plan)
    nll = mean(after.nll - before.nll, erased.plan)
    limits = erased.limits
    gate: Gate = utility_gate("utility", before, after, limits.utility_ratio, limits.utility_nll, erased.plan)
    drift = {"value": 1 - ndcg.value, "low": 1 - ndcg.high, "high": 1 - ndcg.low, "n": ndcg.n}
    return {"drift": drift, "test NLL increase": nll.as_dict(), "utility": gate.verdict}


def stream_key(bench: Bench, nights: list[Night], seed: int, user_method: str, concept_method: str, code: str) -> str:
    """What a stream depends on, as one hash."""
    facts = [*shared_facts(bench, code, "ucan", user_method, concept_method), seed, [n.concept for n in nights]]
    return content_key(facts, [part for night in nights for part in (night.users, night.items)])


def run_stream(
    bench: Bench, seed: int, user_method: str, concept_method: str, say: Callable[[str], None] = print
) -> dict:
    """All nights, then everything judged again; ready for JSON. What an earlier run of it has done is read."""
    nights = draw_nights(bench, seed)
    folder = bench.folder / "streams" / stream_key(bench, nights, seed, user_method, concept_method, code_hash())
    stream = Stream(bench, nights, seed)
    return kept(folder / "stream.json", lambda: _measured(stream, folder, user_method, concept_method, say))[0]


def _measured(stream: Stream, folder: Path, user_method: str, concept_method: str, say: Callable[[str], None]) -> dict:
    bench, erased, gold = stream.bench, stream.final.erased, stream.final.retrained
    before = measure(erased, bench.bundle, [])
    rows: list[dict] = []

    def model(after: int) -> Bundle:
        """As it is after so many nights."""
        return load_bundle(folder / f"night-{after}") if after else bench.bundle

    def run(night: Night) -> dict:
        bundle, seconds = stream.run_night(model(night.number - 1), night, user_method, concept_method)
        folder.mkdir(parents=True, exist_ok=True)
        save_bundle(bundle, folder / f"night-{night.number}")
        row = {"night": night.number, "users": len(night.users), "concept": night.concept, "seconds": seconds}
        return row | utility_row(erased, before.ranking, rank(bundle, bundle.model(), erased.cases))

    for night in tracked("nights", stream.nights):
        row, reused = kept(folder / f"night-{night.number}.json", lambda night=night: run(night))
        rows.append(row)
        drift = row["drift"]["value"]
        said = f"{row['seconds']:.1f} s, drift {'unknown' if drift is None else f'{drift:+.3f}'}{' (reused)' * reused}"
        say(f"stream, seed {stream.seed}, night {night.number}: {said}")
    few, limit = sum(len(night.users) < erased.limits.min_users for night in stream.nights), erased.limits.min_users
    if few:
        say(f"{few} of {len(rows)} nights have fewer than {limit} people: no verdict of their own, only pooled.")
    reference: Measured = measure(erased, gold.bundle, [])
    return {
        "seed": stream.seed, "user_method": user_method, "concept_method": concept_method,
        "retrain_s": gold.seconds, "min_users": limit, "nights_with_too_few_people": few,
        "nights": rows, "retrained": utility_row(erased, before.ranking, reference.ranking),
        "first_night_after_night_1": stream.judged(model(1), stream.nights[:1], gold.bundle),
        "requests_at_the_end": stream.judged(model(len(rows)), stream.nights, gold.bundle),
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
