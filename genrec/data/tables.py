"""The canonical tables: what a source must deliver, in CSV or Parquet.

    interactions  user_id, item_id, timestamp (seconds, or an ordinal), rating (may be empty)
    items         item_id, title, text (what is embedded), concepts ('|' between them in CSV)

Erasure pins the split by one more column each: `split` of a row, `catalogue` of an item (see `genrec.data.erase`).
Row numbers in messages count from 1 and do not count the header.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from genrec.data.files import write_atomically
from genrec.errors import DataError

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
    found = [path for suffix in FORMATS if (path := directory / f"{name}.{suffix}").exists()]
    if not found:
        raise DataError(f"{directory} has no {name}.csv and no {name}.parquet. Both tables are needed: see tables.py.")
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


def unordered_rows(interactions: pa.Table) -> np.ndarray:
    """Indices of rows that are older than an earlier row of the same user, int64, ascending."""
    users = interactions["user_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    times = interactions["timestamp"].to_numpy()
    order = np.argsort(users, kind="stable")
    earlier = (np.diff(times[order]) < 0) & (np.diff(users[order]) == 0)
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
    except (pa.ArrowException, OSError) as error:
        # A parse error quotes the whole row, which holds a user id.
        reason = re.split(r"(?<=got \d): ", str(error).splitlines()[0])[0]
        raise DataError(f"{path.name} cannot be read: {reason}. Write it as UTF-8 CSV or as Parquet.") from error
    names = table.column_names
    if sorted(names) not in (sorted(schema.names), sorted([*schema.names, pin.name])):
        missing = sorted(set(schema.names) - set(names))
        extra = sorted(set(names) - {*schema.names, pin.name})
        raise DataError(
            f"{path.name} has the columns {', '.join(names)}; expected exactly {', '.join(schema.names)}. "
            f"Missing: {', '.join(missing) or 'none'}; to remove: {', '.join(extra) or 'none'}. No column may be twice."
        )
    if pin.name in names:
        schema = schema.append(pin)
    return pa.table([_column(table[f.name].combine_chunks(), f, path.name) for f in schema], schema=schema)


def _column(column: pa.Array, field: pa.Field, file: str) -> pa.Array:
    where = f"{file}, column {field.name}"
    if field.name == "concepts":
        return _concepts(column, where)
    if not _castable(column.type, field.type):
        raise DataError(f"{where} has type {column.type}; expected {field.type}. Write it with that type.")
    if field.name == "rating" and pa.types.is_string(column.type):
        column = pc.if_else(pc.equal(column, ""), None, column)
    try:
        values = pc.cast(column, field.type)
    except pa.ArrowInvalid as error:
        bad = [i for i, value in enumerate(column) if not _parses(value, field.type)]
        quoted = ", ".join(repr(column[i].as_py()) for i in bad[:3])
        raise DataError(f"{where}: {quoted} in {rows_text(bad)} is not {field.type}. Correct the values.") from error
    if field.name in ("title", "text"):
        return values.fill_null("")
    if field.name == "rating":
        _refuse(where, pc.invert(pc.is_finite(values)), "not a finite number", "Leave unknown ratings empty.")
        return values
    _refuse(where, pc.is_null(values), "empty", "Give every row a value.")
    if field.name in ("user_id", "item_id"):
        _refuse(where, pc.equal(values, ""), "empty", "Give every row an id.")
    if field.name == "split":
        _refuse(where, pc.invert(pc.is_in(values, pa.array(SPLITS))), "unknown", f"Known: {', '.join(SPLITS)}.")
    return values


def _castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return True
    if pa.types.is_dictionary(found):
        return _castable(found.value_type, wanted)
    if pa.types.is_int64(wanted):
        return pa.types.is_integer(found)
    if pa.types.is_float64(wanted):
        return pa.types.is_integer(found) or pa.types.is_floating(found)
    # A number as an id has already lost its leading zeros, so it is refused.
    return pa.types.is_boolean(wanted) and pa.types.is_boolean(found)


def _concepts(column: pa.Array, where: str) -> pa.Array:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        lists = [text.split("|") if text else [] for text in column.to_pylist()]
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lists = [concepts or [] for concepts in column.to_pylist()]
    else:
        raise DataError(f"{where} has type {column.type}; expected a list of strings, or '|'-separated text.")
    bad = [i for i, c in enumerate(lists) if len(set(c)) < len(c) or any(not isinstance(x, str) or not x for x in c)]
    if bad:
        raise DataError(f"{where}: empty or repeated concept in {rows_text(bad)}. Name each concept once.")
    return pa.array(lists, pa.list_(pa.string()))


def _parses(value: pa.Scalar, type: pa.DataType) -> bool:
    try:
        value.cast(type)
    except pa.ArrowInvalid:
        return False
    return True


def _refuse(where: str, mask: pa.BooleanArray, what: str, remedy: str) -> None:
    bad = np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False))
    if len(bad):
        raise DataError(f"{where}: {what} in {rows_text(bad)}. {remedy}")


def _as_csv(table: pa.Table) -> pa.Table:
    if "concepts" not in table.column_names:
        return table
    lists = table["concepts"].combine_chunks()
    barred = [concept for concept in lists.flatten().to_pylist() if "|" in concept]
    if barred:
        raise DataError(f"The concept {barred[0]!r} holds '|', which separates concepts in CSV. Replace it.")
    return table.set_column(table.column_names.index("concepts"), "concepts", pc.binary_join(lists, "|"))
