"""Prefect and MLflow servers for the tests: processes of their own on a free port of 127.0.0.1."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds: float, every: float = 0.3):
    """The first true value of `condition`; a server that is not up yet is asked again."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.HTTPError):
            if value := condition():
                return value
        assert time.monotonic() < deadline, "timed out"
        time.sleep(every)


def stop(process: subprocess.Popen) -> None:
    """A worker may ignore its first SIGTERM: ask, then insist."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """The whole process group at once, as a power cut would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)


@contextmanager
def background(command: list, log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A process group that ends with the block, if it has not before."""
    with log.open("a") as file:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            stop(process)


@contextmanager
def prefect_server(home: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Its API URL and the environment to talk to it; `home` keeps its database."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": url, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    environment["PREFECT_SERVER_SERVICES_TRIGGERS_PROACTIVE_GRANULARITY"] = "PT1S"
    environment["PATH"] = os.pathsep.join([str(BIN), os.environ["PATH"]])
    command = [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with background(command, home / "server.log", environment):
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 200, 240)
        yield url, environment


@contextmanager
def mlflow_server(database: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Its URI and process, over an existing SQLite file of MLflow. It is up when `GET /health` answers."""
    port = free_port()
    command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", *options]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes that nobody needs
    with background(command, database.with_suffix(".log"), environment) as process:
        yield f"http://127.0.0.1:{port}", process
