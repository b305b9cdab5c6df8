"""Raw tables to prepared tables: tombstones, k-core, order and leave-one-out split, with Ibis on DuckDB.

Once an erasure has pinned the raw tables, the split and the catalogue are read from them and never recomputed: so
erasing and then preparing gives what erasing from the prepared rows gives, and nobody else's rows move between splits.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec.config import Params
from genrec.data.files import replaced_directory
from genrec.data.sources import time_resolution
from genrec.data.subjects import read_tombstones, tombstoned
from genrec.data.tables import PREPARED, SCHEMAS, Tables, read_tables
from genrec.errors import DataError

HOLDOUT_DIGITS = 12


@dataclass(frozen=True)
class PrepareReport:
    """Counts of the prepared tables and of what was dropped on the way.

    Attributes: tombstoned, duplicates, outside - rows dropped (outside: by k-core, or by the pin); rounds - of k-core,
    0 when pinned; tied_targets - share of test rows that the source's times do not tell from the row before, in [0, 1].
    """

    users: int
    items: int
    rows: int
    holdout_users: int
    tombstoned: int
    duplicates: int
    outside: int
    rounds: int
    pinned: bool
    tied_targets: float


def prepare(data_dir: Path, prepared_dir: Path, params: Params, key: bytes) -> PrepareReport:
    """Write `interactions.parquet`, `items.parquet` and `prepare.json` to `prepared_dir`, replacing it as a whole.

    Rows are sorted by user_id and position (0-based, no gaps, oldest first; ties in time broken by a seeded hash).
    `key` is the secret of the tombstones. Raises DataError when nothing is left.
    """
    tables = read_tables(data_dir)
    gone = tombstoned(tables.interactions, tables.items, read_tombstones(data_dir), key)
    tables = Tables(tables.interactions.filter(pa.array(~gone)), tables.items)
    rows, counts = _rows(tables, params, time_resolution(data_dir))
    if not len(rows):
        raise DataError(
            f"No interaction is left of {len(gone)} with data.k_core = {params.data.k_core}. Lower it, or add data."
        )
    kept = tables.items["catalogue"] if tables.pinned else pc.is_in(tables.items["item_id"], pc.unique(rows["item_id"]))
    items = tables.items.filter(kept).select(SCHEMAS["items"].names).sort_by("item_id")
    test = rows.filter(pc.equal(rows["split"], "test"))
    holdout = rows.filter(pc.equal(rows["split"], "holdout"))
    report = PrepareReport(
        users=pc.count_distinct(rows["user_id"]).as_py(),
        items=len(items),
        rows=len(rows),
        holdout_users=pc.count_distinct(holdout["user_id"]).as_py(),
        tombstoned=int(gone.sum()),
        pinned=tables.pinned,
        tied_targets=round(pc.mean(test["tied"].cast(pa.float64())).as_py() or 0.0, 6),
        **counts,
    )
    with replaced_directory(prepared_dir) as folder:
        pq.write_table(rows.select(PREPARED.names).cast(PREPARED), folder / "interactions.parquet")
        pq.write_table(items, folder / "items.parquet")
        (folder / "prepare.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    return report


def _rows(tables: Tables, params: Params, resolution: int) -> tuple[pa.Table, dict[str, int]]:
    """The prepared rows with a column `tied`, and how many rows each step dropped.

    resolution: seconds; rows are ordered by their whole timestamps and tied where these lie in the same such span.
    """
    import ibis
    from ibis import _

    seed = ibis.literal(f"{params.seed}|")
    connection = ibis.duckdb.connect()
    try:
        # Every step has its own name: replacing or dropping a table fails with the sqlglot that this Ibis resolves to.
        rows = connection.create_table("delivered", ibis.memtable(tables.interactions))
        delivered = rows.count().execute()
        if tables.pinned:
            rows = rows.filter(_.split != "outside")
        same = ibis.window(group_by=["user_id", "item_id"], order_by=[_.timestamp, _.rating.asc(nulls_first=False)])
        inside = rows.count().execute()
        rows = rows.mutate(copy=ibis.row_number().over(same)).filter(_.copy == 0).drop("copy")
        rows = connection.create_table("distinct", rows)
        distinct = rows.count().execute()
        rounds = 0
        if not tables.pinned:
            rows, rounds = _k_core(connection, rows, params.data.k_core)
        left = rows.count().execute()

        rows = rows.mutate(tie=(seed + rows.user_id + "|" + rows.item_id).hexdigest("sha256"))
        forward = ibis.window(group_by="user_id", order_by=[_.timestamp, _.tie])
        backward = ibis.window(group_by="user_id", order_by=[_.timestamp.desc(), _.tie.desc()])
        rows = rows.mutate(
            position=ibis.row_number().over(forward),
            from_end=ibis.row_number().over(backward),
            tied=(_.timestamp // resolution == _.timestamp.lag().over(forward) // resolution).fill_null(False),
        )
        if not tables.pinned:
            # Hex digits of equal length sort as numbers do: this reads the digest as a number in [0, 1).
            number = (seed + rows.user_id).hexdigest("sha256").substr(0, HOLDOUT_DIGITS)
            share = f"{int(params.split.holdout_users * 16**HOLDOUT_DIGITS):0{HOLDOUT_DIGITS}x}"
            last = ibis.cases((_.from_end == 0, "test"), (_.from_end == 1, "valid"), else_="train")
            rows = rows.mutate(split=ibis.ifelse(number < share, "holdout", last))
        rows = rows.order_by(["user_id", "position"]).to_pyarrow()
    finally:
        connection.disconnect()
    outside = (delivered - inside) + (distinct - left)
    return rows, {"duplicates": int(inside - distinct), "outside": int(outside), "rounds": rounds}


@dataclass(frozen=True)
class Core:
    """How much the `k`-core of a table of interactions keeps."""

    k: int
    rows: int
    users: int
    items: int


def cores(interactions: pa.Table, ks: Iterable[int]) -> list[Core]:
    """The k-core of `interactions` for each of `ks`, as `prepare` would take it."""
    import ibis

    found = []
    for k in ks:
        connection = ibis.duckdb.connect()
        try:
            rows = connection.create_table("delivered", ibis.memtable(interactions))
            rows, _ = _k_core(connection, rows.select("user_id", "item_id").distinct(), k)
            counts = (rows.count(), rows.user_id.nunique(), rows.item_id.nunique())
            found.append(Core(k, *(int(count.execute()) for count in counts)))
        finally:
            connection.disconnect()
    return found


def _k_core(connection, rows, k: int):
    """Drop users and items with fewer than `k` rows until none is left; returns the rows and the number of rounds."""
    from ibis import _

    before, rounds = rows.count().execute(), 0
    while True:
        rounds += 1
        users = rows.group_by("user_id").having(_.count() >= k).agg(n=_.count())
        items = rows.group_by("item_id").having(_.count() >= k).agg(n=_.count())
        rows = connection.create_table(f"core_{rounds}", rows.semi_join(users, "user_id").semi_join(items, "item_id"))
        after = rows.count().execute()
        if after == before:
            return rows, rounds
        before = after
