"""`genrec serve` and `mlflow models serve` as real processes: they agree, and follow the alias and the ledger."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine

from genrec.config import RequestParams
from genrec.data.sequences import load_dataset
from genrec.data.subjects import Subject
from genrec.errors import ServingError
from genrec.promotion import promote
from genrec.requests.database import migrate
from genrec.requests.deny import current_deny
from genrec.requests.intake import known_of, submit_and_verify
from genrec.requests.ledger import Ledger
from genrec.server import MAX_BYTES, MAX_HISTORIES, MAX_K, make_app
from genrec.serving import recommend
from tests.snippets import ROOT, blocks, commands
from tests.unit.past import Past

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
REFRESH_S = 0.5
BIN = Path(sys.executable).parent
SERVE = ROOT / "docs" / "how-to" / "serve.md"
PAGE = {block.title: block.text for block in blocks(SERVE) if block.title}


@contextmanager
def process(command, environment, log):
    with log.open("w") as file:
        started = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=log.parent, start_new_session=True, stdout=file, stderr=file
        )
    try:
        yield started
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait(10)


def exported(text, folder):
    """What the shell lines of `text` add to the environment of whoever runs them in `folder`."""
    done = subprocess.run(["bash", "-euc", f"{text}\nenv -0"], cwd=folder, capture_output=True, text=True, check=True)
    after = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    return {name: value for name, value in after.items() if name.startswith(("GENREC_", "MLFLOW_TRACKING"))}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.HTTPError):  # not up yet
            if value := condition():
                return value
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def past(tmp_path_factory, shop, bundle, params, small):
    own = small(params, "serving", refresh_seconds=REFRESH_S)
    return Past(tmp_path_factory.mktemp("served") / "shop", shop.root, replace(bundle, params=own), own)


@pytest.fixture(scope="module")
def served(past, tmp_path_factory):
    """Both servers on version 1, started as docs/how-to/serve.md does, but on free ports."""
    past.train(NOW)
    home, logs = past.workspace.root, tmp_path_factory.mktemp("logs")
    here, there = free_port(), free_port()
    (ours,), (theirs,) = (commands(PAGE[name]) for name in ("serve", "mlflow"))
    ours = [sys.executable, "-m", "genrec.cli", *(str(here) if word == "8090" else word for word in ours[1:]), "--json"]
    theirs = [BIN / "mlflow", *(str(there) if word == "5001" else word for word in theirs[1:])]
    environment = {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])} | exported(PAGE["environment"], home)
    assert environment["MLFLOW_TRACKING_URI"] == past.workspace.mlflow_uri
    with process(ours, environment, logs / "genrec.log"), process(theirs, environment, logs / "mlflow.log"):
        url, other = f"http://127.0.0.1:{here}", f"http://127.0.0.1:{there}"
        wait_for(lambda: httpx.get(f"{url}/health").is_success, 240)
        wait_for(lambda: httpx.get(f"{other}/ping").is_success, 240)
        yield SimpleNamespace(url=url, other=other, here=here, there=there, log=logs / "genrec.log")


def ask(served, histories, k=5):
    return httpx.post(f"{served.url}/recommend", json={"histories": histories, "k": k}).raise_for_status().json()


def ask_mlflow(served, histories, k=5):
    body = {"dataframe_records": [{"history": history} for history in histories], "params": {"k": k}}
    return httpx.post(f"{served.other}/invocations", json=body).raise_for_status().json()["predictions"]


def shown(lists):
    return [[item["item_id"] for item in row] for row in lists]


def health(served):
    return httpx.get(f"{served.url}/health").json()


def metric(served, name):
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


@pytest.fixture(scope="module")
def histories(bundle):
    ids = bundle.table.item_ids
    return [list(ids[3:6]), [ids[20], "gone", ids[22]], [ids[50]]]


def test_both_servers_answer_as_the_function_does(served, past, histories):
    expected = recommend(past.bundle, past.bundle.model(), histories, 5)
    found = ask(served, histories)
    assert shown(found) == shown(expected)
    assert [item["title"] for item in found[0]] == [item["title"] for item in expected[0]]
    scores = [item["score"] for row in expected for item in row]
    assert [item["score"] for row in found for item in row] == pytest.approx(scores, abs=1e-4)
    theirs = ask_mlflow(served, histories)
    assert [row["item_ids"] for row in theirs] == shown(expected)
    assert [score for row in theirs for score in row["scores"]] == pytest.approx(scores, abs=1e-4)
    assert health(served) == {"status": "ok", "champion": "1", "denied_items": 0, "problems": {}}
    assert json.loads(served.log.read_text()) == {"url": served.url}  # and not a word about the requests


def said(served, name):
    """What a block of the page prints, asked of the servers of the test."""
    text = PAGE[name].replace(":8090/", f":{served.here}/").replace(":5001/", f":{served.there}/")
    return subprocess.run(["bash", "-euc", text], capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_page_asks_both_servers_and_shows_a_real_answer(served):
    found = json.loads(said(served, "ask"))
    assert [len(row) for row in found] == [2, 2]
    theirs = json.loads(said(served, "ask mlflow"))["predictions"]
    assert [row["item_ids"] for row in theirs] == shown(found)
    printed = next(json.loads(block.text) for block in blocks(SERVE) if block.text.startswith("[["))
    assert [[set(item) for item in row] for row in printed] == [[set(item) for item in row] for row in found]
    health, _, metrics = said(served, "health").partition("}}")
    assert json.loads(health + "}}")["champion"] == "1"
    told = re.findall(r"`(genrec_\w+)`", SERVE.read_text())
    named = [name for name in told if name not in ("genrec_auditor", "genrec_serving")]
    assert len(named) == 5
    assert [name for name in named if name not in metrics] == []


BAD = {
    "no json": (b"k=10", 422), "no object": (b"[1]", 422), "nothing": (b"", 422),
    "k = 0": (b'{"histories": [["x"]], "k": 0}', 422), "k is huge": (b'{"histories": [["x"]], "k": 1000000}', 422),
    "k is NaN": (b'{"histories": [["x"]], "k": NaN}', 422), "no histories": (b'{"histories": []}', 422),
    "an empty history": (b'{"histories": [[]]}', 422), "unknown items": (b'{"histories": [["x", "\'; --"]]}', 422),
    "numbers": (b'{"histories": [[1]]}', 422), "another key": (b'{"histories": [["x"]], "deny": []}', 422),
    "half a character": (b'{"histories": [["\\ud800"]]}', 422), "deep": (b"[" * 100_000, 400),
    "too many": (json.dumps({"histories": [["x"]] * (MAX_HISTORIES + 1)}).encode(), 422),
    "a million": (json.dumps({"histories": [["x"]] * 10**6}).encode(), 413),
}  # fmt: skip


def test_bad_input_is_refused_in_one_line_with_a_remedy_and_counted(served, histories):
    before = health(served)
    for name, (body, status) in BAD.items():
        answer = httpx.post(f"{served.url}/recommend", content=body, headers={"content-type": "application/json"})
        assert (name, answer.status_code) == (name, status)
        error = answer.json()["error"]
        assert "\n" not in error
        assert len(error) < 300
        assert any(remedy in error for remedy in ("Send", "Give at least one")), error
    chunked = httpx.post(f"{served.url}/recommend", content=iter([b"x" * MAX_BYTES] * 3))
    assert chunked.status_code == 411
    assert httpx.get(f"{served.url}/recommend").status_code == 405
    assert httpx.get(f"{served.url}/../../etc/passwd").status_code == 404
    assert health(served) == before
    assert len(ask(served, histories, MAX_K)) == 3
    assert metric(served, 'genrec_answers_total{status="413"}') == 1
    assert "Traceback" not in served.log.read_text()


def test_a_verified_request_takes_the_item_out_of_both_within_seconds_without_a_restart(served, past, histories):
    item = ask(served, histories)[0][0]["item_id"]
    assert item == ask_mlflow(served, histories)[0]["item_ids"][0]
    submit_and_verify(past.workspace, Subject("item", item_id=item), now=NOW, verifier="desk")
    started = time.monotonic()
    for current in (
        lambda: shown(ask(served, histories)), lambda: [row["item_ids"] for row in ask_mlflow(served, histories)]
    ):  # fmt: skip
        wait_for(lambda current=current: not any(item in row for row in current()), REFRESH_S + 5)
    assert time.monotonic() - started < REFRESH_S + 5
    assert [row["item_ids"] for row in ask_mlflow(served, histories)] == shown(ask(served, histories))
    assert (health(served)["denied_items"], metric(served, "genrec_denied_items")) == (1, 1)


def both(served, histories):
    return shown(ask(served, histories)), [row["item_ids"] for row in ask_mlflow(served, histories)]


def test_a_moved_alias_changes_both_and_a_corrupt_version_leaves_the_old(served, past, histories, damaged):
    good = past.bundle
    deny = past.ledger.deny_list()
    past.bundle = replace(damaged(3.0), params=good.params)
    second = past.register("ucan", "b-1", parent="1")
    promote(past.workspace, second, "1", now=NOW)
    wait_for(lambda: health(served)["champion"] == second, REFRESH_S + 10)
    found = shown(recommend(past.bundle, past.bundle.model(), histories, 5, deny))
    assert found != shown(recommend(good, good.model(), histories, 5, deny))
    wait_for(lambda: both(served, histories) == (found, found), REFRESH_S + 10)

    past.bundle = good
    third = past.register("retrain", "b-2", parent=second)
    part = past.registry.bundle_path(third) / "titles.json"
    whole = part.read_bytes()
    part.write_text("[]\n")
    promote(past.workspace, third, second, now=NOW)
    sick = wait_for(lambda: (now := health(served))["status"] == "degraded" and now, REFRESH_S + 10)
    assert sick["champion"] == second
    assert "titles.json is changed" in sick["problems"]["champion"]
    assert metric(served, 'genrec_stale{part="champion"}') == 1
    assert both(served, histories) == (found, found)
    part.write_bytes(whole)
    wait_for(lambda: health(served)["champion"] == third, REFRESH_S + 10)
    back = shown(recommend(good, good.model(), histories, 5, deny))
    wait_for(lambda: both(served, histories) == (back, back), REFRESH_S + 10)
    assert (health(served)["status"], metric(served, "genrec_champion_version")) == ("ok", int(third))


def test_without_a_ledger_the_last_deny_list_stays(served, past, histories):
    before = shown(ask(served, histories))
    with past.ledger.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE deny_items RENAME TO away")
    sick = wait_for(lambda: (now := health(served))["status"] == "degraded" and now, REFRESH_S + 5)
    assert "GENREC_LEDGER_URL" in sick["problems"]["deny"]
    assert (sick["denied_items"], shown(ask(served, histories))) == (1, before)
    assert metric(served, 'genrec_stale{part="deny"}') == 1
    with past.ledger.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO deny_items")
    wait_for(lambda: health(served)["status"] == "ok", REFRESH_S + 5)


def test_before_there_is_a_champion_it_says_what_to_do_and_then_serves(tmp_path, shop, bundle, params, small):
    ids = bundle.table.item_ids
    past = Past(tmp_path / "shop", shop.root, bundle, small(params, "serving", refresh_seconds=0.01))
    client = TestClient(make_app(past.workspace))
    for answer in (client.get("/health"), client.post("/recommend", json={"histories": [[ids[0]]]})):
        assert (answer.status_code, answer.json()["error"][-13:]) == (503, "genrec train.")
    past.train(NOW)
    time.sleep(0.02)
    assert client.get("/health").json()["champion"] == "1"
    assert len(client.post("/recommend", json={"histories": [[ids[0]]]}).json()[0]) == 10


def test_a_postgresql_that_goes_away_and_comes_back(postgres, shop):
    url = postgres.database()
    migrate(url).dispose()
    deny = current_deny(url, 0.01)
    assert deny.value() == frozenset()
    ledger = Ledger(url, b"key", RequestParams())
    dataset = load_dataset(shop.root / "prepared")
    request = ledger.submit(Subject("item", item_id=dataset.item_ids[0]), known_of(dataset), now=NOW)
    ledger.verify(request.id, now=NOW, verifier="desk")
    ledger.engine.dispose()
    time.sleep(0.02)
    denied = frozenset({dataset.item_ids[0]})
    assert deny.value() == denied
    name = url.rpartition("/")[2]
    admin = create_engine(postgres.url("postgres"), isolation_level="AUTOCOMMIT").connect()
    admin.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    admin.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    time.sleep(0.02)
    assert deny.value() == denied
    assert "Start the ledger's database" in deny.problem
    late = current_deny(url, 0.01)
    with pytest.raises(ServingError, match="Start the ledger's database"):
        late.value()
    admin.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    admin.close()
    time.sleep(0.02)
    assert (late.value(), deny.value(), deny.problem) == (denied, denied, None)
