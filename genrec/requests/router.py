"""Which rungs a group of requests may climb, and why: facts in, a plan out, nothing read and nothing written.

A few people carry no statistical power: their forgetting gates stay INCONCLUSIVE whatever the method did. So a small
group may use an approximate method only where a recent calibration of that method passed on this model family, and the
calibration then carries the gates the group is too small for. A group of `router.min_users` or more speaks for itself.
A calibration that passed goes out of date; one that did not pass counts until a newer one passes.

Concepts and items have their power from the test cases, so there a rung's own record decides: what its last runs on
this model family took and how they ended. The record goes out of date too, so that a rung is tried again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from genrec.config import CalibrationParams, RouterParams
from genrec.requests.attempts import Tried
from genrec.requests.calibrations import Calibration
from genrec.requests.ledger import Request

RETRAIN = "retrain"


@dataclass(frozen=True)
class Plan:
    """The rungs in order, a sentence for each decision, and the calibrations that carry a small group, by method."""

    ladder: tuple[str, ...]
    reason: str
    carried: Mapping[str, Calibration] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """What a resumed night needs, as JSON."""
        carried = {name: {"id": c.id, "at": c.at.isoformat(), "n": c.n} for name, c in self.carried.items()}
        return {"ladder": list(self.ladder), "reason": self.reason, "carried": carried}


def route(
    kind: str, size: int, ladder: Sequence[str], calibrations: Mapping[str, Calibration], *, now: datetime,
    calibration: CalibrationParams, router: RouterParams, tried: Mapping[str, Sequence[Tried]] | None = None,
    retrain_s: float | None = None,
) -> Plan:  # fmt: skip
    """The plan of one group.

    kind: `user`, `concept`, `item` or `interaction`. size: people in the group. ladder: as configured. calibrations:
    the newest one of each method on this model family. tried: what rungs for concepts did on it lately, newest first.
    retrain_s: what training the champion's adapter took, None where nobody knows.
    """
    if kind == "interaction":
        return Plan(tuple(ladder), "Single interactions have no approximate method.")
    if kind != "user":
        return _by_record(ladder, tried or {}, retrain_s, router)
    kept, carried, said = [], {}, []
    for name in ladder:
        if name == RETRAIN:
            continue
        last = calibrations.get(name)
        refusal = _refusal(last, size, now, calibration, router)
        if refusal:
            said.append(f"{name} is not tried: {refusal}.")
            continue
        kept.append(name)
        if last is None or not _recent(last, now, calibration):
            said.append(f"{name} has no valid calibration: {size} users must pass its gates on their own.")
        elif size < router.min_users:
            carried[name] = last
            said.append(f"{name} may be carried by its calibration of {_told(last)}.")
        else:
            said.append(f"{name} passed its calibration of {_told(last)}.")
    return Plan((*kept, RETRAIN), " ".join([*said, "retrain is exact and the last rung."]), carried)


def absent(champion: str, *, unseen: bool, ladder: Sequence[str]) -> Plan:
    """The plan of those of whom the prepared tables hold nothing.

    unseen: the champion's weights were not computed from them either, else only the last rung is left.
    """
    said = "The prepared tables held no row of it when the night began, so none is left to erase from them."
    if unseen:
        why = f"Version {champion} was trained without one: its weights stay as they are."
        return Plan(tuple(ladder), f"{said} {why}")
    why = f"Version {champion} may have been trained when there was one: retrain is exact."
    return Plan(tuple(ladder[-1:]), f"{said} {why}")


def waiting(
    requests: Sequence[Request], plan: Plan, *, now: datetime, defer_days: int, router: RouterParams
) -> frozenset[str]:
    """Ids of the user requests that wait for more of their kind: too few, nothing carries them, none due soon.

    plan: the one for the people among `requests`.
    """
    people = [request for request in requests if request.kind == "user"]
    if defer_days == 0 or not people or len(people) >= router.min_users or plan.carried:
        return frozenset()
    if min(request.due_at for request in people) - now <= timedelta(days=defer_days):
        return frozenset()
    return frozenset(request.id for request in people)


def _by_record(
    ladder: Sequence[str], tried: Mapping[str, Sequence[Tried]], retrain_s: float | None, router: RouterParams
) -> Plan:
    """The ladder of a concept or of items, without the rungs whose record speaks against them."""
    refusals = {
        name: refusal for name in ladder
        if name != RETRAIN and (refusal := _bad_record(tried.get(name, ()), retrain_s, router))
    }  # fmt: skip
    if not refusals:
        return Plan(tuple(ladder), "Ladder as configured: the gates have their power from the test cases.")
    kept = [name for name in ladder if name not in refusals and name != RETRAIN]
    said = [f"{name} is not tried: {refusal}." for name, refusal in refusals.items()]
    return Plan((*kept, RETRAIN), " ".join([*said, "retrain is exact and the last rung."]))


def _bad_record(tried: Sequence[Tried], retrain_s: float | None, router: RouterParams) -> str | None:
    """Why a rung for concepts is dropped, None when it is not. tried: newest first."""
    if not tried:
        return None
    last = tried[0]
    if retrain_s is not None and last.wall_s > router.cost_share * retrain_s:
        return (
            f"its last run on this model family ({last.at:%Y-%m-%d}) took {last.wall_s:.1f} s, more than "
            f"{router.cost_share:.0%} of the {retrain_s:.1f} s of retraining"
        )
    if len(tried) >= router.failures and all(one.verdict == "FAIL" for one in tried[: router.failures]):
        since = tried[router.failures - 1].at
        return f"its last {router.failures} runs on this model family (since {since:%Y-%m-%d}) were FAIL"
    return None


def _refusal(
    last: Calibration | None, size: int, now: datetime, calibration: CalibrationParams, router: RouterParams
) -> str | None:
    """Why a method is dropped, None when it is not."""
    few = f"a group of {size} is smaller than the {router.min_users} people whose gates can speak for themselves"
    if last is None:
        return f"it has no calibration on this model family, and {few}" if size < router.min_users else None
    if last.split_half is not None and last.split_half < router.split_half:
        return (
            f"its contrast carries no information (split-half correlation {last.split_half:.2f} in the calibration of "
            f"{_told(last)}, at least {router.split_half:g} needed)"
        )
    if last.verdict != "PASS":
        return f"its calibration of {_told(last)} was {last.verdict}"
    if not _recent(last, now, calibration) and size < router.min_users:
        return f"its calibration of {_told(last)} is older than {calibration.max_age_days} days, and {few}"
    return None


def _recent(last: Calibration, now: datetime, calibration: CalibrationParams) -> bool:
    return now - last.at <= timedelta(days=calibration.max_age_days)


def _told(last: Calibration) -> str:
    return f"{last.at:%Y-%m-%d} on {last.n} users"
