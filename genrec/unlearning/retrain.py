"""Retraining: the adapter again from the backbone, on the retained rows alone. Exact, and the measure of the others.

The backbone never saw a user, so nothing of the forgotten rows is left in the weights.
"""

from dataclasses import replace

from genrec.training.base import train_adapter
from genrec.training.rows import Row, whole
from genrec.unlearning.problem import Method, Outcome, Problem


def retrain_rows(problem: Problem) -> list[Row]:
    """Whole training histories of everybody who stays."""
    return whole((int(u), problem.retained.training_rows(u)) for u in problem.retained_users)


def retrain(problem: Problem) -> Outcome:
    """A new adapter for the start bundle's backbone and SIDs; overlays go, there is nothing left to attenuate."""
    bundle, rows = problem.bundle, retrain_rows(problem)
    adapter, curve = train_adapter(bundle.backbone, rows, bundle.table, problem.params, seed=problem.seed)
    return Outcome(replace(bundle, adapter=adapter, overlays=()), {"final_loss": curve.losses[-1]})


METHOD = Method("retrain", retrain, exact=True)
