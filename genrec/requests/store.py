"""The workspace's ledger. Kept apart so that commands about requests need not load a model's libraries."""

from pathlib import Path

from genrec.config import Workspace
from genrec.requests.ledger import Ledger


def open_ledger(workspace: Workspace) -> Ledger:
    """Open it, creating the folder of an SQLite file."""
    if workspace.ledger_url.startswith("sqlite:///"):
        Path(workspace.ledger_url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return Ledger(workspace.ledger_url, workspace.pseudonym_key(), workspace.params().requests, workspace.fence)
