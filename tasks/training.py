"""Training tasks."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from genrec import base_model
from genrec.config import Workspace


@task(cache_policy=NO_CACHE)
def register_base(workspace: Workspace) -> dict:
    """Register the base bundle of `dvc repro` with its figures and gates: {version, verdict, utility}."""
    return base_model.register(workspace)
