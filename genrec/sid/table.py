"""The SID table: one semantic ID per item, its token vocabulary, and how it changes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.errors import DataError


@dataclass(frozen=True)
class Vocabulary:
    """Token ids: 0 pads, 1 begins a sequence, then one block of ids per level.

    Attributes: sizes - codes per level, the dedup level last.
    """

    sizes: tuple[int, ...]

    PAD = 0
    BOS = 1
    SPECIAL = 2

    @property
    def levels(self) -> int:
        return len(self.sizes)

    @cached_property
    def offsets(self) -> np.ndarray:
        """First token id of each level, int64 [levels]."""
        return self.SPECIAL + np.concatenate([[0], np.cumsum(self.sizes)[:-1]])

    @property
    def size(self) -> int:
        return self.SPECIAL + sum(self.sizes)


@dataclass(frozen=True)
class SidLineage:
    """What the codebooks of a table were fitted on. Hashes are SHA-256.

    template: how an item's text is made of its row; texts, embeddings: of the catalogue then, in item order.
    """

    encoder: str
    template: str
    quantiser: str
    collisions: str
    seed: int
    texts_sha256: str
    embeddings_sha256: str
    codebooks_sha256: str


@dataclass(frozen=True)
class SidTable:
    """item_ids [n] and sids int32 [n, levels]: the codes of each level, then the dedup digit.

    Row order is the item index used everywhere else (sorted item ids). Repaired tables have no collisions: their dedup
    digit is always 0, the only one of its level. lineage: None for tables that genrec did not build.
    """

    item_ids: tuple[str, ...]
    sids: np.ndarray
    vocabulary: Vocabulary
    lineage: SidLineage | None = None

    def __post_init__(self):
        if self.sids.shape != (len(self.item_ids), self.vocabulary.levels):
            raise DataError(f"SID table holds {self.sids.shape} codes for {len(self.item_ids)} items.")
        if (self.sids < 0).any() or (self.sids >= np.array(self.vocabulary.sizes)).any():
            raise DataError("SID table holds codes outside its vocabulary.")
        if len(np.unique(self.sids, axis=0)) != len(self.sids):
            raise DataError("SID table gives two items the same SID.")

    @property
    def repaired(self) -> bool:
        return self.vocabulary.sizes[-1] == 1

    @cached_property
    def tokens(self) -> np.ndarray:
        """Token ids int64 [n, levels]."""
        return self.sids.astype(np.int64) + self.vocabulary.offsets

    @cached_property
    def index(self) -> dict[str, int]:
        return {item: i for i, item in enumerate(self.item_ids)}

    def shared(self, items: Sequence[int]) -> np.ndarray:
        """How many SID tokens, dedup digits aside, each item shares at most with one of `items`: int64 [n]."""
        codes = self.sids[:, :-1]
        most = np.zeros(len(codes), np.int64)
        for item in items:
            np.maximum(most, (codes == codes[item]).sum(1), out=most)
        return most

    def sharing(self, items: Sequence[int], levels: int) -> np.ndarray:
        """Which items share at least `levels` SID tokens with one of `items`: bool [n]."""
        return self.shared(items) >= levels


def dedup_digits(codes: np.ndarray, taken: np.ndarray | None = None) -> np.ndarray:
    """Smallest free digit per row so that (codes, digit) is unique, in row order: int32 [n].

    `taken` int [m, levels + 1] are full SIDs that already exist and stay as they are.
    """
    used: dict[bytes, set[int]] = {}
    for row in taken if taken is not None else ():
        used.setdefault(row[:-1].astype(np.int32).tobytes(), set()).add(int(row[-1]))
    digits = np.empty(len(codes), np.int32)
    for i, row in enumerate(codes.astype(np.int32)):
        group = used.setdefault(row.tobytes(), set())
        digit = 0
        while digit in group:
            digit += 1
        group.add(digit)
        digits[i] = digit
    return digits


def free_digits(codes: np.ndarray, taken: np.ndarray, capacity: int) -> np.ndarray:
    """`dedup_digits` below `capacity`. Raises DataError when a prefix has none left."""
    digits = dedup_digits(codes, taken)
    if digits.max(initial=0) >= capacity:
        raise DataError(
            f"More than {capacity} items would share one SID prefix; no dedup digit left. Build new SIDs: genrec train."
        )
    return digits


def build_table(item_ids: Sequence[str], codes: np.ndarray, code_count: int) -> SidTable:
    """A table from quantiser codes int [n, L]; the dedup level keeps room for as many digits again."""
    digits = dedup_digits(codes)
    capacity = max(8, 2 * (int(digits.max(initial=0)) + 1))
    sizes = (*[code_count] * codes.shape[1], capacity)
    return SidTable(tuple(item_ids), np.column_stack([codes, digits]).astype(np.int32), Vocabulary(sizes))


def reassign(table: SidTable, rows: np.ndarray, codes: np.ndarray) -> SidTable:
    """A new table in which `rows` have the quantiser codes `codes` [len(rows), L]; no other row moves.

    Raises DataError when a prefix has no dedup digit left.
    """
    stay = np.ones(len(table.item_ids), bool)
    stay[rows] = False
    moved = (codes != table.sids[rows, :-1]).any(1)
    stay[rows[~moved]] = True  # keeps its digit too
    sids = table.sids.copy()
    digits = free_digits(codes[moved], table.sids[stay], table.vocabulary.sizes[-1])
    sids[rows[moved]] = np.column_stack([codes[moved], digits])
    return replace(table, sids=sids)


def sid_diff(before: SidTable, after: SidTable) -> list[dict]:
    """Items of both whose SID differs: `[{item_id, before, after, level}]`, level being the first (1-based) that moved.

    Raises DataError when the two have another number of levels.
    """
    if before.vocabulary.levels != after.vocabulary.levels:
        raise DataError(
            f"SIDs of {before.vocabulary.levels} and of {after.vocabulary.levels} tokens cannot be compared. "
            "Choose versions with the same sid.levels."
        )
    both = [(item, i, after.index[item]) for i, item in enumerate(before.item_ids) if item in after.index]
    pairs = [(item, before.sids[i], after.sids[j]) for item, i, j in both]
    return [
        {"item_id": item, "before": old.tolist(), "after": new.tolist(), "level": int((old != new).argmax()) + 1}
        for item, old, new in pairs
        if (old != new).any()
    ]


def to_arrow(table: SidTable) -> pa.Table:
    schema = pa.schema([("item_id", pa.string()), ("sid", pa.list_(pa.int32()))])
    metadata = {"sizes": ",".join(map(str, table.vocabulary.sizes))}
    if table.lineage:
        metadata["lineage"] = json.dumps(asdict(table.lineage))
    return pa.table(
        {"item_id": list(table.item_ids), "sid": table.sids.tolist()}, schema=schema.with_metadata(metadata)
    )


def save_table(table: SidTable, path: Path) -> None:
    pq.write_table(to_arrow(table), path)


def load_table(path: Path) -> SidTable:
    arrow = pq.read_table(path)
    metadata = arrow.schema.metadata
    sizes = tuple(int(s) for s in metadata[b"sizes"].split(b","))
    sids = np.array(arrow["sid"].to_pylist(), np.int32).reshape(arrow.num_rows, len(sizes))
    lineage = SidLineage(**json.loads(metadata[b"lineage"])) if b"lineage" in metadata else None
    return SidTable(tuple(arrow["item_id"].to_pylist()), sids, Vocabulary(sizes), lineage)
