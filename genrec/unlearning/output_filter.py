"""Output filter: the items are never shown, and the weights remember all of them. Suppression, not unlearning.

The items join the bundle's deny list, which decoding masks. Measures of forgetting read the bare model and will not
be fooled.
"""

from dataclasses import replace

from genrec.errors import UnlearningError
from genrec.unlearning.problem import Method, Outcome, Problem


def output_filter(problem: Problem) -> Outcome:
    """Deny the items. Raises UnlearningError for users."""
    if len(problem.users):
        raise UnlearningError(
            "A filter cannot hide a person: what was learned of a user shows in every list. Take another method."
        )
    bundle = problem.bundle
    denied = {bundle.table.item_ids[item] for item in problem.items}
    filtered = replace(bundle, deny=tuple(sorted({*bundle.deny, *denied})))
    return Outcome(filtered, {"kind": "suppression", "denied_items": float(len(denied))})


METHOD = Method("output_filter", output_filter)
