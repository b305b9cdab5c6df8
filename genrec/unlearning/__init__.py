"""Unlearning methods, one file each, behind one interface (`problem.Method`)."""

from genrec.errors import ConfigError, unknown
from genrec.unlearning import retrain, tracer, ucan
from genrec.unlearning.problem import Method, Outcome, Problem

METHODS: dict[str, Method] = {
    method.name: method for method in (ucan.METHOD, tracer.METHOD, tracer.REPAIRED, retrain.METHOD)
}


def method(name: str) -> Method:
    """The method of that name. Raises ConfigError listing the known ones."""
    if name not in METHODS:
        raise ConfigError(
            unknown("method", name, METHODS, "See unlearning.user_ladder and concept_ladder in params.yaml.")
        )
    return METHODS[name]


__all__ = ["METHODS", "Method", "Outcome", "Problem", "method"]
