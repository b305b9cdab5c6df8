import hashlib
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.config import DataParams, Params, SplitParams
from genrec.data.prepare import prepare
from genrec.data.sources import fetch
from genrec.data.subjects import Subject, tombstones_text
from genrec.data.tables import SCHEMAS, Tables, write_tables
from genrec.errors import DataError

KEY = b"key"


def write(folder, rows, items=None, shuffle=False):
    """Raw tables of (user, item, timestamp) rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows[::-1] if shuffle else rows
    names = items or sorted({item for _, item, _ in rows})
    interactions = pa.table([*zip(*rows, strict=True), [None] * len(rows)], schema=SCHEMAS["interactions"])
    columns = [names, names, names, [["odd" if int(name[1:]) % 2 else "even"] for name in names]]
    write_tables(Tables(interactions, pa.table(columns, schema=SCHEMAS["items"])), folder)
    return folder


def grid(users=30, items=8):
    return [(f"u{u:02d}", f"i{(u + j) % items}", 100 * u + j) for u in range(users) for j in range(items - 2)]


def rows_of(prepared):
    return pq.read_table(prepared / "interactions.parquet").to_pylist()


def test_leave_one_out_by_time_and_the_seeded_holdout(tmp_path):
    report = prepare(write(tmp_path / "data", grid(), shuffle=True), tmp_path / "prepared", Params(seed=4), KEY)
    rows = rows_of(tmp_path / "prepared")
    shares = {f"u{u:02d}": int(hashlib.sha256(f"4|u{u:02d}".encode()).hexdigest()[:12], 16) / 16**12 for u in range(30)}
    held = {user for user, share in shares.items() if share < 0.1}
    assert held
    assert {row["user_id"] for row in rows if row["split"] == "holdout"} == held
    assert report.holdout_users == len(held)
    for user in set(shares) - held:
        own = [row for row in rows if row["user_id"] == user]
        assert [row["split"] for row in own] == ["train"] * 4 + ["valid", "test"]
        assert [row["position"] for row in own] == list(range(6))
        assert [row["timestamp"] for row in own] == sorted(row["timestamp"] for row in own)


def test_ties_follow_the_seeded_hash_and_not_the_file(tmp_path):
    rows = [(f"u{u}", f"i{i}", 7) for u in range(6) for i in range(6)]
    params = Params(data=DataParams(k_core=1))
    prepared = []
    for name, shuffle in (("a", False), ("b", True)):
        report = prepare(write(tmp_path / name, rows, shuffle=shuffle), tmp_path / f"{name}.out", params, KEY)
        prepared.append(rows_of(tmp_path / f"{name}.out"))
    assert prepared[0] == prepared[1]
    own = [row["item_id"] for row in prepared[0] if row["user_id"] == "u2"]
    assert own == sorted(own, key=lambda item: hashlib.sha256(f"0|u2|{item}".encode()).hexdigest())
    assert report.tied_targets == 1.0


def test_ties_are_counted_at_the_time_resolution_of_the_source_and_its_order_stays(tmp_path):
    """Two people of Amazon Beauty: the last item of the first is of the day before it, that of the second is not."""
    raw, columns = tmp_path / "raw", ["user_idx", "pos", "item_idx", "gap_days"]
    raw.mkdir()
    rows = [(1, 0, 4, 0), (1, 1, 2, 5), (1, 2, 3, 0), (2, 0, 1, 0), (2, 1, 4, 0), (2, 2, 2, 1)]
    pq.write_table(pa.table([*map(list, zip(*rows, strict=True))], names=columns), raw / "interactions.parquet")
    items = {"item_idx": [1, 2, 3, 4], "title": list("abcd"), "category_paths": ['[["Beauty"]]'] * 4}
    items |= {"leaf_category": ["Beauty"] * 4, "brand": [None, "b", "b", "b"]}
    pq.write_table(pa.table(items), raw / "items.parquet")
    params = Params(data=DataParams(k_core=1), split=SplitParams(holdout_users=0))
    fetch("amazon-beauty", tmp_path / "data", source_dir=raw, params=params.data, seed=0)
    report = prepare(tmp_path / "data", tmp_path / "prepared", params, KEY)
    found = rows_of(tmp_path / "prepared")
    assert [(r["user_id"], r["item_id"]) for r in found] == [(str(user), str(item)) for user, _, item, _ in rows]
    assert report.tied_targets == 0.5
    (tmp_path / "data" / "source.json").unlink()  # as a person's own tables: to the second
    assert prepare(tmp_path / "data", tmp_path / "prepared", params, KEY).tied_targets == 0


def test_without_holdout_users_everybody_is_trained_and_tested(tmp_path):
    params = Params(seed=4, split=SplitParams(holdout_users=0))
    report = prepare(write(tmp_path / "data", grid()), tmp_path / "prepared", params, KEY)
    splits = Counter(row["split"] for row in rows_of(tmp_path / "prepared"))
    assert report.holdout_users == 0
    assert splits == {"train": 120, "valid": 30, "test": 30}


def test_k_core_matches_a_slow_oracle_and_drops_items(tmp_path):
    rows = [(f"u{u}", f"i{i}", i) for u in range(12) for i in range(14) if (u * i) % (u + 2) < 4]
    expected = set(rows)
    while True:
        users, items = Counter(u for u, _, _ in expected), Counter(i for _, i, _ in expected)
        kept = {(u, i, t) for u, i, t in expected if users[u] >= 5 and items[i] >= 5}
        if kept == expected:
            break
        expected = kept
    assert 0 < len(expected) < len(rows)
    report = prepare(write(tmp_path / "data", rows), tmp_path / "prepared", Params(), KEY)
    assert {(r["user_id"], r["item_id"], r["timestamp"]) for r in rows_of(tmp_path / "prepared")} == expected
    assert report.outside == len(rows) - len(expected)
    names = pq.read_table(tmp_path / "prepared" / "items.parquet")["item_id"].to_pylist()
    assert names == sorted({item for _, item, _ in expected})


def test_the_first_of_a_repeated_pair_stays(tmp_path):
    rows = [*grid(), ("u03", "i3", 1), ("u03", "i3", 9999)]
    report = prepare(write(tmp_path / "data", rows), tmp_path / "prepared", Params(), KEY)
    times = [r["timestamp"] for r in rows_of(tmp_path / "prepared") if (r["user_id"], r["item_id"]) == ("u03", "i3")]
    assert times == [1]
    assert report.duplicates == 2


@pytest.mark.parametrize(
    "subject",
    [
        Subject("user", "u03"),
        Subject("item", item_id="i2"),
        Subject("concept", concept="odd"),
        Subject("interaction", "u03", "i4"),
    ],
    ids=lambda subject: subject.kind,
)
def test_rows_of_a_tombstone_that_are_delivered_again_are_dropped(tmp_path, subject):
    data = write(tmp_path / "data", grid())
    (data / "tombstones.csv").write_text(tombstones_text({subject.kind: [subject.digest(KEY)]}))
    report = prepare(data, tmp_path / "prepared", Params(data=DataParams(k_core=1)), KEY)
    rows = rows_of(tmp_path / "prepared")

    def covered(row):
        if subject.kind == "concept":
            return int(row["item_id"][1:]) % 2 == 1
        return subject.user_id in (None, row["user_id"]) and subject.item_id in (None, row["item_id"])

    assert report.tombstoned > 0
    assert len(rows) == len(grid()) - report.tombstoned
    assert not any(map(covered, rows))


def test_preparing_twice_gives_the_same_bytes(tmp_path):
    data = write(tmp_path / "data", grid())
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
        for _ in range(2)
        if prepare(data, tmp_path / "prepared", Params(), KEY)
    )
    assert first == second
    assert json.loads(first["prepare.json"])["rows"] == len(grid())


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(DataError, match="k_core = 5"):
        prepare(write(tmp_path / "data", grid(users=3)), tmp_path / "prepared", Params(), KEY)
