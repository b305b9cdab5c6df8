"""The SID table: one semantic ID per item, its token vocabulary, and how it changes."""

from collections.abc import Sequence
from dataclasses import dataclass
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
class SidTable:
    """item_ids [n] and sids int32 [n, levels]: the codes of each level, then the dedup digit.

    Row order is the item index used everywhere else (sorted item ids).
    """

    item_ids: tuple[str, ...]
    sids: np.ndarray
    vocabulary: Vocabulary

    def __post_init__(self):
        if self.sids.shape != (len(self.item_ids), self.vocabulary.levels):
            raise DataError(f"SID table holds {self.sids.shape} codes for {len(self.item_ids)} items.")
        if (self.sids < 0).any() or (self.sids >= np.array(self.vocabulary.sizes)).any():
            raise DataError("SID table holds codes outside its vocabulary.")
        if len(np.unique(self.sids, axis=0)) != len(self.sids):
            raise DataError("SID table gives two items the same SID.")

    @cached_property
    def tokens(self) -> np.ndarray:
        """Token ids int64 [n, levels]."""
        return self.sids.astype(np.int64) + self.vocabulary.offsets

    @cached_property
    def index(self) -> dict[str, int]:
        return {item: i for i, item in enumerate(self.item_ids)}

    def sharing(self, items: Sequence[int], levels: int) -> np.ndarray:
        """Which items share at least `levels` SID tokens, dedup digits aside, with one of `items`: bool [n]."""
        codes = self.sids[:, :-1]
        shares = np.zeros(len(codes), bool)
        for item in items:
            shares |= (codes == codes[item]).sum(1) >= levels
        return shares


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
    digits = dedup_digits(codes[moved], table.sids[stay])
    if len(digits) and digits.max() >= table.vocabulary.sizes[-1]:
        raise DataError(
            f"More than {table.vocabulary.sizes[-1]} items would share one SID prefix; no dedup digit left."
        )
    sids[rows[moved]] = np.column_stack([codes[moved], digits])
    return SidTable(table.item_ids, sids, table.vocabulary)


def sid_diff(before: SidTable, after: SidTable) -> list[dict]:
    """Items whose SID differs: `[{item_id, before, after, level}]`, level being the first (1-based) that moved."""
    if before.item_ids != after.item_ids:
        raise DataError("The two SID tables are not of the same catalogue.")
    rows = np.flatnonzero((before.sids != after.sids).any(1))
    return [
        {
            "item_id": before.item_ids[i],
            "before": before.sids[i].tolist(),
            "after": after.sids[i].tolist(),
            "level": int((before.sids[i] != after.sids[i]).argmax()) + 1,
        }
        for i in rows
    ]


def to_arrow(table: SidTable) -> pa.Table:
    schema = pa.schema([("item_id", pa.string()), ("sid", pa.list_(pa.int32()))])
    sizes = ",".join(map(str, table.vocabulary.sizes))
    return pa.table(
        {"item_id": list(table.item_ids), "sid": table.sids.tolist()}, schema=schema
    ).replace_schema_metadata({"sizes": sizes})


def save_table(table: SidTable, path: Path) -> None:
    pq.write_table(to_arrow(table), path)


def load_table(path: Path) -> SidTable:
    arrow = pq.read_table(path)
    sizes = tuple(int(s) for s in arrow.schema.metadata[b"sizes"].split(b","))
    sids = np.array(arrow["sid"].to_pylist(), np.int32).reshape(arrow.num_rows, len(sizes))
    return SidTable(tuple(arrow["item_id"].to_pylist()), sids, Vocabulary(sizes))
