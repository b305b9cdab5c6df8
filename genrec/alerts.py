"""Which alerts there are, and their delivery to the webhook GENREC_ALERT_WEBHOOK: each once per cause.

What was delivered is a row `alerted` of the audit chain, with the cause as its subject; a cause with the date in it is
told daily. An alert names batches, requests, gates and versions; never an error's message, which may quote a row, and
never a raw id.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from hashlib import sha256

import httpx
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from genrec.config import Workspace
from genrec.errors import ConfigError, GenrecError, RequestError
from genrec.lineage import TRAINED
from genrec.registry import CHAMPION, Registry, Version, open_registry
from genrec.requests import audit
from genrec.requests.calibrations import listed
from genrec.requests.database import reaching, writing
from genrec.requests.schema import AuditRow, BatchRow, LeaseRow
from genrec.requests.store import open_ledger

TIMEOUT_S = 10
logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it writes the webhook's URL, which is a secret
ALERTED = "alerted"


@dataclass(frozen=True)
class Alert:
    """kind: `night failed`, `night held`, `night broken off`, `remote`, `due`, `overdue`, `audit`, `calibration`,
    `drift`, and `ledger`, which is never standing: what stands could not be read.

    cause: what makes two alerts one, at most 64 characters. text: one line with the remedy.
    """

    kind: str
    cause: str
    text: str


def standing(
    workspace: Workspace, now: datetime, failure: str | None = None, unsent: str | None = None
) -> Iterator[Alert]:
    """Every alert that holds now, whether told or not; registry and bundle are read last.

    failure: name of the error that just ended a run of the flow `unlearn` without closing a batch.
    unsent: the data version that such a run could not send to the DVC remote.
    """
    ledger, params = open_ledger(workspace), workspace.params()
    yield from _night(ledger.engine, now, failure)
    if unsent:
        text = f"The DVC remote did not take data version {unsent}. The next night tries again; or send it: dvc push."
        yield Alert("remote", f"remote {unsent}"[:64], text)
    for request in ledger.requests(overdue_at=now + timedelta(days=params.requests.alert_days)):
        kind = "overdue" if request.due_at <= now else "due"
        said = f"Request {request.id} is {request.state} and due at {request.due_at:%Y-%m-%d %H:%M} UTC."
        yield Alert(kind, f"{kind} {request.id} {request.due_at:%Y-%m-%d}", f"{said} Start a night: genrec night.")
    try:
        audit.verify_chain(ledger.engine)
    except RequestError as error:
        yield Alert("audit", f"audit {sha256(str(error).encode()).hexdigest()[:16]}", str(error))
    yield from _calibration(ledger.engine, now, params.calibration.max_age_days)
    yield from _drift(open_registry(workspace), params.gates.drift)


def deliver(workspace: Workspace, now: datetime, failure: str | None = None, unsent: str | None = None) -> list[Alert]:
    """POST each standing alert that was not told yet as JSON {kind, cause, text, at}; returns those sent.

    One that could not be sent stands for the next call. Where the ledger cannot be opened nobody knows what stands and
    what was told: then `failure`, or the ledger itself, is told each time. Raises httpx.TransportError when nobody
    answers within TIMEOUT_S seconds, ConfigError when the webhook refuses.
    """
    url = workspace.settings.alert_webhook
    if url is None:
        return []
    try:
        engine, sent = open_ledger(workspace).engine, []
        with reaching(engine):
            told = _told(engine)
    except GenrecError as error:
        alert = _no_ledger(now, type(error).__name__, failure)
        _post(url, alert, now)
        return [alert]
    for alert in standing(workspace, now, failure, unsent):
        if alert.cause in told:
            continue
        _post(url, alert, now)
        with writing(engine) as session:
            audit.append(session.connection(), ALERTED, alert.cause, {"kind": alert.kind}, now=now)
        sent.append(alert)
    return sent


def _post(url: str, alert: Alert, now: datetime) -> None:
    answer = httpx.post(url, json=asdict(alert) | {"at": now.isoformat()}, timeout=TIMEOUT_S)
    if not answer.is_success:
        raise ConfigError(f"The webhook answered {answer.status_code} to an alert. Check GENREC_ALERT_WEBHOOK.")


def _no_ledger(now: datetime, error: str, failure: str | None) -> Alert:
    said = f"The night ended with {failure}, and the" if failure else "The"
    text = f"{said} ledger cannot be opened: {error}. See genrec doctor."
    return Alert("night failed" if failure else "ledger", f"no ledger {now:%Y-%m-%d} {failure or error}"[:64], text)


def _told(engine: Engine) -> set[str]:
    with Session(engine) as session:
        return set(session.scalars(select(AuditRow.subject).where(AuditRow.event == ALERTED)))


def _night(engine: Engine, now: datetime, failure: str | None) -> Iterator[Alert]:
    with Session(engine) as session:
        batch = session.scalar(select(BatchRow).order_by(BatchRow.claimed_at.desc()).limit(1))
        lease = session.scalar(select(LeaseRow).where(LeaseRow.expires_at > now).limit(1))
    if batch is not None and batch.closed_at is None and lease is None:
        ended = f" with {failure}" if failure else ""
        text = (
            f"Night {batch.id} broke off at the stage {batch.stage!r}{ended}. The next run finishes it: genrec night."
        )
        yield Alert("night broken off", f"broken off {batch.id} {now:%Y-%m-%d}", text)
    elif failure:
        held = f" while {lease.holder!r} holds the lease since {lease.acquired_at:%Y-%m-%d %H:%M} UTC" if lease else ""
        text = f"The night could not begin: {failure}{held}. See the flow run in Prefect, and genrec doctor."
        yield Alert("night failed", f"not begun {now:%Y-%m-%d} {failure}"[:64], text)
    if batch is not None and batch.outcome == "failed":
        outcome = batch.details["outcome"]
        tried = [f"{a['group']}: {a['method']} {a['verdict']}" for a in batch.details["attempts"]]
        text = f"Night {batch.id} is {outcome} ({'; '.join(tried) or 'nothing was tried'}). The champion stays."
        yield Alert(f"night {outcome}", f"{outcome} {batch.id}", f"{text} See reports/nights/{batch.id}.")


def _calibration(engine: Engine, now: datetime, days: int) -> Iterator[Alert]:
    """Where there was one: a shop that never calibrated knows that it retrains."""
    last = next(iter(listed(engine)), None)
    if last is not None and now - last.at > timedelta(days=days):
        text = f"The last calibration is of {last.at:%Y-%m-%d}, and one is valid for {days} days: without it few people"
        yield Alert("calibration", f"calibration {last.at:%Y-%m-%d}", f"{text} mean a retraining. genrec calibrate.")


def _drift(registry: Registry, limit: float) -> Iterator[Alert]:
    champion = registry.version(CHAMPION)
    if champion is None:
        return
    spent = 1 - registry.bundle(champion.number).lineage.utility_ratio
    if spent > limit:
        text = (
            f"Champion {champion.number} lost {spent:.3f} of NDCG@10 since the last full training; {limit} is allowed."
        )
        yield Alert("drift", f"drift {_trained(registry, champion)}", f"{text} Train anew: genrec train.")


def _trained(registry: Registry, version: Version) -> str:
    """Number of the last ancestor that was fully trained, or of the oldest one that is left."""
    while version.tags["method"] not in TRAINED:
        parent = registry.version(version.tags["parent"])
        if parent is None:
            break
        version = parent
    return version.number
