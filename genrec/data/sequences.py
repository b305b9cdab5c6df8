"""The prepared tables as arrays: what the numerics read. Items are numbered by their place in the sorted item ids."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec.data.subjects import Subject
from genrec.errors import DataError

TRAIN, VALID, TEST, HOLDOUT = range(4)
SPLIT_CODES = {"train": TRAIN, "valid": VALID, "test": TEST, "holdout": HOLDOUT}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Histories in compressed rows: user `u` owns rows `offsets[u]:offsets[u + 1]`, oldest first.

    Attributes: item_ids, titles, texts - by item index, ids sorted; concepts - item indices by concept; user_ids -
    sorted; offsets int64 [users + 1]; items int32 [rows]; split int8 [rows], one of TRAIN, VALID, TEST, HOLDOUT.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]
    concepts: dict[str, np.ndarray]
    user_ids: tuple[str, ...]
    offsets: np.ndarray
    items: np.ndarray
    split: np.ndarray

    @cached_property
    def user_index(self) -> dict[str, int]:
        return {user: i for i, user in enumerate(self.user_ids)}

    @cached_property
    def item_index(self) -> dict[str, int]:
        return {item: i for i, item in enumerate(self.item_ids)}

    def holds(self, subject: Subject) -> bool:
        """Whether there is a row of the user, the interaction itself, the item in the catalogue, or the concept."""
        if subject.kind == "concept":
            return subject.concept in self.concepts
        if subject.kind == "item":
            return subject.item_id in self.item_index
        user = self.user_index.get(subject.user_id)
        if subject.kind == "user" or user is None:
            return user is not None
        return self.item_index.get(subject.item_id, -1) in self.history(user)

    @property
    def position(self) -> np.ndarray:
        """Place of each row in its user's history, int64 [rows]."""
        return np.arange(len(self.items)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))

    @property
    def trained_users(self) -> np.ndarray:
        """Users (indices, ascending) that have rows which training may see, int64 [n]."""
        owner = np.repeat(np.arange(len(self.user_ids)), np.diff(self.offsets))
        return np.unique(owner[self.split == TRAIN])

    def history(self, user: int) -> np.ndarray:
        """All items of a user (by index), oldest first, whatever their split."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def training_rows(self, user: int) -> np.ndarray:
        """The items of a user that training may see, oldest first; empty for a holdout user."""
        return self.history(user)[self.split[self.offsets[user] : self.offsets[user + 1]] == TRAIN]


@dataclass(frozen=True, eq=False)
class ForgetSet:
    """Forgotten rows in the form of `Dataset`, with the same item indices.

    Attributes: position int64 [rows] - place in the user's history before the erasure; subjects - digest per row.
    """

    user_ids: tuple[str, ...]
    offsets: np.ndarray
    items: np.ndarray
    split: np.ndarray
    position: np.ndarray
    subjects: tuple[str, ...]


def load_dataset(prepared_dir: Path) -> Dataset:
    """Read what `prepare` wrote. Raises DataError when it is missing."""
    for name in ("interactions.parquet", "items.parquet"):
        if not (prepared_dir / name).exists():
            raise DataError(f"No {prepared_dir / name}. Run `genrec data prepare` first.")
    items = pq.read_table(prepared_dir / "items.parquet").sort_by("item_id")
    tagged: dict[str, list[int]] = {}
    for index, tags in enumerate(items["concepts"].to_pylist()):
        for tag in tags:
            tagged.setdefault(tag, []).append(index)
    item_ids = tuple(items["item_id"].to_pylist())
    user_ids, offsets, rows = _by_user(pq.read_table(prepared_dir / "interactions.parquet"))
    return Dataset(
        item_ids=item_ids,
        titles=tuple(items["title"].to_pylist()),
        texts=tuple(items["text"].to_pylist()),
        concepts={tag: np.array(tagged[tag], np.int32) for tag in sorted(tagged)},
        user_ids=user_ids,
        offsets=offsets,
        items=_item_indices(rows, item_ids),
        split=_split_codes(rows),
    )


def read_forget_set(sealed_file: Path, dataset: Dataset) -> ForgetSet:
    """Read a sealed file of `erase`. Raises DataError when it is missing or names an item the dataset does not have."""
    if not sealed_file.exists():
        raise DataError(f"No sealed forget set {sealed_file.name}: it was never written, or the batch is fulfilled.")
    user_ids, offsets, rows = _by_user(pq.read_table(sealed_file))
    return ForgetSet(
        user_ids=user_ids,
        offsets=offsets,
        items=_item_indices(rows, dataset.item_ids),
        split=_split_codes(rows),
        position=rows["position"].to_numpy(),
        subjects=tuple(rows["subject"].to_pylist()),
    )


def restore(dataset: Dataset, forget_set: ForgetSet) -> Dataset:
    """The dataset as it was before the erasure: forgotten rows at their positions, kept rows around them in order.

    Raises DataError when the two do not fit, as when the dataset still holds the rows.
    """
    user_ids = tuple(sorted({*dataset.user_ids, *forget_set.user_ids}))
    index = {user: i for i, user in enumerate(user_ids)}
    lengths = np.zeros(len(user_ids), np.int64)
    for part in (dataset, forget_set):
        lengths[[index[user] for user in part.user_ids]] += np.diff(part.offsets)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat([index[user] for user in forget_set.user_ids], np.diff(forget_set.offsets)).astype(np.int64)
    slots = offsets[owner] + forget_set.position
    forgotten = np.zeros(offsets[-1], bool)
    forgotten[slots[forget_set.position < lengths[owner]]] = True
    items, split = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int8)
    if forgotten.sum() == len(slots):
        items[slots], split[slots] = forget_set.items, forget_set.split
        items[~forgotten], split[~forgotten] = dataset.items, dataset.split
        pairs = np.repeat(np.arange(len(user_ids)), lengths) * len(dataset.item_ids) + items
        if len(np.unique(pairs)) == len(pairs):
            return replace(dataset, user_ids=user_ids, offsets=offsets, items=items, split=split)
    raise DataError(
        "The forget set does not fit the dataset. Run `genrec data prepare` after the erasure, then load both."
    )


def without(dataset: Dataset, users: np.ndarray, items: np.ndarray) -> Dataset:
    """The dataset as an erasure of `users` and `items` (indices) leaves it; split and catalogue stay as they were."""
    owner = np.repeat(np.arange(len(dataset.user_ids)), np.diff(dataset.offsets))
    keep = ~np.isin(owner, users) & ~np.isin(dataset.items, items)
    lengths = np.bincount(owner[keep], minlength=len(dataset.user_ids))
    left = np.flatnonzero(lengths)
    return replace(
        dataset,
        user_ids=tuple(dataset.user_ids[u] for u in left),
        offsets=np.concatenate([[0], np.cumsum(lengths[left])]),
        items=dataset.items[keep],
        split=dataset.split[keep],
    )


def _by_user(rows: pa.Table) -> tuple[tuple[str, ...], np.ndarray, pa.Table]:
    """User ids sorted, offsets [users + 1], and the rows sorted by user and position."""
    rows = rows.sort_by([("user_id", "ascending"), ("position", "ascending")])
    runs = rows["user_id"].combine_chunks().value_counts()
    lengths = runs.field("counts").to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return tuple(runs.field("values").to_pylist()), offsets, rows


def _item_indices(rows: pa.Table, item_ids: tuple[str, ...]) -> np.ndarray:
    indices = pc.index_in(rows["item_id"], pa.array(item_ids, pa.string()))
    if indices.null_count:
        lost = rows.filter(pc.is_null(indices))["item_id"][0].as_py()
        raise DataError(
            f"The item {lost!r} of an interaction is not in items.parquet. Run `genrec data prepare` again."
        )
    return indices.to_numpy().astype(np.int32)


def _split_codes(rows: pa.Table) -> np.ndarray:
    codes = pc.index_in(rows["split"], pa.array(list(SPLIT_CODES), pa.string()))
    return codes.to_numpy().astype(np.int8)
