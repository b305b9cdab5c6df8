"""Calibration: the approximate methods for people, on a shadow cohort large enough to tell (operations.md).

A night of three people cannot show that a method forgets. So, on people who asked for nothing and stay: pretend that a
cohort is to be forgotten, retrain an adapter without it (the gold model), run each approximate method of the user
ladder on the same cohort, and judge it by the night's own gates against the gold model. What is kept are aggregates;
cohort, gold adapter and candidates end with the process.
"""

import hashlib
import json
import math
import secrets
import time
from datetime import datetime

import numpy as np

from genrec.candidates import figures
from genrec.config import Params, Workspace
from genrec.data.files import finite
from genrec.data.sequences import Dataset, load_dataset, without
from genrec.data.version import data_version
from genrec.errors import DataError, UnlearningError
from genrec.evaluation import gates
from genrec.evaluation.forgetting import holdout_users
from genrec.evaluation.judge import ATTACK, GAP, Erased, Forgotten, Measured, judge, measure
from genrec.evaluation.rules import rules
from genrec.evaluation.statistics import Bootstrap, Measure, mean
from genrec.models.bundle import Bundle
from genrec.pipeline import load_embeddings
from genrec.registry import open_registry
from genrec.requests.audit import canonical_json
from genrec.requests.calibrations import Calibration, record
from genrec.requests.store import open_ledger
from genrec.unlearning import Outcome, Problem, method, plugins

LABEL = "the cohort"
BATCH = "calibration"
OVER_RETRAINED, TEST_NLL = "user NLL gap over the retrained model's", "test NLL increase"
"""Paired figures of a calibration: `genrec power` scales their intervals."""

GOLD = "retrained: {}"
"""Name of a figure of the gold model: what a night without a retrained model is shown beside."""

SMALLEST_SHARE = 3
"""The cohort is at most one in so many trained users: the gold model must stay a model of the same shop."""

SECTIONS = {
    "hard_prune": ("ucan", "hard_prune"), "ucan_without_contrast": ("ucan",), "ucan_without_utility": ("ucan",),
    "tracer_repair": ("tracer",), "output_filter": (),
}  # fmt: skip
"""Sections of unlearning that a method reads, where this is not the one of its own name."""


def approximate(params: Params) -> tuple[str, ...]:
    """The approximate methods of the user ladder. Raises ConfigError for an unknown name."""
    return tuple(name for name in params.unlearning.user_ladder if not method(name).exact)


def params_hash(params: Params, name: str) -> str:
    """SHA-256 of the method's own parameters and of the gates it was judged by, with the code of those that are other
    packages': the half of a model family that is configured. The other half is the backbone's hash."""
    tree = params.unlearning.model_dump(mode="json")
    sections = {section: tree[section] for section in SECTIONS.get(name, (name,)) if section in tree}
    told = {"method": name, "params": sections, "gates": params.gates.model_dump(mode="json")}
    others = [plugin for plugin in plugins().values() if plugin.name == name] + [r.plugin for r in rules(params)]
    if others:
        own = [params.plugins.methods.get(name, {}), params.plugins.gates]
        told["plugins"] = [own, *(plugin.code_hash() for plugin in others)]
    text = canonical_json(told)
    return hashlib.sha256(text.encode()).hexdigest()


def cohort(dataset: Dataset, params: Params, at: datetime) -> np.ndarray:
    """`calibration.users` trained users (indices), capped at a third of them; another draw in each ISO week.

    Raises DataError where there are fewer than three to draw from, or no never-seen people to compare them with.
    """
    if len(holdout_users(dataset)) == 0:
        raise DataError(
            "Nobody was held out of training, so no calibration can pass. Set split.holdout_users above 0, train again."
        )
    trained = dataset.trained_users
    size = min(params.calibration.users, len(trained) // SMALLEST_SHARE)
    if size == 0:
        raise DataError(f"{len(trained)} trained users are too few for a shadow cohort. Load more data, then train.")
    year, week, _ = at.isocalendar()
    return np.sort(np.random.default_rng([params.seed, year, week]).choice(trained, size, replace=False))


def shadow(champion: Bundle, params: Params, dataset: Dataset, embeddings: np.ndarray, at: datetime) -> Problem:
    """The week's erasure that nobody asked for."""
    users, nothing = cohort(dataset, params, at), np.empty(0, np.int64)
    retained = without(dataset, users, nothing)
    return Problem(champion, params, retained, dataset, users, nothing, embeddings, BATCH, params.seed)


def calibrate(problem: Problem, champion: str, at: datetime) -> list[Calibration]:
    """Judge each approximate method of the user ladder on `problem`, against an adapter retrained for it.

    champion: the version `problem.bundle` is. A method that cannot run is a FAIL without gates.
    """
    params = problem.params
    plan = Bootstrap.of(params)
    group = Forgotten(LABEL, problem.users, problem.items)
    erased = Erased(problem.retained, problem.restored, params.gates, plan, rules=rules(params))
    before = measure(erased, problem.bundle, [group])
    gold, gold_s = _timed("retrain", problem)
    reference = measure(erased, gold.bundle, [group])
    retrained = {GOLD.format(name): reference.forgetting[name] for name in (GAP, ATTACK)}
    retrained[GOLD.format(TEST_NLL)] = mean(reference.ranking.nll - before.ranking.nll, plan)
    found = []
    for name in approximate(params):
        shared = {
            "id": f"c-{secrets.token_hex(5)}", "method": name, "at": at, "n": len(problem.users), "gold_s": gold_s,
            "backbone_hash": problem.bundle.backbone.hash, "params_hash": params_hash(params, name),
            "champion": champion,
        }  # fmt: skip
        started = time.perf_counter()
        try:
            outcome, wall_s = _timed(name, problem)
        except UnlearningError:
            wall_s = round(time.perf_counter() - started, 2)
            found.append(Calibration(**shared, verdict="FAIL", split_half=None, wall_s=wall_s, gates=[], figures={}))
            continue
        judged, after = judge(
            erased, [group], problem.bundle, problem.bundle, before, outcome.bundle,
            exact=False, wall_s=wall_s, reference=reference,
        )  # fmt: skip
        found.append(
            Calibration(
                **shared, verdict=gates.decide(judged, exact=False), split_half=_split_half(outcome), wall_s=wall_s,
                gates=finite([gate.as_dict() for gate in judged]),
                figures=finite(figures(after.forgetting | _paired(after, before, reference, plan) | retrained)),
            )
        )  # fmt: skip
    return found


def _timed(name: str, problem: Problem) -> tuple[Outcome, float]:
    started = time.perf_counter()
    outcome = method(name).run(problem)
    return outcome, round(time.perf_counter() - started, 2)


def _split_half(outcome: Outcome) -> float | None:
    value = outcome.diagnostics.get("split_half_correlation")
    return float(value) if value is not None and math.isfinite(value) else None


def _paired(after: Measured, before: Measured, reference: Measured, plan: Bootstrap) -> dict[str, Measure]:
    return {
        OVER_RETRAINED: after.users[LABEL].gap_over(reference.users[LABEL], plan),
        TEST_NLL: mean(after.ranking.nll - before.ranking.nll, plan),
    }


def run(workspace: Workspace, at: datetime) -> list[dict]:
    """Calibrate the champion now, store the results in the ledger and log them as one MLflow run.

    Raises DataError when the champion was not trained on the current data version: it may not know the cohort, and a
    method is no good for forgetting what was never learned.
    """
    registry, params = open_registry(workspace), workspace.params()
    champion = registry.champion().number
    bundle = registry.bundle(champion)
    current = data_version(workspace.data_pin)
    if bundle.lineage.data_version != current:
        raise DataError(
            f"The champion, version {champion}, is of data version {bundle.lineage.data_version}, not {current}. "
            "Finish the open night (genrec night) or train again (genrec train), then calibrate."
        )
    problem = shadow(bundle, params, load_dataset(workspace.prepared), load_embeddings(workspace), at)
    found = calibrate(problem, champion, at)
    record(open_ledger(workspace).engine, found)
    told = [one.as_dict() for one in found]
    registry.log_run(
        f"calibration {at:%G-W%V}",
        metrics={
            f"{one.method}.{name}": m["value"]
            for one in found
            for name, m in one.figures.items()
            if m["value"] is not None
        }
        | {f"{one.method}.wall_s": one.wall_s for one in found}
        | {f"{one.method}.split_half": one.split_half for one in found if one.split_half is not None},
        tags={f"verdict.{one.method}": one.verdict for one in found} | {"kind": "calibration", "champion": champion},
        artefacts={"calibrations.json": json.dumps(told, indent=1)},
    )
    return told
