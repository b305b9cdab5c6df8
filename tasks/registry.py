"""Registry tasks: the promotion saga, each step safe to repeat."""

from datetime import UTC, datetime

from prefect import task

from genrec import base_model, saga
from genrec import night as steps
from genrec.config import Workspace
from genrec.discreet import discreet
from tasks.options import SAFE


@task(**SAFE)
@discreet
def promote_base(workspace: Workspace, version: str) -> str | None:
    """Make a base model the champion when its gates passed."""
    return base_model.promote(workspace, version, datetime.now(UTC))


@task(**SAFE)
@discreet
def promote_candidate(workspace: Workspace, batch_id: str) -> None:
    """Move the aliases to the version the batch's stage names."""
    saga.promote(steps.open_night(workspace, batch_id))


@task(**SAFE)
@discreet
def issue_certificates(workspace: Workspace, batch_id: str) -> list[str]:
    """One certificate per request."""
    return saga.certify(steps.open_night(workspace, batch_id))


@task(**SAFE)
@discreet
def write_report(workspace: Workspace, batch_id: str, sid_diff: list[dict]) -> dict:
    """summary.json and the page, in reports/ and with the MLflow run. Returns the summary."""
    return saga.report(steps.open_night(workspace, batch_id), sid_diff)


@task(**SAFE)
@discreet
def fulfil(workspace: Workspace, batch_id: str) -> None:
    """Close the batch: requests fulfilled, sealed rows and working folder destroyed."""
    saga.fulfil(steps.open_night(workspace, batch_id))


@task(**SAFE)
@discreet
def close_failed(workspace: Workspace, batch_id: str) -> dict:
    """Close the batch as failed: its requests go into the next night's. Returns the summary."""
    return saga.close_failed(steps.open_night(workspace, batch_id))
