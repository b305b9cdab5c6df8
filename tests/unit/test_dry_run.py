"""`--dry-run` on a real workspace with a registered champion, and what operators do with requests."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from genrec import cli_requests
from genrec.calibration import params_hash
from genrec.cli import app
from genrec.config import Settings
from genrec.data.subjects import Subject
from genrec.errors import RequestError
from genrec.models.bundle import save_bundle
from genrec.registry import open_registry
from genrec.requests.audit import verify_chain
from genrec.requests.calibrations import Calibration, record
from genrec.requests.intake import known_of
from genrec.requests.schema import AuditRow, BatchRow, DenyRow, RequestRow
from genrec.requests.store import open_ledger
from genrec.workspace import params_yaml
from tests.unit.conftest import CONCEPT

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def workspace(shop, bundle, params, tmp_path_factory):
    """Version 1 was made by tracer in 7.5 s; version 2, the champion, by a retraining of 12.5 s."""
    home = tmp_path_factory.mktemp("dry") / "shop"
    shutil.copytree(shop.root, home)
    (home / "params.yaml").write_text(params_yaml(params))
    workspace = Settings(home=home, pseudonym_key="key").workspace
    registry = open_registry(workspace)
    for number, (method, seconds, parent) in enumerate([("tracer", 7.5, {}), ("retrain", 12.5, {"parent": "1"})], 1):
        save_bundle(bundle.with_lineage(method=method, retrain_s=seconds), home / f"bundle-{number}")
        registry.register(
            home / f"bundle-{number}", metrics={"wall_s": seconds}, params={}, tags={"method": method, **parent}
        )
    registry.promote("2", None)
    return workspace


@pytest.fixture
def run(workspace, monkeypatch):
    """The command line on the workspace; it gives the parsed JSON."""
    monkeypatch.setattr(cli_requests, "open_workspace", lambda: workspace)

    def command(*arguments):
        result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    return command


def contents(workspace):
    """Every row of the ledger, and every file beside it; MLflow touches its own when it is read."""
    with Session(open_ledger(workspace).engine) as session:
        tables = [session.execute(select(table.__table__)).all() for table in (RequestRow, BatchRow, DenyRow, AuditRow)]
    files = [path for path in workspace.root.rglob("*") if path.is_file() and workspace.mlruns not in path.parents]
    return tables, {path: path.stat().st_mtime_ns for path in files if "ledger.db" not in path.name}


@pytest.fixture(scope="module")
def tables(workspace):
    """The prepared interactions and items as they are on disk."""
    return [pd.read_parquet(workspace.prepared / f"{name}.parquet") for name in ("interactions", "items")]


def test_a_dry_run_stores_nothing(workspace, run, dataset):
    run("forget", "item", dataset.item_ids[5])
    before = contents(workspace)
    person, item = dataset.user_ids[3], dataset.item_ids[dataset.history(3)[0]]
    run("forget", "user", person, "--dry-run")
    run("forget", "concept", CONCEPT, "--dry-run")
    run("forget", "item", dataset.item_ids[0], "--dry-run")
    run("forget", "interaction", person, item, "--dry-run")
    assert contents(workspace) == before
    with pytest.raises(RequestError, match="Unknown user"):
        run("forget", "user", "nobody", "--dry-run")
    with pytest.raises(RequestError, match="NUL"):
        run("forget", "item", "a\0b", "--dry-run")
    assert contents(workspace) == before


def test_a_person_is_counted_and_routed_and_priced(workspace, run, dataset, tables):
    interactions, _ = tables
    person = dataset.user_ids[3]
    mine = interactions[interactions.user_id == person]
    found = run("forget", "user", person, "--dry-run")
    assert (found["rows"], found["users"], found["items"]) == (len(mine), 1, mine.item_id.nunique())
    assert (found["sid_neighbours"], found["open_request"]) == (0, None)
    assert (found["method"], found["expected_s"]) == ("retrain", 12.5)
    assert "smaller than the 50 people" in found["reason"]
    assert person not in json.dumps(found)

    bundle = open_registry(workspace).bundle("2")
    family = params_hash(workspace.params(), "ucan_plus")
    one = Calibration("c-1", "ucan_plus", NOW, "PASS", 85, None, 3.25, 60.0, bundle.backbone.hash, family, "2", [], {})
    record(open_ledger(workspace).engine, [one])
    found = run("forget", "user", person, "--dry-run")
    assert (found["method"], found["expected_s"]) == ("ucan_plus", 3.25)
    assert found["expected_from"].endswith("on 85 users")


def test_a_concept_is_counted_with_its_neighbours_and_priced_by_the_champions_ancestor(run, bundle, tables):
    interactions, items = tables
    tagged = set(items[[CONCEPT in concepts for concepts in items.concepts]].item_id)
    rows = interactions[interactions.item_id.isin(tagged)]
    found = run("forget", "concept", CONCEPT, "--dry-run")
    assert (found["rows"], found["users"], found["items"]) == (len(rows), rows.user_id.nunique(), len(tagged))
    sids = {item: sid[:-1] for item, sid in zip(bundle.table.item_ids, bundle.table.sids.tolist(), strict=True)}
    near = {
        other
        for other in sids.keys() - tagged
        if any(sum(a == b for a, b in zip(sids[other], sids[item], strict=True)) >= 2 for item in tagged)
    }
    assert 0 < len(near) == found["sid_neighbours"]
    assert (found["method"], found["expected_s"]) == ("tracer", 7.5)
    assert found["expected_from"] == "version 1, made by tracer"


def test_one_interaction_takes_a_retraining(run, dataset):
    found = run("forget", "interaction", dataset.user_ids[3], dataset.item_ids[dataset.history(3)[0]], "--dry-run")
    assert (found["rows"], found["users"], found["items"], found["method"]) == (1, 1, 1, "retrain")


def test_operators_hold_release_extend_and_cancel(workspace, run, dataset):
    asked = run("forget", "user", dataset.user_ids[4], "--verifier", "desk", "--how", "passport seen")
    assert (asked["verified_by"], asked["verified_how"]) == ("desk", "passport seen")
    request = asked["id"]
    assert run("forget", "user", dataset.user_ids[4], "--dry-run")["open_request"] == request
    assert run("requests", "hold", request, "--reason", "court order")["reason"] == "court order"
    assert run("requests", "release", request)["state"] == "queued"
    extended = run("requests", "extend", request, "--reason", "many at once")
    assert extended["due_at"] > asked["due_at"]
    assert extended == run("requests", "show", request)
    assert run("requests", "list", "--overdue") == []
    assert run("requests", "cancel", request)["reason"] == "withdrawn"
    assert run("requests", "list", "--state", "cancelled")[-1]["id"] == request
    assert verify_chain(open_ledger(workspace).engine) > 7


def test_overdue_requests_are_listed_until_they_are_closed(workspace, run, dataset):
    ledger, subject = open_ledger(workspace), Subject("user", dataset.user_ids[6])
    late = ledger.submit(subject, known_of(dataset), now=NOW - timedelta(days=31)).id
    assert [request["id"] for request in run("requests", "list", "--overdue")] == [late]
    run("requests", "cancel", late)
    assert run("requests", "list", "--overdue") == []
