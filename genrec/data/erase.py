"""Erasure from the raw tables, the sealed forget set, and tombstones.

Order matters, and each step is safe to repeat: the forgotten rows are sealed first, then the raw folder is replaced as
a whole (rows removed, split and catalogue pinned, tombstones added). Erasing again what is gone changes nothing.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec.data.files import recover, replaced_directory, write_atomically
from genrec.data.subjects import TOMBSTONES, Subject, read_tombstones, tombstones_text
from genrec.data.tables import PREPARED, Tables, read_tables, table_file, write_tables
from genrec.errors import DataError

SEALED = PREPARED.append(pa.field("subject", pa.string()))


@dataclass(frozen=True)
class Erasure:
    """What left the prepared tables.

    Attributes: rows - interactions per subject digest (one covered by two subjects counts for both); total - distinct
    interactions; users, items - how many of them lost a row.
    """

    rows: dict[str, int]
    total: int
    users: int
    items: int


def erase(data_dir: Path, prepared_dir: Path, subjects: Sequence[Subject], sealed_file: Path, key: bytes) -> Erasure:
    """Remove the rows of `subjects` from the raw tables and seal what the prepared tables hold of them.

    `sealed_file` (Parquet, owner only) gets the prepared columns and `subject`, one row per interaction; where several
    subjects cover a row it carries the first, users before other kinds. An existing file is kept: after a crash the
    prepared tables may already be without the rows. The items of a concept stay in the item table.

    Raises DataError when the prepared tables were not made from the raw ones, or the sealed file is another batch's.
    """
    recover(data_dir)
    tables = read_tables(data_dir)
    subjects = sorted(set(subjects), key=lambda subject: (subject.kind != "user", subject.digest(key)))
    digests = [subject.digest(key) for subject in subjects]
    pinned = tables if tables.pinned else _pin(tables, prepared_dir)
    if not sealed_file.exists():
        rows = _prepared(prepared_dir)
        if tables.pinned and len(rows) != _inside(tables.interactions):
            raise _stale(prepared_dir)
        _seal(_covered(rows, tables.items, subjects, digests), sealed_file)
    sealed = pq.read_table(sealed_file)
    if not set(sealed["subject"].to_pylist()) <= set(digests):
        raise DataError(f"{sealed_file.name} holds rows of other subjects. Give each batch its own sealed file.")

    gone = _any([subject.matches(pinned.interactions, pinned.items) for subject in subjects], len(pinned.interactions))
    stones = {kind: set(known) for kind, known in read_tombstones(data_dir).items()}
    before = tombstones_text(stones)
    for subject, digest in zip(subjects, digests, strict=True):
        stones.setdefault(subject.kind, set()).add(digest)
    after = tombstones_text(stones)
    if not tables.pinned or gone.any() or before != after:
        _rewrite(data_dir, Tables(pinned.interactions.filter(pa.array(~gone)), pinned.items), after)
    return Erasure(
        {d: int(s.matches(sealed, tables.items).sum()) for d, s in zip(digests, subjects, strict=True)},
        total=len(sealed),
        users=pc.count_distinct(sealed["user_id"]).as_py(),
        items=pc.count_distinct(sealed["item_id"]).as_py(),
    )


def _prepared(prepared_dir: Path) -> pa.Table:
    path = prepared_dir / "interactions.parquet"
    if not path.exists():
        raise DataError(f"No {path}: erasure needs the current split. Run `genrec data prepare` first.")
    return pq.read_table(path)


def _inside(interactions: pa.Table) -> int:
    rows = interactions.filter(pc.not_equal(interactions["split"], "outside"))
    return len(rows.group_by(["user_id", "item_id"]).aggregate([]))


def _stale(prepared_dir: Path) -> DataError:
    return DataError(f"{prepared_dir} was not made from the current raw tables. Run `genrec data prepare` first.")


def _covered(rows: pa.Table, items: pa.Table, subjects: Sequence[Subject], digests: Sequence[str]) -> pa.Table:
    owner = np.full(len(rows), -1)
    for index, subject in enumerate(subjects):
        owner[(owner < 0) & subject.matches(rows, items)] = index
    found = owner >= 0
    names = pa.array([digests[index] for index in owner[found]], pa.string())
    return rows.filter(pa.array(found)).append_column("subject", names).cast(SEALED)


def _seal(rows: pa.Table, sealed_file: Path) -> None:
    sealed_file.parent.mkdir(parents=True, exist_ok=True)
    os.chmod(sealed_file.parent, 0o700)
    write_atomically(sealed_file, lambda file: pq.write_table(rows, file), mode=0o600)


def _pin(tables: Tables, prepared_dir: Path) -> Tables:
    """The raw tables with the prepared split as `split` and the prepared items as `catalogue`."""
    key = ["user_id", "item_id", "timestamp"]
    prepared = _prepared(prepared_dir).select([*key, "split"]).to_pandas()
    raw = tables.interactions.select(key).to_pandas().merge(prepared, how="left", on=key)
    if raw.drop_duplicates(key)["split"].notna().sum() != len(prepared):
        raise _stale(prepared_dir)
    catalogue = pq.read_table(prepared_dir / "items.parquet", columns=["item_id"])["item_id"]
    return Tables(
        tables.interactions.append_column("split", pa.array(raw["split"].fillna("outside"), pa.string())),
        tables.items.append_column("catalogue", pc.is_in(tables.items["item_id"], catalogue.combine_chunks())),
    )


def _any(masks: Sequence[np.ndarray], rows: int) -> np.ndarray:
    return np.logical_or.reduce([np.zeros(rows, bool), *masks])


def _rewrite(data_dir: Path, tables: Tables, tombstones: str) -> None:
    file = table_file(data_dir, "interactions")
    replaced = {file.name, table_file(data_dir, "items").name, TOMBSTONES}
    with replaced_directory(data_dir) as folder:
        for path in sorted(data_dir.iterdir()):
            if path.name not in replaced:
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, folder / path.name)
        write_tables(tables, folder, file.suffix[1:])
        (folder / TOMBSTONES).write_text(tombstones)
