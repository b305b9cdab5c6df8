"""Gradient ascent on the forgotten rows, as in "Knowledge Unlearning" (arXiv 2210.01504).

L = - NLL_f, the mean NLL per forgotten token. Nothing bounds it and nothing retains: run long enough, it destroys the
model. That is the published baseline.
"""

from genrec.training.rows import batch_loss
from genrec.unlearning.descent import descend
from genrec.unlearning.problem import Method, Outcome, Problem


def gradient_ascent(problem: Problem) -> Outcome:
    """Ascend on the forget half of each batch; the retain half is not used."""
    params = problem.params.unlearning.gradient_ascent
    return descend(problem, params, lambda model, forget, retain: {"forget": -batch_loss(model, forget)})


METHOD = Method("gradient_ascent", gradient_ascent)
