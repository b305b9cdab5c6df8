"""What a night's summary shows beside requests and gates, of figures that the night took while it judged.

All of it comes from the night's folder and from the ledger, so that it can still be told once the data are put back
and the sealed rows destroyed.
"""

import json
from collections.abc import Sequence

from genrec.calibration import GOLD, TEST_NLL
from genrec.candidates import figures
from genrec.evaluation.judge import ATTACK, GAP
from genrec.night import SHOWN, Night
from genrec.planning import family
from genrec.report.summary import Attempt, Comparison


def told(night: Night, attempts: Sequence[dict]) -> list[dict]:
    """The attempts as the summary keeps them, `made_from` being the version that each one edited."""
    versions = {a["folder"]: a["version"] for a in attempts if a["folder"]}
    kept = Attempt.model_fields
    return [
        {name: value for name, value in a.items() if name in kept}
        | {"gates": [{name: value for name, value in gate.items() if name != "check"} for gate in a["gates"]]}
        | {"made_from": versions.get(a.get("start"), night.champion_number)}
        for a in attempts
    ]


def evidence(night: Night, attempts: Sequence[dict]) -> dict:
    """Membership, neighbours and reference of the summary, each None where the night has none."""
    near = _last(night, attempts, "neighbours")
    curve = _last(night, attempts, "curve")
    if curve is not None and night.champion_curve.exists():
        curve["before"] = json.loads(night.champion_curve.read_text())
    return {"neighbours": near, "membership": curve, "reference": _reference(night, attempts)}


def before(night: Night) -> Comparison:
    """The champion's forgetting figures alone, where the night came to measure them."""
    return Comparison.model_validate({"before": figures(night.before.forgetting) if night.measured else {}})


def _last(night: Night, attempts: Sequence[dict], name: str) -> dict | None:
    """What the last attempt that has it shows, with the attempt's index."""
    for index, attempt in reversed(list(enumerate(attempts))):
        shown = json.loads(night.record(attempt["number"]).read_text()).get(SHOWN, {}).get(name)
        if shown is not None:
            return {"attempt": index, **({"after": shown} if name == "curve" else shown)}
    return None


def _reference(night: Night, attempts: Sequence[dict]) -> dict | None:
    """The last calibration's retrained model, for people whom no attempt of the night retrained without."""
    about_people = any(subject.kind == "user" for _, subject in night.batch.subjects)
    if not about_people or any(a.get("exact") and GAP in a["forgetting"] for a in attempts):
        return None
    known = family(night.workspace, night.champion.backbone.hash).values()
    known = [one for one in known if GOLD.format(GAP) in one.figures]
    if not known:
        return None
    last = max(known, key=lambda one: one.at)
    return {
        "at": last.at, "n": last.n, "nll_increase": last.figures[GOLD.format(TEST_NLL)],
        "forgetting": {name: last.figures[GOLD.format(name)] for name in (GAP, ATTACK)},
    }  # fmt: skip
