"""Running the suites: is this data what everything after it takes for granted?"""

import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec.config import Params
from genrec.data.subjects import Subject
from genrec.data.tables import PINS, PREPARED, SCHEMAS, Tables
from genrec.errors import DataError, ValidationFailed, printable

SHAPE = ("expect_table_columns_to_match_ordered_list", "expect_column_types")

REMEDIES = {
    "expect_column_values_to_be_between(rating)": "Set data.rating_min and data.rating_max to the source's range.",
    "expect_column_values_to_be_in_set(item_id)": "Add these items to the items table, or leave their rows out.",
    "expect_column_values_to_match_regex(text)": "Give the items a text, or raise data.max_items_without_text.",
    "expect_compound_columns_to_be_unique(user_id, item_id)": "Keep the first row of each user and item.",
    "expect_table_row_count_to_be_between": "Give the table rows.",
}
"""What helps against a failed expectation, where that is more than to correct the values it names."""


@dataclass(frozen=True)
class Check:
    """One expectation's outcome.

    Attributes: expectation - its name and columns; observed - in words; examples - up to three offending rows, users
    only by the first digits of their tombstone; broken - the check itself failed to run: nothing is known of the data.
    """

    suite: str
    expectation: str
    success: bool
    observed: str
    examples: tuple[str, ...] = ()
    broken: bool = False


@dataclass(frozen=True)
class ValidationReport:
    """All outcomes of a validation."""

    results: tuple[Check, ...]

    @property
    def success(self) -> bool:
        return all(check.success for check in self.results)

    def to_json(self) -> str:
        return json.dumps({"success": self.success, "results": [asdict(check) for check in self.results]}, indent=2)

    def raise_for_failure(self) -> None:
        """Raise ValidationFailed naming each failed expectation, its table and examples."""
        if self.success:
            return
        lines = []
        for check in self.results:
            if check.broken:
                lines.append(f"{check.suite}: the check {check.expectation} could not run ({check.observed}).")
            elif not check.success:
                examples = f" E.g. {'; '.join(check.examples)}." if check.examples else ""
                lines.append(f"{check.suite}: {check.expectation} failed: {check.observed}.{examples}")
                lines += [REMEDIES[check.expectation]] if check.expectation in REMEDIES else []
        raise ValidationFailed(" ".join([*lines, "Correct the source and run `genrec data prepare` again."]))


def validate_raw(tables: Tables, params: Params, key: bytes) -> ValidationReport:
    """Check raw tables as a source or an erasure delivers them. `key`, here and below, is that of the tombstones."""
    interactions, items = SCHEMAS["interactions"], SCHEMAS["items"]
    if tables.pinned:
        interactions, items = interactions.append(PINS["interactions"]), items.append(PINS["items"])
    return _validate(tables, interactions, items, params, key, k=None)


def validate_prepared(prepared_dir: Path, params: Params, key: bytes, *, pinned: bool = False) -> ValidationReport:
    """Check prepared tables. `pinned`: an erasure fixed the split, and may leave less than a k-core."""
    files = [prepared_dir / f"{name}.parquet" for name in SCHEMAS]
    for file in files:
        if not file.exists():
            raise DataError(f"No {file}. Run `genrec data prepare` first.")
    tables = Tables(*(pq.read_table(file) for file in files))
    return _validate(tables, PREPARED, SCHEMAS["items"], params, key, k=None if pinned else params.data.k_core)


def validate_sids(sids: pa.Table, items: pa.Table) -> ValidationReport:
    """Check SIDs (item_id string, sid list<int32>): unique, one for each of `items`, same length, no negative code.

    Raises DataError when the columns or types are others.
    """
    wanted = pa.schema([("item_id", pa.string()), ("sid", pa.list_(pa.int32()))])
    if {f.name: f.type for f in sids.schema} != {f.name: f.type for f in wanted}:
        found = ", ".join(f"{f.name} {f.type}" for f in sids.schema)
        raise DataError(f"The SID table has {found}; expected item_id string, sid list<int32>. Build it again.")
    codes = sids["sid"].to_pylist()
    lengths = [len(sid) if sid is not None else None for sid in codes]
    common = Counter(length for length in lengths if length).most_common(1)
    smallest = [min(sid) if sid and None not in sid else None for sid in codes]
    table = pa.table(
        {
            "item_id": sids["item_id"],
            "sid": pa.array([" ".join(map(str, sid)) if sid is not None else None for sid in codes], pa.string()),
            "length": pa.array(lengths, pa.int64()),
            "smallest": pa.array(smallest, pa.int64()),
        }
    )
    suite = _suites().sids_suite(table.schema, _ids(items), common[0][0] if common else 1)
    return ValidationReport(tuple(_run(suite, table, b"")))  # no row of it is about a person


def _validate(tables: Tables, interactions: pa.Schema, items: pa.Schema, params: Params, key: bytes, k: int | None):
    suites, data = _suites(), params.data
    known = _ids(tables.items) if "item_id" in tables.items.column_names else []
    rating = (data.rating_min, data.rating_max)
    return ValidationReport(
        (
            *_run(suites.interactions_suite(interactions, known, rating, k), tables.interactions, key),
            *_run(suites.items_suite(items, data.max_items_without_text), tables.items, key),
        )
    )


def _suites():
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    from genrec.validation import suites

    return suites


def _ids(items: pa.Table) -> list[str]:
    return pc.unique(items["item_id"]).to_pylist()


def _run(suite, table: pa.Table, key: bytes) -> list[Check]:
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("tables").add_dataframe_asset(suite.name)
    # Arrow types keep int64 apart from float64 where a column has nulls, and lists apart from objects.
    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    batch = source.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    results = batch.validate(suite, result_format="COMPLETE").results
    checks = [_check(suite.name, result, table, key) for result in results]
    if any(check.expectation in SHAPE and not check.success and not check.broken for check in checks):
        # Without its columns a table breaks other checks too; only the cause is worth telling.
        return [check for check in checks if not check.broken]
    return checks


def _check(suite: str, result, table: pa.Table, key: bytes) -> Check:
    kwargs, found = result.expectation_config.kwargs, result.result
    kind = result.expectation_config.type
    columns = [kwargs["column"]] if "column" in kwargs else kwargs["column_list"] if "compound" in kind else []
    name = f"{kind}({', '.join(columns)})" if columns else kind
    if exception := _exception(result.exception_info):
        return Check(suite, name, False, exception, broken=True)
    rows = [int(row) for row in found.get("unexpected_index_list") or []]
    examples = tuple(_example(table, row, key) for row in rows[:3])
    if kind in SHAPE:
        expected = kwargs.get("types") or ", ".join(kwargs["column_list"])
        found_text = found["observed_value"] if "types" in kwargs else ", ".join(found["observed_value"])
        observed = str(found_text) if result.success else f"found {found_text}; expected {expected}"
    elif "value_set" in kwargs and "unexpected_count" not in found:
        lost = sorted(set(kwargs["value_set"]) - set(table[kwargs["column"]].to_pylist()))
        observed, examples = f"{len(lost)} values missing", tuple(f"item {printable(item)}" for item in lost[:3])
    elif "unexpected_count" in found:
        observed = f"{found['unexpected_count']} of {found['element_count']} rows"
        if columns == ["rating"]:
            observed += f"; {found.get('missing_count', 0)} rows have no rating, which is allowed"
    else:
        observed = f"{found['observed_value']} rows"
    return Check(suite, name, bool(result.success), observed, () if result.success else examples)


def _exception(info: dict) -> str | None:
    """Class name of the error behind a broken check, or None. Its message is left out: it may quote a row."""
    for part in (info, *info.values()):
        if isinstance(part, dict) and part.get("raised_exception"):
            # The first error of the chain is the cause; the ones after it are Great Expectations' own.
            cause = re.search(r"^([\w.]+(Error|Exception))\b", part.get("exception_traceback") or "", re.MULTILINE)
            return cause[1] if cause else "unknown error"
    return None


def _example(table: pa.Table, row: int, key: bytes) -> str:
    """A row as one may tell of it for good: whoever has no key cannot find out the person by hashing ids."""
    values = [f"row {row + 1}"]
    if "item_id" in table.column_names:
        values.append(f"item {printable(str(table['item_id'][row].as_py()))}")
    if "user_id" in table.column_names:
        user = table["user_id"][row].as_py()
        values.append(f"user~{Subject('user', str(user)).digest(key)[:8]}" if user else "no user")
    return " ".join(values)
