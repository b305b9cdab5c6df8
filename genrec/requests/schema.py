"""The ledger's tables. Every time is stored as UTC; the raw columns of a person are NULL once a request is closed."""

from datetime import UTC, datetime

from sqlalchemy import JSON, DateTime, Float, ForeignKey, Index, Integer, MetaData, String, Text, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from genrec.errors import RequestError


def utc(moment: datetime) -> datetime:
    """The same moment in UTC. Raises RequestError for a time without a zone."""
    if moment.tzinfo is None:
        raise RequestError(f"The time {moment.isoformat()} has no time zone. Use datetime.now(UTC).")
    return moment.astimezone(UTC)


class UTCDateTime(TypeDecorator):
    """An aware datetime. SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class BatchRow(Base):
    """One night's requests; `stage` and `details` say how far its saga has come."""

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    claimed_at: Mapped[datetime] = mapped_column(UTCDateTime)
    stage: Mapped[str] = mapped_column(String(64))
    details: Mapped[dict] = mapped_column(JSON)
    outcome: Mapped[str | None] = mapped_column(String(16))
    closed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    data_version: Mapped[str | None] = mapped_column(Text)
    model_version: Mapped[str | None] = mapped_column(Text)


class RequestRow(Base):
    """One forget request. `idempotency` is an HMAC, because a caller may build its key from a user id."""

    __tablename__ = "requests"
    __table_args__ = (
        Index(
            "uq_requests_open_digest",
            "digest",
            unique=True,
            sqlite_where=text("state NOT IN ('fulfilled', 'rejected', 'cancelled')"),
            postgresql_where=text("state NOT IN ('fulfilled', 'rejected', 'cancelled')"),
        ),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), index=True)
    user_id: Mapped[str | None] = mapped_column(Text, deferred=True)  # read only where it is needed
    item_id: Mapped[str | None] = mapped_column(Text)
    concept: Mapped[str | None] = mapped_column(Text)
    idempotency: Mapped[str | None] = mapped_column(String(64), unique=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(Integer)
    received_at: Mapped[datetime] = mapped_column(UTCDateTime)
    verified_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    suppressed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    unlearned_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    due_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    requested_by: Mapped[str | None] = mapped_column(Text, index=True)
    verified_by: Mapped[str | None] = mapped_column(Text)
    verified_how: Mapped[str | None] = mapped_column(Text)
    extended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    extension_reason: Mapped[str | None] = mapped_column(Text)
    method: Mapped[str | None] = mapped_column(String(64))
    plan: Mapped[str | None] = mapped_column(Text)
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batches.id"), index=True)


class CalibrationRow(Base):
    """One method on one week's shadow cohort; `gates` and `figures` are aggregates."""

    __tablename__ = "calibrations"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    method: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    verdict: Mapped[str] = mapped_column(String(16))
    n: Mapped[int] = mapped_column(Integer)
    split_half: Mapped[float | None] = mapped_column(Float)
    wall_s: Mapped[float] = mapped_column(Float)
    gold_s: Mapped[float] = mapped_column(Float)
    backbone_hash: Mapped[str] = mapped_column(String(64))
    params_hash: Mapped[str] = mapped_column(String(64))
    champion: Mapped[str] = mapped_column(Text)
    gates: Mapped[list] = mapped_column(JSON)
    figures: Mapped[dict] = mapped_column(JSON)


class DenyRow(Base):
    """An item that serving must not show, and the request that says so."""

    __tablename__ = "deny_items"

    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"), primary_key=True)
    item_id: Mapped[str] = mapped_column(Text, primary_key=True)


class AuditRow(Base):
    """One link of the audit chain. `at` and `payload` are the very text that was hashed."""

    __tablename__ = "audit"

    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(String(40))
    event: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(64), index=True)
    payload: Mapped[str] = mapped_column(Text)
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class LeaseRow(Base):
    """Who may run what. The row stays after a release, so that `token` never repeats."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(Text)
    token: Mapped[int] = mapped_column(Integer)
    acquired_at: Mapped[datetime] = mapped_column(UTCDateTime)
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)
