"""SID tasks."""

from prefect import task

from genrec import night as steps
from genrec.config import Workspace
from genrec.discreet import discreet
from genrec.registry import open_registry
from tasks.options import SAFE


@task(**SAFE)
@discreet
def sid_changes(workspace: Workspace, before: str, after: str) -> list[dict]:
    """Items whose SID differs between two registered versions, with titles."""
    registry = open_registry(workspace)
    return steps.sid_changes(registry.bundle(before), registry.bundle(after))
