"""The purge as a task."""

from datetime import datetime

from prefect import task

from genrec import purge
from genrec.config import Workspace
from genrec.discreet import discreet
from tasks.data import push
from tasks.objects import dvc_objects
from tasks.options import SAFE


@task(**SAFE)
@discreet
def run(workspace: Workspace, now: str) -> dict:
    """List what still holds somebody forgotten, remove what is due at `now` (ISO 8601).

    The remote gets the current data version before it loses an older one. Raises DataError where it does not take it.
    """
    push(workspace)
    with dvc_objects(workspace) as objects:
        return purge.run(workspace, objects, datetime.fromisoformat(now))
