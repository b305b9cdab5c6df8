"""The weekly calibration: the approximate methods on a shadow cohort of people who stay, against a retrained model.

It takes the night's lease: the two never overlap.
"""

from datetime import UTC, datetime

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.unlearn import lease
from genrec.config import Settings
from genrec.environment import prepare_environment
from tasks import evaluation


@flow(name="calibrate", log_prints=False, validate_parameters=False)
def calibrate(home: str | None = None) -> list[dict]:
    """Calibrate the champion of the workspace `home` (default: GENREC_HOME); one record per approximate method.

    Raises RequestError when a night or another calibration holds the lease.
    """
    workspace = (Settings(home=home) if home else Settings()).workspace
    prepare_environment(workspace)
    with lease(workspace, "calibration") as held:
        found = evaluation.calibrate(held, datetime.now(UTC).isoformat())
    rows = [{name: one[name] for name in ("method", "verdict", "n", "split_half", "wall_s", "gold_s")} for one in found]
    create_table_artifact(table=rows, key="calibration", description="Methods on this week's shadow cohort")
    return found
