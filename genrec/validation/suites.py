"""The Great Expectations suites, one per table. Importing this imports great_expectations (seconds): see `run.py`."""

import pandas as pd
import pyarrow as pa
from great_expectations import ExpectationSuite
from great_expectations import expectations as gxe
from great_expectations.core.metric_domain_types import MetricDomainTypes
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import BatchExpectation
from great_expectations.expectations.metrics.metric_provider import metric_value
from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider


class ColumnTypes(TableMetricProvider):
    """Names of the Arrow types of all columns, by column."""

    metric_name = "table.genrec_column_types"

    @metric_value(engine=PandasExecutionEngine)
    def _pandas(cls, execution_engine, metric_domain_kwargs, **_):
        frame = _frame(execution_engine, metric_domain_kwargs)
        return {name: _type_name(dtype.pyarrow_dtype) for name, dtype in frame.dtypes.items()}


class UnorderedRows(TableMetricProvider):
    """Indices of rows that are older than the row before of the same user, or whose position does not follow it."""

    metric_name = "table.genrec_unordered_rows"

    @metric_value(engine=PandasExecutionEngine)
    def _pandas(cls, execution_engine, metric_domain_kwargs, **_):
        frame = _frame(execution_engine, metric_domain_kwargs)
        users = frame.groupby("user_id", sort=False)
        wrong = frame["timestamp"].lt(users["timestamp"].shift()).fillna(False)
        if "position" in frame:
            wrong |= frame["position"].ne(users.cumcount()).fillna(True)
        return [int(row) for row in frame.index[wrong]]


class RowsBelowCore(TableMetricProvider):
    """Indices of rows whose user or item has fewer than `k` rows."""

    metric_name = "table.genrec_rows_below_core"
    value_keys = ("k",)

    @metric_value(engine=PandasExecutionEngine)
    def _pandas(cls, execution_engine, metric_domain_kwargs, metric_value_kwargs, **_):
        frame = _frame(execution_engine, metric_domain_kwargs)
        rare = pd.Series(False, index=frame.index)
        for column in ("user_id", "item_id"):
            rare |= frame.groupby(column)[column].transform("size").lt(metric_value_kwargs["k"]).fillna(False)
        return [int(row) for row in frame.index[rare]]


class ExpectColumnTypes(BatchExpectation):
    """Columns have exactly these Arrow types."""

    types: dict[str, str]

    metric_dependencies = ("table.genrec_column_types",)
    success_keys = ("types",)

    def _validate(self, metrics, runtime_configuration=None, execution_engine=None):
        found = metrics["table.genrec_column_types"]
        return {"success": found == self.types, "result": {"observed_value": found}}


class ExpectChronologicalOrder(BatchExpectation):
    """Each user's rows are in time order, and positions, where there are any, count them from 0."""

    metric_dependencies = ("table.genrec_unordered_rows",)

    def _validate(self, metrics, runtime_configuration=None, execution_engine=None):
        return _rows_result(metrics["table.genrec_unordered_rows"])


class ExpectKCore(BatchExpectation):
    """Every user and every item has at least `k` rows."""

    k: int

    metric_dependencies = ("table.genrec_rows_below_core",)
    success_keys = ("k",)

    def _validate(self, metrics, runtime_configuration=None, execution_engine=None):
        return _rows_result(metrics["table.genrec_rows_below_core"])


def interactions_suite(schema: pa.Schema, item_ids: list[str], rating: tuple[float, float], k: int | None):
    """Interactions with exactly the columns and types of `schema`; `k` None leaves the k-core out."""
    expectations = [
        *_shape(schema, nullable=("rating",)),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["user_id", "item_id"]),
        gxe.ExpectColumnValuesToBeInSet(column="item_id", value_set=item_ids),
        gxe.ExpectColumnValuesToBeBetween(column="rating", min_value=rating[0], max_value=rating[1]),
        ExpectChronologicalOrder(),
    ]
    if k is not None:
        expectations.append(ExpectKCore(k=k))
    return ExpectationSuite("interactions", expectations=expectations)


def items_suite(schema: pa.Schema, max_without_text: float):
    """Items; at most the share `max_without_text` may have no text."""
    return ExpectationSuite(
        "items",
        expectations=[
            *_shape(schema),
            gxe.ExpectColumnValuesToBeUnique(column="item_id"),
            gxe.ExpectColumnValuesToMatchRegex(column="text", regex=r"\S", mostly=1 - max_without_text),
        ],
    )


def sids_suite(schema: pa.Schema, item_ids: list[str], length: int):
    """SIDs one-to-one with the items: the columns are item_id, sid (codes as text), length and smallest code."""
    return ExpectationSuite(
        "sids",
        expectations=[
            *_shape(schema),
            gxe.ExpectColumnValuesToBeUnique(column="item_id"),
            gxe.ExpectColumnValuesToBeUnique(column="sid"),
            gxe.ExpectColumnValuesToBeInSet(column="item_id", value_set=item_ids),
            gxe.ExpectColumnDistinctValuesToContainSet(column="item_id", value_set=item_ids),
            gxe.ExpectColumnValuesToBeBetween(column="length", min_value=length, max_value=length),
            gxe.ExpectColumnValuesToBeBetween(column="smallest", min_value=0),
        ],
    )


def _shape(schema: pa.Schema, nullable: tuple[str, ...] = ()) -> list:
    """What most expectations take for granted: an empty table or a column of nulls passes them."""
    types = {field.name: _type_name(field.type) for field in schema}
    return [
        gxe.ExpectTableColumnsToMatchOrderedList(column_list=list(types)),
        ExpectColumnTypes(types=types),
        gxe.ExpectTableRowCountToBeBetween(min_value=1),
        *(gxe.ExpectColumnValuesToNotBeNull(column=name) for name in types if name not in nullable),
    ]


def _type_name(type: pa.DataType) -> str:
    # The name Arrow gives to a list's element depends on who wrote the file.
    return f"list of {type.value_type}" if pa.types.is_list(type) else str(type)


def _frame(execution_engine, domain: dict) -> pd.DataFrame:
    frame, _, _ = execution_engine.get_compute_domain(domain_kwargs=domain, domain_type=MetricDomainTypes.TABLE)
    return frame


def _rows_result(rows: list[int]) -> dict:
    return {"success": not rows, "result": {"observed_value": len(rows), "unexpected_index_list": rows}}
