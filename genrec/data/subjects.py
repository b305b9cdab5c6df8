"""Who or what a request asks to forget, its tombstone, and the rows it covers."""

import hashlib
import hmac
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.errors import DataError, RequestError

FIELDS = {"user": ("user_id",), "concept": ("concept",), "item": ("item_id",), "interaction": ("user_id", "item_id")}
TOMBSTONES = "tombstones.csv"
LONGEST_ID = 512
"""Characters of an id or a concept: at four bytes each PostgreSQL can still put it into an index."""


@dataclass(frozen=True)
class Subject:
    """A user, a concept, an item or one interaction; the fields its kind does not use are None.

    The user id is left out of `repr`, because whatever is printed may end in a log.
    """

    kind: Literal["user", "concept", "item", "interaction"]
    user_id: str | None = field(default=None, repr=False)
    item_id: str | None = None
    concept: str | None = None

    def __post_init__(self):
        if self.kind not in FIELDS:
            raise RequestError(f"Unknown kind {self.kind!r}. Known kinds: {', '.join(FIELDS)}.")
        for name in ("user_id", "item_id", "concept"):
            needed = name in FIELDS[self.kind]
            if needed != bool(getattr(self, name)):
                wrong, remedy = ("needs", "Give a non-empty") if needed else ("has no", "Leave out")
                raise RequestError(f"A subject of kind {self.kind!r} {wrong} {name}. {remedy} {name}.")

    def digest(self, key: bytes) -> str:
        """HMAC-SHA256 (64 hex digits) of the subject: its tombstone, and its name once it is forgotten."""
        encoded = json.dumps([self.kind, self.user_id, self.item_id, self.concept]).encode()
        return hmac.new(key, encoded, hashlib.sha256).hexdigest()

    def matches(self, interactions: pa.Table, items: pa.Table) -> np.ndarray:
        """The rows of `interactions` this subject covers, bool [rows]. Concepts and ids match exactly."""
        if self.kind == "concept":
            tagged = zip(items["item_id"].to_pylist(), items["concepts"].to_pylist(), strict=True)
            return _isin(interactions["item_id"], [item for item, tags in tagged if self.concept in tags])
        mask = np.ones(len(interactions), bool)
        for name in FIELDS[self.kind]:
            mask &= _isin(interactions[name], [getattr(self, name)])
        return mask


def read_tombstones(data_dir: Path) -> dict[str, frozenset[str]]:
    """Digests by kind from `tombstones.csv`; empty when there is no such file. Raises DataError on a broken line."""
    path = data_dir / TOMBSTONES
    stones: dict[str, set[str]] = {}
    for number, line in enumerate(path.read_text().splitlines()[1:] if path.exists() else [], 2):
        digest, _, kind = line.partition(",")
        if len(digest) != 64 or kind not in FIELDS:
            raise DataError(f"{path.name}, line {number} is not `digest,kind`. Restore the file: `dvc checkout data`.")
        stones.setdefault(kind, set()).add(digest)
    return {kind: frozenset(digests) for kind, digests in stones.items()}


def tombstones_text(stones: dict[str, Iterable[str]]) -> str:
    """The content of `tombstones.csv`: sorted and unique."""
    lines = sorted({f"{digest},{kind}" for kind, digests in stones.items() for digest in digests})
    return "\n".join(["digest,kind", *lines]) + "\n"


def tombstoned(interactions: pa.Table, items: pa.Table, stones: dict[str, frozenset[str]], key: bytes) -> np.ndarray:
    """The rows a tombstone covers, bool [rows]: a source may deliver again what was forgotten."""
    mask = np.zeros(len(interactions), bool)
    if stones.get("user"):
        users = pc.unique(interactions["user_id"]).to_pylist()
        mask |= _isin(interactions["user_id"], [u for u in users if Subject("user", u).digest(key) in stones["user"]])
    if stones.get("item") or stones.get("concept"):
        tagged = dict(zip(items["item_id"].to_pylist(), items["concepts"].to_pylist(), strict=True))
        names = {tag for tags in tagged.values() for tag in tags}
        concepts = {c for c in names if Subject("concept", concept=c).digest(key) in stones.get("concept", ())}
        gone = [
            item
            for item in pc.unique(interactions["item_id"]).to_pylist()
            if concepts.intersection(tagged.get(item, ()))
            or Subject("item", item_id=item).digest(key) in stones.get("item", ())
        ]
        mask |= _isin(interactions["item_id"], gone)
    if stones.get("interaction"):
        pairs = zip(interactions["user_id"].to_pylist(), interactions["item_id"].to_pylist(), strict=True)
        digests = (Subject("interaction", user, item).digest(key) for user, item in pairs)
        mask |= np.fromiter((digest in stones["interaction"] for digest in digests), bool, len(interactions))
    return mask


def present(interactions: pa.Table, items: pa.Table, kinds: Container[str], key: bytes) -> set[str]:
    """Digests of every subject of `kinds` that has a row: what a tombstone is compared with once the id is gone."""
    found: set[Subject] = set()
    if "user" in kinds:
        found |= {Subject("user", user) for user in pc.unique(interactions["user_id"]).to_pylist()}
    there = set(pc.unique(interactions["item_id"]).to_pylist())
    if "item" in kinds:
        found |= {Subject("item", item_id=item) for item in there}
    if "concept" in kinds:
        tagged = zip(items["item_id"].to_pylist(), items["concepts"].to_pylist(), strict=True)
        found |= {Subject("concept", concept=tag) for item, tags in tagged if item in there for tag in tags}
    if "interaction" in kinds:
        pairs = zip(interactions["user_id"].to_pylist(), interactions["item_id"].to_pylist(), strict=True)
        found |= {Subject("interaction", user, item) for user, item in pairs}
    return {subject.digest(key) for subject in found}


def _isin(column: pa.ChunkedArray, values: list[str]) -> np.ndarray:
    return pc.is_in(column, pa.array(values, pa.string())).to_numpy()
