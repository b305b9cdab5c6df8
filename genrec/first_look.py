"""Parameters for somebody's own two tables: what was seen in them, and what follows from it.

Only what the tables themselves decide is set; the rest keeps its default. No id is in what is said.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from genrec.config import Params
from genrec.data.prepare import cores
from genrec.data.tables import Tables, refuse_empty

KEPT = 0.8
"""Share of the rows that the k-core should keep."""
WINDOW = (10, 100)
"""Least and most items of history a model is given here: below, little is learnt; above, a step is slow."""
BROADEST = 3
"""Concepts that are named with their share of the catalogue."""


@dataclass(frozen=True)
class FirstLook:
    """`params` to begin with; `notes` say, by dotted key, what was seen and why the value is as it is."""

    params: Params
    notes: dict[str, str]


def first_look(tables: Tables) -> FirstLook:
    """Look at tables that `read_tables` accepts. Raises DataError where one of them is empty."""
    refuse_empty(tables)
    defaults = Params()
    ratings, rating_note = _ratings(tables, defaults)
    k, core_note = _k_core(tables, defaults.data.k_core)
    window, window_note = _window(tables)
    tree = {"data": {**ratings, "k_core": k}, "architecture": {"window": window}}
    notes = {
        "data.k_core": core_note,
        "data.max_items_without_text": _without_text(tables, defaults),
        "data.rating_min": rating_note,
        "sid.codes": _codes(tables, defaults),
        "architecture.window": window_note,
        "requests.max_concept_share": _concepts(tables, defaults),
    }
    return FirstLook(Params.model_validate(tree), notes)


def _ratings(tables: Tables, defaults: Params) -> tuple[dict[str, float], str]:
    column = tables.interactions["rating"]
    rated = len(column) - column.null_count
    if not rated:
        return {}, "no row has a rating, which is allowed: the range below is the default and nothing is checked"
    low, high = (float(value.as_py()) for value in pc.min_max(column).values())
    note = f"{rated:,} of {len(column):,} rows have a rating, from {low:g} to {high:g}: other ones will be refused. "
    return {"rating_min": low, "rating_max": high}, note + "Widen the range if your source can give others"


def _k_core(tables: Tables, default: int) -> tuple[int, str]:
    """The largest k up to the default and from 3 on that keeps enough; below 3 only where nothing else is left."""
    rows = len(tables.interactions)
    sizes = {size.k: size for size in cores(tables.interactions, range(1, default + 1))}
    enough = [k for k in range(default, 2, -1) if sizes[k].rows >= KEPT * rows]
    chosen = enough[0] if enough else next(k for k in (3, 2, 1) if sizes[k].rows)
    told = "; ".join(
        f"{k} keeps {sizes[k].rows / rows:.0%} of the rows ({sizes[k].users:,} people, {sizes[k].items:,} items)"
        for k in range(default, min(chosen, 3) - 1, -1)
    )
    why = f"the largest that keeps {KEPT:.0%}" if enough else "none keeps more that leaves people a row to train on"
    if chosen < 3:
        why = "nothing is left above it; people with fewer than 3 rows have none to train on, so bring more data"
    return chosen, f"{told}. Taken: {chosen}, {why}"


def _window(tables: Tables) -> tuple[int, str]:
    lengths = np.sort(tables.interactions["user_id"].value_counts().field("counts").to_numpy(zero_copy_only=False))
    half, most = (int(np.quantile(lengths, q, method="higher")) for q in (0.5, 0.95))
    window = int(np.clip(most, *WINDOW))
    note = f"half of the people have up to {half} rows, 95 % up to {most}, one {lengths[-1]}. Taken: {window}"
    return window, note + f" (the 95 %, kept within {WINDOW[0]} and {WINDOW[1]}); more costs time in every step"


def _codes(tables: Tables, defaults: Params) -> str:
    items = len(tables.items)
    return f"{items:,} items: auto gives {defaults.sid.codes_for(items)} codes per level"


def _without_text(tables: Tables, defaults: Params) -> str:
    items, limit = len(tables.items), defaults.data.max_items_without_text
    empty = items - pc.sum(pc.match_substring_regex(tables.items["text"], r"\S")).as_py()
    said = f"{empty:,} of {items:,} items have no text ({empty / items:.1%})"
    if empty <= limit * items:
        return said
    return f"{said}, more than allowed: write their text, it is all a model knows them by. Or allow it here"


def _concepts(tables: Tables, defaults: Params) -> str:
    items, limit = len(tables.items), defaults.requests.max_concept_share
    counts = Counter(name for names in tables.items["concepts"].to_pylist() for name in names)
    if not counts:
        return "no item has a concept: only people, items and single interactions can be asked to be forgotten"
    shares = {name: count / items for name, count in counts.most_common()}
    told = ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:BROADEST])
    above = [name for name, share in shares.items() if share > limit]
    said = f"{len(counts):,} concepts, of the catalogue the broadest cover: {told}"
    if above:
        return f"{said}. {len(above):,} are above the limit and would be refused; raise it if they may be asked for"
    return f"{said}. All may be asked for"
