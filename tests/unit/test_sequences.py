import numpy as np
import pyarrow.parquet as pq
import pytest

from genrec.config import Params, SimulatedParams
from genrec.data.erase import erase
from genrec.data.prepare import prepare
from genrec.data.sequences import HOLDOUT, TEST, TRAIN, VALID, load_dataset, read_forget_set, restore
from genrec.data.simulator import simulate
from genrec.data.subjects import Subject
from genrec.data.tables import write_tables
from genrec.errors import DataError

KEY = b"key"


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Datasets before and after an erasure of a user, a concept and one interaction, and the forget set."""
    root = tmp_path_factory.mktemp("night")
    data, prepared, sealed = root / "data", root / "prepared", root / "sealed.parquet"
    data.mkdir()
    write_tables(simulate(SimulatedParams(users=80, items=60, mean_length=14), 0), data)
    prepare(data, prepared, Params(), KEY)
    rows = pq.read_table(prepared / "interactions.parquet").to_pylist()
    before = load_dataset(prepared)
    subjects = [
        Subject("user", before.user_ids[3]),
        Subject("concept", concept="Garden"),
        Subject("interaction", rows[-2]["user_id"], rows[-2]["item_id"]),
    ]
    erase(data, prepared, subjects, sealed, KEY)
    with pytest.raises(DataError, match="does not fit"):
        restore(before, read_forget_set(sealed, before))
    prepare(data, prepared, Params(), KEY)
    after = load_dataset(prepared)
    return rows, before, after, read_forget_set(sealed, after), subjects


def test_the_arrays_say_what_the_prepared_rows_say(night):
    rows, dataset, *_ = night
    names = {TRAIN: "train", VALID: "valid", TEST: "test", HOLDOUT: "holdout"}
    flat = [
        (dataset.user_ids[user], dataset.item_ids[item])
        for user in range(len(dataset.user_ids))
        for item in dataset.history(user)
    ]
    assert flat == [(row["user_id"], row["item_id"]) for row in rows]
    assert [names[code] for code in dataset.split] == [row["split"] for row in rows]
    assert dataset.position.tolist() == [row["position"] for row in rows]
    assert list(dataset.item_ids) == sorted(dataset.item_ids)
    assert (dataset.items.dtype, dataset.offsets.dtype, dataset.split.dtype) == (np.int32, np.int64, np.int8)


def test_training_rows_leave_out_targets_and_holdout_users(night):
    rows, dataset, *_ = night
    for index, user in enumerate(dataset.user_ids):
        own = [row["item_id"] for row in rows if row["user_id"] == user and row["split"] == "train"]
        assert [dataset.item_ids[item] for item in dataset.training_rows(index)] == own
    held = np.flatnonzero(dataset.split[dataset.offsets[:-1]] == HOLDOUT)
    assert len(held)
    assert all(len(dataset.training_rows(user)) == 0 for user in held)


def test_restoring_the_forget_set_gives_the_dataset_before(night):
    _, before, after, forget_set, _ = night
    assert after.item_ids == before.item_ids
    assert len(after.items) + len(forget_set.items) == len(before.items)
    restored = restore(after, forget_set)
    assert restored.user_ids == before.user_ids
    for name in ("offsets", "items", "split", "position"):
        np.testing.assert_array_equal(getattr(restored, name), getattr(before, name))


def test_the_forget_set_names_a_subject_for_each_row(night):
    _, before, after, forget_set, subjects = night
    assert set(forget_set.subjects) == {subject.digest(KEY) for subject in subjects}
    assert before.user_ids[3] in forget_set.user_ids
    assert before.user_ids[3] not in after.user_ids
    garden = set(before.concepts["Garden"])
    owned = forget_set.items[np.array(forget_set.subjects) == subjects[1].digest(KEY)]
    assert garden.issuperset(owned)
    assert not garden.intersection(after.items)
    assert forget_set.offsets[-1] == len(forget_set.items)


def test_missing_files_say_what_to_run(tmp_path, night):
    with pytest.raises(DataError, match="genrec data prepare"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match="fulfilled"):
        read_forget_set(tmp_path / "none.parquet", night[1])
