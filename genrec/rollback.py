"""Rollback that never brings back what was forgotten."""

from genrec.config import Workspace
from genrec.errors import RegistryError
from genrec.night import open_registry
from genrec.registry import PREVIOUS
from genrec.requests.store import open_ledger


def rollback(workspace: Workspace, to: str | None = None) -> dict:
    """Make version `to` (default: `previous`) the champion: {champion, previous}.

    Raises RegistryError when a request was fulfilled by a version newer than `to`: its subject would be known again.
    """
    registry, ledger = open_registry(workspace), open_ledger(workspace)
    target = registry.version(to or PREVIOUS)
    if target is None:
        raise RegistryError(f"No version {to or PREVIOUS!r} to roll back to. See genrec models list.")
    knows = [
        request.id
        for request in ledger.requests("fulfilled")
        if int(ledger.stage(request.batch_id).details["version"]) > int(target.number)
    ]
    if knows:
        raise RegistryError(
            f"Version {target.number} is older than {len(knows)} fulfilled requests ({', '.join(knows[:3])}, ...) and "
            "knows what they forgot. Roll back to a newer version, or train anew: genrec train."
        )
    if target.tags.get("verdict") != "PASS":
        raise RegistryError(f"Version {target.number} never passed its gates ({target.tags.get('verdict')}).")
    previous = registry.promote(target.number)
    return {"champion": target.number, "previous": previous}
