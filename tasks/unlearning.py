"""Unlearning tasks: the batch and its rungs. A rung is work for a GPU worker."""

from datetime import UTC, datetime

from prefect import task

from genrec import night as steps
from genrec import planning
from genrec.config import Workspace
from genrec.discreet import discreet
from tasks.gpu import on_gpu
from tasks.options import LONG, ONCE


@task(**ONCE)
@discreet
def claim_batch(workspace: Workspace) -> tuple[str | None, str]:
    """Claim what is due and pending as one batch, or the batch a crash left open: its id, and who waits or ""."""
    batch, waiting = planning.claim(workspace, datetime.now(UTC))
    return batch.id if batch else None, waiting


@task(**ONCE)
@discreet
def plan_ladders(workspace: Workspace, batch_id: str) -> list[dict]:
    """The groups of the batch, the ladder the router gave each and why: {group, ladder, reason, carried}."""
    night = steps.open_night(workspace, batch_id)
    plans = planning.plan(night, datetime.now(UTC))
    return [{"group": group.name, **plans[group.name]} for group in night.groups]


@task(**LONG, task_run_name="{group}: {method}")
@discreet
def climb_rung(
    workspace: Workspace, batch_id: str, group: str, method: str, number: int, start: str | None, reason: str
) -> dict:
    """Run one method on a copy of the champion (or of the last group's candidate), evaluate, gate and register it."""
    rung = {"group": group, "method": method, "number": number, "start": start, "reason": reason}
    on_gpu(workspace, "climb_rung", f"{batch_id}-{number}", batch_id=batch_id, **rung)
    # what a GPU worker did is recorded by now, and only read
    return steps.attempt(steps.open_night(workspace, batch_id), group, method, number, start, reason)
