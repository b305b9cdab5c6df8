"""Any two files as someone's own tables: they become the canonical tables, or one line says why not and nothing stays.

Each file is a good one with some faults put in, so that both ends are reached.
"""

import csv
import io
import time
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genrec.config import DataParams, Params
from genrec.data.sources import fetch
from genrec.data.subjects import LONGEST_ID
from genrec.data.tables import PINS, SCHEMAS, read_tables
from genrec.errors import GenrecError
from genrec.validation.run import validate_raw

GOOD = {
    "interactions": [
        ["p1", "i1", "1", "4.5"],
        ["p1", "i2", "2", ""],
        ["p2", "i1", "-7", "0"],
        ["p3", "i2", "1700000000", "5"],
    ],
    "items": [["i1", "Tea", "green tea", "Drinks|Hot"], ["i2", "Bread, white", 'a "loaf"\nof bread', ""]],
}
HEADERS = {name: SCHEMAS[name].names for name in SCHEMAS}
OLD = {"data/interactions.csv": b"old", "data/items.csv": b"old", "data/tombstones.csv": b"digest,kind\n"}

TEXTS = st.sampled_from(
    ["", " ", "\0", "a\0b", "\ud800", "x\udfff", "\ufeff", "\u202eabc\u2066", "e\u0301", "\U0010ffff", "\x1b[31m",
     "a\r\n", '"', '""', "'", ",", "|", "a|a", "a|b", "||", "null", "NaN", "[/red]", "%s{0}", "=1+1",
     "x" * LONGEST_ID, "x" * (LONGEST_ID + 1), "x" * 100_000]
) | st.text(st.characters(codec=None), max_size=8)  # fmt: skip
NUMBERS = st.sampled_from(
    ["nan", "NaN", "inf", "-inf", "-1", "1.5", "1e3", "1e400", "0x10", " 7", "noon", "2031-05-04", str(2**63 - 1),
     str(-(2**63)), str(2**63), "9" * 400, "٣", "", "4", "5.0", "5,0"]
)  # fmt: skip
CELLS = TEXTS | NUMBERS
BYTES = st.sampled_from([b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"\x00", b'"', b"\r", b"\n\n", b",", b"\xef\xbb\xbf"])


def csv_bytes(name: str, header=None, rows=None, quoting=csv.QUOTE_MINIMAL, encoding="utf-8") -> tuple[str, bytes]:
    text = io.StringIO()
    csv.writer(text, quoting=quoting).writerows([header or HEADERS[name], *(GOOD[name] if rows is None else rows)])
    return f"{name}.csv", text.getvalue().encode(encoding, "surrogatepass")


@st.composite
def csv_file(draw, name):
    header, rows = list(HEADERS[name]), [list(row) for row in GOOD[name]]
    for fault in draw(st.lists(st.sampled_from(("cell", "ragged", "header", "twice", "order", "rows")), max_size=2)):
        row = draw(st.integers(0, len(rows) - 1)) if rows else None
        if fault == "cell" and rows:
            rows[row][draw(st.integers(0, len(rows[row]) - 1))] = draw(CELLS)
        elif fault == "ragged" and rows:
            rows[row] = rows[row] * draw(st.integers(2, 4)) if draw(st.booleans()) else rows[row][:1]
        elif fault == "header":
            header[draw(st.integers(0, 3))] = draw(TEXTS)
        elif fault == "twice":
            place = draw(st.integers(0, 3))
            header, rows = [*header, header[place]], [[*one, one[-1]] for one in rows]
        elif fault == "order":
            header = draw(st.permutations(header))
        elif fault == "rows":
            rows = draw(st.sampled_from([[], rows * 2, rows[::-1]]))
    quoting = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    _, content = csv_bytes(name, header, rows, quoting, draw(st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-16"))))
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(BYTES) + content[draw(st.sampled_from((place, len(content)))) :]
    return f"{name}.csv", content


def good_parquet(name: str) -> pa.Table:
    columns = dict(zip(HEADERS[name], zip(*GOOD[name], strict=True), strict=True))
    if name == "items":
        columns["concepts"] = [tags.split("|") if tags else [] for tags in columns["concepts"]]
    else:
        columns["timestamp"] = [int(value) for value in columns["timestamp"]]
        columns["rating"] = [float(value) if value else None for value in columns["rating"]]
    return pa.table({column: list(values) for column, values in columns.items()}, schema=SCHEMAS[name])


def not_utf8(content: bytes, rows: int) -> pa.Array:
    return pa.StringArray.from_buffers(
        rows, pa.py_buffer(b"".join((len(content) * i).to_bytes(4, "little") for i in range(rows + 1))),
        pa.py_buffer(content * rows),
    )  # fmt: skip


STRANGE = [
    ("x", pa.string()), ("x", pa.large_string()), ("x", pa.string_view()), ("7", pa.string()), (b"\xff", pa.binary()),
    (None, pa.null()), (None, pa.string()), (True, pa.bool_()), (7, pa.uint8()), (2**64 - 1, pa.uint64()),
    (-(2**63), pa.int64()), (2**53 + 1, pa.int64()), (1.5, pa.float16()), (float("inf"), pa.float32()),
    (float("nan"), pa.float64()), (Decimal("1.50"), pa.decimal128(5, 2)), (0, pa.date32()), (0, pa.duration("s")),
    (0, pa.timestamp("ns", "Europe/Paris")), (["a", "b"], pa.list_(pa.string())), (None, pa.list_(pa.string())),
    (["a", None], pa.list_(pa.large_string())), (["x" * 600], pa.large_list(pa.string())),
    (["a\x1b"], pa.list_(pa.string())), ([7], pa.list_(pa.int64())), ([["a"]], pa.list_(pa.list_(pa.string()))),
    ([{"a": 1}], pa.list_(pa.struct([("a", pa.int64())]))), ({"a\nb": 1}, pa.struct([("a\nb", pa.int64())])),
    ({f"c{i}": 1 for i in range(99)}, pa.struct([(f"c{i}", pa.int64()) for i in range(99)])),
]  # fmt: skip


@st.composite
def strange_column(draw, rows: int):
    """A column of `rows` values of a type that may or may not do."""
    kind = draw(st.sampled_from(("values", "texts", "dictionary", "not utf-8")))
    if kind == "values":
        value, type = draw(st.sampled_from(STRANGE))
        return pa.array([value] * rows, type)
    if kind == "not utf-8":
        return not_utf8(draw(st.sampled_from((b"\xff", b"\xed\xa0\x80", b"\xc3"))), rows)
    texts = draw(st.lists(CELLS.map(lambda t: t.encode(errors="replace").decode()), min_size=rows, max_size=rows))
    if kind == "texts":
        return pa.array(texts)
    indices = pa.array([i % 2 for i in range(rows)], pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array(texts) if rows > 1 else pa.array(["a", "b"]))


@st.composite
def parquet_file(draw, name):
    table = good_parquet(name)
    columns = {column: table[column] for column in table.column_names}
    for fault in draw(st.lists(st.sampled_from(("column", "missing", "extra", "rows", "bytes")), max_size=2)):
        place = draw(st.sampled_from(HEADERS[name]))
        if fault == "column":
            columns[place] = draw(strange_column(len(GOOD[name])))
        elif fault == "missing":
            columns.pop(place, None)
        elif fault == "extra":
            columns[draw(TEXTS).encode(errors="replace").decode()] = draw(strange_column(len(GOOD[name])))
    file = io.BytesIO()
    written = pa.table(columns)
    written = draw(st.sampled_from((written, written, written.slice(0, 0), pa.concat_tables([written] * 2))))
    pq.write_table(written, file)
    content = file.getvalue()
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(content)))
        content = draw(st.sampled_from((content[:place] + b"\xff" + content[place + 1 :], content[:place])))
    return f"{name}.parquet", content


FAULTY = {name: csv_file(name) | parquet_file(name) for name in SCHEMAS}
FILES = st.one_of(
    st.tuples(FAULTY["interactions"], st.just(csv_bytes("items"))),
    st.tuples(st.just(csv_bytes("interactions")), FAULTY["items"]),
    st.tuples(FAULTY["interactions"], FAULTY["items"]),
)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(call) -> str | None:
    """The message of the GenrecError that `call` raises, which is one short line; None when it raises nothing."""
    try:
        call()
    except GenrecError as error:
        message = str(error)
    else:
        return None
    assert message.isprintable()
    assert len(message) < 1200
    return message


def take(source: Path, home: Path) -> str | None:
    return refusal(lambda: fetch("tables", home / "data", source_dir=source, params=DataParams(), seed=0))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(FILES)
@example((("interactions.csv", b""), csv_bytes("items")))
@example((("interactions.parquet", b""), csv_bytes("items")))
def test_tables_become_canonical_or_are_refused_in_one_line_with_nothing_stored(files):
    with TemporaryDirectory() as place:
        home, source = written(Path(place, "home"), OLD), written(Path(place, "own"), dict(files))
        if take(source, home):
            assert files_in(home) == OLD
            return
        assert set(files_in(home)) == {*OLD, "data/source.json"}
        own, stored = read_tables(source), read_tables(home / "data")
        for name in SCHEMAS:
            table = getattr(stored, name)
            assert table.equals(getattr(own, name))
            assert table.schema in (SCHEMAS[name], SCHEMAS[name].append(PINS[name]))
            assert [f.name for f in table.schema if table[f.name].null_count] in ([], ["rating"])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(FILES)
def test_every_check_can_judge_what_was_read(files):
    """Bad data is a failed check with an example, never a check that broke."""
    with TemporaryDirectory() as place:
        source = written(Path(place), dict(files))
        if refusal(lambda: read_tables(source)):
            return
        report = validate_raw(read_tables(source), Params(), b"key")
        assert not [check for check in report.results if check.broken]
        assert report.success == (refusal(report.raise_for_failure) is None)


def own_tables(folder: Path, **files: str) -> Path:
    return written(folder, dict(map(csv_bytes, SCHEMAS)) | {f"{n}.csv": text.encode() for n, text in files.items()})


HEADER = "user_id,item_id,timestamp,rating"


def test_a_long_row_is_refused_without_quoting_the_person(tmp_path):
    row = ",".join(["secret-person"] + ["1"] * 11)
    said = refusal(lambda: read_tables(own_tables(tmp_path, interactions=f"{HEADER}\n{row}\n")))
    assert "Expected 4 columns, got 12" in said
    assert "secret-person" not in said


@pytest.mark.parametrize(
    ("user", "reason"),
    [("x" * (LONGEST_ID + 1), f"more than {LONGEST_ID}"), ("a\0b", "a control"), ("a\x1b", "a control")],
)
def test_a_person_whom_no_request_could_name_is_refused(tmp_path, user, reason):
    source = own_tables(tmp_path / "own", interactions=f"{HEADER}\np1,i1,1,\n{user},i1,1,\n")
    said = take(source, written(tmp_path / "home", OLD))
    assert f"column user_id: {reason}" in said
    assert "in row 2" in said
    assert files_in(tmp_path / "home") == OLD
    own_tables(tmp_path / "own", interactions=f"{HEADER}\n{'x' * LONGEST_ID},i1,1,\n")
    assert take(source, tmp_path / "home") is None


@pytest.mark.parametrize("times", [(-(2**63), 2**63 - 1), (2**63 - 1, -(2**63))])
def test_times_at_both_ends_of_the_range_are_compared_without_overflow(tmp_path, times):
    rows = "\n".join(f"p1,i{number},{time}," for number, time in enumerate(times, 1))
    source, ordered = own_tables(tmp_path / "own", interactions=f"{HEADER}\n{rows}\n"), times[0] < times[1]
    report = validate_raw(read_tables(source), Params(), b"key")
    wrong = [check.expectation for check in report.results if not check.success]
    assert wrong == ([] if ordered else ["expect_chronological_order"])
    assert (take(source, tmp_path / "home") is None) == ordered


def test_a_concept_of_another_type_is_refused_by_its_type(tmp_path):
    source = written(tmp_path, dict([csv_bytes("interactions")]))
    table = good_parquet("items").set_column(3, "concepts", pa.array([[["a"]], [["b"]]]))
    pq.write_table(table, source / "items.parquet")
    assert "expected a list of strings" in refusal(lambda: read_tables(source))


def test_a_folder_in_the_place_of_a_file_is_no_table(tmp_path):
    (own_tables(tmp_path / "own") / "items.csv").unlink()
    (tmp_path / "own" / "items.parquet").mkdir()
    assert "no items.csv and no items.parquet" in take(tmp_path / "own", tmp_path / "home")
    assert not files_in(tmp_path / "home")


def test_a_million_equal_rows_are_refused_at_once(tmp_path):
    source = own_tables(tmp_path / "own", interactions=f"{HEADER}\n" + "p1,i1,1,\n" * 1_000_000)
    started = time.perf_counter()
    said = take(source, tmp_path / "home")
    assert time.perf_counter() - started < 20
    assert "rows 2, 3, 4 ...: same user and item as an earlier row" in said
    assert not files_in(tmp_path / "home")
