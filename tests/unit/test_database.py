"""Connections to PostgreSQL give up in a known time: a server that is silent, a writer that is frozen or gone."""

import socket
import time
from contextlib import closing

import pytest

from genrec.errors import OutageError
from genrec.requests import database
from genrec.requests.database import connect, migrate, reaching, writing


def test_a_server_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setitem(database.ANSWER, "connect_timeout", 2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        started = time.monotonic()
        with pytest.raises(OutageError, match=r"does not answer: .*timeout"):
            migrate(f"postgresql://someone@127.0.0.1:{silent.getsockname()[1]}/ledger")
    assert time.monotonic() - started < 10


def test_both_ends_of_a_connection_watch_over_the_other_and_the_url_has_the_last_word(postgres):
    url = postgres.database()
    engine = connect(f"{url}?keepalives_idle=7&options=-c%20work_mem%3D1MB")
    with engine.connect() as connection:
        pgconn = connection.connection.driver_connection.pgconn
        with socket.socket(fileno=socket.dup(pgconn.socket)) as own:
            options = [own.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
                       for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")]  # fmt: skip
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        session = {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in (*database.HELD, "work_mem")}
        connection.rollback()
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "2min"
    assert options == [7, 10, 3, 60_000]
    assert session == {
        "tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3",
        "lock_timeout": "2min", "idle_in_transaction_session_timeout": "15min", "work_mem": "1MB",
    }  # fmt: skip
    engine.dispose()


def test_nobody_waits_for_the_writers_lock_without_end(postgres, monkeypatch):
    monkeypatch.setitem(database.HELD, "lock_timeout", "300ms")
    engine = migrate(postgres.database())
    with writing(engine) as session:
        session.connection()
        with pytest.raises(OutageError, match="lock timeout"), reaching(engine), writing(engine) as other:
            other.connection()
    with writing(engine) as session:
        assert session.connection().exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()


def test_the_time_limit_of_a_task_ends_a_wait_for_the_database(postgres):
    """Prefect's own limit, as a task in the main thread has it."""
    from prefect.utilities.timeout import timeout

    engine = migrate(postgres.database())
    with writing(engine) as session:
        session.connection()
        with pytest.raises(TimeoutError), timeout(0.5), writing(engine) as other:
            other.connection()
    engine.dispose()


def test_a_writer_frozen_in_its_transaction_loses_the_lock(postgres, monkeypatch):
    monkeypatch.setitem(database.HELD, "idle_in_transaction_session_timeout", "300ms")
    engine = migrate(postgres.database())

    def freeze_and_go_on():
        with reaching(engine), writing(engine) as frozen:
            frozen.connection()
            with writing(engine) as session:  # waits until the lock is free
                assert session.connection().exec_driver_sql("SELECT 1").scalar() == 1
            frozen.connection().exec_driver_sql("SELECT 1")

    with pytest.raises(OutageError, match="idle-in-transaction"):
        freeze_and_go_on()
    engine.dispose()
