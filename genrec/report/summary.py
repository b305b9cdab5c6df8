"""The record of one night, `summary.json`: what was asked, tried, measured and decided.

Notable choices: every figure may be missing, and NaN or infinity becomes missing on the way in, so that the file is
strict JSON; a time without a zone is taken as UTC; the record holds HMAC digests, never a raw user id.
"""

import json
import math
from datetime import UTC, datetime
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from genrec.data.files import write_atomically
from genrec.errors import DataError


def _finite(value: Any) -> Any:
    """Python numbers from any real (NumPy scalars too); None where there is no finite value."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


SCHEMA = 2

Number = Annotated[int | float | None, BeforeValidator(_finite)]
Count = Annotated[int | None, BeforeValidator(_finite)]
NumberOrText = Annotated[int | float | str | None, BeforeValidator(_finite)]
Time = Annotated[datetime, AfterValidator(_utc)]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


class Record(BaseModel):
    """A frozen part of the summary: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Request(Record):
    """One forget request of the batch. `digest` is the HMAC of its subject, `label` the name of a concept or item,
    `plan` why the router chose its ladder."""

    id: str
    kind: str
    digest: str
    label: str | None = None
    state: str
    method: str | None = None
    plan: str | None = None
    received_at: Time | None = None
    verified_at: Time | None = None
    suppressed_at: Time | None = None
    unlearned_at: Time | None = None
    due_at: Time | None = None


class Gate(Record):
    """One figure against its limit: a number, or the interval it must lie in."""

    name: str
    verdict: Verdict
    value: Number = None
    low: Number = None
    high: Number = None
    limit: tuple[Number, Number] | Number = None
    n: Count = None
    rule: str = ""
    blocking: bool = True


class Measure(Record):
    value: Number = None
    low: Number = None
    high: Number = None
    n: Count = None


class Attempt(Record):
    """One rung of a group's ladder; `reason` says why this rung was taken.

    exact: retrained without the data. version: registered as, None where the method could not run; made_from: the
    version it edited. forgetting: figures of its group. nll_increase: of the test NLL over the champion, nat per token.
    """

    group: str
    method: str
    verdict: Verdict
    wall_s: Number = None
    reason: str = ""
    gates: tuple[Gate, ...] = ()
    diagnostics: dict[str, NumberOrText] = {}
    exact: bool = False
    version: str | None = None
    made_from: str | None = None
    forgetting: dict[str, Measure] = {}
    nll_increase: Measure | None = None


class Comparison(Record):
    """The same metrics of the champion before the night and of the one after it."""

    before: dict[str, Measure] = {}
    after: dict[str, Measure] = {}


class SidChange(Record):
    item_id: str
    title: str
    before: tuple[int, ...]
    after: tuple[int, ...]


class Reference(Record):
    """The model that a calibration retrained without its cohort of `n` people, in the place of the night's own."""

    at: Time
    n: int
    forgetting: dict[str, Measure]
    nll_increase: Measure


class Curve(Record):
    """`genrec.evaluation.evidence.Curve`: the loss attack's ROC, or the counts that are too small for one."""

    forgotten: int
    unseen: int
    least: int
    auc: Measure | None = None
    tpr: Measure | None = None
    points: tuple[tuple[float, float], ...] = ()


class Membership(Record):
    """The curve of the champion before the night, and of the attempt with index `attempt`."""

    attempt: int
    before: Curve | None = None
    after: Curve


class Neighbour(Record):
    """A retained item next to forgotten ones; `before` and `after` are shares of lists, places count from 1."""

    item_id: str
    title: str
    shared: int
    before: Number = None
    after: Number = None
    place_before: Number = None
    place_after: Number = None


class Neighbours(Record):
    """`genrec.evaluation.evidence.Neighbours`, after the attempt with index `attempt`."""

    attempt: int
    total: int
    least: int
    levels: int
    lists: int
    items: tuple[Neighbour, ...]


class Check(Record):
    """One expectation about the data; `broken`: it could not run. Rows that broke it are in artefacts/."""

    suite: str
    expectation: str
    success: bool
    observed: str
    broken: bool = False


class Validation(Record):
    """The data validation; `results` is empty in records of schema 1."""

    success: bool
    checks: int
    failed: int
    results: tuple[Check, ...] = ()


class Lineage(Record):
    parent: str | None = None
    version: str | None = None
    code_version: str | None = None
    backbone_hash: str | None = None
    bundle_before: str | None = None
    bundle_after: str | None = None


class AuditHead(Record):
    """The newest row of the audit chain as the summary was written: a chain that was cut off has it no more."""

    seq: int
    hash: str


class Summary(Record):
    """The whole night. `wall_s` and every figure of `cost` ending in `_s` are seconds.

    Schema 1 had no membership, neighbours and reference, and of attempts only the gates; it is still read.
    """

    schema_version: Literal[1, 2] = Field(SCHEMA, alias="schema")
    batch_id: str | None = None
    outcome: Literal["promoted", "held", "failed", "nothing to do"]
    reason: str = ""
    started_at: Time
    finished_at: Time
    wall_s: Number = None
    data_version_before: str | None = None
    data_version: str | None = None
    champion_before: str | None = None
    champion_after: str | None = None
    requests: tuple[Request, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    utility: Comparison = Comparison()
    forgetting: Comparison = Comparison()
    reference: Reference | None = None
    membership: Membership | None = None
    neighbours: Neighbours | None = None
    sid_diff: tuple[SidChange, ...] = ()
    validation: Validation | None = None
    lineage: Lineage = Lineage()
    audit_head: AuditHead | None = None
    cost: dict[str, NumberOrText] = {}


def write_summary(summary: Summary, directory: Path) -> Path:
    """Write `directory/summary.json` atomically, keys sorted, and return its path."""
    tree = summary.model_dump(mode="json", by_alias=True)
    text = json.dumps(tree, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomic(directory / "summary.json", text + "\n")


def read_summary(path: Path) -> Summary:
    """Read a `summary.json`. Raises DataError naming the first wrong key and its value."""
    try:
        return Summary.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(f"No summary at {path}. Every run of the flow `unlearn` writes one.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}. Restore it from the run's MLflow artefacts.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        remedy = "Restore it from the run's MLflow artefacts."
        if key == "schema":
            remedy = (
                f"This version reads schemas 1 to {SCHEMA}: install the one that wrote it, or open the page beside it."
            )
        raise DataError(f"{path}: {key} = {first['input']!r}: {first['msg']}. {remedy}") from error


def kept_head(reports: Path) -> str | None:
    """The hash of the audit chain's head that the last night kept outside of the database; None where none did."""
    path = reports / "latest" / "summary.json"
    known = read_summary(path).audit_head if path.exists() else None
    return known.hash if known else None


def write_atomic(path: Path, text: str) -> Path:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path
