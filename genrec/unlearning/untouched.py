"""Untouched: the weights as they are, for those of whom they hold nothing.

The planner (`genrec.planning`) takes this rung only where the champion was trained without a row of them. The gates are
judged all the same: the data have changed.
"""

from genrec.errors import UnlearningError
from genrec.unlearning.problem import Method, Outcome, Problem

UNTOUCHED = "untouched"


def untouched(problem: Problem) -> Outcome:
    """The start bundle. Raises UnlearningError where there is somebody or something to forget."""
    if len(problem.users) or len(problem.items):
        raise UnlearningError("Weights that hold what is to be forgotten cannot stay as they are. Take another method.")
    return Outcome(problem.bundle)


METHOD = Method(UNTOUCHED, untouched)
