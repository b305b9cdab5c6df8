"""The canonical tables: what a source must deliver, in CSV or Parquet.

    interactions  user_id, item_id, timestamp (seconds, or an ordinal), rating (may be empty)
    items         item_id, title, text (what is embedded), concepts ('|' between them in CSV)

An id or a concept holds no control character and at most 512 characters, as a request about it must.
Erasure pins the split by one more column each: `split` of a row, `catalogue` of an item (see `genrec.data.erase`).
Row numbers in messages count from 1 and do not count the header.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from genrec.data.files import write_atomically
from genrec.data.subjects import LONGEST_ID
from genrec.errors import DataError, printable

SCHEMAS = {
    "interactions": pa.schema(
        [("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64()), ("rating", pa.float64())]
    ),
    "items": pa.schema(
        [("item_id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("concepts", pa.list_(pa.string()))]
    ),
}
PINS = {"interactions": pa.field("split", pa.string()), "items": pa.field("catalogue", pa.bool_())}
PREPARED = SCHEMAS["interactions"].append(pa.field("position", pa.int64())).append(PINS["interactions"])
SPLITS = ("train", "valid", "test", "holdout", "outside")
FORMATS = ("csv", "parquet")
TIMES = "Write a time as seconds since 1970, or as any whole number that puts a user's rows in order."


@dataclass(frozen=True)
class Tables:
    """The two tables in canonical column order; both carry their pin column, or neither does."""

    interactions: pa.Table
    items: pa.Table

    @property
    def pinned(self) -> bool:
        """True once an erasure has fixed the split and the catalogue."""
        return "split" in self.interactions.column_names


def table_file(directory: Path, name: str) -> Path:
    """The one file of table `name` ("interactions" or "items"). Raises DataError when there is none, or two."""
    found = [path for suffix in FORMATS if (path := directory / f"{name}.{suffix}").is_file()]
    if not found:
        raise DataError(
            f"{directory} has no {name}.csv and no {name}.parquet. Both tables are needed (docs/reference/tables.md)."
        )
    if len(found) > 1:
        raise DataError(f"{directory} has both {found[0].name} and {found[1].name}. Remove the one that is not meant.")
    return found[0]


def read_tables(directory: Path) -> Tables:
    """Read `interactions` and `items` from a folder.

    Raises DataError on a missing or doubled file, on wrong columns, and on a value that is not of its column's type.
    """
    interactions, items = (_read(table_file(directory, name), name) for name in SCHEMAS)
    if ("split" in interactions.column_names) != ("catalogue" in items.column_names):
        raise DataError(
            f"{directory}: interactions with a `split` column need items with a `catalogue` column, and the reverse. "
            "Remove the one that is there to have the split computed."
        )
    return Tables(interactions, items)


def write_tables(tables: Tables, directory: Path, format: str = "csv") -> None:
    """Write both tables to a folder as `csv` or `parquet`: the same tables give the same bytes."""
    if format not in FORMATS:
        raise DataError(f"Unknown table format {format!r}. Known formats: {', '.join(FORMATS)}.")
    for name, table in (("interactions", tables.interactions), ("items", tables.items)):
        if format == "parquet":
            write_atomically(directory / f"{name}.parquet", lambda file, table=table: pq.write_table(table, file))
        else:
            text = _as_csv(table)
            write_atomically(directory / f"{name}.csv", lambda file, text=text: pacsv.write_csv(text, file))


def refuse_empty(tables: Tables) -> None:
    """Raises DataError where one of the tables has no rows."""
    for name, table in (("interactions", tables.interactions), ("items", tables.items)):
        if not len(table):
            raise DataError(f"The table {name} has no rows. Every user and every item needs a few interactions.")


def unordered_rows(interactions: pa.Table) -> np.ndarray:
    """Indices of rows that are older than an earlier row of the same user, int64, ascending."""
    users = interactions["user_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    times = interactions["timestamp"].to_numpy()
    order = np.argsort(users, kind="stable")
    users, times = users[order], times[order]
    earlier = (times[1:] < times[:-1]) & (users[1:] == users[:-1])
    return np.sort(order[1:][earlier])


def repeated_rows(interactions: pa.Table) -> np.ndarray:
    """Indices of rows whose (user, item) an earlier row already has, int64, ascending."""
    return np.flatnonzero(interactions.select(["user_id", "item_id"]).to_pandas().duplicated().to_numpy())


def rows_text(rows: Iterable[int]) -> str:
    """`row 3`, or `rows 3, 9, 12 ...` from 0-based indices, at most three of them."""
    rows = [int(row) + 1 for row in rows]
    listed = ", ".join(map(str, rows[:3])) + (" ..." if len(rows) > 3 else "")
    return f"{'row' if len(rows) == 1 else 'rows'} {listed}"


def _read(path: Path, name: str) -> pa.Table:
    schema, pin = SCHEMAS[name], PINS[name]
    try:
        if path.suffix == ".csv":
            table = pacsv.read_csv(
                path,
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(column_types={n: pa.string() for n in [*schema.names, pin.name]}),
            )
        else:
            table = pq.read_table(path)
        table.validate(full=True)  # Parquet may hold strings that are not UTF-8
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # A parse error quotes the whole row, which holds a user id.
        reason = printable(re.sub(r"(?s)(?<=got )(\d+): .*", r"\1", str(error)), 200)
        remedy = "Write it as UTF-8 CSV or as Parquet"
        if "invalid UTF8" in reason:
            remedy += f": iconv -f CP1252 -t UTF-8 {path.name}, with the encoding it has"
        raise DataError(f"{path.name} cannot be read: {reason}. {remedy}.") from error
    if len(names) == 1 and (other := next((mark for mark in ";\t" if mark in names[0]), None)):
        raise DataError(f"{path.name} has {other!r} between its columns. Write it with commas.")
    if sorted(names) not in (sorted(schema.names), sorted([*schema.names, pin.name])):
        missing = sorted(set(schema.names) - set(names))
        extra = sorted(set(names) - {*schema.names, pin.name})
        raise DataError(
            f"{path.name} has the columns {_listed(names)}; expected exactly {_listed(schema.names)}. "
            f"Missing: {_listed(missing)}; to remove: {_listed(extra)}. No column may be twice."
        )
    if pin.name in names:
        schema = schema.append(pin)
    return pa.table([_column(_plain(table[f.name]), f, path.name) for f in schema], schema=schema)


def _listed(names: list[str]) -> str:
    return printable(", ".join(printable(name) for name in names) or "none", 300)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece, without dictionary encoding, text with short offsets."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_large_string(column.type):
        column = column.cast(pa.string())
    return column.combine_chunks()


def _column(column: pa.Array, field: pa.Field, file: str) -> pa.Array:
    where = f"{file}, column {field.name}"
    if field.name == "concepts":
        return _concepts(column, where)
    if not _castable(column.type, field.type):
        found = printable(str(column.type))
        remedy = TIMES if field.name == "timestamp" else "Write it with that type."
        raise DataError(f"{where} has type {found}; expected {field.type}. {remedy}")
    if field.name == "rating" and pa.types.is_string(column.type):
        column = pc.if_else(pc.equal(column, ""), None, column)
    try:
        values = pc.cast(column, field.type)
    except pa.ArrowInvalid as error:
        bad = list(islice((i for i, value in enumerate(column) if not _parses(value, field.type)), 4))
        quoted = ", ".join(printable(repr(column[i].as_py()), 40) for i in bad[:3])
        remedy = TIMES if field.name == "timestamp" else "Correct the values."
        raise DataError(f"{where}: {quoted} in {rows_text(bad)} is not {field.type}. {remedy}") from error
    if field.name in ("title", "text"):
        return values.fill_null("")
    if field.name == "rating":
        _refuse(where, pc.invert(pc.is_finite(values)), "not a finite number", "Leave unknown ratings empty.")
        return values
    _refuse(where, pc.is_null(values), "empty", "Give every row a value.")
    if field.name in ("user_id", "item_id"):
        _refuse(where, pc.equal(values, ""), "empty", "Give every row an id.")
        _refuse_unaskable(where, values)
    if field.name == "split":
        _refuse(where, pc.invert(pc.is_in(values, pa.array(SPLITS))), "unknown", f"Known: {', '.join(SPLITS)}.")
    return values


def _castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_string(found):
        return True
    if pa.types.is_int64(wanted):
        return pa.types.is_integer(found)
    if pa.types.is_float64(wanted):
        return pa.types.is_integer(found) or pa.types.is_floating(found)
    # A number as an id has already lost its leading zeros, so it is refused.
    return pa.types.is_boolean(wanted) and pa.types.is_boolean(found)


def _concepts(column: pa.Array, where: str) -> pa.Array:
    if pa.types.is_string(column.type):
        lists = [text.split("|") if text else [] for text in column.to_pylist()]
    elif _is_list_of_strings(column.type):
        lists = [concepts or [] for concepts in column.to_pylist()]
    else:
        found = printable(str(column.type))
        raise DataError(f"{where} has type {found}; expected a list of strings, or '|'-separated text.")
    bad = [i for i, concepts in enumerate(lists) if len(set(concepts)) < len(concepts) or not all(concepts)]
    if bad:
        raise DataError(f"{where}: empty or repeated concept in {rows_text(bad)}. Name each concept once.")
    values = pa.array(lists, pa.list_(pa.string()))
    _refuse_unaskable(where, values.flatten(), pc.list_parent_indices(values))
    return values


def _is_list_of_strings(type: pa.DataType) -> bool:
    if not (pa.types.is_list(type) or pa.types.is_large_list(type)):
        return False
    return pa.types.is_string(type.value_type) or pa.types.is_large_string(type.value_type)


def _parses(value: pa.Scalar, type: pa.DataType) -> bool:
    try:
        value.cast(type)
    except pa.ArrowInvalid:
        return False
    return True


def _refuse(where: str, mask: pa.BooleanArray, what: str, remedy: str, rows: pa.Array | None = None) -> None:
    """Raise DataError where `mask` is true; `rows` are the row numbers of its places where these are not the same."""
    bad = np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False))
    if len(bad):
        raise DataError(f"{where}: {what} in {rows_text(bad if rows is None else rows.to_numpy()[bad])}. {remedy}")


def _refuse_unaskable(where: str, names: pa.StringArray, rows: pa.Array | None = None) -> None:
    """Refuse an id or a concept that no request could name: whoever it stands for could never be forgotten."""
    _refuse(where, pc.match_substring_regex(names, r"\p{Cc}"), "a control character", "Remove it.", rows)
    long = pc.greater(pc.utf8_length(names), LONGEST_ID)
    _refuse(where, long, f"more than {LONGEST_ID} characters", "Shorten it everywhere.", rows)


def _as_csv(table: pa.Table) -> pa.Table:
    if "concepts" not in table.column_names:
        return table
    lists = table["concepts"].combine_chunks()
    barred = [concept for concept in lists.flatten().to_pylist() if "|" in concept]
    if barred:
        raise DataError(f"The concept {printable(barred[0])!r} holds '|', which separates concepts in CSV. Replace it.")
    return table.set_column(table.column_names.index("concepts"), "concepts", pc.binary_join(lists, "|"))
