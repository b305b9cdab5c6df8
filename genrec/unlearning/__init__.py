"""Unlearning methods, one file each, behind one interface (`problem.Method`)."""

from genrec.errors import ConfigError, unknown
from genrec.unlearning import (
    finetune,
    graddiff,
    gradient_ascent,
    hard_prune,
    npo,
    output_filter,
    retrain,
    scif,
    simnpo,
    tracer,
    ucan,
    ucan_plus,
)
from genrec.unlearning.problem import Method, Outcome, Problem

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        ucan.METHOD, ucan_plus.METHOD, tracer.METHOD, tracer.REPAIRED, retrain.METHOD,
        ucan.WITHOUT_CONTRAST, ucan.WITHOUT_UTILITY, hard_prune.METHOD, output_filter.METHOD, finetune.METHOD,
        gradient_ascent.METHOD, graddiff.METHOD, npo.METHOD, simnpo.METHOD, scif.METHOD,
    )
}  # fmt: skip


def method(name: str) -> Method:
    """The method of that name. Raises ConfigError listing the known ones."""
    if name not in METHODS:
        raise ConfigError(
            unknown("method", name, METHODS, "See unlearning.user_ladder and concept_ladder in params.yaml.")
        )
    return METHODS[name]


__all__ = ["METHODS", "Method", "Outcome", "Problem", "method"]
