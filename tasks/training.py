"""Training tasks."""

from prefect import task

from genrec import base_model
from genrec.config import Workspace
from tasks.options import SAFE


@task(**SAFE)
def register_base(workspace: Workspace) -> dict:
    """Register the base bundle of `dvc repro` with its figures and gates: {version, verdict, utility}."""
    return base_model.register(workspace)
