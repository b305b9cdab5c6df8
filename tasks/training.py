"""Training tasks."""

from prefect import task

from genrec import base_model
from genrec.config import Workspace
from genrec.discreet import discreet
from tasks.options import SAFE


@task(**SAFE)
@discreet
def register_base(workspace: Workspace) -> dict:
    """Register the base bundle of `dvc repro` with its figures and gates: {version, verdict, utility}."""
    return base_model.register(workspace)
