"""What an operator does with a request on the command line, and what may not come between a night and its data."""

import json
import shutil
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from genrec.cli import app
from genrec.config import Settings
from genrec.data.sequences import load_dataset
from genrec.data.subjects import Subject
from genrec.errors import RegistryError, RequestError
from genrec.requests import audit
from genrec.requests.intake import submit
from genrec.requests.lease import NIGHT, Lease
from genrec.requests.store import open_ledger
from genrec.workspace import params_yaml

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)


@pytest.fixture
def workspace(tmp_path, shop, params, monkeypatch):
    for name in ("data", "prepared"):
        shutil.copytree(shop.root / name, tmp_path / name)
    (tmp_path / "params.yaml").write_text(params_yaml(params))
    monkeypatch.setenv("GENREC_HOME", str(tmp_path))
    monkeypatch.setenv("GENREC_PSEUDONYM_KEY", "key")
    return Settings(home=tmp_path, pseudonym_key="key").workspace


@pytest.fixture
def received(workspace):
    """A concept and a person, submitted and not yet verified."""
    person = load_dataset(workspace.prepared).user_ids[3]
    subjects = Subject("concept", concept="Cycling"), Subject("user", person)
    return [submit(workspace, one, now=NOW).id for one in subjects], person


def run(*command):
    return CliRunner().invoke(app, [*command, "--json"])


def test_a_received_request_is_verified_and_its_items_are_denied(workspace, received):
    (concept, _), _ = received
    told = json.loads(run("requests", "verify", concept, "--how", "order 12", "--verifier", "desk").output)
    assert (told["state"], told["verified_by"], told["verified_how"]) == ("queued", "desk", "order 12")
    data = load_dataset(workspace.prepared)
    assert open_ledger(workspace).deny_list() == {data.item_ids[i] for i in data.concepts["Cycling"]}
    again = run("requests", "verify", concept, "--how", "order 12")
    assert isinstance(again.exception, RequestError)
    assert "is queued and cannot become verified" in str(again.exception)


def test_a_request_is_rejected_with_a_reason_that_stays_and_an_id_that_goes(workspace, received):
    (concept, someone), person = received
    run("requests", "verify", concept, "--how", "order 12")
    for request in (concept, someone):
        told = json.loads(run("requests", "reject", request, "--reason", "not theirs to ask").output)
        assert (told["state"], told["reason"]) == ("rejected", "not theirs to ask")
    ledger = open_ledger(workspace)
    assert ledger.deny_list() == frozenset()
    assert ledger.claim(now=NOW) is None
    assert audit.rows(ledger.engine, someone)[-1]["event"] == "rejected"
    assert person.encode() not in (workspace.var / "ledger.db").read_bytes()


def test_a_reason_with_the_persons_id_rejects_nothing(workspace, received):
    (_, someone), person = received
    refused = run("requests", "reject", someone, "--reason", f"{person} is somebody else")
    assert "holds the person's id" in str(refused.exception)
    assert run("requests", "reject", someone).exit_code == 2
    assert open_ledger(workspace).get(someone).state == "received"


@pytest.mark.parametrize("command", [("data", "fetch", "simulated"), ("data", "prepare")], ids=" ".join)
def test_data_are_neither_fetched_nor_prepared_while_the_lease_is_held(workspace, command):
    before = (workspace.data / "interactions.csv").read_bytes()
    ledger = open_ledger(workspace)
    with Lease.acquire(ledger.engine, NIGHT, "a night", lambda: datetime.now(UTC), 60):
        refused = run(*command)
    assert isinstance(refused.exception, RequestError)
    assert "is held by 'a night'" in str(refused.exception)
    assert (workspace.data / "interactions.csv").read_bytes() == before


def test_data_are_not_fetched_while_a_night_is_to_be_finished(workspace, received):
    (concept, _), _ = received
    run("requests", "verify", concept, "--how", "order 12")
    assert open_ledger(workspace).claim(now=NOW)
    refused = run("data", "fetch", "simulated")
    assert isinstance(refused.exception, RegistryError)
    assert "is not finished" in str(refused.exception)
