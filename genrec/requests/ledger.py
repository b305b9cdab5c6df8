"""The ledger of forget requests: one state machine, one transaction per transition, each of them in the audit chain.

Raw ids of people live here only while a request is open. They come out only in `Batch.subjects`, and closing a request
overwrites them; what stays is the subject's HMAC, its tombstone. Reasons and the record of the identity check are free
text that the audit chain keeps for good: one that holds the person's id is refused. So are texts that one database
could store and another could not.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, undefer

from genrec.config import RequestParams
from genrec.data.subjects import FIELDS, LONGEST_ID, Subject
from genrec.errors import RequestError, unknown
from genrec.requests import audit
from genrec.requests.database import fenced, lock_writers, migrate, scrub, writing
from genrec.requests.deny import denied
from genrec.requests.fence import Fence
from genrec.requests.refusal import Known, free_text, refuse, storable
from genrec.requests.schema import BatchRow, DenyRow, RequestRow, utc
from genrec.requests.states import CLOSED, PERSONAL, TRANSITIONS, Request, shown, step


@dataclass(frozen=True)
class Batch:
    """The requests of one night. `subjects` pairs each request id with its raw subject and is kept out of the repr."""

    id: str
    request_ids: tuple[str, ...]
    subjects: tuple[tuple[str, Subject], ...] = field(repr=False)
    claimed_at: datetime
    stage: str


@dataclass(frozen=True)
class Stage:
    """How far a batch has come: the last step recorded and everything recorded so far."""

    name: str
    details: dict


class Ledger:
    """The requests in the database at `url`, brought to the newest schema. `key` is the secret of the digests.

    With a `fence` every write is refused once that lease is another's.
    """

    def __init__(self, url: str, key: bytes, params: RequestParams, fence: Fence | None = None):
        self.engine = fenced(migrate(url), fence)
        self._key = key
        self._params = params

    def submit(
        self, subject: Subject, known: Known, *, now: datetime, idempotency_key: str | None = None,
        requested_by: str | None = None,
    ) -> Request:  # fmt: skip
        """Store a new request of `requested_by`, or return the one with this key, or the open one about the subject.

        Raises RequestError, with nothing stored, for a subject that is unknown or too broad, for a text that cannot be
        stored, and for a key that was used for another subject.
        """
        now = utc(now)
        digest = self._digest(subject)
        idempotency = None
        if idempotency_key is not None:
            storable("idempotency key", idempotency_key)
            idempotency = hmac.new(self._key, b"idempotency:" + idempotency_key.encode(), hashlib.sha256).hexdigest()
        with Session(self.engine) as session:
            if existing := _existing(session, digest, idempotency):
                return existing
        refuse(subject, known, self._params.max_concept_share)  # may query the data, so outside the write lock
        row = RequestRow(
            id=f"r-{secrets.token_hex(8)}", kind=subject.kind, digest=digest, user_id=subject.user_id,
            item_id=subject.item_id, concept=subject.concept, idempotency=idempotency, requested_by=requested_by,
            state="received", attempts=0, received_at=now, due_at=now + timedelta(days=self._params.due_days),
        )  # fmt: skip
        by = _by(requested_by, row)
        try:
            with writing(self.engine, locked=False) as session:
                session.add(row)
                session.flush()  # the unique indexes decide who is first, and only the audit chain needs the lock
                lock_writers(session.connection())
                payload = {"kind": row.kind, "digest": digest, **by}
                audit.append(session.connection(), "received", row.id, payload, now=now)
        except IntegrityError as error:  # another process was first: find its request
            with Session(self.engine) as session:
                if existing := _existing(session, digest, idempotency):
                    return existing
            raise RequestError(
                "There is an open request about this subject, or one with this key, that this role may not read "
                "(deploy/roles.sql). Ask an operator for it."
            ) from error
        return shown(row)

    def confirm(self) -> None:
        """Raises RequestError where the fence's lease is another's by now: for a step outside the database."""
        with writing(self.engine):
            pass

    def open_request(self, subject: Subject, known: Known) -> Request | None:
        """The open request about `subject`; None where `submit` would store one. Raises RequestError as it does."""
        digest = self._digest(subject)
        with Session(self.engine) as session:
            if existing := _existing(session, digest, None):
                return existing
        refuse(subject, known, self._params.max_concept_share)
        return None

    def verify(
        self, request_id: str, *, now: datetime, verifier: str, how: str = "not recorded",
        deny_items: Sequence[str] = (),
    ) -> Request:  # fmt: skip
        """`verifier` has checked, in the way `how` says, that the requester may ask this: queue and suppress from now.

        `deny_items` are the items of a concept, which must not be empty; an item request denies its own item anyway.
        """
        now = utc(now)
        with writing(self.engine) as session:
            row = _row(session, request_id)
            verifier, how = (
                free_text(name, text, row.user_id) for name, text in (("verifier", verifier), ("way of checking", how))
            )
            verified = step(row, "verified", verifier=verifier, how=how)
            if row.kind in PERSONAL and deny_items:
                raise RequestError(f"Request {row.id} is about a person: only concepts and items have deny_items.")
            denied = {*deny_items, row.item_id} if row.kind == "item" else set(deny_items)
            if row.kind == "concept" and not denied:
                raise RequestError(f"Request {row.id} needs deny_items: the items that carry {row.concept!r}.")
            session.add_all(DenyRow(request_id=row.id, item_id=item) for item in sorted(denied))
            row.verified_at = row.suppressed_at = now
            row.verified_by, row.verified_how = verifier, how
            queued = step(row, "queued", denied=len(denied))
            audit.append_all(session.connection(), [verified, queued], now=now)
            return shown(row)

    def extend(self, request_id: str, *, now: datetime, reason: str, by: str | None = None) -> Request:
        """Give an open request `requests.extension_days` more, once, before it is due, for a reason the person is told.

        by, here and below: the account that did it, where accounts are known. Raises RequestError for a second
        extension and for one that comes too late.
        """
        now = utc(now)
        with writing(self.engine) as session:
            row = _row(session, request_id)
            if row.state in CLOSED:
                raise RequestError(f"Request {row.id} is {row.state}: only an open one has a due date to extend.")
            if row.extended_at:
                raise RequestError(
                    f"Request {row.id} was extended on {row.extended_at:%Y-%m-%d}, to {row.due_at:%Y-%m-%d}. "
                    "There is one extension only: serve it with genrec night."
                )
            if now > row.due_at:
                raise RequestError(
                    f"Request {row.id} was due on {row.due_at:%Y-%m-%d}: an extension is given before that. "
                    "Serve it now with genrec night."
                )
            row.extension_reason = free_text("reason", reason, row.user_id)
            row.extended_at, row.due_at = now, row.due_at + timedelta(days=self._params.extension_days)
            payload = {"reason": reason, "due_at": row.due_at.isoformat(), **_by(by, row)}
            audit.append(session.connection(), "extended", row.id, payload, now=now)
            return shown(row)

    def cancel(self, request_id: str, *, now: datetime, reason: str, by: str | None = None) -> Request:
        """Withdraw a request that is not running yet; its items are shown again."""
        return self._close(request_id, "cancelled", reason, now, by)

    def reject(self, request_id: str, *, now: datetime, reason: str) -> Request:
        """Refuse a request after a look at it, with the reason; its items are shown again."""
        return self._close(request_id, "rejected", reason, now, None)

    def hold(self, request_id: str, *, now: datetime, reason: str, by: str | None = None) -> Request:
        """Keep a request out of the next batches. Its items stay suppressed and its due date stays."""
        with writing(self.engine) as session:
            row = _row(session, request_id)
            _move(session, row, "held", now=now, reason=free_text("reason", reason, row.user_id), **_by(by, row))
            return shown(row)

    def release(self, request_id: str, *, now: datetime, by: str | None = None) -> Request:
        """End a hold: back to queued, or to received when it was never verified."""
        with writing(self.engine) as session:
            row = _row(session, request_id)
            _move(session, row, "queued" if row.verified_at else "received", now=now, **_by(by, row))
            return shown(row)

    def claim(
        self, *, now: datetime, waiting: Callable[[Sequence[Request]], Container[str]] = lambda _: ()
    ) -> Batch | None:
        """The open batch, to be resumed; else a new one of everything queued or failed; None when there is nothing.

        `waiting` says which of these, by id, are left for a later batch.
        """
        now = utc(now)
        with writing(self.engine) as session:
            batch = session.scalar(select(BatchRow).where(BatchRow.closed_at.is_(None)))
            if batch is None:
                query = select(RequestRow).where(RequestRow.state.in_(("queued", "failed"))).order_by(RequestRow.id)
                found = session.scalars(query.with_for_update(skip_locked=True)).all()
                later = waiting([shown(row) for row in found])
                rows = [row for row in found if row.id not in later]
                if not rows:
                    return None
                # attempts, because a batch that failed and is tried again is another batch
                text = audit.canonical_json([[row.id, row.attempts] for row in rows])
                batch_id = f"b-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
                batch = BatchRow(id=batch_id, claimed_at=now, stage="claimed", details={})
                session.add(batch)
                session.flush()  # the requests refer to it
                links = [("claimed", batch.id, {"requests": [row.id for row in rows]})]
                for row in rows:
                    row.batch_id = batch.id
                    links.append(step(row, "running", batch=batch.id))
                audit.append_all(session.connection(), links, now=now)
            return _view(session, batch)

    def open_batch(self) -> Batch | None:
        """The batch that is being worked on, or None; claims nothing."""
        with Session(self.engine) as session:
            batch = session.scalar(select(BatchRow).where(BatchRow.closed_at.is_(None)))
            return None if batch is None else _view(session, batch)

    def set_stage(self, batch_id: str, stage: str, details: dict, *, now: datetime) -> None:
        """Record that a batch has reached `stage`; `details` (JSON) join those recorded. A repeat is always a no-op."""
        with writing(self.engine) as session:
            _reach(session, _batch(session, batch_id), stage, details, now)

    def set_plans(self, batch_id: str, details: dict, why: Mapping[str, str], *, now: datetime) -> None:
        """Record the plans in `details` as the stage `planned`, and in each request, by its id, the router's reason."""
        with writing(self.engine) as session:
            batch = _batch(session, batch_id)
            for row in _members(session, batch.id):
                row.plan = why[row.id]
            _reach(session, batch, "planned", details, now)

    def stage(self, batch_id: str) -> Stage:
        """What `set_stage` recorded, also after the batch is closed."""
        with Session(self.engine) as session:
            batch = _batch(session, batch_id)
            return Stage(batch.stage, batch.details)

    def fulfil(
        self, batch_id: str, methods: Mapping[str, str], *, now: datetime, data_version: str, model_version: str
    ) -> list[Request]:
        """Close a batch as done, by the method named for each of its requests, and overwrite what names a person.

        A batch fulfilled before is returned as it is. Raises RequestError when a method is missing or the batch failed.
        """
        now = utc(now)
        with writing(self.engine) as session:
            batch = _batch(session, batch_id)
            if batch.outcome == "failed":
                raise RequestError(f"Batch {batch.id} is failed and cannot become fulfilled. Claim a new one.")
            rows = _members(session, batch.id)
            if batch.outcome is None:
                if set(methods) != {row.id for row in rows}:
                    different = ", ".join(sorted(set(methods) ^ {row.id for row in rows}))
                    raise RequestError(f"Batch {batch.id} needs one method per request; compare: {different}.")
                versions = {"data_version": data_version, "model_version": model_version}
                links = [step(row, "fulfilled", method=methods[row.id], **versions) for row in rows]
                audit.append_all(session.connection(), links, now=now)
                for row in rows:
                    row.method, row.unlearned_at = methods[row.id], now
                batch.data_version, batch.model_version = data_version, model_version
                _close_batch(session, batch, "fulfilled", now)
            done = [shown(row) for row in rows]
        scrub(self.engine)  # also on a repeat: the first call may have died before this line
        return done

    def fail(self, batch_id: str, reason: str, *, now: datetime) -> None:
        """Close a batch as failed: its requests go into the next one. A batch that failed before stays as it is."""
        now = utc(now)
        with writing(self.engine) as session:
            batch = _batch(session, batch_id)
            if batch.outcome == "failed":
                return
            rows = _members(session, batch.id)
            links = [step(row, "failed", reason=reason, attempts=row.attempts + 1) for row in rows]
            audit.append_all(session.connection(), links, now=now)
            for row in rows:
                row.attempts += 1
            _close_batch(session, batch, "failed", now, reason=reason)

    def requests(self, state: str | None = None, overdue_at: datetime | None = None) -> list[Request]:
        """Requests by time of arrival: all, those in `state`, and/or the open ones that are due by `overdue_at`."""
        if state is not None and state not in TRANSITIONS:
            raise RequestError(unknown("state", state, TRANSITIONS, ""))
        query = select(RequestRow).order_by(RequestRow.received_at, RequestRow.id)
        if state is not None:
            query = query.where(RequestRow.state == state)
        if overdue_at is not None:
            query = query.where(_is_open(), RequestRow.due_at <= utc(overdue_at))
        with Session(self.engine) as session:
            return [shown(row) for row in session.scalars(query)]

    def get(self, request_id: str) -> Request:
        """One request. Raises RequestError when there is none with this id."""
        with Session(self.engine) as session:
            return shown(_row(session, request_id))

    def deny_list(self) -> frozenset[str]:
        """Items that serving must not show now, whatever the model says."""
        return denied(self.engine)

    def tombstones(self) -> dict[str, frozenset[str]]:
        """Digests by kind of every subject that was forgotten: data that matches one must not come back."""
        stones: dict[str, set[str]] = {}
        with Session(self.engine) as session:
            query = select(RequestRow.kind, RequestRow.digest).where(RequestRow.state == "fulfilled")
            for kind, digest in session.execute(query):
                stones.setdefault(kind, set()).add(digest)
        return {kind: frozenset(digests) for kind, digests in stones.items()}

    def _digest(self, subject: Subject) -> str:
        for name in FIELDS[subject.kind]:
            storable(name, getattr(subject, name), LONGEST_ID)
        return subject.digest(self._key)

    def _close(self, request_id: str, state: str, reason: str, now: datetime, by: str | None) -> Request:
        with writing(self.engine) as session:
            row = _row(session, request_id)
            _move(session, row, state, now=now, reason=free_text("reason", reason, row.user_id), **_by(by, row))
            session.execute(delete(DenyRow).where(DenyRow.request_id == row.id))
            closed = shown(row)
        scrub(self.engine)
        return closed


def _move(session: Session, row: RequestRow, state: str, *, now: datetime, **payload: object) -> None:
    audit.append_all(session.connection(), [step(row, state, **payload)], now=now)


def _by(account: str | None, row: RequestRow) -> dict[str, str]:
    return {} if account is None else {"by": free_text("account", account, row.user_id)}


def _reach(session: Session, batch: BatchRow, stage: str, details: dict, now: datetime) -> None:
    merged = {**batch.details, **details}
    if merged == batch.details if details else stage == batch.stage:
        return
    batch.stage, batch.details = stage, merged
    audit.append(session.connection(), "stage", batch.id, {"stage": stage, "details": details}, now=now)


def _close_batch(session: Session, batch: BatchRow, outcome: str, now: datetime, **payload: object) -> None:
    batch.outcome, batch.closed_at = outcome, now
    audit.append(session.connection(), "closed", batch.id, {"outcome": outcome, **payload}, now=now)


def _existing(session: Session, digest: str, idempotency: str | None) -> Request | None:
    if idempotency:
        row = session.scalar(select(RequestRow).where(RequestRow.idempotency == idempotency))
        if row and row.digest != digest:
            raise RequestError(f"The idempotency key of request {row.id} was sent for another subject. Use a new key.")
        if row:
            return shown(row)
    row = session.scalar(select(RequestRow).where(RequestRow.digest == digest, _is_open()))
    return shown(row) if row else None


def _is_open() -> ColumnElement[bool]:
    return RequestRow.state.not_in(CLOSED)


def _row(session: Session, request_id: str) -> RequestRow:
    row = session.get(RequestRow, storable("request id", request_id))
    if row is None:
        raise RequestError(f"Unknown request {request_id!r}. See genrec requests list.")
    return row


def _batch(session: Session, batch_id: str) -> BatchRow:
    batch = session.get(BatchRow, storable("batch id", batch_id))
    if batch is None:
        raise RequestError(f"Unknown batch {batch_id!r}. A request's batch_id names its latest one.")
    return batch


def _members(session: Session, batch_id: str) -> Sequence[RequestRow]:
    query = select(RequestRow).where(RequestRow.batch_id == batch_id).order_by(RequestRow.id)
    return session.scalars(query.options(undefer(RequestRow.user_id))).all()


def _view(session: Session, batch: BatchRow) -> Batch:
    rows = _members(session, batch.id)
    return Batch(
        id=batch.id,
        request_ids=tuple(row.id for row in rows),
        subjects=tuple((row.id, Subject(row.kind, row.user_id, row.item_id, row.concept)) for row in rows),
        claimed_at=batch.claimed_at,
        stage=batch.stage,
    )
