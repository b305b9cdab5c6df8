"""Process environment of the tools genrec drives: telemetry off, quiet, waits bounded, and at home in the workspace.

Only sets what the user has not set. Must run before prefect, mlflow or great_expectations are imported.
"""

import os
from pathlib import Path

from genrec.config import Workspace

QUIET = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",  # with 5 tries more: half a minute, in which a server can restart
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def prepare_environment(workspace: Workspace) -> None:
    """Set the variables above; without a configured Prefect server its database is kept in the workspace."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ and workspace.params_file.exists():
        home = Path(os.environ.setdefault("PREFECT_HOME", str(workspace.var / "prefect")))
        home.mkdir(parents=True, exist_ok=True)  # prefect's server does not start in a folder that is not there
