"""Nights as the console shows and starts them: the one that runs, those that ended, and a new one on demand."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from genrec.config import Workspace
from genrec.errors import MissingError, RequestError
from genrec.evaluation.verdicts import undecided
from genrec.requests.lease import NIGHT, Held, held
from genrec.requests.ledger import Ledger
from genrec.requests.schema import BatchRow, RequestRow

LOG = "console-night.log"
PAGE, SUMMARY = "index.html", "summary.json"


@dataclass(frozen=True)
class Attempt:
    """One rung that was judged. reason: why this one, or why it failed. undecided: blocking gates that are not PASS."""

    group: str
    method: str
    verdict: str
    wall_s: float
    reason: str
    undecided: tuple[str, ...]


@dataclass(frozen=True)
class Running:
    """What is under way. lease: None while nothing works; a batch without one broke off, the next night finishes it.

    process: one that the console started is alive and has no lease: it begins or ends. failure: the name of the error
    that the last one ended with; its message may quote a row and stays in the log.
    """

    lease: Held | None
    process: bool
    failure: str | None
    batch_id: str | None
    stage: str | None
    claimed_at: datetime | None
    request_ids: tuple[str, ...]
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Past:
    """A batch that is closed. outcome: `promoted`, `held` or `failed`. report: whether its page is still there."""

    batch_id: str
    outcome: str
    claimed_at: datetime
    closed_at: datetime
    requests: int
    model_version: str | None
    data_version: str | None
    report: bool


class Nights:
    """on_demand: asks a Prefect server for a run; None without one, where a night is a process of its own."""

    def __init__(self, workspace: Workspace, ledger: Ledger, on_demand: Callable[[], None] | None):
        self._workspace, self._ledger, self._on_demand = workspace, ledger, on_demand
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()

    def running(self, now: datetime) -> Running:
        batch, lease = self._ledger.open_batch(), held(self._ledger.engine, NIGHT, now)
        ended = self._process.poll() if self._process else None
        return Running(
            lease=lease,
            process=lease is None and self._process is not None and ended is None,
            failure=_failure(self._workspace.var / LOG, ended) if ended else None,
            batch_id=batch.id if batch else None,
            stage=batch.stage if batch else None,
            claimed_at=batch.claimed_at if batch else None,
            request_ids=batch.request_ids if batch else (),
            attempts=self._attempts(batch.id) if batch else (),
        )

    def past(self, limit: int) -> list[Past]:
        """The last `limit` closed batches, newest first."""
        count = select(func.count()).where(RequestRow.batch_id == BatchRow.id).scalar_subquery()
        query = select(BatchRow, count).where(BatchRow.closed_at.is_not(None))
        with Session(self._ledger.engine) as session:
            found = session.execute(query.order_by(BatchRow.claimed_at.desc()).limit(limit)).all()
        return [
            Past(
                row.id, "promoted" if row.outcome == "fulfilled" else row.details["outcome"], row.claimed_at,
                row.closed_at, n, row.model_version, row.data_version, (self._folder(row.id) / PAGE).exists(),
            )
            for row, n in found
        ]  # fmt: skip

    def report(self, batch_id: str) -> Path:
        """The page of a batch of the ledger. Raises MissingError for another name and where the page is gone."""
        return self._written(batch_id, PAGE)

    def summary(self, batch_id: str) -> Path:
        """The same figures as JSON; raises likewise."""
        return self._written(batch_id, SUMMARY)

    def start(self, now: datetime) -> None:
        """Start a night. Raises RequestError while one runs or starts; what the Prefect server refuses, as it does."""
        with self._lock:
            now_running = self.running(now)
            if lease := now_running.lease:
                raise RequestError(
                    f"{lease.holder!r} is at work since {lease.acquired_at:%H:%M} UTC. Start a night when it has ended."
                )
            if now_running.process:
                raise RequestError("A night that was started here begins or ends just now. Wait for it.")
            if self._on_demand:
                self._on_demand()
                return
            path = self._workspace.var / LOG
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
                self._process = subprocess.Popen(  # a session of its own: it outlives the console
                    [sys.executable, "-m", "genrec.cli", "night"], stdout=log, stderr=log, start_new_session=True,
                    cwd=self._workspace.root, env={**os.environ, "GENREC_HOME": str(self._workspace.root)},
                )  # fmt: skip

    def _written(self, batch_id: str, name: str) -> Path:
        try:
            self._ledger.stage(batch_id)
        except RequestError as error:
            raise MissingError(str(error)) from error
        path = self._folder(batch_id) / name
        if not path.exists():
            raise MissingError(f"Night {batch_id} has no {name} here. A night writes one when it ends.")
        return path

    def _folder(self, batch_id: str) -> Path:
        return self._workspace.reports / "nights" / batch_id

    def _attempts(self, batch_id: str) -> tuple[Attempt, ...]:
        """What the night's folder and, once it is decided, its stage say."""
        told = self._ledger.stage(batch_id).details.get("attempts")
        if told is None:
            files = (self._workspace.var / "nights" / batch_id).glob("attempt-*.json")
            told = sorted((json.loads(file.read_text()) for file in files), key=lambda one: one["number"])
        return tuple(
            Attempt(
                one["group"], one["method"], one["verdict"], one["wall_s"], one["reason"],
                tuple(gate["name"] for gate in undecided(one["gates"])),
            )
            for one in told
        )  # fmt: skip


def _failure(log: Path, code: int) -> str:
    named = re.findall(r"^(\w+): ", log.read_text(errors="replace"), re.MULTILINE)
    return named[-1] if named else f"exit code {code}"
