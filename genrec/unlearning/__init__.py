"""Unlearning methods, one file each, behind one interface (`problem.Method`), and those of other packages."""

from dataclasses import replace

from genrec.errors import ConfigError, PluginError, UnlearningError, unknown
from genrec.plugins import Plugin, guarded, installed
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
    ucan_plus_attenuate,
    untouched,
)
from genrec.unlearning.problem import Method, Outcome, Problem

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        ucan.METHOD, ucan_plus.METHOD, tracer.METHOD, tracer.REPAIRED, retrain.METHOD,
        ucan.WITHOUT_CONTRAST, ucan.WITHOUT_UTILITY, ucan_plus_attenuate.METHOD, hard_prune.METHOD,
        output_filter.METHOD, finetune.METHOD, gradient_ascent.METHOD, graddiff.METHOD, npo.METHOD, simnpo.METHOD,
        scif.METHOD, untouched.METHOD,
    )
}  # fmt: skip


def plugins() -> dict[str, Plugin]:
    """The methods of other installed packages (`genrec.methods`), none of them imported."""
    return installed("method", METHODS)


def method(name: str) -> Method:
    """The method of that name. Raises ConfigError listing the known ones, PluginError for a package's that is no good.

    A package's method that fails is an UnlearningError, so that the next rung is taken. It may not be exact: that is
    what makes forgetting gates inform only, and nobody but genrec can vouch for it.
    """
    if name in METHODS:
        return METHODS[name]
    others = plugins()
    if name not in others:
        known = METHODS.keys() | others.keys()
        raise ConfigError(
            unknown("method", name, known, "See unlearning.user_ladder and concept_ladder in params.yaml.")
        )
    found: Method = others[name].load(Method)
    if found.name != name:
        raise PluginError(f"The {others[name]} calls itself {found.name!r}. Give its entry point that name.")
    if found.exact:
        raise PluginError(
            f"The {others[name]} claims to be exact: its forgetting gates would not block. Leave that out."
        )
    return replace(found, run=guarded(others[name], found.run, UnlearningError))


__all__ = ["METHODS", "Method", "Outcome", "Problem", "method", "plugins"]
