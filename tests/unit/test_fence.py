"""The fence: a holder that slept past its lease writes nothing more, on SQLite and on PostgreSQL alike."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from flows import gpu
from genrec.config import RequestParams, Settings
from genrec.data.subjects import Subject
from genrec.errors import RequestError
from genrec.night import destroy_sealed, erase_batch, open_night
from genrec.promotion import promote
from genrec.requests.database import migrate
from genrec.requests.lease import Lease
from genrec.requests.ledger import Known, Ledger
from genrec.requests.schema import AuditRow
from genrec.requests.store import open_ledger
from tasks.data import restore_data
from tests.unit.past import Past

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
KNOWN = Known({"ann", "bob"}, {"film"}, {}, 100, lambda user, item: True)
TAKEN = r"Lease 'unlearn' \(token 1\) has been taken over by 'next' \(token 2\): nothing was written"


def opened(url, fence=None):
    return Ledger(url, b"key", RequestParams(), fence)


def queue(ledger, user):
    request = ledger.submit(Subject("user", user), KNOWN, now=NOW)
    return ledger.verify(request.id, now=NOW, verifier="desk").id


def links(ledger):
    with Session(ledger.engine) as session:
        return session.scalar(select(func.count()).select_from(AuditRow))


WRITES = {
    "set_stage": lambda ledger, batch: ledger.set_stage(batch.id, "erased", {"rows": 3}, now=LATER),
    "set_plans": lambda ledger, batch: ledger.set_plans(batch.id, {}, dict.fromkeys(batch.request_ids, "few"), now=NOW),
    "fulfil": lambda ledger, batch: ledger.fulfil(
        batch.id, dict.fromkeys(batch.request_ids, "ucan"), now=LATER, data_version="d", model_version="2"
    ),
    "claim": lambda ledger, batch: ledger.claim(now=LATER),
    "fail": lambda ledger, batch: ledger.fail(ledger.open_batch().id, "gates", now=LATER),
}


def test_each_write_of_a_holder_that_slept_is_refused_while_the_next_ones_succeed(new_ledger_url):
    url = new_ledger_url()
    free = opened(url)
    queue(free, "ann")
    sleeper = Lease.acquire(free.engine, "unlearn", "sleeper", lambda: NOW, 60)
    old = opened(url, sleeper.fence)
    batch = old.claim(now=NOW)
    queue(free, "bob")
    with Lease.acquire(free.engine, "unlearn", "next", lambda: LATER, 60) as lease:
        new = opened(url, lease.fence)
        assert new.claim(now=LATER) == batch  # what the sleeper had begun is gone on with
        for name, write in WRITES.items():
            before = links(free), free.requests(), free.stage(batch.id)
            with pytest.raises(RequestError, match=TAKEN):
                write(old, batch)
            assert (links(free), free.requests(), free.stage(batch.id)) == before, name
            write(new, batch)
            assert links(free) > before[0], name
        assert {request.state for request in free.requests()} == {"fulfilled", "failed"}
    sleeper.release()
    for ledger in (free, old, new):
        ledger.engine.dispose()


def test_a_lease_that_ran_out_and_that_nobody_took_goes_on(new_ledger_url):
    url = new_ledger_url()
    free = opened(url)
    queue(free, "ann")
    lease = Lease.acquire(free.engine, "unlearn", "slow", lambda: NOW - timedelta(days=1), 60)
    assert opened(url, lease.fence).claim(now=NOW) is not None
    lease.release()
    free.engine.dispose()


SLEEPER = """
import json, sys
from datetime import UTC, datetime
from genrec.config import RequestParams
from genrec.errors import RequestError
from genrec.requests.lease import Lease
from genrec.requests.ledger import Ledger

url = sys.argv[1]
now = lambda: datetime.now(UTC)
lease = Lease.acquire(Ledger(url, b"key", RequestParams()).engine, "unlearn", "sleeper", now, 1.5)
ledger = Ledger(url, b"key", RequestParams(), lease.fence)
batch = ledger.claim(now=now())
print(batch.id, flush=True)
sys.stdin.readline()
said = []
for write in (
    lambda: ledger.set_stage(batch.id, "erased", {}, now=now()),
    lambda: ledger.claim(now=now()),
    lambda: ledger.fail(batch.id, "gates", now=now()),
):
    try:
        write()
    except RequestError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def test_a_process_that_was_stopped_wakes_up_and_writes_nothing(new_ledger_url):
    url = new_ledger_url()
    ledger = opened(url)
    queue(ledger, "ann")
    command = [sys.executable, "-c", SLEEPER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        batch_id = process.stdout.readline().strip()
        with pytest.raises(RequestError, match="held by 'sleeper'"):  # its heartbeat keeps it
            Lease.acquire(ledger.engine, "unlearn", "next", lambda: datetime.now(UTC), 60)
        os.kill(process.pid, signal.SIGSTOP)
        lease = taken_over(ledger, time.monotonic() + 30)
        opened(url, lease.fence).set_stage(batch_id, "started", {}, now=datetime.now(UTC))
        before = links(ledger)
        os.kill(process.pid, signal.SIGCONT)
        said, _ = process.communicate("\n", timeout=60)
    assert ["has been taken over by 'next' (token 2)" in line for line in json.loads(said)] == [True] * 3
    assert (links(ledger), ledger.stage(batch_id).name) == (before, "started")
    lease.renew()  # the sleeper's heartbeat has not touched it
    lease.release()
    ledger.engine.dispose()


def taken_over(ledger, deadline):
    while time.monotonic() < deadline:
        with suppress(RequestError):
            return Lease.acquire(ledger.engine, "unlearn", "next", lambda: datetime.now(UTC), 60)
        time.sleep(0.1)
    raise AssertionError("the lease of a stopped process never ran out")


# --- a workspace: what a night does besides the ledger ---------------------------------------------------------------


@pytest.fixture
def past(tmp_path, shop, bundle, params):
    return Past(tmp_path / "shop", shop.root, bundle, params)


def test_the_champion_and_the_data_stay_as_the_next_holder_has_them(past):
    past.train(NOW)
    candidate = past.register("ucan", "b-1", parent="1")
    ledger = open_ledger(past.workspace)
    queue(ledger, "ann")
    engine = migrate(past.workspace.ledger_url)
    sleeper = Lease.acquire(engine, "unlearn", "sleeper", lambda: NOW, 60)
    old = past.workspace.fenced(sleeper.fence)
    batch = open_ledger(old).claim(now=NOW)
    night = open_night(old, batch.id)
    night.workspace.sealed.mkdir(parents=True)
    night.sealed_file.write_text("sealed")
    pin = past.workspace.data_pin.read_text()
    with Lease.acquire(engine, "unlearn", "next", lambda: LATER, 60) as lease:
        for step in (
            lambda: promote(old, candidate, "1", now=LATER),
            lambda: erase_batch(night),
            lambda: destroy_sealed(night),
            lambda: restore_data.fn(old, "another pin"),
        ):
            with pytest.raises(RequestError, match=TAKEN):
                step()
        assert (past.champion, past.workspace.data_pin.read_text()) == ("1", pin)
        assert night.sealed_file.exists()
        promote(past.workspace.fenced(lease.fence), candidate, "1", now=LATER)
    assert past.champion == candidate
    sleeper.release()
    engine.dispose()


def test_a_gpu_worker_writes_under_the_lease_of_the_flow_that_waits_for_it(tmp_path, monkeypatch):
    home = tmp_path / "shop"
    home.mkdir()
    (home / "params.yaml").write_text("")
    free = open_ledger(Settings(home=home).workspace)
    monkeypatch.setitem(gpu.STEPS, "calibrate", lambda workspace: open_ledger(workspace).confirm())
    sleeper = Lease.acquire(free.engine, "unlearn", "sleeper", lambda: NOW, 60)
    gpu.gpu.fn(str(home), "calibrate", {}, {"name": "unlearn", "token": 1})
    with (
        Lease.acquire(free.engine, "unlearn", "next", lambda: LATER, 60),
        pytest.raises(RequestError, match=TAKEN),
    ):
        gpu.gpu.fn(str(home), "calibrate", {}, {"name": "unlearn", "token": 1})
    sleeper.release()
