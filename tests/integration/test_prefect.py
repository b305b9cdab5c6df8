"""Deployments of prefect.yaml on a real Prefect server: pools, automations, events, workers, dead runs, timeouts."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from uuid import uuid4

import httpx
import pandas as pd
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.on_demand import on_demand
from genrec import deployed as names
from genrec.config import Settings
from genrec.data.subjects import Subject
from genrec.doctor import look_at
from genrec.errors import OutageError
from genrec.requests.refusal import Known
from genrec.requests.store import open_ledger
from tests.conftest import copied, genrec
from tests.servers import BIN, background, kill, prefect_server, wait_for
from tests.webhook import http_server

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
"""For an answer of the Prefect server, which shares two cores with its workers."""
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Prefect server of its own: its API URL and the environment to talk to it."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as running:
        yield running


@pytest.fixture(scope="module")
def told():
    """What the server's own automations send: the URL they were deployed with, and the bodies."""
    with http_server() as hook:
        yield hook


@pytest.fixture(scope="module")
def deployed(server, trained, told, tmp_path_factory):
    """A copy of the trained workspace, deployed twice: its folder, the API URL, the environment, both answers."""
    url, environment = server
    home = tmp_path_factory.mktemp("deployed") / "shop"
    copied(trained, home)
    ours = {name: environment[name] for name in environment if name.startswith("PREFECT_")}
    ours["GENREC_ALERT_WEBHOOK"] = told[0]
    said = [json.loads(genrec(home, "deploy", "--json", **ours).stdout) for _ in range(2)]
    return home, url, environment | {"GENREC_HOME": str(home)}, said


def post(url: str, **body):
    """As Prefect's own client asks: again, while the server's SQLite is busy."""
    for _ in range(10):
        answer = httpx.post(url, json=body, timeout=PATIENCE_S)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(1)
    return answer.raise_for_status().json()


def deployment(url: str, name: str) -> dict:
    return httpx.get(f"{url}/deployments/name/{name}", timeout=PATIENCE_S).raise_for_status().json()


def runs(url: str, name: str) -> list[dict]:
    ours = {"deployments": {"id": {"any_": [deployment(url, name)["id"]]}}}
    return post(f"{url}/flow_runs/filter", **ours, sort="EXPECTED_START_TIME_ASC")


def run_of(url: str, name: str, *states: str) -> str:
    """Id of a new run of a deployment, taken through `states` by nobody."""
    run = post(f"{url}/deployments/{deployment(url, name)['id']}/create_flow_run", state={"type": "SCHEDULED"})
    for state in states:
        post(f"{url}/flow_runs/{run['id']}/set_state", state={"type": state}, force=True)
    return run["id"]


def ended(url: str, run_id: str) -> dict | None:
    run = httpx.get(f"{url}/flow_runs/{run_id}", timeout=PATIENCE_S).json()
    return run if run["state_type"] in FINAL else None


def doctor(home: Path, url: str, monkeypatch, at: datetime | None = None, **settings) -> dict[str, str]:
    """What `genrec doctor` says of the server: {line: state}."""
    monkeypatch.setenv("PREFECT_API_URL", url)
    found = look_at("prefect", Settings(home=home, **settings).workspace, at or datetime.now(UTC))
    assert all(one.remedy for one in found if one.state != "ok")
    return {one.says: one.state for one in found}


def test_doctor_names_what_a_new_server_lacks(server, tmp_path, monkeypatch):
    """Before `deployed` below: this is the first test of the module."""
    made, *pools = doctor(tmp_path, server[0], monkeypatch, gpu_deployment=None)
    lacks = ", ".join([*names.DEPLOYMENTS, *map(repr, names.AUTOMATIONS)])
    assert made == f"the server has no {lacks}"
    assert pools == ["the server has no pool cpu"]


def test_deploy_is_repeatable_and_the_cron_run_is_scheduled(deployed):
    _, url, _, (first, again) = deployed
    assert first == again
    written = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    made = {d["name"]: d for d in post(f"{url}/deployments/filter")}
    assert set(made) == {d["name"] for d in written} == set(first["deployments"])
    assert {name: d["work_pool_name"] for name, d in made.items() if d["work_pool_name"] != "cpu"} == {"gpu": "gpu"}
    (pull,) = made["gpu"]["pull_steps"]  # what docs/how-to/kubernetes.md says of the folder of the code
    assert pull == {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
    automations = post(f"{url}/automations/filter")
    assert sorted(a["name"] for a in automations) == sorted(first["automations"])
    queues = {q["name"]: q["concurrency_limit"] for q in post(f"{url}/work_pools/cpu/queues/filter")}
    assert queues["champion"] == 1
    scheduled = wait_for(lambda: runs(url, "unlearn/nightly"), 60)
    assert all(run["state_type"] == "SCHEDULED" and "T02:00:00" in run["expected_start_time"] for run in scheduled)


def test_doctor_sees_who_works_what_is_switched_off_and_which_run_keeps_the_queue(deployed, monkeypatch):
    home, url, _, _ = deployed
    now = datetime.now(UTC)
    told = {"alert_webhook": "http://127.0.0.1:1", "gpu_deployment": "gpu/gpu"}
    assert doctor(home, url, monkeypatch, **told) == {
        "the server answers, with 7 deployments and 7 automations": "ok",
        "no worker of the pool cpu is online": "broken",
        "no worker of the pool gpu is online": "broken",
    }
    (off,) = [one for one in post(f"{url}/automations/filter") if one["name"] == names.DEAD]
    httpx.patch(f"{url}/automations/{off['id']}", json={"enabled": False}).raise_for_status()
    assert doctor(home, url, monkeypatch)["switched off: 'genrec: dead runs are crashed'"] == "warning"
    httpx.patch(f"{url}/automations/{off['id']}", json={"enabled": True}).raise_for_status()

    run = run_of(url, "purge/purge", "PENDING")
    for state, after, says in (
        ("PENDING", 14, None), ("PENDING", 20, "minutes ago and has not begun"),
        ("RUNNING", 4, None), ("RUNNING", 6, "says that it runs, and nobody holds the lease"),
        ("CANCELLING", 6, "was to be cancelled and has not ended"),
    ):  # fmt: skip
        post(f"{url}/flow_runs/{run}/set_state", state={"type": state}, force=True)
        seen = [line for line in doctor(home, url, monkeypatch, now + timedelta(minutes=after)) if "queue" in line]
        assert len(seen) == (says is not None)
        assert says is None or says in seen[0]
    httpx.delete(f"{url}/flow_runs/{run}").raise_for_status()


def test_the_console_asks_the_server_for_a_run_of_its_own(deployed):
    _, url, _, _ = deployed
    assert on_demand() is None
    before = {run["id"] for run in runs(url, "unlearn/on-demand")}
    with temporary_settings({PREFECT_API_URL: url}):
        on_demand()()
    (asked,) = [run for run in runs(url, "unlearn/on-demand") if run["id"] not in before]
    assert (asked["state_type"], asked["parameters"]["trigger"]) == ("SCHEDULED", "console")
    httpx.delete(f"{url}/flow_runs/{asked['id']}").raise_for_status()
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
        pytest.raises(OutageError, match="does not answer"),
    ):
        on_demand()()


@pytest.fixture
def worker(deployed):
    """Starts a worker of a pool; their processes differ in LOGNAME, which MLflow writes into the runs they make."""
    home, _, environment, _ = deployed
    with ExitStack() as running:

        def start(pool: str) -> subprocess.Popen:
            own = {"LOGNAME": f"{pool}-worker", "GENREC_GPU_DEPLOYMENT": "gpu/gpu"}
            command = [BIN / "prefect", "worker", "start", "--pool", pool]
            return running.enter_context(background(command, home / f"{pool}.log", environment | own))

        yield start


def test_training_and_calibration_run_in_the_gpu_workers_process(deployed, worker, monkeypatch):
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.calibrate import calibrate
    from flows.train import train

    home, url, _, _ = deployed
    worker("gpu")
    monkeypatch.setenv("GENREC_GPU_DEPLOYMENT", "gpu/gpu")
    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        assert train(home=str(home))["verdict"] == "PASS"
        assert [one["method"] for one in calibrate(home=str(home))] == ["ucan", "ucan_plus"]
    steps = [(run["work_pool_name"], run["name"].split()[0], run["state_type"]) for run in runs(url, "gpu/gpu")]
    assert steps == [("gpu", "reproduce_base", "COMPLETED"), ("gpu", "calibrate", "COMPLETED")]
    assert doctor(home, url, monkeypatch, gpu_deployment="gpu/gpu")["1 worker of the pool gpu online"] == "ok"
    assert who_made(home, "SELECT run_uuid FROM tags WHERE key = 'kind' AND value = 'calibration'") == "gpu-worker"


def test_a_breach_starts_a_night_whose_unlearning_survives_the_loss_of_its_gpu_worker(deployed, worker):
    home, url, environment, _ = deployed
    rows = pd.read_parquet(home / "prepared" / "interactions.parquet")
    someone = sorted(rows[rows.split == "train"].user_id.unique())[4]
    asked = json.loads(genrec(home, "forget", "user", someone, "--json").stdout)
    server = {"PREFECT_API_URL": url, "PREFECT_HOME": environment["PREFECT_HOME"]}
    due = json.loads(genrec(home, "breach", asked["id"], "--reason", "leaked file", "--json", **server).stdout)
    assert due["due_at"] < datetime.now(UTC).isoformat() < asked["due_at"]

    worker("cpu")
    lost = worker("gpu")
    night = wait_for(lambda: runs(url, "unlearn/on-demand"), 30)[0]
    held = wait_for(lambda: [run for run in rungs(url) if run["state_type"] == "RUNNING"], 180)[0]
    kill(lost)
    with suppress(ProcessLookupError):  # it may have gone with its worker
        os.kill(int(held["infrastructure_pid"].rpartition(":")[2]), signal.SIGKILL)
    # what the automation tested below does, after three heartbeats of 30 s
    post(f"{url}/flow_runs/{held['id']}/set_state", state={"type": "CRASHED"}, force=True)
    worker("gpu")
    done = wait_for(lambda: ended(url, night["id"]), 180)
    assert done["state_type"] == "COMPLETED", done["state"]["message"]
    request = json.loads(genrec(home, "requests", "show", asked["id"], "--json").stdout)
    assert (request["state"], request["method"]) == ("fulfilled", "retrain")

    first, second = rungs(url)
    assert [run["state_type"] for run in (first, second)] == ["CRASHED", "COMPLETED"]
    assert second["work_pool_name"] == "gpu"
    assert {task["name"] for task in tasks_of(url, second)} == {"users: retrain"}
    elsewhere = {task["name"].split("-")[0] for task in tasks_of(url, done)}
    assert {"claim_batch", "erase_from_data", "promote_candidate", "issue_certificates", "fulfil"} <= elsewhere
    assert who_made(home, "SELECT run_id FROM model_versions ORDER BY version DESC LIMIT 1") == "gpu-worker"
    assert done["infrastructure_pid"] != second["infrastructure_pid"]


def rungs(url: str) -> list[dict]:
    return [run for run in runs(url, "gpu/gpu") if run["name"].startswith("climb_rung")]


def tasks_of(url: str, run: dict) -> list[dict]:
    return post(f"{url}/task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})


def who_made(home: Path, run: str) -> str:
    """The LOGNAME of the process that made an MLflow run, which a query names."""
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        query = f"SELECT value FROM tags WHERE key = 'mlflow.user' AND run_uuid = ({run})"
        return database.execute(query).fetchone()[0]


def test_the_check_sends_alerts_and_wakes_a_night_for_what_is_overdue(deployed, monkeypatch):
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.check import check

    home, url, _, _ = deployed
    ledger = open_ledger(Settings(home=home).workspace)
    known = Known({"someone"}, set(), {}, 100, lambda user, item: False)
    past = datetime.now(UTC) - timedelta(days=40)
    request = ledger.submit(Subject("user", user_id="someone"), known, now=past)
    ledger.verify(request.id, now=past, verifier="desk")
    before = {run["id"] for run in runs(url, "unlearn/on-demand")}
    with http_server() as (hook, bodies), temporary_settings(
        {PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    ):  # fmt: skip
        monkeypatch.setenv("GENREC_ALERT_WEBHOOK", hook)
        told = check(home=str(home))
        assert check(home=str(home))["sent"] == []
    assert told["overdue"] == [request.id]
    assert [body["kind"] for body in bodies] == ["overdue"]
    new = wait_for(lambda: [run for run in runs(url, "unlearn/on-demand") if run["id"] not in before], 20)
    assert new[0]["parameters"] == {"trigger": "automation"}
    ledger.cancel(request.id, now=datetime.now(UTC), reason="withdrawn")


@pytest.fixture(scope="module")
def impatient(deployed):
    """The automations of `genrec deploy`, with heartbeats of four seconds and ten seconds to begin, the least that
    Prefect takes. Workers may need more than that: no test after this one starts any."""
    from prefect.client.orchestration import get_client

    from flows.deploy import WEBHOOK, automations, telling

    _, url, _, _ = deployed
    on_demand = deployment(url, "unlearn/on-demand")["id"]
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        webhook = client.read_block_document_by_name(WEBHOOK, "webhook").id
        quick = automations(on_demand, lease_seconds=3600, heartbeat_s=4, pending_s=10)
        for automation in quick + telling(webhook, late_s=10):
            client.update_automation(client.read_automations_by_name(automation.name)[0].id, automation)
    time.sleep(2)  # the server loads changed automations every second or so


def offered(url: str) -> list[str]:
    """Ids of the runs a worker of the queue `champion` would get."""
    soon = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    asked = {"work_queue_names": ["champion"], "scheduled_before": soon}
    return [one["flow_run"]["id"] for one in post(f"{url}/work_pools/cpu/get_scheduled_flow_runs", **asked)]


def test_a_run_that_does_not_begin_is_crashed_and_frees_the_only_place_of_the_queue(deployed, impatient, told):
    """As one whose worker is killed while the flow is imported: heartbeats would begin later."""
    _, url, _, _ = deployed
    stuck, waiting = run_of(url, "purge/purge", "PENDING"), run_of(url, "unlearn/on-demand")
    assert offered(url) == []
    crashed = wait_for(lambda: ended(url, stuck), PATIENCE_S)
    assert crashed["state_type"] == "CRASHED"
    assert "not started since" in crashed["state"]["message"]
    assert len(offered(url)) == 1  # the one that waited longest: an automation may have asked for another
    httpx.delete(f"{url}/flow_runs/{waiting}").raise_for_status()
    (alert,) = wait_for(lambda: [body for body in told[1] if body["cause"] == f"run crashed {stuck}"], PATIENCE_S)
    assert (alert["kind"], set(alert)) == ("run crashed", {"kind", "cause", "text", "at"})
    assert alert["text"].startswith(f"purge, run {stuck}, crashed.")
    assert datetime.fromisoformat(alert["at"]).tzinfo


def test_the_server_tells_of_a_run_that_no_worker_takes_and_of_a_failed_purge_and_the_night_tells_its_own_end(
    deployed, impatient, told
):
    _, url, _, _ = deployed
    late, purge = run_of(url, "unlearn/nightly"), run_of(url, "purge/purge", "PENDING", "RUNNING", "FAILED")
    night = run_of(url, "unlearn/nightly", "PENDING", "RUNNING", "FAILED")
    post(f"{url}/flow_runs/{late}/set_state", state={"type": "SCHEDULED", "name": "Late"}, force=True)
    causes = [f"run failed {purge}", f"run late {late}"]
    wait_for(lambda: all(any(body["cause"] == one for body in told[1]) for one in causes), PATIENCE_S)
    assert not [body for body in told[1] if night in body["cause"]]
    httpx.delete(f"{url}/flow_runs/{late}").raise_for_status()


def test_a_run_that_stops_is_crashed_and_a_night_starts_anew(deployed, impatient):
    """One whose heartbeats stop, and one that began and had not sent any; their processes never were."""
    _, url, _, _ = deployed
    before = {r["id"] for r in runs(url, "unlearn/on-demand")}
    run = run_of(url, "unlearn/nightly", "PENDING", "RUNNING")
    silent = run_of(url, "calibrate/weekly", "PENDING", "RUNNING")
    heartbeat = {
        "id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "related": [{"prefect.resource.id": "prefect.tag.genrec", "prefect.resource.role": "tag"}],
    }  # fmt: skip
    assert httpx.post(f"{url}/events", json=[heartbeat], timeout=PATIENCE_S).is_success
    for one in (run, silent):
        crashed = wait_for(lambda one=one: ended(url, one), PATIENCE_S)
        assert crashed["state_type"] == "CRASHED"
        assert "No heartbeat" in crashed["state"]["message"]
    started = {"trigger": "after a crash"}  # what overdue requests start may come meanwhile
    (new,) = wait_for(
        lambda: [r for r in runs(url, "unlearn/on-demand") if r["id"] not in before and r["parameters"] == started], 20
    )
    assert new["expected_start_time"] > datetime.now(UTC).isoformat()


def test_a_gpu_step_that_died_before_it_began_is_started_anew_and_one_without_an_end_is_cancelled(
    deployed, impatient, monkeypatch
):
    from tasks.gpu import on_gpu

    home, url, _, _ = deployed
    monkeypatch.setattr("tasks.gpu.POLL_S", 0.5)
    workspace = Settings(home=home, gpu_deployment="gpu/gpu").workspace

    def asked(name: str) -> dict:
        return wait_for(lambda: [run for run in runs(url, "gpu/gpu") if run["name"] == name], PATIENCE_S)[0]

    def go_to(name: str, *states: str) -> None:
        for state in states:
            post(f"{url}/flow_runs/{asked(name)['id']}/set_state", state={"type": state}, force=True)

    with temporary_settings({PREFECT_API_URL: url}), ThreadPoolExecutor() as elsewhere:
        elsewhere.submit(go_to, "calibrate never begun 0", "PENDING")
        elsewhere.submit(go_to, "calibrate never begun 1", "PENDING", "RUNNING", "COMPLETED")
        assert on_gpu(workspace, "calibrate", "never begun", at="today")
        assert asked("calibrate never begun 0")["state_type"] == "CRASHED"

        monkeypatch.setattr("tasks.gpu.START_S", 2)
        monkeypatch.setattr("tasks.gpu.WAIT_S", 3)
        elsewhere.submit(go_to, "calibrate without end 0", "PENDING", "RUNNING")
        with pytest.raises(TimeoutError, match=r"calibrate without end 0 on gpu/gpu has not ended after 3 s"):
            on_gpu(workspace, "calibrate", "without end", at="today")
    assert asked("calibrate without end 0")["state_type"] == "CANCELLING"


def test_a_step_that_no_gpu_worker_takes_is_not_waited_for_without_end(deployed, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.gpu import on_gpu

    home, url, _, _ = deployed
    monkeypatch.setattr("tasks.gpu.START_S", 1)
    workspace = Settings(home=home, gpu_deployment="gpu/gpu").workspace
    said = r"No worker took calibrate today 0 on gpu/gpu within 1 s\. Start one: prefect worker start --pool gpu"
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(OutageError, match=said):
        on_gpu(workspace, "calibrate", "today", at="today")


def test_a_task_that_takes_too_long_or_hangs_ends_with_its_children_and_only_lost_connections_are_tried_again(
    server, tmp_path
):
    from prefect import flow, task
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from genrec.errors import RegistryError
    from tasks.data import reproduce_base
    from tasks.options import LIMIT_S, SAFE

    home = tmp_path / "shop"
    genrec(tmp_path, "init", str(home))
    mark = "31536.25"  # seconds no other process sleeps
    (home / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"prepare": {"cmd": f"sleep {mark}"}}}))
    calls, states = [], []

    @task(**SAFE | {"retry_delay_seconds": 0})
    def flaky(error: Exception):
        calls.append(type(error).__name__)
        raise error

    @task(**SAFE | {"timeout_seconds": 0.5, "retries": 0})
    def hanging(wait):
        wait()

    @flow
    def slow():
        for error in (ConnectionError("lost"), RegistryError("refused")):
            flaky(error, return_state=True)
        with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_connection(silent.getsockname()) as caller:
            for wait in (lambda: caller.recv(1), Event().wait):
                states.append(hanging(wait, return_state=True).name)
        reproduce_base.with_options(timeout_seconds=4)(Settings(home=home).workspace)

    settings = {PREFECT_API_URL: server[0], PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with temporary_settings(settings), pytest.raises(TimeoutError):
        slow()
    assert calls == ["ConnectionError"] * 3 + ["RegistryError"]
    assert states == ["TimedOut", "TimedOut"]
    wait_for(lambda: not running(mark), 5)
    assert reproduce_base.timeout_seconds == LIMIT_S


def running(argument: str) -> list[Path]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if argument.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(process)
    return found
