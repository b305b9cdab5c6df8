"""deploy/ and prefect.yaml name only what exists: commands, entry points, settings; telemetry off, no secret inside."""

import importlib
import json
import re
from inspect import signature
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect import Flow, Task
from typer.main import get_command

from flows import deploy
from genrec import deployed
from genrec.cli import app
from genrec.config import Settings
from genrec.environment import QUIET
from tasks import gpu
from tasks.gpu import on_gpu
from tasks.options import LIMIT_S

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
TEMPLATE = json.loads((ROOT / "deploy" / "kubernetes" / "gpu-pool.json").read_text())
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
TELEMETRY = {name for name in QUIET if re.search("TRACK|ANALYTICS|TELEMETRY", name)}


def flow_of(deployment: dict) -> Flow:
    path, name = deployment["entrypoint"].split(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


def dockerfile_variables() -> dict[str, str]:
    joined = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.removeprefix("ENV ") for line in joined.splitlines() if line.startswith("ENV ")]
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


def commands(service: dict) -> list[list[str]]:
    """The programs a service starts, with their arguments."""
    command = service["command"]
    if command[0] != "sh":
        return [command]
    return [part.strip("() ").split() for line in command[-1].splitlines() for part in re.split(r"&&|\|\|", line)]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_every_deployment_is_a_flow_that_takes_its_parameters(deployment):
    flow = flow_of(deployment)
    assert isinstance(flow, Flow)
    assert set(deployment.get("parameters", {})) <= set(signature(flow.fn).parameters)


def test_the_gpu_deployment_is_the_only_one_on_its_pool_and_takes_what_its_callers_send():
    (other,) = [d for d in DEPLOYMENTS if d["work_pool"]["name"] != "cpu"]
    assert (flow_of(other).name, other["name"], other["work_pool"]["name"]) == ("gpu", "gpu", "gpu")
    from flows.gpu import STEPS

    called = set()
    for path in (ROOT / "tasks").glob("*.py"):
        called |= set(re.findall(r'on_gpu\(workspace, "(\w+)"', path.read_text()))
    assert called == set(STEPS)
    assert list(signature(on_gpu).parameters)[:2] == ["workspace", "step"]


def test_every_run_has_the_heartbeats_that_the_automation_counts():
    for deployment in DEPLOYMENTS:
        environment = deployment["work_pool"]["job_variables"]["env"]
        assert environment == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(deploy.HEARTBEAT_S)}
        assert deployment["tags"] == ["genrec"]


def test_every_task_has_a_time_limit_and_a_dead_run_is_found_before_a_waiting_step_gives_up():
    tasks = {
        task.name: task
        for path in (ROOT / "tasks").glob("*.py")
        for task in vars(importlib.import_module(f"tasks.{path.stem}")).values()
        if isinstance(task, Task)
    }
    assert len(tasks) > 15
    assert {name: task.timeout_seconds for name, task in tasks.items() if not task.timeout_seconds} == {}
    pods = TEMPLATE["variables"]["properties"]["pod_watch_timeout_seconds"]["default"]
    assert pods < deployed.PENDING_S < gpu.START_S < gpu.WAIT_S < LIMIT_S


def test_what_doctor_looks_for_is_what_deploy_makes():
    assert sorted(deployment["name"] for deployment in DEPLOYMENTS) == list(deployed.DEPLOYMENTS)
    assert [one.name for one in deploy.automations(uuid4(), 120, 30, 900)] == list(deployed.AUTOMATIONS)
    assert [one.name for one in deploy.telling(uuid4(), 3600)] == list(deployed.TELLING)
    assert {d["work_pool"]["name"] for d in DEPLOYMENTS} == set(deployed.POOLS)
    assert {d["work_pool"].get("work_queue_name") for d in DEPLOYMENTS} == {None, deployed.QUEUE}


def test_services_call_commands_that_exist():
    known = get_command(app).commands
    seen = set()
    for name in OURS:
        for program, *arguments in commands(SERVICES[name]):
            seen.add(program)
            if program == "genrec":
                group = known[arguments[0]]
                assert not hasattr(group, "commands") or arguments[1] in group.commands, (name, arguments)
    assert seen == {"test", "cd", "genrec", "dvc", "mlflow", "prefect"}
    pools = [arguments[arguments.index("--pool") + 1] for name in OURS for _, *arguments in commands(SERVICES[name])
             if "--pool" in arguments]  # fmt: skip
    assert pools == ["cpu", "gpu"]
    assert "--allowed-hosts" in " ".join(SERVICES["mlflow"]["command"])


def test_variables_are_settings_of_ours_or_of_the_tools():
    from mlflow import environment_variables
    from mlflow.environment_variables import _EnvironmentVariable
    from prefect.settings import Settings as PrefectSettings
    from prefect.settings.legacy import _get_settings_fields

    mlflow = {v.name for v in vars(environment_variables).values() if isinstance(v, _EnvironmentVariable)}
    mlflow |= {"MLFLOW_BACKEND_STORE_URI"}  # an option of `mlflow server`, read by click
    known = {f"GENREC_{name.upper()}" for name in Settings.model_fields} | set(QUIET) | mlflow
    known |= set(_get_settings_fields(PrefectSettings))
    known |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"}
    for name in OURS:
        assert set(SERVICES[name]["environment"]) <= known, name
    python = {"PATH", "PYTHONUNBUFFERED", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_NO_CACHE_DIR"}
    assert set(dockerfile_variables()) <= known | python
    assert set(SERVICES["cpu-worker"]["environment"]) >= {
        f"GENREC_{name}" for name in ("HOME", "LEDGER_URL", "MLFLOW_URI")
    }


def test_only_the_bootstrap_is_the_owner_of_the_ledger():
    urls = {name: SERVICES[name]["environment"].get("GENREC_LEDGER_URL", "") for name in OURS}
    logins = {name: re.search(r"//(\w+):", url)[1] for name, url in urls.items() if url}
    assert logins == {
        "bootstrap": "genrec", "cpu-worker": "genrec_worker", "gpu-worker": "genrec_worker", "serve": "genrec_serve",
    }  # fmt: skip
    assert not {"GENREC_PSEUDONYM_KEY", "GENREC_SIGNING_KEY"} & set(SERVICES["serve"]["environment"])


def test_telemetry_is_off_everywhere():
    assert len(TELEMETRY) == 6
    for name in OURS:
        environment = SERVICES[name]["environment"]
        assert {n: environment.get(n) for n in TELEMETRY} == {n: QUIET[n] for n in TELEMETRY}, name
    assert {n: dockerfile_variables().get(n) for n in TELEMETRY} == {n: QUIET[n] for n in TELEMETRY}


def test_secrets_are_placeholders_without_defaults():
    secret = re.compile("PASSWORD|SECRET|KEY|TOKEN|USER$|MC_HOST")
    for name, service in SERVICES.items():
        for variable, value in service["environment"].items() if "environment" in service else ():
            if secret.search(variable) and variable not in ("GENREC_SIGNING_KEY", "POSTGRES_USER", "PGUSER"):
                assert re.search(r"\$\{\w+:\?\}", value), (name, variable)
            if "://" in value and "@" in value:
                assert re.search(r":\$\{\w+:\?\}@", value), (name, variable)
    assert COMPOSE["secrets"] == {"signing_key": {"file": "${GENREC_SIGNING_KEY_FILE:?}"}}
    asked = set(re.findall(r"\$\{(\w+)", (ROOT / "deploy" / "compose.yaml").read_text()))
    example = dict(
        line.split("=", 1) for line in (ROOT / "deploy" / "env.example").read_text().splitlines() if "=" in line
        and not line.startswith("#")
    )  # fmt: skip
    assert asked - {"GENREC_IMAGE", "GENREC_GPU_IMAGE"} == set(example)
    assert set(example.values()) == {""}


def test_nothing_listens_outside_the_machine_and_nothing_runs_as_root():
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    stages = (ROOT / "deploy" / "Dockerfile").read_text().split("\nFROM ")
    assert re.findall(r"^USER (\w+)", stages[-1], re.MULTILINE) == ["10001"]
    copied = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text()
    assert copied.splitlines()[1] == "*"
    for path in re.findall(r"^COPY (?!--from)(.+) \S+$", "\n".join(stages), re.MULTILINE):
        for source in path.split():
            assert f"!{source}" in copied.splitlines()
            assert (ROOT / source).exists()


def test_the_kubernetes_template_asks_for_a_gpu_and_for_the_shared_workspace_and_uses_every_variable():
    properties = TEMPLATE["variables"]["properties"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(properties)
    pod = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert properties["gpus"]["default"] >= 1
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["workspace"] == SERVICES["cpu-worker"]["volumes"][0].split(":")[1] == "/workspace"
    assert pod["securityContext"]["runAsNonRoot"] is True
    gpu = SERVICES["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu[0]["capabilities"] == ["gpu"]
