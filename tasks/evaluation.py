"""Evaluation tasks."""

from datetime import datetime

from prefect import task

from genrec import calibration
from genrec import night as steps
from genrec.config import Workspace
from genrec.discreet import discreet
from genrec.requests.calibrations import listed
from genrec.requests.store import open_ledger
from tasks.gpu import on_gpu
from tasks.options import LONG


@task(**LONG)
@discreet
def judge_final(workspace: Workspace, batch_id: str, last: dict, number: int) -> dict:
    """All gates of all groups on the night's last candidate."""
    on_gpu(workspace, "judge_final", f"{batch_id}-{number}", batch_id=batch_id, last=last, number=number)
    # what a GPU worker did is recorded by now, and only read
    return steps.judge_final(steps.open_night(workspace, batch_id), last, number)


@task(**LONG)
@discreet
def calibrate(workspace: Workspace, at: str) -> list[dict]:
    """The approximate methods on the shadow cohort of the time `at` (ISO 8601); one record per method."""
    time = datetime.fromisoformat(at)
    if not on_gpu(workspace, "calibrate", at, at=at):
        return calibration.run(workspace, time)
    return [one.as_dict() for one in listed(open_ledger(workspace).engine) if one.at == time]
