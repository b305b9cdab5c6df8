"""Alerts on a real ledger, delivered to a real HTTP server: which there are, each once per cause, and nobody named."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import text

from genrec import alerts
from genrec.config import Params, Settings
from genrec.data.subjects import Subject
from genrec.errors import ConfigError, RequestError
from genrec.models.bundle import save_bundle
from genrec.registry import open_registry
from genrec.requests.audit import verify_chain
from genrec.requests.breach import expedite
from genrec.requests.calibrations import Calibration, record
from genrec.requests.database import writing
from genrec.requests.lease import Lease
from genrec.requests.refusal import Known
from genrec.requests.store import open_ledger
from genrec.workspace import params_yaml
from tests.webhook import http_server

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
PERSON = "person-1"
KNOWN = Known({PERSON, "person-2"}, {"film-1"}, {"Horror": 1}, 100, lambda user, item: False)


@pytest.fixture
def hook():
    with http_server() as (url, bodies):
        yield url, bodies


def workspace_of(root, url, **settings):
    (root / "params.yaml").write_text(params_yaml(Params()))
    return Settings(home=root, pseudonym_key="key", alert_webhook=url, **settings).workspace


@pytest.fixture
def workspace(tmp_path, hook, mlflow_template):
    return workspace_of(tmp_path, hook[0], mlflow_uri=mlflow_template(tmp_path))


@pytest.fixture(scope="module")
def mlflow_template(tmp_path_factory):
    """Copies of one migrated MLflow database: the migration takes seconds."""
    made = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_registry(Settings(home=made.parent, mlflow_uri=f"sqlite:///{made}").workspace)

    def copy(root):
        return f"sqlite:///{shutil.copy(made, root / 'mlflow.db')}"

    return copy


def ask(workspace, user=PERSON, at=NOW):
    ledger = open_ledger(workspace)
    request = ledger.submit(Subject("user", user_id=user), KNOWN, now=at)
    return ledger.verify(request.id, now=at, verifier="desk")


def failed_night(workspace, outcome, attempts=(), at=NOW):
    ledger = open_ledger(workspace)
    batch = ledger.claim(now=at)
    details = {"outcome": outcome, "reason": f"ValidationFailed: E.g. {PERSON}.", "attempts": list(attempts)}
    ledger.set_stage(batch.id, "failing", details, now=at)
    ledger.fail(batch.id, "a check failed", now=at)
    return batch.id


def kinds(sent):
    return [alert.kind for alert in sent]


def test_a_failed_night_is_told_once_and_the_next_one_again(workspace, hook):
    ask(workspace)
    first = failed_night(workspace, "failed")
    assert kinds(alerts.deliver(workspace, NOW)) == ["night failed"]
    assert alerts.deliver(workspace, NOW + timedelta(hours=1)) == []
    second = failed_night(workspace, "failed", at=NOW + timedelta(days=1))
    assert kinds(alerts.deliver(workspace, NOW + timedelta(days=1))) == ["night failed"]
    _, bodies = hook
    assert [body["cause"] for body in bodies] == [f"failed {first}", f"failed {second}"]
    assert set(bodies[0]) == {"kind", "cause", "text", "at"}
    assert bodies[0]["at"] == NOW.isoformat()
    assert verify_chain(open_ledger(workspace).engine) > 0


def test_a_held_night_says_which_method_was_inconclusive_and_never_quotes_an_error(workspace, hook):
    ask(workspace)
    tried = [{"group": "users", "method": "ucan", "verdict": "INCONCLUSIVE"}]
    batch = failed_night(workspace, "held", tried)
    (alert,) = alerts.deliver(workspace, NOW)
    assert (alert.kind, alert.cause) == ("night held", f"held {batch}")
    assert "users: ucan INCONCLUSIVE" in alert.text
    assert PERSON not in json.dumps(hook[1])


def test_a_night_that_broke_off_is_told_every_day_until_somebody_works_on_it(workspace):
    ask(workspace)
    ledger = open_ledger(workspace)
    ledger.claim(now=NOW)
    with Lease.acquire(ledger.engine, "unlearn", "nightly host 1", lambda: NOW, 120):
        assert alerts.deliver(workspace, NOW) == []
    (alert,) = alerts.deliver(workspace, NOW, failure="OperationalError")
    assert alert.kind == "night broken off"
    assert "OperationalError" in alert.text
    days = [timedelta(hours=1), timedelta(days=1), timedelta(days=1, hours=2), timedelta(days=2)]
    assert [kinds(alerts.deliver(workspace, NOW + after)) for after in days] == [
        [], ["night broken off"], [], ["night broken off"],
    ]  # fmt: skip


def test_a_night_that_is_refused_names_who_holds_the_lease_and_does_not_call_that_night_broken_off(workspace):
    ask(workspace)
    ledger = open_ledger(workspace)
    ledger.claim(now=NOW)
    with Lease.acquire(ledger.engine, "unlearn", "nightly host 1", lambda: NOW, 120):
        (alert,) = alerts.deliver(workspace, NOW, failure="RequestError")
    assert alert.kind == "night failed"
    assert "RequestError while 'nightly host 1' holds the lease since 2031-05-04 03:02 UTC" in alert.text


def test_a_data_version_that_the_remote_did_not_take_is_told_once(workspace):
    (alert,) = alerts.deliver(workspace, NOW, unsent="d1.dir")
    assert (alert.kind, alert.cause) == ("remote", "remote d1.dir")
    assert "dvc push" in alert.text
    assert alerts.deliver(workspace, NOW + timedelta(days=1), unsent="d1.dir") == []
    assert kinds(alerts.deliver(workspace, NOW + timedelta(days=1), unsent="d2.dir")) == ["remote"]


def test_a_night_that_could_not_begin_is_told_once_a_day(workspace):
    days = [NOW, NOW + timedelta(hours=2), NOW + timedelta(days=1)]
    assert [kinds(alerts.deliver(workspace, day, "RegistryError")) for day in days] == [
        ["night failed"], [], ["night failed"],
    ]  # fmt: skip


def test_without_a_ledger_the_end_of_the_night_is_told_all_the_same_and_each_time(workspace, hook):
    """The way to the database has a password, which no alert may quote."""
    away = workspace.settings.model_copy(update={"ledger_url": "postgresql://genrec:hidden@127.0.0.1:1/ledger"})
    workspace.settings = away
    for failure in ("OutageError", "OutageError", None):
        assert len(alerts.deliver(workspace, NOW, failure)) == 1
    workspace.params_file.write_text("seed: -1\n")
    alerts.deliver(workspace, NOW, "ConfigError")
    told = [(body["kind"], body["text"]) for body in hook[1]]
    ended = "The night ended with {}, and the ledger cannot be opened: {}. See genrec doctor."
    assert told == [
        ("night failed", ended.format("OutageError", "OutageError")),
        ("night failed", ended.format("OutageError", "OutageError")),
        ("ledger", "The ledger cannot be opened: OutageError. See genrec doctor."),
        ("night failed", ended.format("ConfigError", "ConfigError")),
    ]


def test_a_calibration_that_went_out_of_date_is_told_once(workspace):
    days = workspace.params().calibration.max_age_days
    facts = {"verdict": "PASS", "n": 100, "split_half": None, "wall_s": 1.0, "gold_s": 2.0, "backbone_hash": "b",
             "params_hash": "p", "champion": "1", "gates": [], "figures": {}}  # fmt: skip
    record(open_ledger(workspace).engine, [Calibration("c-1", "ucan", NOW, **facts)])
    assert alerts.deliver(workspace, NOW + timedelta(days=days)) == []
    (alert,) = alerts.deliver(workspace, NOW + timedelta(days=days, seconds=1))
    assert (alert.kind, alert.cause) == ("calibration", "calibration 2031-05-04")
    assert alerts.deliver(workspace, NOW + timedelta(days=days + 7)) == []


def test_a_request_near_its_due_date_is_told_once_and_once_more_when_it_is_overdue(workspace):
    request = ask(workspace)
    days = {15: [], 24: ["due"], 26: [], 31: ["overdue"], 32: []}
    assert {day: kinds(alerts.deliver(workspace, NOW + timedelta(days=day))) for day in days} == days
    open_ledger(workspace).cancel(request.id, now=NOW, reason="withdrawn")
    assert list(alerts.standing(workspace, NOW + timedelta(days=40))) == []


def test_a_breach_makes_an_open_request_due_now_and_is_in_the_audit_chain(workspace):
    request, other = ask(workspace), ask(workspace, "person-2")
    engine = open_ledger(workspace).engine
    expedite(engine, request.id, now=NOW, reason="a file leaked")
    due = {r.id: r.due_at for r in open_ledger(workspace).requests()}
    assert due == {request.id: NOW, other.id: NOW + timedelta(days=30)}
    expedite(engine, request.id, now=NOW + timedelta(days=1), reason="again")
    assert open_ledger(workspace).get(request.id).due_at == NOW
    assert verify_chain(engine) == 7  # received, verified, queued of both, and one breach
    with pytest.raises(RequestError, match=r"r-none' is unknown, not open\. See genrec requests list"):
        expedite(engine, "r-none", now=NOW, reason="x")


def test_a_changed_audit_row_is_told_once_although_the_chain_stays_broken(workspace):
    ask(workspace)
    engine = open_ledger(workspace).engine
    with writing(engine) as session:
        session.execute(text("UPDATE audit SET event = 'other' WHERE seq = 2"))
    (alert,) = alerts.deliver(workspace, NOW)
    assert alert.kind == "audit"
    assert "Audit row 2 is broken" in alert.text
    assert alerts.deliver(workspace, NOW + timedelta(days=1)) == []


def test_a_spent_drift_budget_is_told_once_per_full_training(workspace, bundle):
    """Base, then nights with an approximate method: at the second one the budget is spent, and stays spent."""
    registry = open_registry(workspace)
    limit = workspace.params().gates.drift
    told, parent = [], ""
    for method, ratio in [("base", 1.0), ("ucan", 1 - limit / 2), ("ucan", 1 - 2 * limit), ("ucan", 1 - 3 * limit),
                          ("retrain", 1.0), ("ucan", 1 - 2 * limit)]:  # fmt: skip
        folder = workspace.root / "candidate"
        save_bundle(bundle.with_lineage(utility_ratio=ratio, method=method, parent=parent or None), folder)
        tags = {"method": method, "parent": parent, "batch_id": f"b{len(told)}", "attempt": "1"}
        champion, parent = parent or None, registry.register(folder, metrics={}, params={}, tags=tags)
        registry.promote(parent, champion)
        told.append([alert.cause for alert in alerts.deliver(workspace, NOW)])
    assert told == [[], [], ["drift 1"], [], [], ["drift 5"]]


def test_what_the_webhook_did_not_take_stands_for_the_next_time(workspace, hook, monkeypatch):
    ask(workspace)
    failed_night(workspace, "failed")
    settings = workspace.settings
    with http_server(status=503) as (url, refused):
        workspace.settings = settings.model_copy(update={"alert_webhook": url})
        with pytest.raises(ConfigError, match=r"answered 503.*GENREC_ALERT_WEBHOOK") as caught:
            alerts.deliver(workspace, NOW)
        assert url not in str(caught.value), "the URL of a webhook is a secret"
        assert len(refused) == 1
    monkeypatch.setattr(alerts, "TIMEOUT_S", 0.3)
    with http_server(wait_s=1) as (url, _):
        workspace.settings = settings.model_copy(update={"alert_webhook": url})
        with pytest.raises(httpx.TimeoutException):
            alerts.deliver(workspace, NOW)
    workspace.settings = settings
    assert kinds(alerts.deliver(workspace, NOW)) == ["night failed"]


def test_without_a_webhook_nothing_is_marked_as_told(workspace, hook):
    ask(workspace)
    failed_night(workspace, "failed")
    settings = workspace.settings
    workspace.settings = settings.model_copy(update={"alert_webhook": None})
    assert alerts.deliver(workspace, NOW) == []
    workspace.settings = settings
    assert kinds(alerts.deliver(workspace, NOW)) == ["night failed"]
