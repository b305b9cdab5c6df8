"""Evaluation tasks."""

from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from genrec import calibration
from genrec import night as steps
from genrec.config import Workspace


@task(cache_policy=NO_CACHE)
def judge_final(workspace: Workspace, batch_id: str, last: dict, number: int) -> dict:
    """All gates of all groups on the night's last candidate."""
    return steps.judge_final(steps.open_night(workspace, batch_id), last, number)


@task(cache_policy=NO_CACHE)
def calibrate(workspace: Workspace) -> list[dict]:
    """The approximate methods on this week's shadow cohort; one record per method."""
    return calibration.run(workspace, datetime.now(UTC))
