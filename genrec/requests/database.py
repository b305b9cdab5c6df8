"""Connections to the ledger's database, its migrations, and the one way to write to it."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.orm import Session

from genrec.errors import ConfigError

BUSY_SECONDS = 30
_WRITER_LOCK = 0x67656E726563  # any constant that all writers share


def connect(url: str) -> Engine:
    """Engine for `url` (an SQLite file or PostgreSQL). A new SQLite file is for its owner only.

    Its errors never show statement parameters, which may be a person's id. Raises ConfigError where SQLite has no file.
    """
    parsed = make_url(url)
    engine = create_engine(parsed, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError(f"GENREC_LEDGER_URL = {url!r} names no file. Use sqlite:///PATH or a PostgreSQL URL.")
        path = Path(parsed.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin)
    return engine


def migrate(url: str) -> Engine:
    """Bring the database at `url` to the newest schema, and connect to it. Safe to call from many processes at once."""
    from alembic import command
    from alembic.config import Config

    engine = connect(url)
    config = Config()
    config.set_main_option("script_location", "genrec.requests:migrations")
    with writing(engine) as session:
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "head")
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """One write transaction, alone in the whole ledger; committed at the end, rolled back on an exception.

    Writers wait for one another because each appends to one audit chain.
    """
    with Session(engine.execution_options(genrec_write=True), expire_on_commit=False) as session, session.begin():
        yield session


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


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("genrec_write", False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
    elif write:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")
