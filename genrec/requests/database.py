"""Connections to the ledger's database, its migrations, and the one way to write to it."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import Session

from genrec.errors import ConfigError, OutageError, RequestError
from genrec.requests.fence import Fence
from genrec.requests.schema import LeaseRow

if TYPE_CHECKING:
    from alembic.config import Config

BUSY_SECONDS = 30
ANSWER = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
          "tcp_user_timeout": 60_000}  # fmt: skip
"""Of a PostgreSQL connection: one whose server is gone ends within a minute or so, not after the system's two hours."""
HELD = {"tcp_keepalives_idle": "30s", "tcp_keepalives_interval": "10s", "tcp_keepalives_count": "3",
        "lock_timeout": "120s", "idle_in_transaction_session_timeout": "900s"}  # fmt: skip
"""Of its session on the server: a client that is gone, or frozen in a transaction, does not keep the writers' lock, and
nobody waits for that lock without end. There is no limit on a statement: a migration may take its time."""
_WRITER_LOCK = 0x67656E726563  # any constant that all writers share


def connect(url: str) -> Engine:
    """Engine for `url` (an SQLite file or PostgreSQL). A new SQLite file is for its owner only.

    Its errors never show statement parameters, which may be a person's id. Raises ConfigError for what is no URL, where
    SQLite has no file and where the driver of PostgreSQL is not installed.
    """
    parsed = _parsed(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    postgres = parsed.get_backend_name() == "postgresql"
    given = {name: value for name, value in ANSWER.items() if postgres and name not in parsed.query}
    try:
        engine = create_engine(parsed, hide_parameters=True, connect_args=given)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The ledger's database needs {error.name}. In your clone: pip install -c constraints.txt -e '.[postgres]'."
        ) from error
    if engine.dialect.name == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError(f"GENREC_LEDGER_URL = {url!r} names no file. Use sqlite:///PATH or a PostgreSQL URL.")
        path = Path(parsed.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        event.listen(engine, "connect", _prepare_sqlite)
    else:
        event.listen(engine, "connect", _prepare_postgres)
    event.listen(engine, "begin", _begin)
    return engine


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ArgumentError("another database")
    except ArgumentError as error:  # it may hold a password, so it is not shown
        raise ConfigError(
            "GENREC_LEDGER_URL is no URL of SQLite or PostgreSQL. Use sqlite:///PATH or postgresql://..."
        ) from error
    return parsed


def existing(url: str) -> Engine | None:
    """Engine for `url`; None, and nothing made, where an SQLite file is still to be. Raises as `connect`."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return None
    return connect(url)


def migrate(url: str) -> Engine:
    """Bring the database at `url` to the newest schema, and connect to it. Safe to call from many processes at once.

    Raises OutageError where the database cannot be reached, ConfigError where it is not UTF-8 and where its schema is
    newer than this version of genrec.
    """
    from alembic import command
    from alembic.config import Config

    engine = connect(url)
    config = Config()
    config.set_main_option("script_location", "genrec.requests:migrations")
    with reaching(engine), writing(engine) as session:
        config.attributes["connection"] = session.connection()
        _refuse_other_encodings(session.connection())
        _refuse_newer(session.connection(), config)
        command.upgrade(config, "head")
    return engine


@contextmanager
def reaching(engine: Engine) -> Iterator[None]:
    """Raises OutageError, without the password, where the database cannot be reached or does not take a write."""
    try:
        yield
    except DBAPIError as error:
        if not isinstance(error, OperationalError) and not error.connection_invalidated:
            raise
        cause = str(error.orig).splitlines()[0]
        raise OutageError(
            f"The database {engine.url!r} does not answer: {cause}. Start it, or give another URL. See genrec doctor."
        ) from error


@contextmanager
def writing(engine: Engine, *, locked: bool = True) -> Iterator[Session]:
    """One write transaction, alone in the whole ledger; committed at the end, rolled back on an exception.

    Writers wait for one another because each appends to one audit chain. With `locked=False` PostgreSQL lets others
    write until `lock_writers`, which must come before the audit chain is read. Raises RequestError, with nothing
    written, where `engine` is `fenced` and the lease has been taken over.
    """
    options = engine.execution_options(genrec_write="locked" if locked else "open")
    with Session(options, expire_on_commit=False) as session, session.begin():
        if fence := options.get_execution_options().get("genrec_fence"):
            _refuse_outdated(session, fence)
        yield session


def fenced(engine: Engine, fence: Fence | None) -> Engine:
    """`engine` for the holder of a lease, whose acquisition waits for the same lock as the writes it ends."""
    return engine.execution_options(genrec_fence=fence)


def _refuse_outdated(session: Session, fence: Fence) -> None:
    held = session.get(LeaseRow, fence.name)
    if held is None or held.token != fence.token:
        by = f"{held.holder!r} (token {held.token})" if held else "nobody"
        raise RequestError(
            f"Lease {fence.name!r} (token {fence.token}) has been taken over by {by}: nothing was written. This run "
            "slept past its lease and ends here; the other one goes on with its work."
        )


def lock_writers(connection: Connection) -> None:
    """From here to the end of the transaction no other one writes. SQLite gave that when the transaction began."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")


def scrub(engine: Engine) -> None:
    """Remove what SQLite's files still hold of overwritten rows. On PostgreSQL its own vacuum does that, later.

    `secure_delete` misses copies that a split page leaves behind, hence VACUUM; then the write-ahead log is emptied.
    """
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            for statement in ("PRAGMA temp_store=MEMORY", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                driver.execute(statement).fetchall()


def _prepare_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # else the driver opens transactions of its own
    for pragma in (f"busy_timeout={BUSY_SECONDS * 1000}", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    deadline = time.monotonic() + BUSY_SECONDS
    while True:  # SQLite does not wait for its busy timeout when two connections turn a new file to WAL at once
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _prepare_postgres(connection, _record) -> None:
    with connection.cursor() as cursor:
        for name, value in HELD.items():
            cursor.execute(f"SET {name} = '{value}'")
    connection.commit()  # else a rollback would take them back


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("genrec_write")
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
    elif write == "locked":
        lock_writers(connection)


def _refuse_newer(connection: Connection, config: "Config") -> None:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise ConfigError(
            f"The ledger has schema {current}, and this version of genrec knows up to {scripts.get_current_head()}: a "
            "newer one wrote it. Install that version here, too."
        )


def _refuse_other_encodings(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise ConfigError(
                f"The ledger's database is {encoding} and could not hold every id. Create one with ENCODING 'UTF8'."
            )
