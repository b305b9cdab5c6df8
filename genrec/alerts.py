"""Which alerts there are, and their delivery to the webhook GENREC_ALERT_WEBHOOK: each once per cause.

What was delivered is a row `alerted` of the audit chain, with the cause as its subject. An alert names batches,
requests, gates and versions; never an error's message, which may quote a row, and never a raw id.
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
from genrec.errors import ConfigError, RequestError
from genrec.lineage import TRAINED
from genrec.registry import CHAMPION, Registry, Version, open_registry
from genrec.requests import audit
from genrec.requests.database import writing
from genrec.requests.schema import AuditRow, BatchRow, LeaseRow
from genrec.requests.store import open_ledger

TIMEOUT_S = 10
logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it writes the webhook's URL, which is a secret
ALERTED = "alerted"


@dataclass(frozen=True)
class Alert:
    """kind: `night failed`, `night held`, `night broken off`, `remote`, `due`, `overdue`, `audit` or `drift`.

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
    yield from _drift(open_registry(workspace), params.gates.drift)


def deliver(workspace: Workspace, now: datetime, failure: str | None = None, unsent: str | None = None) -> list[Alert]:
    """POST each standing alert that was not told yet as JSON {kind, cause, text, at}; returns those sent.

    One that could not be sent stands for the next call. Raises httpx.TransportError when nobody answers within
    TIMEOUT_S seconds, ConfigError when the webhook refuses.
    """
    url = workspace.settings.alert_webhook
    if url is None:
        return []
    engine, sent = open_ledger(workspace).engine, []
    told = _told(engine)
    for alert in standing(workspace, now, failure, unsent):
        if alert.cause in told:
            continue
        answer = httpx.post(url, json=asdict(alert) | {"at": now.isoformat()}, timeout=TIMEOUT_S)
        if not answer.is_success:
            raise ConfigError(f"The webhook answered {answer.status_code} to an alert. Check GENREC_ALERT_WEBHOOK.")
        with writing(engine) as session:
            audit.append(session.connection(), ALERTED, alert.cause, {"kind": alert.kind}, now=now)
        sent.append(alert)
    return sent


def _told(engine: Engine) -> set[str]:
    with Session(engine) as session:
        return set(session.scalars(select(AuditRow.subject).where(AuditRow.event == ALERTED)))


def _night(engine: Engine, now: datetime, failure: str | None) -> Iterator[Alert]:
    with Session(engine) as session:
        batch = session.scalar(select(BatchRow).order_by(BatchRow.claimed_at.desc()).limit(1))
        running = session.scalar(select(LeaseRow.name).where(LeaseRow.expires_at > now).limit(1)) is not None
    if batch is not None and batch.closed_at is None and (failure or not running):
        ended = f" with {failure}" if failure else ""
        text = (
            f"Night {batch.id} broke off at the stage {batch.stage!r}{ended}. The next run finishes it: genrec night."
        )
        yield Alert("night broken off", f"broken off {batch.id}", text)
    elif failure:
        text = f"The night could not begin: {failure}. See the flow run in Prefect, and genrec doctor."
        yield Alert("night failed", f"not begun {now:%Y-%m-%d} {failure}"[:64], text)
    if batch is not None and batch.outcome == "failed":
        outcome = batch.details["outcome"]
        tried = [f"{a['group']}: {a['method']} {a['verdict']}" for a in batch.details["attempts"]]
        text = f"Night {batch.id} is {outcome} ({'; '.join(tried) or 'nothing was tried'}). The champion stays."
        yield Alert(f"night {outcome}", f"{outcome} {batch.id}", f"{text} See reports/nights/{batch.id}.")


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
