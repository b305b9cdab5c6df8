"""What is different between the SIDs of two bundles, and why each item moved.

On the line from a version to the ones it was made from only TRACER moves SIDs, so a move there is told by its batch.
Bundles that are not on one line were built anew: "retrain".
"""

from collections import Counter
from pathlib import Path

import numpy as np

from genrec.config import Workspace
from genrec.errors import RegistryError
from genrec.models.bundle import MANIFEST, Bundle, load_bundle
from genrec.registry import Registry, open_registry
from genrec.sid.table import SidTable, sid_diff

RETRAIN = "retrain"


def changes(workspace: Workspace, before: str, after: str) -> dict:
    """Items `moved` (item_id, title, level, before, after, why), `added` and `removed`, and counts.

    `before` and `after` are version numbers, aliases or bundle folders. Raises RegistryError for what is neither.
    """
    registry = open_registry(workspace)
    old, new = (_bundle(registry, name) for name in (before, after))
    titles = dict(zip(new.table.item_ids, new.titles, strict=True))
    why = _batches(registry, new, old.table)
    if why is None:
        undone = _batches(registry, old, new.table)
        why = undone and {item: f"undone: {reason}" for item, reason in undone.items()}
    moved = [
        {**move, "title": titles[move["item_id"]], "why": why[move["item_id"]] if why is not None else RETRAIN}
        for move in sid_diff(old.table, new.table)
    ]
    return {
        "items": len(new.table.item_ids),
        "moved_items": len(moved),
        "by_level": dict(sorted(Counter(move["level"] for move in moved).items())),
        "by_reason": dict(Counter(move["why"] for move in moved)),
        "added": [item for item in new.table.item_ids if item not in old.table.index],
        "removed": [item for item in old.table.item_ids if item not in new.table.index],
        "moved": moved,
    }


def _bundle(registry: Registry, name: str) -> Bundle:
    if (Path(name) / MANIFEST).exists():
        return load_bundle(Path(name))
    version = registry.version(name)
    if version is None:
        raise RegistryError(f"{name!r} is neither a version nor a folder with a bundle. See genrec models list.")
    return registry.bundle(version.number)


def _batches(registry: Registry, bundle: Bundle, origin: SidTable) -> dict[str, str] | None:
    """Batches that moved each item on the line from the SIDs `origin` to `bundle`; None when they are not on it."""
    found: dict[str, str] = {}
    while not _same(bundle.table, origin):
        parent = registry.version(bundle.lineage.parent) if bundle.lineage.parent else None
        if parent is None:
            return None
        older = registry.bundle(parent.number)
        for move in sid_diff(older.table, bundle.table):
            later = f", {found[move['item_id']]}" if move["item_id"] in found else ""
            found[move["item_id"]] = f"tracer, batch {bundle.lineage.batch_id}{later}"
        bundle = older
    return found


def _same(one: SidTable, other: SidTable) -> bool:
    return one.item_ids == other.item_ids and np.array_equal(one.sids, other.sids)
