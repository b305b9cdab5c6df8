"""Stored calibrations: what the weekly shadow cohort said of each approximate method. Figures only, nobody's id.

A calibration speaks for its model family: the same backbone, the same parameters of the method and of the gates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from genrec.requests import audit
from genrec.requests.database import writing
from genrec.requests.schema import CalibrationRow


@dataclass(frozen=True)
class Calibration:
    """One method on one shadow cohort of `n` retained users, judged against an adapter retrained without them.

    at: UTC. split_half: reliability of the method's contrast, None where it reports none. wall_s, gold_s: seconds the
    method and the retraining took. champion: the version it was run on. gates, figures: as JSON.
    """

    id: str
    method: str
    at: datetime
    verdict: str
    n: int
    split_half: float | None
    wall_s: float
    gold_s: float
    backbone_hash: str
    params_hash: str
    champion: str
    gates: Sequence[dict]
    figures: Mapping[str, dict]

    def as_dict(self) -> dict:
        """JSON-ready; the time as ISO 8601."""
        return asdict(self) | {"at": self.at.isoformat()}


_AUDITED = ("method", "verdict", "n", "split_half", "backbone_hash", "params_hash", "champion")


def record(engine: Engine, calibrations: Sequence[Calibration]) -> None:
    """Store them, each with one row of the audit chain, in one transaction."""
    with writing(engine) as session:
        for one in calibrations:
            session.add(CalibrationRow(**asdict(one)))
            payload = {name: getattr(one, name) for name in _AUDITED}
            audit.append(session.connection(), "calibrated", one.id, payload, now=one.at)


def listed(engine: Engine) -> list[Calibration]:
    """All of them, newest first."""
    with Session(engine) as session:
        query = select(CalibrationRow).order_by(CalibrationRow.at.desc(), CalibrationRow.method)
        names = Calibration.__dataclass_fields__
        return [Calibration(**{name: getattr(row, name) for name in names}) for row in session.scalars(query)]


def latest(engine: Engine, backbone_hash: str, params_hashes: Mapping[str, str]) -> dict[str, Calibration]:
    """The newest calibration of each method on this model family, whatever its age and verdict.

    params_hashes: by method, see `genrec.calibration.params_hash`. A method without one on this family is left out.
    """
    found: dict[str, Calibration] = {}
    for one in listed(engine):
        same = one.backbone_hash == backbone_hash and one.params_hash == params_hashes.get(one.method)
        if same and one.method not in found:
            found[one.method] = one
    return found
