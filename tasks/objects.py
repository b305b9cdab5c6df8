"""DVC's stores as the purge sees them: the cache and every remote, directory by directory (genrec.purge.Objects)."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from genrec.config import Workspace
from genrec.errors import DataError

LOCK = "dvc.lock"


class DvcObjects:
    """Directories and files of a DVC repository by hash, over all its stores; remotes first, the cache last."""

    def __init__(self, repo):
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree

        self._repo = repo
        self._stores, self._trees = {}, {}
        for name in repo.config["remote"]:
            with _reached(name):  # its plug-in may be missing
                self._stores[name] = repo.cloud.get_remote_odb(name, "purge")
        self._stores["cache"] = repo.cache.local
        for name, store in self._stores.items():
            with _reached(name):
                found = [oid for oid in store.all() if oid.endswith(".dir") and oid not in self._trees]
                for oid in found:
                    tree = Tree.load(store, HashInfo("md5", oid))
                    self._trees[oid] = {"/".join(path): file.value for path, _, file in tree}

    def trees(self) -> Mapping[str, Mapping[str, str]]:
        """Each directory's files by hash: {directory's hash: {path: file's hash}}."""
        return self._trees

    def fetch(self, tree: str, paths: Iterable[str], directory: Path) -> bool:
        """Copy files of a directory to `directory`; False when one is in no store."""
        return all(self._copy(self._trees[tree][path], directory / path) for path in paths)

    def _copy(self, oid: str, target: Path) -> bool:
        for name in reversed(self._stores):  # what is near first
            store = self._stores[name]
            with _reached(name):
                if store.exists(oid):
                    with store.fs.open(store.oid_to_path(oid), "rb") as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file)
                    return True
        return False

    def remove(self, tree: str) -> None:
        """Delete a directory and the files no other directory and no output has, from every store, itself last.

        An output that is pinned to it leaves the workspace and dvc.lock.
        """
        from dvc.dvcfile import Lockfile
        from dvc_data.hashfile.db import get_index

        needed = set()
        for stage in self._repo.index.stages:
            for out in stage.outs:
                if out.hash_info.value != tree:
                    needed.add(out.hash_info.value)
                    continue
                out.remove()
                Lockfile(self._repo, self._repo.fs.join(self._repo.root_dir, LOCK)).remove_stage(stage)
        files = set(self._trees.pop(tree, {}).values()) - needed
        files -= {oid for other in self._trees.values() for oid in other.values()}
        for oids in (files, {tree}):
            for name, store in self._stores.items():
                with _reached(name):
                    there = [store.oid_to_path(oid) for oid in store.list_oids_exists(oids)]
                    if there:
                        store.fs.remove(there)
                        get_index(store).clear()  # else a push would believe that they are still there


@contextmanager
def dvc_objects(workspace: Workspace) -> Iterator[DvcObjects]:
    """The stores of a workspace, under DVC's lock.

    Raises DataError where another DVC command runs, and where a store cannot be reached.
    """
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(str(workspace.root)) as repo, repo.lock:
            yield DvcObjects(repo)
    except LockError as error:
        raise DataError(f"Another DVC command runs in {workspace.root}. Wait for it, then purge again.") from error


@contextmanager
def _reached(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every file system has its own
        raise DataError(
            f"DVC store {name!r} failed: {type(error).__name__}: {error}. See dvc remote list, then purge again: it "
            "goes on where it stopped."
        ) from error
