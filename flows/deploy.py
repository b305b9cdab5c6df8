"""What a Prefect server needs before workers start: pools, the deployments of prefect.yaml, automations.

Safe to repeat: what is there is kept (pools, which may be Kubernetes ones) or replaced (deployments, automations).
"""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from genrec.config import Workspace
from genrec.errors import ConfigError

ROOT = Path(__file__).parents[1]
HEARTBEAT_S = 30  # as prefect.yaml sets it for every run
RESTART_HOURS = 6
POOLS = ("cpu", "gpu")
OURS = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.genrec"}
ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled")}


def deploy(workspace: Workspace, root: Path = ROOT) -> dict:
    """Make or renew everything on the server of PREFECT_API_URL: {pools, deployments, automations}, names.

    root: the folder of prefect.yaml. Raises ConfigError without a server, and with the last lines of a failed
    `prefect deploy`.
    """
    if not PREFECT_API_URL.value():
        raise ConfigError("PREFECT_API_URL is not set, and deployments need a server: prefect server start.")
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            _make_pool(client, pool)
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.returncode:
            raise ConfigError(f"`prefect deploy --all` failed: {(done.stdout + done.stderr).strip()[-1000:]}")
        queue = client.read_work_queue_by_name("champion", work_pool_name="cpu")
        client.update_work_queue(queue.id, concurrency_limit=1)
        on_demand = client.read_deployment_by_name("unlearn/on-demand").id
        made = automations(on_demand, workspace.params().requests.lease_seconds, HEARTBEAT_S)
        for automation in made:
            _put(client, automation)
        deployments = sorted(d.name for d in client.read_deployments() if "genrec" in d.tags)
    return {"pools": POOLS, "deployments": deployments, "automations": [a.name for a in made]}


def automations(on_demand, lease_seconds: float, heartbeat_s: float) -> list[AutomationCore]:
    """A run without a heartbeat is CRASHED; a crashed night, an overdue request or a breach starts a night.

    on_demand: id of that deployment. A crashed night starts anew once the dead run's lease has expired, and at most
    once in RESTART_HOURS, so that a night that kills its worker does not do so for ever.
    """
    dead = ChangeFlowRunState(state=StateType.CRASHED, message="No heartbeat: its worker or its process is gone.")
    return [
        AutomationCore(
            name="genrec: dead runs are crashed",
            trigger=EventTrigger(
                posture=Posture.Proactive, after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat"} | ENDED, match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=OURS, for_each={"prefect.resource.id"}, threshold=1,
                within=timedelta(seconds=3 * heartbeat_s),
            ),
            actions=[dead],
        ),
        AutomationCore(
            name="genrec: a crashed night starts anew",
            trigger=EventTrigger(
                posture=Posture.Reactive, expect={"prefect.flow-run.Crashed"}, threshold=1,
                match_related={"prefect.resource.role": "flow", "prefect.resource.name": "unlearn"},
                within=timedelta(hours=RESTART_HOURS),
            ),
            actions=[
                RunDeployment(
                    deployment_id=on_demand, parameters={"trigger": "after a crash"},
                    schedule_after=timedelta(seconds=lease_seconds),
                )
            ],
        ),
        AutomationCore(
            name="genrec: overdue requests and breaches start a night",
            trigger=EventTrigger(
                posture=Posture.Reactive, expect={"genrec.request.overdue", "genrec.request.breach"}, threshold=1,
                match={"prefect.resource.id": "genrec.ledger"}, within=timedelta(0),
            ),
            actions=[RunDeployment(deployment_id=on_demand, parameters={"trigger": "automation"})],
        ),
    ]  # fmt: skip


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


def _put(client: SyncPrefectClient, automation: AutomationCore) -> None:
    same = client.read_automations_by_name(automation.name)
    if same:
        client.update_automation(same[0].id, automation)
    else:
        client.create_automation(automation)
