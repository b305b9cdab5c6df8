"""What an account may ask of the ledger: the one set of functions behind the pages and the API.

Each checks the role and calls what the command line calls.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from genrec.config import Workspace
from genrec.console.accounts import Account
from genrec.console.nights import Nights
from genrec.console.roles import MAY, Action, require, require_another
from genrec.data.subjects import Subject
from genrec.dry_run import DryRun, dry_run
from genrec.errors import MissingError, RequestError
from genrec.registry import CHAMPION, Version, open_registry
from genrec.requests import audit, intake
from genrec.requests.schema import RequestRow
from genrec.requests.states import CLOSED, Request, shown
from genrec.requests.store import open_ledger


@dataclass(frozen=True)
class Event:
    """A row of the audit chain about a request. facts: its payload."""

    seq: int
    at: datetime
    event: str
    facts: dict
    hash: str


class Desk:
    """The workspace as the console sees it. on_demand: see `Nights`."""

    def __init__(self, workspace: Workspace, on_demand: Callable[[], None] | None):
        self.workspace = workspace
        self._ledger = open_ledger(workspace)
        self.nights = Nights(workspace, self._ledger, on_demand)

    def requests(self, account: Account, *, is_open: bool | None, limit: int, offset: int = 0) -> list[Request]:
        """Requests the account may see: open ones by due date, closed ones newest first, or (None) all by arrival."""
        query = select(RequestRow).limit(limit).offset(offset)
        if account.role not in MAY[Action.SEE_ALL]:
            query = query.where(RequestRow.requested_by == account.name)
        if is_open is None:
            query = query.order_by(RequestRow.received_at, RequestRow.id)
        elif is_open:
            query = query.where(RequestRow.state.not_in(CLOSED)).order_by(RequestRow.due_at, RequestRow.id)
        else:
            query = query.where(RequestRow.state.in_(CLOSED)).order_by(RequestRow.received_at.desc(), RequestRow.id)
        with Session(self._ledger.engine) as session:
            return [shown(row) for row in session.scalars(query)]

    def request(self, account: Account, request_id: str) -> Request:
        """One request. Raises MissingError where there is none, and where it is another's that one may not see."""
        try:
            found = self._ledger.get(request_id)
        except RequestError as error:
            raise MissingError(str(error)) from error
        if not self._sees(account, found):
            raise MissingError(f"Unknown request {request_id!r}. See genrec requests list.")
        return found

    def history(self, request: Request) -> list[Event]:
        """What the audit chain says of a request, oldest first. It never held a raw id."""
        return [
            Event(row["seq"], datetime.fromisoformat(row["at"]), row["event"], json.loads(row["payload"]), row["hash"])
            for row in audit.rows(self._ledger.engine, request.id)
        ]

    def dry_run(self, account: Account, subject: Subject, now: datetime) -> DryRun:
        require(account.role, Action.SUBMIT)
        return dry_run(self.workspace, subject, now)

    def submit(self, account: Account, subject: Subject, now: datetime, idempotency_key: str | None) -> Request:
        """Submit in the account's name; its idempotency keys are its own.

        Raises RequestError as the ledger does, and for an open request that the account may not see.
        """
        require(account.role, Action.SUBMIT)
        key = None if idempotency_key is None else f"{account.name}:{idempotency_key}"
        stored = intake.submit(self.workspace, subject, now=now, idempotency_key=key, requested_by=account.name)
        if not self._sees(account, stored):
            raise RequestError("Somebody else has submitted this already, and it is open. Ask an operator for it.")
        return stored

    def verify(self, account: Account, request_id: str, how: str, now: datetime) -> Request:
        """Raises AccessError where a concept's submitter would verify it."""
        require(account.role, Action.VERIFY)
        require_another(account.name, self.request(account, request_id))
        return intake.verify(self.workspace, request_id, now=now, verifier=account.name, how=how)

    def hold(self, account: Account, request_id: str, reason: str, now: datetime) -> Request:
        self._handle(account, request_id)
        return self._ledger.hold(request_id, now=now, reason=reason, by=account.name)

    def release(self, account: Account, request_id: str, now: datetime) -> Request:
        self._handle(account, request_id)
        return self._ledger.release(request_id, now=now, by=account.name)

    def extend(self, account: Account, request_id: str, reason: str, now: datetime) -> Request:
        self._handle(account, request_id)
        return self._ledger.extend(request_id, now=now, reason=reason, by=account.name)

    def cancel(self, account: Account, request_id: str, reason: str, now: datetime) -> Request:
        self._handle(account, request_id)
        return self._ledger.cancel(request_id, now=now, reason=reason, by=account.name)

    def start_night(self, account: Account, now: datetime) -> None:
        """See `Nights.start`."""
        require(account.role, Action.START)
        self.nights.start(now)

    def champion(self) -> Version | None:
        """The version that is served; None before there is one."""
        return open_registry(self.workspace).version(CHAMPION)

    def certificate(self, account: Account, request_id: str) -> Path:
        """The certificate's file. Raises MissingError where there is none yet."""
        request = self.request(account, request_id)
        path = self.workspace.certificates / f"{request.id}.json"
        if request.state != "fulfilled" or not path.exists():
            raise MissingError(f"Request {request.id} is {request.state} and has no certificate here.")
        return path

    def _sees(self, account: Account, request: Request) -> bool:
        return request.requested_by == account.name or account.role in MAY[Action.SEE_ALL]

    def _handle(self, account: Account, request_id: str) -> None:
        require(account.role, Action.HANDLE)
        self.request(account, request_id)
