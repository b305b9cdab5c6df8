"""The purge: what still holds a subject that was forgotten is listed with a date, and removed once that has come.

Looked through are the MLflow versions (by lineage) and bundles that never became one, the directories in DVC's cache
and remotes (data by the HMAC of every subject in its rows, bundles by their data version), training checkpoints and
copies under var/ (by their time), and the bench's workspaces (by both, each as a whole). The date is the fulfilment of
the oldest request held plus `purge.grace_days`. The champion and the current data are kept whatever they hold;
`previous` only while it holds nobody forgotten.

The audit chain says what was listed and what is gone, and is all a resumed purge needs: every removal may be repeated.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import Workspace
from genrec.data.subjects import present
from genrec.data.tables import FORMATS, read_tables
from genrec.data.version import data_version
from genrec.errors import DataError
from genrec.lineage import History, history
from genrec.registry import CHAMPION, open_registry
from genrec.requests import purges
from genrec.requests.purges import Item, Record
from genrec.requests.states import Request
from genrec.requests.store import open_ledger

INTERACTIONS = tuple(f"interactions.{suffix}" for suffix in FORMATS)
TABLES = INTERACTIONS + tuple(f"items.{suffix}" for suffix in FORMATS)
LINEAGE, PREPARED = "lineage.json", "prepare.json"
FOLDERS = ("checkpoints", "base", "rollback", "bench/retrained")
"""Under var/: models that a training, a registration, a rollback and the bench leave there."""
BENCHES = "bench/workspaces"
"""Under var/: a folder with copies of the tables, and models of them, for each source that the bench was given."""


class Objects(Protocol):
    """DVC's stores (`tasks.objects`): the cache and every remote as one."""

    def trees(self) -> Mapping[str, Mapping[str, str]]:
        """Each directory's files by hash: {directory's hash: {path: file's hash}}."""

    def fetch(self, tree: str, paths: Iterable[str], directory: Path) -> bool:
        """Copy files of a directory to `directory`; False when one is in no store."""

    def remove(self, tree: str) -> None:
        """Delete a directory and the files no other directory has, from every store; an output that is pinned to it
        leaves the workspace and dvc.lock. Nothing when it is gone already."""


@dataclass(frozen=True)
class Kept:
    """Something that holds what was forgotten and is needed: `why`."""

    kind: str
    name: str
    holds: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Overview:
    """What waits for its date, by date, and what is kept in spite of what it holds."""

    waiting: tuple[Item, ...]
    kept: tuple[Kept, ...]

    def as_dict(self) -> dict:
        """JSON-ready."""
        return {"waiting": [item.as_dict() for item in self.waiting], "kept": [asdict(kept) for kept in self.kept]}


def overview(workspace: Workspace, objects: Objects) -> Overview:
    """Look through everything; writes nothing. Listed items that are found no more wait for their record alone."""
    ledger, past = open_ledger(workspace), history(workspace)
    requests = {request.id: request for request in ledger.requests("fulfilled")}
    record = purges.read(ledger.engine)
    if not requests:
        return Overview((), ())
    grace = timedelta(days=workspace.params().purge.grace_days)
    found: dict[tuple[str, str], Item] = dict(record.waiting)
    kept: list[Kept] = []
    needed = _needed(workspace, past)
    held = [
        *_versions(past), *_runs(workspace, requests), *_objects(workspace, objects, past, requests, record),
        *_files(workspace, requests), *_benches(workspace, requests),
    ]  # fmt: skip
    for kind, name, holds, facts in held:
        if not holds:
            continue
        ids = tuple(sorted(holds))
        if why := needed.get((kind, name)):
            kept.append(Kept(kind, name, ids, why))
            continue
        due = min(requests[request].unlearned_at for request in ids) + grace
        found[kind, name] = Item(kind, name, ids, due, facts)
    waiting = (item for key, item in found.items() if key not in needed)
    return Overview(tuple(sorted(waiting, key=lambda item: (item.due, item.key))), tuple(kept))


def run(workspace: Workspace, objects: Objects, now: datetime) -> dict:
    """List what is new, remove what is due at `now`: {removed, waiting, kept}, each a list of dictionaries.

    The lease must be held. An item is recorded as purged after it is gone.
    """
    engine = open_ledger(workspace).engine
    told, listed = overview(workspace, objects), purges.read(engine).waiting
    new = [item for item in told.waiting if item.key not in listed or listed[item.key].due != item.due]
    purges.list_items(engine, new, now=now)
    removed = [item for item in told.waiting if item.due <= now]
    for item in removed:
        _remove(workspace, objects, item)
        purges.mark_purged(engine, item, now=now)
    waiting = tuple(item for item in told.waiting if item.due > now)
    return {"removed": [item.as_dict() for item in removed], **replace(told, waiting=waiting).as_dict()}


def _remove(workspace: Workspace, objects: Objects, item: Item) -> None:
    match item.kind:
        case "version":
            open_registry(workspace).remove(item.name)
        case "run":
            open_registry(workspace).remove_run(item.name)
        case "objects":
            objects.remove(item.name)
        case "file":
            (workspace.var / item.name).unlink(missing_ok=True)
        case "folder":
            if (workspace.var / item.name).exists():
                shutil.rmtree(workspace.var / item.name)


Held = tuple[str, str, Iterable[str], Mapping]
"""Kind, name, ids of the requests held, facts."""


def _needed(workspace: Workspace, past: History) -> dict[tuple[str, str], str]:
    ledger, needed = open_ledger(workspace), {("objects", data_version(workspace.data_pin)): "the current data"}
    if batch := ledger.open_batch():
        before = ledger.stage(batch.id).details.get("data_version_before", "")
        needed["objects", before] = "what the open night goes back to when it fails"
    for number, known in past.versions.items():
        if CHAMPION in known.aliases:
            needed |= {
                ("version", number): "the champion", ("objects", known.tags["data_version"]): "the champion's data"
            }  # fmt: skip
    return needed


def _versions(past: History) -> Iterator[Held]:
    for number, known in past.versions.items():
        if known.purged_at is None:
            facts = {"tags": dict(known.tags), "created_at": known.created_at.isoformat()}
            yield "version", number, past.knows(number), facts


def _runs(workspace: Workspace, requests: Mapping[str, Request]) -> Iterator[Held]:
    for run in open_registry(workspace).unregistered():
        yield "run", run.run_id, _before(requests, run.created_at), {}


def _files(workspace: Workspace, requests: Mapping[str, Request]) -> Iterator[Held]:
    for folder in FOLDERS:
        for path in sorted((workspace.var / folder).rglob("*")):
            if path.is_file():
                yield "file", path.relative_to(workspace.var).as_posix(), _before(requests, _written(path)), {}


def _benches(workspace: Workspace, requests: Mapping[str, Request]) -> Iterator[Held]:
    """What the bench copied before a request was fulfilled holds it; so does what still has the rows, whenever it was
    copied: the tables it came from are nobody's to erase here."""
    for root in sorted((workspace.var / BENCHES).glob("*")):
        files = [path for path in root.rglob("*") if path.is_file()]
        if files:
            held = {*_before(requests, min(map(_written, files))), *_in_copy(workspace, root, requests)}
            yield "folder", root.relative_to(workspace.var).as_posix(), held, {"files": len(files)}


def _written(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _before(requests: Mapping[str, Request], at: datetime) -> list[str]:
    """What was still there at `at`."""
    return [name for name, request in requests.items() if at < request.unlearned_at]


def _objects(
    workspace: Workspace, objects: Objects, past: History, requests: Mapping[str, Request], record: Record
) -> Iterator[Held]:
    trees = objects.trees()
    held = {name: item.holds for (kind, name), item in record.listed.items() if kind == "objects"}
    for tree, files in trees.items():  # data first: it decides about the bundles
        if tree not in held and any(name in files for name in INTERACTIONS):
            held[tree] = _in_rows(workspace, objects, tree, files, requests)
    for tree, files in trees.items():
        if tree not in held and LINEAGE in files:
            held[tree] = _in_bundle(workspace, objects, tree, held, past)
    yield from (("objects", tree, held.get(tree, ()), {"files": len(files)}) for tree, files in trees.items())


def _in_rows(
    workspace: Workspace, objects: Objects, tree: str, files: Mapping[str, str], requests: Mapping[str, Request]
) -> list[str]:
    with _fetched(workspace, objects, tree, [name for name in TABLES if name in files]) as directory:
        if directory is None:
            return []  # the rows are in no store
        if PREPARED in files:
            rows, items = (pq.read_table(directory / f"{name}.parquet") for name in ("interactions", "items"))
        else:
            tables = read_tables(directory)
            rows, items = tables.interactions, tables.items
    return _present(workspace, rows, items, requests)


def _in_copy(workspace: Workspace, root: Path, requests: Mapping[str, Request]) -> list[str]:
    try:
        tables = read_tables(Workspace(root, workspace.settings).data)
    except DataError:
        return list(requests)
    return _present(workspace, tables.interactions, tables.items, requests)


def _present(workspace: Workspace, rows: pa.Table, items: pa.Table, requests: Mapping[str, Request]) -> list[str]:
    kinds = {request.kind for request in requests.values()}
    there = present(rows, items, kinds, workspace.pseudonym_key())
    return [name for name, request in requests.items() if request.digest in there]


def _in_bundle(
    workspace: Workspace, objects: Objects, tree: str, held: Mapping[str, Iterable[str]], past: History
) -> Iterable[str]:
    with _fetched(workspace, objects, tree, [LINEAGE]) as directory:
        if directory is None:
            return []
        made_on = json.loads((directory / LINEAGE).read_text())["data_version"]
    return held[made_on] if made_on in held else past.fulfilled - past.erased(made_on)


@contextmanager
def _fetched(workspace: Workspace, objects: Objects, tree: str, names: Iterable[str]) -> Iterator[Path | None]:
    """A folder with some files of a directory, None when one is lost; always the same, so that no kill leaves rows."""
    folder = workspace.var / "purge"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder if objects.fetch(tree, names, folder) else None
    finally:
        shutil.rmtree(folder)
