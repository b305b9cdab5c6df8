"""Alert tasks, and the events that start a night: events wake a flow, the ledger is the queue."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from prefect import task
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL

from genrec import alerts
from genrec.config import Workspace
from genrec.discreet import discreet
from genrec.requests.store import open_ledger
from tasks.options import SAFE


@task(**SAFE)
@discreet
def send_alerts(workspace: Workspace, failure: str | None = None, unsent: str | None = None) -> list[str]:
    """Deliver what was not told yet; the texts of what was sent."""
    return [alert.text for alert in alerts.deliver(workspace, datetime.now(UTC), failure, unsent)]


@task(**SAFE)
@discreet
def wake_for_overdue(workspace: Workspace) -> list[str]:
    """Start a night for requests that are past their due date and wait in the queue; their ids."""
    overdue = open_ledger(workspace).requests(overdue_at=datetime.now(UTC))
    waiting = [request.id for request in overdue if request.state in ("queued", "failed")]
    if waiting:
        emit_request("overdue", waiting)
    return waiting


def emit_request(what: Literal["overdue", "breach"], request_ids: Sequence[str]) -> None:
    """Emit `genrec.request.<what>`; does nothing without a Prefect server, where no automation would hear it."""
    if PREFECT_API_URL.value() is not None:
        resource = {"prefect.resource.id": "genrec.ledger", "prefect.resource.name": "forget requests"}
        emit_event(f"genrec.request.{what}", resource=resource, payload={"requests": list(request_ids)})
