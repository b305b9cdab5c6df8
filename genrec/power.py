"""`genrec power`: what the gates need on this workspace's champion."""

from genrec.calibration import OVER_RETRAINED, TEST_NLL
from genrec.config import Workspace
from genrec.data.sequences import load_dataset
from genrec.evaluation import power
from genrec.evaluation.forgetting import user_forgetting
from genrec.evaluation.power import Need
from genrec.evaluation.statistics import Measure
from genrec.registry import open_registry
from genrec.requests.calibrations import Calibration, listed
from genrec.requests.store import open_ledger


def power_of(workspace: Workspace, wanted: float) -> list[Need]:
    """The needs of user-nll, membership, concept and utility for a chance of `wanted` that a good method passes.

    The paired gates (against a retrained model; utility) are scaled from the last calibration of each method on the
    champion's backbone; where there is none, they are left unknown.
    """
    registry, limits = open_registry(workspace), workspace.params().gates
    bundle = registry.bundle(registry.champion().number)
    dataset = load_dataset(workspace.prepared)
    spread = user_forgetting(bundle, bundle.model(), dataset, dataset.trained_users)
    confidence = limits.confidence
    needs = [
        power.user_nll(spread, limits.user_nll, confidence, wanted),
        power.membership(len(spread.unseen), limits.membership, confidence, wanted),
        power.concept(limits.concept_sh10, confidence),
    ]
    over_limit = power.equivalence_se(limits.user_nll_retrained, confidence, wanted)
    nll_limit = power.one_sided_se(limits.utility_nll, confidence, wanted)
    last = _last(listed(open_ledger(workspace).engine), bundle.backbone.hash)
    if not last:
        note = "unknown until a calibration has run: genrec calibrate"
        needs.append(Need("user-nll", "forgotten users, against a retrained model", None, note=note))
        needs.append(Need("utility", "test cases, by test NLL", None, note=note))
    for name, one in last.items():
        over, loss = (Measure(**one.figures[figure]) for figure in (OVER_RETRAINED, TEST_NLL))
        unit = f"forgotten users, against a retrained model, by {name}"
        needs.append(power.from_interval("user-nll", unit, over, over_limit, confidence))
        needs.append(power.from_interval("utility", f"test cases, by test NLL of {name}", loss, nll_limit, confidence))
    return needs


def _last(calibrations: list[Calibration], backbone_hash: str) -> dict[str, Calibration]:
    """The newest calibration with figures of each method on this backbone."""
    found: dict[str, Calibration] = {}
    for one in calibrations:
        if one.backbone_hash == backbone_hash and one.figures:
            found.setdefault(one.method, one)
    return found
