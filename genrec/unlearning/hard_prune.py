"""Hard pruning: U-CAN's risk without its soft decay, s = floor above the risk quantile and 1 below (see `ucan`).

With `floor` at 0 the riskiest dimensions of the adapter are cut out; with U-CAN's own floor this is the ablation of the
soft decay alone.
"""

import math

from genrec.unlearning.problem import Method, Outcome, Problem
from genrec.unlearning.ucan import attenuate


def hard_prune(problem: Problem) -> Outcome:
    """`ucan.attenuate` with an infinitely fast decay."""
    params = problem.params.unlearning
    change = {"decay": math.inf, "floor": params.hard_prune.floor}
    return attenuate(problem, params.ucan.model_copy(update=change))


METHOD = Method("hard_prune", hard_prune)
