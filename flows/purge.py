"""The purge: old versions that still hold what was forgotten are listed with a date and removed after it.

It takes the night's lease: no night, calibration or training begins meanwhile.
"""

from datetime import UTC, datetime

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.unlearn import lease
from genrec.config import Settings
from genrec.environment import prepare_environment
from tasks import purge as tasks


@flow(name="purge", log_prints=False, validate_parameters=False)
def purge(home: str | None = None, now: str | None = None) -> dict:
    """Purge the workspace `home` (default: GENREC_HOME) as of `now` (ISO 8601 with a zone; default: the present).

    Returns {removed, waiting, kept}. Raises RequestError when a night, a calibration or a training holds the lease.
    """
    workspace = (Settings(home=home) if home else Settings()).workspace
    prepare_environment(workspace)
    with lease(workspace, "purge") as held:
        told = tasks.run(held, now or datetime.now(UTC).isoformat())
    rows = [
        {"what": state, "kind": item["kind"], "name": item["name"], "requests": len(item["holds"])}
        for state, items in told.items()
        for item in items
    ]
    create_table_artifact(table=rows, key="purge", description="What still holds what was forgotten, and what is gone")
    return told
