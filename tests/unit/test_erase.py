import os
import shutil
import stat

import numpy as np
import pyarrow.parquet as pq
import pytest

from genrec.config import Params, SimulatedParams
from genrec.data import files
from genrec.data.erase import erase
from genrec.data.prepare import prepare
from genrec.data.simulator import simulate
from genrec.data.subjects import Subject, read_tombstones
from genrec.data.tables import read_tables, write_tables
from genrec.errors import DataError, RequestError

KEY = b"key"
PARAMS = Params()


class Shop:
    """A simulated shop, prepared; the k-core leaves some of its rows outside."""

    def __init__(self, root, seed=0, format="csv"):
        self.data, self.prepared, self.sealed = root / "data", root / "prepared", root / "sealed" / "batch.parquet"
        self.data.mkdir()
        tables = simulate(SimulatedParams(users=60, items=60, mean_length=14), seed)
        write_tables(tables, self.data, format)
        (self.data / "source.json").write_text("{}\n")
        self.prepare()

    def prepare(self):
        prepare(self.data, self.prepared, PARAMS, KEY)

    def erase(self, *subjects, sealed=None):
        return erase(self.data, self.prepared, subjects, sealed or self.sealed, KEY)

    def rows(self):
        return pq.read_table(self.prepared / "interactions.parquet")

    def items(self):
        return pq.read_table(self.prepared / "items.parquet")

    def bytes(self):
        return {path.name: path.read_bytes() for path in self.data.iterdir()}


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


def some_subjects(shop, random):
    rows = shop.rows().to_pandas()
    row = rows.iloc[int(random.integers(len(rows)))]
    return [
        Subject("user", random.choice(rows["user_id"])),
        Subject("item", item_id=random.choice(rows["item_id"])),
        Subject("interaction", row["user_id"], row["item_id"]),
        Subject("concept", concept="Gambling"),
    ]


@pytest.mark.parametrize("seed", range(6))
def test_erasing_then_preparing_is_erasing_from_the_prepared_rows(tmp_path, seed):
    shop = Shop(tmp_path, seed, format="csv" if seed % 2 else "parquet")
    random = np.random.default_rng(seed)
    everything = some_subjects(shop, random)
    items = shop.items()
    for night in range(2):
        subjects = [subject for subject in everything if random.random() < 0.6] or everything
        before = shop.rows()
        gone = np.any([subject.matches(before, shop.items()) for subject in subjects], axis=0)
        expected = before.to_pandas()[~gone].reset_index(drop=True)
        expected["position"] = expected.groupby("user_id").cumcount()
        shop.erase(*subjects, sealed=tmp_path / "sealed" / f"{night}.parquet")
        shop.prepare()
        assert shop.rows().to_pandas().equals(expected)
        assert shop.items().equals(items)
        sealed = pq.read_table(tmp_path / "sealed" / f"{night}.parquet")
        assert sealed.drop_columns("subject").to_pandas().equals(before.to_pandas()[gone].reset_index(drop=True))


def test_the_sealed_file_is_the_owners_alone_and_tombstones_hide_ids(shop):
    user = shop.rows()["user_id"][0].as_py()
    subject = Subject("user", user)
    erasure = shop.erase(subject)
    assert stat.S_IMODE(os.stat(shop.sealed).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(shop.sealed.parent).st_mode) == 0o700
    assert erasure.rows == {subject.digest(KEY): erasure.total}
    assert (erasure.users, erasure.total) == (1, len(pq.read_table(shop.sealed)))
    assert read_tombstones(shop.data) == {"user": {subject.digest(KEY)}}
    assert not any(user.encode() in content for content in shop.bytes().values())
    assert (shop.data / "source.json").exists()


def test_erasing_again_changes_nothing(shop):
    subjects = some_subjects(shop, np.random.default_rng(1))
    first = shop.erase(*subjects)
    data, sealed = shop.bytes(), shop.sealed.read_bytes()
    modified = shop.data.stat().st_mtime_ns
    assert shop.erase(*subjects) == first
    shop.prepare()
    assert shop.erase(*subjects) == first
    assert (shop.bytes(), shop.sealed.read_bytes()) == (data, sealed)
    assert shop.data.stat().st_mtime_ns == modified


def test_a_row_of_two_subjects_is_sealed_once_under_the_user_and_counted_for_both(shop):
    row = shop.rows().to_pylist()[0]
    user, item = Subject("user", row["user_id"]), Subject("item", item_id=row["item_id"])
    erasure = shop.erase(item, user)
    sealed = pq.read_table(shop.sealed).to_pylist()
    assert [r["subject"] for r in sealed if r["user_id"] == row["user_id"] and r["item_id"] == row["item_id"]] == [
        user.digest(KEY)
    ]
    assert sum(erasure.rows.values()) == erasure.total + 1


def test_unknown_subjects_report_no_rows(shop):
    ghost = Subject("user", "nobody")
    rows = len(read_tables(shop.data).interactions)
    assert shop.erase(ghost).rows == {ghost.digest(KEY): 0}
    assert len(read_tables(shop.data).interactions) == rows


# The renames of the sealed file and of the two tables, the two of the folder, and the removal of the old folder.
@pytest.mark.parametrize("step", range(1, 7))
def test_a_crash_at_any_step_is_finished_by_the_next_run(tmp_path, monkeypatch, step):
    for name in ("reference", "crashed"):
        (tmp_path / name).mkdir()
    reference, shop = Shop(tmp_path / "reference"), Shop(tmp_path / "crashed")
    subjects = some_subjects(shop, np.random.default_rng(2))
    expected = reference.erase(*subjects)
    calls = 0

    def dying(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == step:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", dying(os.replace))
        patch.setattr(files.shutil, "rmtree", dying(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            shop.erase(*subjects)
    assert shop.erase(*subjects) == expected
    assert shop.bytes() == reference.bytes()
    assert shop.sealed.read_bytes() == reference.sealed.read_bytes()
    assert sorted(path.name for path in (tmp_path / "crashed").iterdir()) == ["data", "prepared", "sealed"]


def test_a_sealed_file_of_other_subjects_is_refused(shop):
    users = sorted(set(shop.rows()["user_id"].to_pylist()))
    shop.erase(Subject("user", users[0]))
    with pytest.raises(DataError, match="other subjects"):
        shop.erase(Subject("user", users[1]))


def test_prepared_tables_of_other_data_are_refused(shop):
    write_tables(simulate(SimulatedParams(users=60, items=60, mean_length=14), 9), shop.data)
    with pytest.raises(DataError, match="was not made from the current raw tables"):
        shop.erase(Subject("user", "nobody"))
    assert not shop.sealed.exists()


def test_the_next_batch_needs_prepared_tables_without_the_last_one(shop, tmp_path):
    users = sorted(set(shop.rows()["user_id"].to_pylist()))
    shop.erase(Subject("user", users[0]))
    with pytest.raises(DataError, match="Run `genrec data prepare` first"):
        shop.erase(Subject("user", users[1]), sealed=tmp_path / "sealed" / "next.parquet")
    shop.prepare()
    assert shop.erase(Subject("user", users[1]), sealed=tmp_path / "sealed" / "next.parquet").total > 0


def test_a_subject_is_printed_without_its_user():
    assert "alice" not in repr(Subject("user", "alice"))


def test_digests_depend_on_kind_field_and_key():
    digests = {
        Subject("user", "a").digest(KEY),
        Subject("item", item_id="a").digest(KEY),
        Subject("concept", concept="a").digest(KEY),
        Subject("interaction", "a", "b").digest(KEY),
        Subject("interaction", 'a", "b', "c").digest(KEY),
        Subject("interaction", "a", 'b", "c').digest(KEY),
        Subject("user", "a").digest(b"other"),
    }
    assert len(digests) == 7


@pytest.mark.parametrize("fields", [{"kind": "user"}, {"kind": "user", "user_id": ""}, {"kind": "person"}])
def test_a_subject_without_what_its_kind_needs_is_refused(fields):
    with pytest.raises(RequestError):
        Subject(**fields)
    with pytest.raises(RequestError, match="has no item_id"):
        Subject("user", "a", "b")


def test_the_pin_keeps_rows_outside_and_removes_the_subjects_own_among_them(shop):
    raw, inside = read_tables(shop.data).interactions.to_pandas(), shop.rows().to_pandas()
    rare = set(raw["item_id"]) - set(inside["item_id"])
    user = raw[raw["item_id"].isin(rare)]["user_id"].iloc[0]
    shop.erase(Subject("user", user))
    pinned = read_tables(shop.data).interactions.to_pandas()
    assert user not in set(pinned["user_id"])
    assert len(pinned) == (raw["user_id"] != user).sum()
    assert set(pinned[pinned["item_id"].isin(rare)]["split"]) <= {"outside"}
