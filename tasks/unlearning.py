"""Unlearning tasks: the batch and its rungs. These are what a GPU worker runs."""

from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from genrec import night as steps
from genrec import planning
from genrec.config import Workspace


@task(cache_policy=NO_CACHE)
def claim_batch(workspace: Workspace) -> tuple[str | None, str]:
    """Claim what is due and pending as one batch, or the batch a crash left open: its id, and who waits or ""."""
    batch, waiting = planning.claim(workspace, datetime.now(UTC))
    return batch.id if batch else None, waiting


@task(cache_policy=NO_CACHE)
def plan_ladders(workspace: Workspace, batch_id: str) -> list[dict]:
    """The groups of the batch, the ladder the router gave each and why: {group, ladder, reason, carried}."""
    night = steps.open_night(workspace, batch_id)
    plans = planning.plan(night, datetime.now(UTC))
    return [{"group": group.name, **plans[group.name]} for group in night.groups]


@task(cache_policy=NO_CACHE, task_run_name="{group}: {method}")
def climb_rung(
    workspace: Workspace, batch_id: str, group: str, method: str, number: int, start: str | None, reason: str
) -> dict:
    """Run one method on a copy of the champion (or of the last group's candidate), evaluate, gate and register it."""
    return steps.attempt(steps.open_night(workspace, batch_id), group, method, number, start, reason)
