"""A night that fails leaves everything as it was; a night that is killed is finished by the next run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import TINY, genrec, set_params


@pytest.fixture
def home(trained):
    """The shared workspace: each test compares it with what it was when the test began."""
    return trained


def requests_of(home):
    return json.loads(genrec(home, "requests", "list", "--json").stdout)


def champion_of(home):
    versions = json.loads(genrec(home, "models", "list", "--json").stdout)
    return next(v["version"] for v in versions if "champion" in v["aliases"])


def someone(home, at: int) -> str:
    rows = pd.read_parquet(home / "prepared" / "interactions.parquet")
    return sorted(rows[rows.split == "train"].user_id.unique())[at]


def snapshot(home):
    return (
        champion_of(home),
        (home / "data.dvc").read_text(),
        (home / "data" / "interactions.csv").read_bytes(),
        pd.read_parquet(home / "prepared" / "interactions.parquet").to_csv(),
    )


def test_bad_data_stops_the_night_before_any_model(home):
    """A rating range the data breaks: the failed expectation is named, the champion and the data stay. The request
    waits for the next night, which a later test here lets be killed first."""
    before = snapshot(home)
    genrec(home, "forget", "user", someone(home, 3))
    set_params(home, data={**TINY["data"], "rating_max": 2.0})
    failed = genrec(home, "night", check=False)
    assert failed.returncode == 1
    assert "rating" in failed.stderr
    assert "Error: " in failed.stderr
    assert requests_of(home)[-1]["state"] == "failed"
    set_params(home)
    assert snapshot(home) == before
    assert not list((home / "var" / "sealed").glob("*"))
    summary = json.loads((home / "reports" / "latest" / "summary.json").read_text())
    assert (summary["outcome"], summary["attempts"]) == ("failed", [])


def test_gates_that_do_not_pass_hold_the_champion(home):
    """With only an approximate method allowed and a limit no interval can meet, the champion stays."""
    before = snapshot(home)
    genrec(home, "forget", "concept", "Gambling")
    impossible = {**TINY["gates"], "concept_sh10": 0.0}
    set_params(home, unlearning={**TINY["unlearning"], "concept_ladder": ["tracer"]}, gates=impossible)
    held = genrec(home, "night", check=False)
    set_params(home)
    assert held.returncode == 1
    assert "held" in held.stderr
    assert snapshot(home) == before
    summary = json.loads((home / "reports" / "latest" / "summary.json").read_text())
    assert summary["outcome"] == "held"
    assert [a["verdict"] != "PASS" for a in summary["attempts"]] == [True]
    request = requests_of(home)[-1]
    assert request["state"] == "failed"
    genrec(home, "requests", "cancel", request["id"])


@pytest.mark.parametrize("moment", ["attempt", "certified"])
def test_a_killed_night_is_finished_by_the_next_run(home, moment):
    genrec(home, "forget", "user", someone(home, 7))
    old = champion_of(home)
    environment = {**os.environ, "GENREC_HOME": str(home)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.Popen(
        [sys.executable, "-m", "genrec.cli", "night"], cwd=home, env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not reached(home, moment) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the night ended before it could be killed"
    expire_lease(home)
    genrec(home, "night")
    requests = [r for r in requests_of(home) if r["state"] != "cancelled"]
    assert {r["state"] for r in requests} == {"fulfilled"}
    certificates = sorted(p.stem for p in (home / "reports" / "certificates").glob("*.json"))
    assert certificates == sorted(r["id"] for r in requests)
    assert int(champion_of(home)) > int(old)
    assert not list((home / "var" / "sealed").glob("*"))
    versions = json.loads(genrec(home, "models", "list", "--json").stdout)
    attempts = [(v["tags"]["batch_id"], v["tags"]["attempt"]) for v in versions]
    assert len(attempts) == len(set(attempts)), "a step was registered twice"


def reached(home, moment: str) -> bool:
    if moment == "erased":
        return any((home / "var" / "sealed").glob("*.parquet"))
    if moment == "attempt":
        return any((home / "var" / "nights").glob("*/attempt-1.json"))
    newest = max((home / "reports" / "certificates").glob("*.json"), key=lambda p: p.stat().st_mtime, default=None)
    return newest is not None and newest.stat().st_mtime > time.time() - 1


def expire_lease(home):
    """The dead holder's lease would run out by itself after requests.lease_seconds."""
    import sqlite3

    with sqlite3.connect(home / "var" / "ledger.db") as database:
        database.execute("UPDATE leases SET expires_at = '2000-01-01 00:00:00.000000'")
