import hashlib
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.config import Params, SimulatedParams
from genrec.data.prepare import prepare
from genrec.data.simulator import simulate
from genrec.data.subjects import Subject
from genrec.data.tables import Tables, write_tables
from genrec.errors import ValidationFailed
from genrec.validation.page import render_page
from genrec.validation.run import Check, ValidationReport, validate_prepared, validate_raw, validate_sids

PARAMS, KEY = Params(), b"key"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    (root / "data").mkdir()
    write_tables(simulate(SimulatedParams(users=60, items=50, mean_length=14), 0), root / "data")
    prepare(root / "data", root / "prepared", PARAMS, b"key")
    return root / "prepared"


@pytest.fixture(scope="module")
def good(prepared):
    return Tables(*(pq.read_table(prepared / f"{name}.parquet") for name in ("interactions", "items")))


def changed(table, row, **values):
    rows = table.to_pylist()
    rows[row].update(values)
    return pa.Table.from_pylist(rows, schema=table.schema)


def check(folder, interactions, items, **options):
    pq.write_table(interactions, folder / "interactions.parquet")
    pq.write_table(items, folder / "items.parquet")
    return validate_prepared(folder, PARAMS, KEY, **options)


def failed(report):
    return {f"{check.suite} {check.expectation}" for check in report.results if not check.success}


def test_good_tables_pass_and_every_expectation_is_reported(prepared):
    report = validate_prepared(prepared, PARAMS, KEY)
    report.raise_for_failure()
    assert report.success
    assert len(report.results) == 22
    assert json.loads(report.to_json())["success"] is True
    assert len(validate_prepared(prepared, PARAMS, KEY, pinned=True).results) == 21


ITEM = "interactions expect_column_values_to_be_in_set(item_id)"
ORDER = "interactions expect_chronological_order"


@pytest.mark.parametrize(
    ("values", "expectation"),
    [
        ({"user_id": None}, "interactions expect_column_values_to_not_be_null(user_id)"),
        ({"item_id": None}, "interactions expect_column_values_to_not_be_null(item_id)"),
        ({"timestamp": None}, "interactions expect_column_values_to_not_be_null(timestamp)"),
        ({"position": None}, "interactions expect_column_values_to_not_be_null(position)"),
        ({"split": None}, "interactions expect_column_values_to_not_be_null(split)"),
        ({"item_id": "nowhere"}, ITEM),
        ({"rating": 5.5}, "interactions expect_column_values_to_be_between(rating)"),
        ({"timestamp": 1}, ORDER),
        ({"position": 9}, ORDER),
    ],
)
def test_a_bad_interaction_fails_its_expectation(tmp_path, good, values, expectation):
    report = check(tmp_path, changed(good.interactions, 3, **values), good.items, pinned=True)
    assert expectation in failed(report)
    assert not any(check.broken for check in report.results)
    bad = next(check for check in report.results if f"{check.suite} {check.expectation}" == expectation)
    assert any(example.startswith("row 4 ") for example in bad.examples)


def test_a_repeated_pair_fails(tmp_path, good):
    rows = good.interactions.to_pylist()
    report = check(tmp_path, changed(good.interactions, 1, item_id=rows[0]["item_id"]), good.items, pinned=True)
    assert failed(report) == {"interactions expect_compound_columns_to_be_unique(user_id, item_id)"}


def test_a_user_with_four_rows_fails_the_k_core_unless_the_split_is_pinned(tmp_path, good):
    rows = [row for row in good.interactions.to_pylist() if row["user_id"] != good.interactions["user_id"][0].as_py()]
    first = good.interactions.to_pylist()[:4]
    table = pa.Table.from_pylist(first + rows, schema=good.interactions.schema)
    assert "interactions expect_k_core" in failed(check(tmp_path, table, good.items))
    assert check(tmp_path, table, good.items, pinned=True).success


def test_missing_ratings_are_allowed_and_counted(tmp_path, good):
    report = check(tmp_path, changed(good.interactions, 3, rating=None), good.items)
    assert report.success
    assert any("1 rows have no rating, which is allowed" in check.observed for check in report.results)


@pytest.mark.parametrize(
    ("change", "expectation"),
    [
        (lambda t: changed(t, 1, item_id=t["item_id"][0].as_py()), "expect_column_values_to_be_unique(item_id)"),
        (lambda t: changed(t, 1, item_id=None), "expect_column_values_to_not_be_null(item_id)"),
        (lambda t: changed(t, 1, title=None), "expect_column_values_to_not_be_null(title)"),
        (lambda t: changed(t, 1, text=None), "expect_column_values_to_not_be_null(text)"),
        (lambda t: changed(t, 1, concepts=None), "expect_column_values_to_not_be_null(concepts)"),
        (lambda t: changed(t, 1, text=" "), "expect_column_values_to_match_regex(text)"),
    ],
)
def test_a_bad_item_fails_its_expectation(tmp_path, good, change, expectation):
    assert f"items {expectation}" in failed(check(tmp_path, good.interactions, change(good.items)))


def test_wrong_columns_types_and_empty_tables_fail_as_bad_data(tmp_path, good):
    table = good.interactions
    missing = check(tmp_path, table.drop_columns("timestamp"), good.items)
    assert "interactions expect_table_columns_to_match_ordered_list" in failed(missing)
    assert not any(check.broken for check in missing.results)
    floats = table.set_column(2, "timestamp", table["timestamp"].cast(pa.float64()))
    assert failed(check(tmp_path, floats, good.items)) == {"interactions expect_column_types"}
    assert "items expect_table_row_count_to_be_between" in failed(check(tmp_path, table, good.items.slice(0, 0)))
    empty = check(tmp_path, table.slice(0, 0), good.items)
    assert failed(empty) == {"interactions expect_table_row_count_to_be_between"}


def test_raw_tables_are_checked_pinned_or_not():
    raw = simulate(SimulatedParams(users=20, items=40), 0)
    assert validate_raw(raw, PARAMS, KEY).success
    pinned = Tables(
        raw.interactions.append_column("split", pa.array(["train"] * len(raw.interactions))),
        raw.items.append_column("catalogue", pa.array([True] * len(raw.items))),
    )
    assert validate_raw(pinned, PARAMS, KEY).success
    late = Tables(changed(raw.interactions, 2, timestamp=1), raw.items)
    assert failed(validate_raw(late, PARAMS, KEY)) == {ORDER}


@pytest.mark.parametrize(
    ("sids", "expectation"),
    [
        ([[1, 2], [1, 2], [3, 4]], "sids expect_column_values_to_be_unique(sid)"),
        ([[1, 2], [1, 3, 0], [3, 4]], "sids expect_column_values_to_be_between(length)"),
        ([[1, 2], [1, -3], [3, 4]], "sids expect_column_values_to_be_between(smallest)"),
        ([[1, 2], None, [3, 4]], "sids expect_column_values_to_not_be_null(sid)"),
        ([[1, 2], [None, 1], [3, 4]], "sids expect_column_values_to_not_be_null(smallest)"),
    ],
)
def test_a_bad_sid_fails_its_expectation(sids, expectation):
    items = pa.table({"item_id": ["a", "b", "c"]})
    table = items.append_column("sid", pa.array([[1, 2], [1, 3], [3, 4]], pa.list_(pa.int32())))
    assert validate_sids(table, items).success
    assert expectation in failed(validate_sids(items.append_column("sid", pa.array(sids, pa.list_(pa.int32()))), items))


def test_sids_are_one_to_one_with_the_items():
    sids = pa.table({"item_id": ["a", "b", "b"], "sid": pa.array([[1, 2], [1, 3], [3, 4]], pa.list_(pa.int32()))})
    assert failed(validate_sids(sids, pa.table({"item_id": ["a", "c"]}))) == {
        "sids expect_column_values_to_be_unique(item_id)",
        "sids expect_column_values_to_be_in_set(item_id)",
        "sids expect_column_distinct_values_to_contain_set(item_id)",
    }


def test_a_failure_names_table_expectation_and_rows_but_no_user(tmp_path, good):
    report = check(tmp_path, changed(good.interactions, 3, rating=9.0), good.items)
    with pytest.raises(ValidationFailed) as error:
        report.raise_for_failure()
    message = str(error.value)
    assert re.search(r"interactions: expect_column_values_to_be_between\(rating\) failed: 1 of \d+ rows", message)
    person = good.interactions["user_id"][3].as_py()
    assert re.search(rf"row 4 item i\d{{4}} user~{Subject('user', person).digest(KEY)[:8]}\b", message)
    assert hashlib.sha256(person.encode()).hexdigest()[:8] not in message  # which anybody who has ids could look up
    for user in set(good.interactions["user_id"].to_pylist()):
        assert user not in message + report.to_json() + render_page(report)


def test_a_check_that_raises_is_told_from_bad_data(tmp_path, good, monkeypatch):
    from genrec.validation import suites

    def raising(*_):
        raise RuntimeError("u00000-0642 leaked")

    monkeypatch.setattr(suites, "_frame", raising)
    report = check(tmp_path, good.interactions, good.items)
    assert any(check.broken and check.observed == "RuntimeError" for check in report.results)
    with pytest.raises(ValidationFailed, match=r"the check expect_chronological_order could not run \(RuntimeError\)"):
        report.raise_for_failure()
    assert "leaked" not in report.to_json()


def test_the_page_escapes_what_it_shows_and_loads_nothing():
    report = ValidationReport((Check("items", "e", False, "1 row", ("row 1 item <script>alert(1)</script>",)),))
    page = render_page(report)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=", page)
