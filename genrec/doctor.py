"""`genrec doctor`: each part of a workspace in one line, with what to do about it. It changes nothing.

A check looks at one part alone, so that one broken part does not hide another.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import httpx
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from genrec.config import Workspace
from genrec.data.version import data_version
from genrec.doctor_server import Server
from genrec.errors import ConfigError, DataError, GenrecError, OutageError
from genrec.report.summary import kept_head
from genrec.requests import audit, certificates, certified
from genrec.requests.database import existing
from genrec.requests.schema import BatchRow, LeaseRow, RequestRow
from genrec.requests.states import CLOSED
from genrec.secret import read_secret

FREE_BYTES = 2 * 10**9  # less free disk than this is broken
TIMEOUT_S = 5


@dataclass(frozen=True)
class Finding:
    """One part: `ok`, `warning` (it works, look at it soon) or `broken`; says what it is, and the remedy unless ok."""

    part: str
    state: Literal["ok", "warning", "broken"]
    says: str
    remedy: str = ""


def examine(workspace: Workspace, now: datetime) -> list[Finding]:
    """Every check on the workspace."""
    return [found for part in CHECKS for found in look_at(part, workspace, now)]


def look_at(part: str, workspace: Workspace, now: datetime) -> list[Finding]:
    """The findings about one part of CHECKS."""
    try:
        return [Finding(part, *said) for said in CHECKS[part](workspace, now)]
    except (GenrecError, SQLAlchemyError) as error:
        return [Finding(part, "broken", f"{type(error).__name__}: {error}".splitlines()[0], REMEDIES[part])]


Said = Iterator[tuple[str, ...]]


def _files(workspace: Workspace, _now: datetime) -> Said:
    missing = [name for name in ("params.yaml", "dvc.yaml", ".dvc") if not (workspace.root / name).exists()]
    if missing:
        yield (
            "broken",
            f"{workspace.root.name} has no {', '.join(missing)}",
            "Set GENREC_HOME, or make one: genrec init DIR",
        )
    else:
        yield "ok", "params.yaml, dvc.yaml and .dvc are there"


def _params(workspace: Workspace, _now: datetime) -> Said:
    workspace.params()
    yield "ok", "every key is known and in range"


def _plugins(workspace: Workspace, _now: datetime) -> Said:
    from genrec.planning import check_plugins, installed_plugins

    found = installed_plugins()
    check_plugins(workspace.params())
    yield "ok", ", ".join(map(str, found)) if found else "no other package adds a method, source or gate"


def _data(workspace: Workspace, _now: datetime) -> Said:
    version = data_version(workspace.data_pin)
    changed = _dvc(workspace, "status", "--json", "data.dvc")
    if changed:
        yield (
            "broken",
            f"data/ is not version {version} of data.dvc",
            "Put it back: dvc checkout data.dvc (or genrec night)",
        )
    else:
        yield "ok", f"data/ is version {version}"


def _remote(workspace: Workspace, _now: datetime) -> Said:
    if not _dvc_output(workspace, "remote", "list").strip():
        yield "ok", "no DVC remote is configured"
    elif _dvc(workspace, "status", "--cloud", "--json", "data.dvc"):
        yield "warning", "the DVC remote does not hold this data version, or is not there", "Send it: dvc push"
    else:
        yield "ok", "the DVC remote holds this data version"


def _dvc(workspace: Workspace, *arguments: str) -> dict:
    return json.loads(_dvc_output(workspace, *arguments))


def _dvc_output(workspace: Workspace, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "see its output")
        raise DataError(f"`dvc {' '.join(arguments)}` failed: {said}")
    return done.stdout


def _champion(workspace: Workspace, _now: datetime) -> Said:
    if workspace.mlflow_uri.startswith("http") and (refused := _unreachable(f"{workspace.mlflow_uri}/health")):
        yield "broken", f"the MLflow server {refused}", "Start it, or correct GENREC_MLFLOW_URI"
        return
    if workspace.settings.mlflow_uri is None and not (workspace.mlruns / "mlflow.db").exists():
        yield "broken", "no model was registered yet", "Train one: genrec train"
        return
    from genrec.registry import open_registry

    registry = open_registry(workspace)
    champion = registry.champion()
    try:
        stored = registry.stored(champion.number)  # the bundle may be one that was kept here
    except OutageError as error:
        yield "broken", str(error), "Start the store, or correct its address and its keys"
        return
    registry.bundle(champion.number)
    folder = registry.bundle_path(champion.number)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    lacking = sorted(name for name, size in files.items() if stored.get(name) != size)
    if lacking:
        yield (
            "broken",
            f"the artefact store lacks {', '.join(lacking[:3])} of version {champion.number}, or has another",
            f"Put it back from {folder}, or go back to another version: genrec models rollback",
        )
    else:
        yield "ok", f"version {champion.number} loads, its hashes agree, the artefact store has its {len(files)} files"


def _ledger(workspace: Workspace, _now: datetime) -> Said:
    engine = existing(workspace.ledger_url)
    if engine is None:
        yield "ok", "no ledger yet; the first request makes it"
        return
    newest = ScriptDirectory(str(Path(__file__).parent / "requests" / "migrations")).get_current_head()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current == newest:
        yield "ok", f"reachable, at the newest schema {newest}"
    else:
        yield "broken", f"its schema is {current}, not {newest}", "Upgrade it: genrec requests list (keep a backup)"


def _audit(workspace: Workspace, _now: datetime) -> Said:
    engine = existing(workspace.ledger_url)
    if engine is None:
        yield "ok", "0 rows, the chain is whole"
        return
    rows = audit.verify_chain(engine, kept_head(workspace.reports))
    found = certified.compare(engine, workspace.certificates)
    yield "ok", f"{rows} rows, the chain is whole; {found.agree} certificates are those it names"


def _keys(workspace: Workspace, _now: datetime) -> Said:
    signing, kept = workspace.settings.signing_key, workspace.var / "pseudonym.key"
    if signing is None:
        yield "warning", "certificates are not signed", "Set GENREC_SIGNING_KEY to an Ed25519 key in PEM"
    else:
        yield _key(signing, certificates.load_signing_key)
    if workspace.settings.pseudonym_key is None and kept.exists():
        yield _key(kept, read_secret)


def _key(path: Path, read: Callable[[Path], object]) -> tuple[str, ...]:
    try:
        read(path)
    except ConfigError as error:
        return "broken", str(error).rstrip("."), REMEDIES["keys"]
    return "ok", f"{path.name} is for its owner only"


def _disk(workspace: Workspace, _now: datetime) -> Said:
    free = shutil.disk_usage(workspace.root).free
    if free < FREE_BYTES:
        yield "broken", f"{free / 1e9:.1f} GB free", "Free some: genrec purge run, or a bigger disk"
    else:
        yield "ok", f"{free / 1e9:.0f} GB free"


def _requests(workspace: Workspace, now: datetime) -> Said:
    soon = now + timedelta(days=workspace.params().requests.alert_days)
    due = _query(workspace, select(RequestRow.id, RequestRow.due_at).where(RequestRow.state.not_in(CLOSED)))
    overdue = [request for request, at in due if at <= now]
    near = [request for request, at in due if now < at <= soon]
    if overdue:
        yield "broken", f"{len(overdue)} overdue: {' '.join(overdue[:5])}", "Serve them: genrec night"
    if near:
        yield "warning", f"{len(near)} due soon: {' '.join(near[:5])}", "Serve them: genrec night"
    if not overdue and not near:
        yield "ok", f"{len(due)} open, none near its due date"


def _lease(workspace: Workspace, now: datetime) -> Said:
    held = _query(workspace, select(LeaseRow.holder, LeaseRow.expires_at).where(LeaseRow.expires_at > now))
    if not held:
        yield "ok", "nobody holds it"
    for holder, expires in held:
        if _dead(holder):
            wait = (expires - now).total_seconds()
            yield "broken", f"held by {holder!r}, which is dead", f"Wait {wait:.0f} s, then genrec night takes it over"
        else:
            yield "ok", f"held by {holder!r} until {expires:%H:%M:%S} UTC"


def _dead(holder: str) -> bool:
    """Whether a holder (`<what> <host> <pid>`) of this host has no process any more."""
    _, host, pid = holder.rsplit(" ", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _last_night(workspace: Workspace, now: datetime) -> Said:
    query = select(BatchRow.id, BatchRow.stage, BatchRow.outcome, BatchRow.closed_at, BatchRow.details)
    last = next(iter(_query(workspace, query.order_by(BatchRow.claimed_at.desc()).limit(1))), None)
    if last is None:
        yield "ok", "there was no night with requests yet"
    elif last.closed_at is None:
        running = _query(workspace, select(LeaseRow.name).where(LeaseRow.expires_at > now))
        said = f"{last.id} is open at the stage {last.stage!r}"
        yield (
            ("ok", f"{said}, somebody works on it")
            if running
            else ("broken", f"{said}, nobody works on it", "genrec night")
        )
    elif last.outcome == "failed":
        said = f"{last.id} is {last.details['outcome']}, the champion stayed"
        yield "broken", said, f"Read reports/nights/{last.id}/index.html, then genrec night"
    else:
        yield "ok", f"{last.id} was {last.outcome} at {last.closed_at:%Y-%m-%d %H:%M} UTC"


def _query(workspace: Workspace, query) -> list:
    engine = existing(workspace.ledger_url)
    if engine is None:
        return []
    with Session(engine) as session:
        return session.execute(query).all()


def _prefect(workspace: Workspace, now: datetime) -> Said:
    url, deployment = os.environ.get("PREFECT_API_URL"), workspace.settings.gpu_deployment
    if url is None:
        if deployment:
            yield "broken", f"GENREC_GPU_DEPLOYMENT is {deployment} without a server", "Set PREFECT_API_URL"
        else:
            yield "ok", "no server is configured; flows run in the process that starts them"
    elif refused := _unreachable(f"{url}/health"):
        yield "broken", f"the Prefect server {refused}", "Start it, or correct PREFECT_API_URL"
    elif deployment and _unreachable(f"{url}/deployments/name/{deployment}"):
        yield "broken", f"the server has no deployment {deployment}", "Make it: genrec deploy"
    else:
        held = bool(_query(workspace, select(LeaseRow.name).where(LeaseRow.expires_at > now)))
        webhook = workspace.settings.alert_webhook is not None
        yield from Server(url, gpu=deployment is not None, webhook=webhook, leased=held).look(now)


def _alerts(workspace: Workspace, _now: datetime) -> Said:
    if workspace.settings.alert_webhook is None:
        yield "warning", "alerts go nowhere: nobody hears of a failed night", "Set GENREC_ALERT_WEBHOOK to a URL"
    else:
        yield "ok", "alerts are sent to GENREC_ALERT_WEBHOOK"


def _unreachable(url: str) -> str:
    """Why `url` does not answer with success, or ""."""
    try:
        answer = httpx.get(url, timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        return f"does not answer ({type(error).__name__})"
    return "" if answer.is_success else f"answers {answer.status_code}"


CHECKS: dict[str, Callable[[Workspace, datetime], Said]] = {
    "workspace": _files, "params": _params, "plugins": _plugins, "data": _data, "remote": _remote,
    "champion": _champion, "ledger": _ledger, "audit": _audit, "keys": _keys, "disk": _disk, "requests": _requests,
    "lease": _lease, "last night": _last_night, "alerts": _alerts, "prefect": _prefect,
}  # fmt: skip
REMEDIES = {
    "params": "Correct params.yaml", "plugins": "Correct params.yaml, or the package",
    "data": "genrec data fetch SOURCE", "remote": "Correct it: dvc remote modify",
    "champion": "Go back to another version: genrec models rollback", "keys": "Correct the file, or GENREC_SIGNING_KEY",
    "ledger": "Correct GENREC_LEDGER_URL, or start the database", "audit": "Compare with a backup of the ledger",
    "requests": "See the lines `params` and `ledger`", "lease": "See the line `ledger`",
    "last night": "See the line `ledger`", "prefect": "Look at the server's log, and at the line `ledger`",
}  # fmt: skip
