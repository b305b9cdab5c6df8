"""Deployments of prefect.yaml on a real Prefect server: the cron run is scheduled, a worker serves a triggered one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Prefect server of its own on 127.0.0.1; yields its API URL and the environment to talk to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": url, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    environment["PATH"] = os.pathsep.join([str(BIN), os.environ["PATH"]])
    command = [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 200, 90)
        yield url, environment
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """A worker may ignore its first SIGTERM: ask, then insist."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


def wait_for(condition, seconds: float):
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.HTTPError):  # not up yet
            if value := condition():
                return value
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.3)


def prefect(environment, cwd, *arguments):
    return subprocess.run(
        [BIN / "prefect", "--no-prompt", *arguments],
        env=environment,
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
    )


def runs(url: str, **filters) -> list[dict]:
    return httpx.post(f"{url}/flow_runs/filter", json=filters).json()


def test_cron_is_scheduled_and_a_worker_serves_a_triggered_run(server, trained, tmp_path):
    url, environment = server
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "prefect.yaml", project)
    for package in ("flows", "tasks"):
        (project / package).symlink_to(ROOT / package)
    prefect(environment, project, "work-pool", "create", "genrec", "--type", "process")
    prefect(environment, project, "deploy", "--all")
    deployments = {d["name"]: d for d in httpx.post(f"{url}/deployments/filter", json={}).json()}
    assert set(deployments) == {"nightly", "on-demand", "weekly", "full-training"}
    assert {d["work_pool_name"] for d in deployments.values()} == {"genrec"}

    nightly = {"deployments": {"id": {"any_": [deployments["nightly"]["id"]]}}}
    scheduled = wait_for(lambda: runs(url, **nightly), 60)
    assert all(run["state_type"] == "SCHEDULED" and "T02:00:00" in run["expected_start_time"] for run in scheduled)

    worker = subprocess.Popen(
        [BIN / "prefect", "worker", "start", "--pool", "genrec"],
        env=environment, cwd=project, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        body = {"parameters": {"trigger": "test", "home": str(trained)}}
        made = httpx.post(f"{url}/deployments/{deployments['on-demand']['id']}/create_flow_run", json=body).json()
        before = (trained / "reports" / "latest" / "summary.json").stat().st_mtime_ns if reported(trained) else 0
        done = wait_for(lambda: ended(url, made["id"]), 120)
        assert done["state_type"] == "COMPLETED", done["state"]["message"]
        assert (trained / "reports" / "latest" / "summary.json").stat().st_mtime_ns > before
        summary = json.loads((trained / "reports" / "latest" / "summary.json").read_text())
        assert summary["outcome"] == "nothing to do"
    finally:
        stop(worker)


def reported(home: Path) -> bool:
    return (home / "reports" / "latest" / "summary.json").exists()


def ended(url: str, run_id: str) -> dict | None:
    run = httpx.get(f"{url}/flow_runs/{run_id}").json()
    return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None
