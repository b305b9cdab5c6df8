import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.data.tables import SCHEMAS, Tables, read_tables, repeated_rows, unordered_rows, write_tables
from genrec.data.version import data_version
from genrec.errors import DataError

INTERACTIONS = "user_id,item_id,timestamp,rating\n007,01,5,3.5\n007,1,6,\n"
ITEMS = 'item_id,title,text,concepts\n01,"Bread, white",a loaf,Food|Baking\n1,Tea,,\n'


def folder(tmp_path, interactions=INTERACTIONS, items=ITEMS):
    (tmp_path / "interactions.csv").write_text(interactions)
    (tmp_path / "items.csv").write_text(items)
    return tmp_path


def test_csv_keeps_leading_zeros_and_splits_concepts(tmp_path):
    tables = read_tables(folder(tmp_path))
    assert tables.interactions.to_pylist() == [
        {"user_id": "007", "item_id": "01", "timestamp": 5, "rating": 3.5},
        {"user_id": "007", "item_id": "1", "timestamp": 6, "rating": None},
    ]
    assert tables.items["title"].to_pylist() == ["Bread, white", "Tea"]
    assert tables.items["concepts"].to_pylist() == [["Food", "Baking"], []]
    assert not tables.pinned


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_written_tables_read_back_equal_and_give_the_same_bytes(tmp_path, format):
    tables = read_tables(folder(tmp_path))
    tables = Tables(
        tables.interactions.append_column("split", pa.array(["train", "outside"])),
        tables.items.append_column("catalogue", pa.array([True, False])),
    )
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tables(tables, tmp_path / name, format)
        written.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert written[0] == written[1]
    assert len(written[0]) == 2
    again = read_tables(tmp_path / "a")
    assert again.interactions.equals(tables.interactions)
    assert again.items.equals(tables.items)
    assert again.pinned


@pytest.mark.parametrize(
    ("interactions", "message"),
    [
        ("user_id,item_id,timestamp\nu,i,1\n", "Missing: rating"),
        ("user_id,item_id,timestamp,rating,age\nu,i,1,2,30\n", "to remove: age"),
        ("user_id,item_id,timestamp,rating,rating\nu,i,1,2,2\n", "No column may be twice"),
        (INTERACTIONS + "x,y,noon,1\n", "'noon' in row 3 is not int64"),
        (INTERACTIONS + "x,y,1.5,1\n", "'1.5' in row 3 is not int64"),
        (INTERACTIONS + "x,y,1,good\n", "column rating: 'good' in row 3"),
        (INTERACTIONS + "x,y,1,nan\n", "not a finite number in row 3"),
        (INTERACTIONS + ",y,1,1\n", "column user_id: empty in row 3"),
        ("user_id,item_id,timestamp,rating,split\nu,i,1,2,later\n", "unknown in row 1. Known: train"),
        ("user_id,item_id,timestamp,rating,split\nu,i,1,2,train\n", "`catalogue` column"),
        ("", "interactions.csv cannot be read"),
    ],
)
def test_wrong_interactions_are_refused_by_name(tmp_path, interactions, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_tables(folder(tmp_path, interactions))


def test_a_short_row_is_refused_without_quoting_the_user(tmp_path):
    with pytest.raises(DataError, match="Expected 4 columns, got 3") as error:
        read_tables(folder(tmp_path, INTERACTIONS + "secret-user,y,1\n"))
    assert "secret-user" not in str(error.value)


def test_missing_and_doubled_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no interactions\.csv and no interactions\.parquet"):
        read_tables(tmp_path)
    folder(tmp_path)
    (tmp_path / "items.parquet").touch()
    with pytest.raises(DataError, match=r"both items\.csv and items\.parquet"):
        read_tables(tmp_path)


@pytest.mark.parametrize(("column", "values"), [("user_id", [7, 8]), ("timestamp", [1.0, 2.0])])
def test_parquet_of_another_type_is_refused(tmp_path, column, values):
    rows = {"user_id": ["a", "b"], "item_id": ["01", "1"], "timestamp": [1, 2], "rating": [1.0, None], column: values}
    (tmp_path / "items.csv").write_text(ITEMS)
    pq.write_table(pa.table(rows), tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match=f"column {column} has type"):
        read_tables(tmp_path)


def test_a_concept_with_a_bar_cannot_go_to_csv(tmp_path):
    items = pa.table([["i"], ["t"], ["x"], [["a|b"]]], schema=SCHEMAS["items"])
    with pytest.raises(DataError, match=r"'a\|b'"):
        write_tables(Tables(SCHEMAS["interactions"].empty_table(), items), tmp_path)


def test_unordered_and_repeated_rows_are_found_where_they_are():
    rows = [("a", "x", 5), ("b", "x", 1), ("a", "y", 4), ("b", "x", 1), ("a", "z", 6)]
    table = pa.table([*zip(*rows, strict=True), [None] * 5], schema=SCHEMAS["interactions"])
    assert unordered_rows(table).tolist() == [2]
    assert repeated_rows(table).tolist() == [3]


def test_data_version_is_the_pin_dvc_wrote(tmp_path):
    pin = tmp_path / "data.dvc"
    with pytest.raises(DataError, match="dvc add data"):
        data_version(pin)
    pin.write_text("outs: []\n")
    with pytest.raises(DataError, match="no outs"):
        data_version(pin)
    pin.write_text("outs:\n- md5: 0123.dir\n  path: data\n")
    assert data_version(pin) == "0123.dir"
