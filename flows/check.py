"""The daily check: alerts that no night sends, because there was none, and a night for what is overdue."""

from prefect import flow

from genrec.config import Settings
from genrec.environment import prepare_environment
from tasks import alerts


@flow(name="check", log_prints=False, validate_parameters=False)
def check(home: str | None = None) -> dict:
    """Send the standing alerts of the workspace `home` and wake a night: {sent: texts, overdue: request ids}."""
    workspace = (Settings(home=home) if home else Settings()).workspace
    prepare_environment(workspace)
    sent = alerts.send_alerts(workspace, return_state=True)  # first: it tells of a ledger that ends the other
    overdue = alerts.wake_for_overdue(workspace)
    return {"sent": sent.result(), "overdue": overdue}
