"""The lease: one holder at a time, a heartbeat, and a takeover that the dead holder notices."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from genrec.errors import RequestError
from genrec.requests.database import migrate
from genrec.requests.lease import Lease
from genrec.requests.schema import LeaseRow

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def engine(new_ledger_url):
    engine = migrate(new_ledger_url())
    yield engine
    engine.dispose()


def expiry(engine):
    with Session(engine) as session:
        return session.get(LeaseRow, "night").expires_at


def test_a_live_lease_is_refused_naming_holder_and_expiry(engine):
    with (
        Lease.acquire(engine, "night", "worker-1", Clock(), 60),
        pytest.raises(RequestError, match=r"held by 'worker-1' until 2031-05-04T03:03:01\+00:00"),
    ):
        Lease.acquire(engine, "night", "worker-2", Clock(), 60)


def test_of_many_that_start_together_one_gets_it(engine):
    def acquire(holder):
        try:
            return Lease.acquire(engine, "night", holder, Clock(), 60)
        except RequestError:
            return None

    with ThreadPoolExecutor(6) as pool:
        held = [lease for lease in pool.map(acquire, "abcdef") if lease]
    assert [lease.token for lease in held] == [1]
    held[0].release()


def test_names_do_not_disturb_one_another(engine):
    with Lease.acquire(engine, "night", "a", Clock(), 60), Lease.acquire(engine, "week", "a", Clock(), 60) as other:
        assert other.token == 1


def test_a_release_frees_it_at_once_even_after_an_error_and_tokens_grow(engine):
    clock = Clock()
    with pytest.raises(ValueError, match="inside"), Lease.acquire(engine, "night", "a", clock, 60):
        raise ValueError("inside")
    with Lease.acquire(engine, "night", "b", clock, 60) as second:
        assert second.token == 2


def test_an_expired_lease_is_taken_over_and_its_old_holder_is_told(engine):
    clock = Clock()
    dead = Lease.acquire(engine, "night", "dead", clock, 60)
    clock.now += timedelta(seconds=60)
    with Lease.acquire(engine, "night", "next", clock, 60) as lease:
        assert lease.token == dead.token + 1
        with pytest.raises(RequestError, match=r"token 1\) is no longer held by 'dead'"):
            dead.renew()
        dead.release()
        assert expiry(engine) == clock.now + timedelta(seconds=60)


def test_the_heartbeat_moves_the_expiry_until_the_release(engine):
    clock = Clock()
    with Lease.acquire(engine, "night", "a", clock, 0.15):
        clock.now += timedelta(hours=1)
        deadline = time.monotonic() + 10
        while expiry(engine) < clock.now and time.monotonic() < deadline:
            time.sleep(0.02)
        assert expiry(engine) == clock.now + timedelta(seconds=0.15)
    clock.now += timedelta(hours=1)
    time.sleep(0.2)
    assert expiry(engine) == clock.now - timedelta(hours=1)
