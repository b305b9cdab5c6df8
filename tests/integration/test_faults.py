"""Faults from outside: each ends in one line that names cause and remedy, the champion stays, the next night recovers.

One request meets one fault after another, in the order of this file, each run going on where the last one broke off.
What else may fail is tested elsewhere: bad data (Great Expectations) in test_interrupted_night.py, a lost GPU worker in
test_prefect.py.
"""

import json
import os
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import pandas as pd
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from genrec import saga
from genrec.config import RequestParams, Settings, Workspace
from genrec.data.subjects import Subject
from genrec.data.version import data_version
from genrec.errors import RequestError
from genrec.night import erase_batch, open_night
from genrec.promotion import PROMOTED
from genrec.registry import open_registry
from genrec.requests.audit import verify_chain
from genrec.requests.lease import Lease
from genrec.requests.ledger import Ledger
from genrec.requests.refusal import Known
from genrec.requests.schema import AuditRow, BatchRow, LeaseRow, RequestRow
from genrec.requests.store import open_ledger
from tests.conftest import copied, genrec, set_params
from tests.postgres import Server
from tests.postgres import server as postgres_server
from tests.servers import kill, mlflow_server, prefect_server, wait_for
from tests.webhook import http_server

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SMALL_FILE = 50_000
"""Bytes: less than a bundle's backbone."""


@dataclass(frozen=True)
class Shop:
    """A trained workspace whose ledger is on PostgreSQL, with one request in its queue."""

    workspace: Workspace
    own: dict[str, str]
    database: Server
    mlflow: tuple[str, subprocess.Popen]
    request: str
    champion: str

    def now(self) -> tuple[str, str]:
        """The state of the request, and which version is the champion."""
        return open_ledger(self.workspace).get(self.request).state, open_registry(self.workspace).champion().number

    def reached(self, name: str) -> bool:
        return any((self.workspace.var / "nights").glob(f"*/{name}"))

    def broken_night(self, when, strike, **environment: str) -> str:
        """Start a night, strike at the moment `when`; the one line that it ends with, which fits its exit code."""
        process = subprocess.Popen(
            [sys.executable, "-m", "genrec.cli", "night"], cwd=self.workspace.root,
            env={**os.environ, **self.own, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            wait_for(lambda: when() or process.poll() is not None, 300, every=0.01)
            strike(process)
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        (line,) = [line for line in err.splitlines() if re.match(r"\w+: ", line)]  # Prefect's own begin with a time
        assert (process.returncode, out) == (4 if line.startswith("OutageError: ") else 1, ""), err
        assert "Traceback" not in err
        return line

    def remote(self, url: str, **options) -> None:
        """Make `url` DVC's default remote."""
        said = "".join(f"    {name} = {value}\n" for name, value in {"url": url, **options}.items())
        (self.workspace.root / ".dvc" / "config").write_text(
            f"[core]\n    no_scm = True\n    remote = store\n['remote \"store\"']\n{said}"
        )

    def expire_lease(self) -> None:
        """What a run could not give back runs out by itself after requests.lease_seconds."""
        with Session(open_ledger(self.workspace).engine) as session, session.begin():
            session.execute(update(LeaseRow).values(expires_at=datetime(2000, 1, 1, tzinfo=UTC)))


@pytest.fixture(scope="module")
def shop(trained, tmp_path_factory):
    home = tmp_path_factory.mktemp("faults") / "shop"
    copied(trained, home)
    with ExitStack() as running:
        mlflow = running.enter_context(mlflow_server(home / "mlruns" / "mlflow.db"))
        database = running.enter_context(postgres_server())
        url, environment = running.enter_context(prefect_server(tmp_path_factory.mktemp("prefect")))
        workspace = Settings(home=home, ledger_url=database.database()).workspace
        own = {
            "GENREC_HOME": str(home), "GENREC_LEDGER_URL": workspace.ledger_url, "PREFECT_API_URL": url,
            "PREFECT_HOME": environment["PREFECT_HOME"], "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        }  # fmt: skip
        asked = json.loads(genrec(home, "forget", "user", trained_users(workspace)[3], "--json", **own).stdout)
        champion = open_registry(workspace).champion().number
        yield Shop(workspace, own, database, mlflow, asked["id"], champion)


def trained_users(workspace: Workspace) -> list[str]:
    rows = pd.read_parquet(workspace.prepared / "interactions.parquet")
    return sorted(rows[rows.split == "train"].user_id.unique())


def test_a_corrupt_champion_is_refused_before_anything_is_claimed_or_erased(shop):
    pin = shop.workspace.data_pin.read_bytes()
    part = open_registry(shop.workspace).bundle_path(shop.champion) / "adapter" / "adapter_model.safetensors"
    good = part.read_bytes()
    part.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        line = shop.broken_night(lambda: True, lambda night: None)
    finally:
        part.write_bytes(good)  # the shared workspace keeps it, too
    assert "adapter/adapter_model.safetensors is changed. Restore it" in line
    assert shop.now() == ("queued", shop.champion)
    assert shop.workspace.data_pin.read_bytes() == pin
    assert not any(shop.workspace.sealed.glob("*"))


def test_mlflow_that_goes_away_leaves_the_batch_open(shop):
    uri, server = shop.mlflow
    wait_for(lambda: httpx.get(f"{uri}/health").is_success, 240)
    sealed = shop.workspace.sealed
    line = shop.broken_night(lambda: any(sealed.glob("*.parquet")), lambda night: kill(server), GENREC_MLFLOW_URI=uri)
    assert line.startswith("OutageError: MLflow does not answer: ")
    assert uri.removeprefix("http://127.0.0.1:") in line
    assert "Start its server, or correct GENREC_MLFLOW_URI" in line
    assert shop.now() == ("running", shop.champion)


def test_a_full_disk_leaves_no_half_bundle(shop):
    """The limit on the size of a file stands for the disk: what the kernel refuses is a write, as with ENOSPC."""
    line = shop.broken_night(
        lambda: shop.reached("champion.npz"),
        lambda night: resource.prlimit(night.pid, resource.RLIMIT_FSIZE, (SMALL_FILE, SMALL_FILE)),
    )
    assert line.startswith("OutageError: A file cannot be written: ")
    assert "Make room (genrec doctor" in line
    assert shop.now() == ("running", shop.champion)
    assert not shop.reached("1-retrain")
    assert open_registry(shop.workspace).versions()[0].number == shop.champion


def test_a_database_that_goes_away_leaves_the_batch_open_and_is_told_without_it(shop):
    """By the night that broke off, and by the next one, which could not begin."""
    with http_server() as (hook, told):
        own = {"GENREC_ALERT_WEBHOOK": hook}
        first = shop.broken_night(lambda: shop.reached("1-retrain"), lambda night: shop.database.stop(), **own)
        second = shop.broken_night(lambda: True, lambda night: None, **own)
    shop.database.start()
    for line in (first, second):
        assert line.startswith("OutageError: The database ")
        assert "does not answer" in line
        assert "Start it" in line
    ended = "The night ended with OutageError, and the ledger cannot be opened: OutageError. See genrec doctor."
    assert [(body["kind"], body["text"]) for body in told] == [("night failed", ended)] * 2
    assert shop.now() == ("running", shop.champion)
    shop.expire_lease()


def test_the_next_night_recovers_without_the_dvc_remote_and_with_a_clock_that_was_put_back(shop):
    """It serves its requests and says that it could not push. What the ledger has of the runs before is moved into the
    future by an hour."""
    workspace, engine = shop.workspace, open_ledger(shop.workspace).engine
    shop.remote("s3://nowhere/store", endpointurl="http://127.0.0.1:1", connect_timeout=1)
    with Session(engine) as session, session.begin():
        batch, request = session.query(BatchRow).one(), session.get(RequestRow, shop.request)
        request.verified_at = request.suppressed_at = verified = request.verified_at + HOUR
        batch.claimed_at += HOUR
        started = datetime.fromisoformat(batch.details["started_at"]) + HOUR
        batch.details = batch.details | {"started_at": started.isoformat()}
    ended = genrec(workspace.root, "night", **shop.own)
    summary = json.loads((workspace.reports / "latest" / "summary.json").read_text())
    assert (summary["outcome"], summary["champion_before"]) == ("promoted", shop.champion)
    assert f"The DVC remote did not take data version {summary['data_version']}: " in ended.stderr
    assert data_version(workspace.data_pin) == summary["data_version"]
    assert shop.now() == ("fulfilled", summary["champion_after"])
    assert datetime.fromisoformat(summary["started_at"]) == started
    assert summary["finished_at"] >= summary["started_at"]
    assert summary["wall_s"] >= 0
    times = json.loads((workspace.certificates / f"{shop.request}.json").read_text())["times"]
    assert datetime.fromisoformat(times["unlearned"]) >= started > verified
    assert verify_chain(engine, summary["audit_head"]["hash"]) > summary["audit_head"]["seq"] > 5
    assert not any(workspace.sealed.iterdir())
    registry = open_registry(workspace)
    assert [registry.bundle(version.number).lineage.batch_id for version in registry.versions()[:2]] == [
        summary["batch_id"], registry.version(shop.champion).tags["batch_id"] or None
    ]  # fmt: skip


def test_a_purge_without_the_dvc_remote_removes_nothing(shop):
    """Not even from the cache, and MLflow keeps its versions: what would be left of the data is here alone."""
    champion, rows = open_registry(shop.workspace).champion().number, verify_chain(open_ledger(shop.workspace).engine)
    versions = [version.number for version in open_registry(shop.workspace).versions()]
    set_params(shop.workspace.root, purge={"grace_days": 0})
    stopped = genrec(shop.workspace.root, "purge", "run", check=False, **shop.own)
    assert (stopped.returncode, stopped.stdout) == (1, "")
    (line,) = [line for line in stopped.stderr.splitlines() if re.match(r"\w+: ", line)]
    assert line.startswith(
        f"DataError: The DVC remote did not take data version {data_version(shop.workspace.data_pin)}"
    )
    assert "See dvc remote list, then dvc push" in line
    assert shop.now() == ("fulfilled", champion)
    assert [version.number for version in open_registry(shop.workspace).versions()] == versions
    assert verify_chain(open_ledger(shop.workspace).engine) == rows


def test_what_a_run_left_that_broke_off_while_it_gave_up_is_finished_first(shop):
    """Its data is put back and its batch closed; then the next run looks at the queue, where the one person waits. The
    DVC remote is there again: what the night before could not send is sent by this one."""
    shop.remote(str(store := shop.workspace.root.with_name("store")))
    workspace, ledger, now = shop.workspace, open_ledger(shop.workspace), datetime.now(UTC)
    person = trained_users(workspace)[5]
    asked = json.loads(genrec(workspace.root, "forget", "user", person, "--json", **shop.own).stdout)
    batch = ledger.claim(now=now)
    facts = {
        "started_at": now.isoformat(), "data_version_before": data_version(workspace.data_pin),
        "data_pin_before": workspace.data_pin.read_text(),
    }  # fmt: skip
    ledger.set_stage(batch.id, "started", facts, now=now)
    night = open_night(workspace, batch.id)
    erase_batch(night)
    assert person not in (workspace.data / "interactions.csv").read_text()
    saga.fail(night, "DataError: told here", [], "failed")
    set_params(workspace.root, requests={"defer_days": 25})
    summary = json.loads(genrec(workspace.root, "night", "--json", **shop.own).stdout)
    assert summary["outcome"] == "nothing to do"
    assert "left in the queue" in summary["reason"]
    assert ledger.get(asked["id"]).state == "failed"
    sent = {path.parent.name + path.name for path in store.rglob("*.dir")}
    assert data_version(workspace.data_pin) == facts["data_version_before"]
    assert facts["data_version_before"] in sent
    assert trained_users(workspace)[5] == person
    assert person in (workspace.data / "interactions.csv").read_text()
    assert not any(workspace.sealed.iterdir())


def test_of_two_nights_started_together_one_is_refused_and_the_other_does_the_work_once(shop):
    """Two processes, one ledger on PostgreSQL; the request is the one that waited in the test before."""
    workspace, engine = shop.workspace, open_ledger(shop.workspace).engine
    set_params(workspace.root)
    champion = open_registry(workspace).champion().number

    def counted() -> tuple[int, int]:
        with Session(engine) as session:
            moves = session.query(AuditRow).where(AuditRow.event == PROMOTED).count()
            return session.query(BatchRow).count(), moves

    batches, moves = counted()
    with ThreadPoolExecutor() as together:
        nights = [together.submit(genrec, workspace.root, "night", "--json", check=False, **shop.own) for _ in range(2)]
        done, refused = sorted((night.result() for night in nights), key=lambda night: night.returncode)
    assert (done.returncode, refused.returncode) == (0, 1), (done.stderr, refused.stderr)
    assert re.search(r"RequestError: Lease 'unlearn' is held by 'command line [^ ]+ \d+' until", refused.stderr)
    summary = json.loads(done.stdout)
    assert (summary["outcome"], summary["champion_before"], len(summary["requests"])) == ("promoted", champion, 1)
    assert open_registry(workspace).champion().number == summary["champion_after"] != champion
    assert counted() == (batches + 1, moves + 1)
    assert verify_chain(engine) > 5


@pytest.mark.parametrize("jump", [timedelta(days=40), -HOUR], ids=["40 days on", "an hour back"])
def test_a_clock_that_jumps_in_the_middle_of_a_night(jump, tmp_path):
    """Forward: the lease is another's, who alone can write, and the request is overdue. Back: the lease stays."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", b"key", RequestParams())
    known = Known({"someone"}, set(), {}, 10, lambda user, item: False)
    request = ledger.submit(Subject("user", user_id="someone"), known, now=NOW).id
    ledger.verify(request, now=NOW, verifier="desk")
    clock = [NOW]
    with Lease.acquire(ledger.engine, "unlearn", "first", lambda: clock[0], 120) as first:
        batch = ledger.claim(now=clock[0])
        clock[0] += jump
        overdue = [one.id for one in ledger.requests(overdue_at=clock[0])]
        if jump < timedelta(0):
            assert overdue == []
            first.renew()
            with pytest.raises(RequestError, match="held by 'first' until 2031-05-04T02:04:01"):
                Lease.acquire(ledger.engine, "unlearn", "second", lambda: clock[0], 120)
        else:
            assert overdue == [request]
            with Lease.acquire(ledger.engine, "unlearn", "second", lambda: clock[0], 120) as second:
                old = Ledger(str(ledger.engine.url), b"key", RequestParams(), first.fence)
                with pytest.raises(RequestError, match="taken over by 'second'"):
                    old.set_stage(batch.id, "erased", {}, now=clock[0])
                assert second.token == first.token + 1
        assert ledger.claim(now=clock[0]) == batch
        ledger.set_stage(batch.id, "erased", {}, now=clock[0])
        (done,) = ledger.fulfil(batch.id, {request: "retrain"}, now=clock[0], data_version="d", model_version="2")
    assert done.state == "fulfilled"
    assert verify_chain(ledger.engine) == 8
    ledger.engine.dispose()
