"""What a Prefect server needs before workers start: pools, the deployments of prefect.yaml, automations.

Safe to repeat: what is there is kept (pools, which may be Kubernetes ones) or replaced (deployments, automations).
"""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.types import SecretDict
from pydantic import SecretStr

from genrec import deployed
from genrec.config import Workspace
from genrec.deployed import PENDING_S, POOLS, QUEUE, TAG
from genrec.errors import ConfigError

ROOT = Path(__file__).parents[1]
HEARTBEAT_S = 30  # as prefect.yaml sets it for every run
RESTART_HOURS = 6
LATE_S = 3600  # a run behind a long one on the queue `champion` is late, too
WEBHOOK = "genrec-alerts"
"""Name of the Prefect block that holds GENREC_ALERT_WEBHOOK."""
OURS = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
RUN = {"prefect.resource.id": "prefect.flow-run.*"}
HEARTBEAT, LATE, PENDING, RUNNING, FAILED, CRASHED = (
    f"prefect.flow-run.{what}" for what in ("heartbeat", "Late", "Pending", "Running", "Failed", "Crashed")
)
ENDED = {FAILED, CRASHED, "prefect.flow-run.Completed", "prefect.flow-run.Cancelled"}


def deploy(workspace: Workspace, root: Path = ROOT) -> dict:
    """Make or renew everything on the server of PREFECT_API_URL: {pools, deployments, automations}, names.

    root: the folder of prefect.yaml. With GENREC_ALERT_WEBHOOK the server sends alerts, too, and keeps its URL as a
    secret block. Raises ConfigError without a server, and with the last lines of a failed
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
        queue = client.read_work_queue_by_name(QUEUE, work_pool_name="cpu")
        client.update_work_queue(queue.id, concurrency_limit=1)
        on_demand = client.read_deployment_by_name("unlearn/on-demand").id
        made = automations(on_demand, workspace.params().requests.lease_seconds, HEARTBEAT_S, PENDING_S)
        if url := workspace.settings.alert_webhook:
            made += telling(_webhook(url), LATE_S)
        for automation in made:
            _put(client, automation)
        deployments = sorted(d.name for d in client.read_deployments() if TAG in d.tags)
    return {"pools": POOLS, "deployments": deployments, "automations": [a.name for a in made]}


def automations(on_demand: UUID, lease_seconds: float, heartbeat_s: float, pending_s: float) -> list[AutomationCore]:
    """A run that stops or does not start is CRASHED; a crashed night, an overdue request or a breach starts a night.

    on_demand: id of that deployment. A run is dead without a heartbeat for three times `heartbeat_s`, counted from its
    start, or when `pending_s` seconds after a worker took it it has not started: it would keep the only place of the
    queue `champion`. A crashed night starts anew once the dead run's lease has expired, and at most once in
    RESTART_HOURS, so that a night that kills its worker does not do so for ever.
    """
    return [
        _crashed_without(
            deployed.DEAD, {HEARTBEAT, RUNNING}, {HEARTBEAT} | ENDED, 3 * heartbeat_s,
            "No heartbeat: its worker or its process is gone.",
        ),
        _crashed_without(
            deployed.STUCK, {PENDING}, {RUNNING} | ENDED, pending_s,
            "Taken by a worker, and not started since: the worker or the process is gone.",
        ),
        AutomationCore(
            name=deployed.ANEW,
            trigger=EventTrigger(
                posture=Posture.Reactive, expect={CRASHED}, threshold=1,
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
            name=deployed.URGENT,
            trigger=EventTrigger(
                posture=Posture.Reactive, expect={"genrec.request.overdue", "genrec.request.breach"}, threshold=1,
                match={"prefect.resource.id": "genrec.ledger"}, within=timedelta(0),
            ),
            actions=[RunDeployment(deployment_id=on_demand, parameters={"trigger": "automation"})],
        ),
    ]  # fmt: skip


def telling(webhook: UUID, late_s: float) -> list[AutomationCore]:
    """Alerts that no run can send, because it did not begin or its process is gone, and those of flows without alerts.

    webhook: id of a Webhook block. A run is told as late when nobody has begun it `late_s` seconds after Prefect called
    it so. A night that failed tells it itself (`genrec.alerts`), and a step on the GPU fails its night.
    """
    others = ["calibrate", "check", "purge", "train"]
    return [
        AutomationCore(
            name=deployed.LATE,
            trigger=EventTrigger(
                posture=Posture.Proactive, after={LATE}, expect={PENDING, RUNNING} | ENDED, match=RUN,
                match_related=OURS, for_each={"prefect.resource.id"}, threshold=1, within=timedelta(seconds=late_s),
            ),
            actions=[_tell(webhook, "run late", "is late: no worker has begun it")],
        ),
        _told_at_once(deployed.FAILED, FAILED, others, _tell(webhook, "run failed", "failed")),
        _told_at_once(deployed.CRASHED, CRASHED, [*others, "unlearn"], _tell(webhook, "run crashed", "crashed")),
    ]  # fmt: skip


def _crashed_without(name: str, after: set[str], expect: set[str], within_s: float, why: str) -> AutomationCore:
    return AutomationCore(
        name=name,
        trigger=EventTrigger(
            posture=Posture.Proactive, after=after, expect=expect, match=RUN, match_related=OURS,
            for_each={"prefect.resource.id"}, threshold=1, within=timedelta(seconds=within_s),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=why)],
    )  # fmt: skip


def _told_at_once(name: str, event: str, flows: list[str], action: CallWebhook) -> AutomationCore:
    related = [OURS, {"prefect.resource.role": "flow", "prefect.resource.name": flows}]
    trigger = EventTrigger(
        posture=Posture.Reactive, expect={event}, match=RUN, match_related=related, threshold=1, within=timedelta(0)
    )
    return AutomationCore(name=name, trigger=trigger, actions=[action])


def _tell(webhook: UUID, kind: str, what: str) -> CallWebhook:
    """The same JSON as of `genrec.alerts.deliver`; what is filled in are names, an id and a time."""
    payload = {
        "kind": kind,
        "cause": f"{kind} {{{{ flow_run.id }}}}",
        "text": f"{{{{ flow.name }}}}, run {{{{ flow_run.id }}}}, {what}. See it in Prefect, and genrec doctor.",
        "at": "{{ event.occurred.isoformat() }}",
    }
    return CallWebhook(block_document_id=webhook, payload=json.dumps(payload))


def _webhook(url: str) -> UUID:
    block = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
    return block.save(WEBHOOK, overwrite=True)


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
