"""`genrec init --from`: what is seen in somebody's tables, and the parameters that follow."""

import pyarrow as pa
import pytest

from genrec.config import load_params
from genrec.data.tables import SCHEMAS, Tables, write_tables
from genrec.errors import DataError
from genrec.first_look import first_look
from genrec.workspace import create


def tables(lengths, *, items=40, ratings=(1.0, 5.0), text="some text", concepts=("Odd",)) -> Tables:
    """People with histories of `lengths` over `items` items, whose ratings take turns."""
    rows = [
        (f"person-{u}", f"i{(u + k) % items}", k, ratings[k % len(ratings)] if ratings else None)
        for u, length in enumerate(lengths)
        for k in range(length)
    ]
    catalogue = [(f"i{k}", f"Item {k}", text, list(concepts) if k % 2 else []) for k in range(items)]
    return Tables(
        *(pa.table([list(c) for c in zip(*found, strict=True)], schema=SCHEMAS[name])
          for name, found in (("interactions", rows), ("items", catalogue)))
    )  # fmt: skip


def test_dense_tables_keep_the_default_core_and_get_their_own_ratings_and_window():
    look = first_look(tables([12] * 94 + [30] * 6))
    assert (look.params.data.rating_min, look.params.data.rating_max) == (1.0, 5.0)
    assert look.params.data.k_core == 5
    assert look.params.architecture.window == 30
    assert look.params.sid.codes == "auto"
    assert "half of the people have up to 12 rows, 95 % up to 30" in look.notes["architecture.window"]
    assert "from 1 to 5" in look.notes["data.rating_min"]


@pytest.mark.parametrize(
    ("lengths", "items", "k", "why"),
    [
        ([4] * 60, 20, 4, "the largest that keeps 80%"),
        ([4] * 40 + [2] * 120, 20, 3, "none keeps more that leaves people a row to train on"),
        ([2] * 60, 20, 2, "people with fewer than 3 rows have none to train on"),
    ],
)
def test_thin_tables_get_a_smaller_core(lengths, items, k, why):
    look = first_look(tables(lengths, items=items))
    assert look.params.data.k_core == k
    assert why in look.notes["data.k_core"]


def test_a_window_stays_within_what_is_affordable():
    assert first_look(tables([5] * 40)).params.architecture.window == 10
    assert first_look(tables([150] * 10, items=200)).params.architecture.window == 100


def test_ratings_that_nobody_gave_leave_the_range_as_it_is():
    look = first_look(tables([8] * 40, ratings=()))
    assert (look.params.data.rating_min, look.params.data.rating_max) == (0.0, 5.0)
    assert "no row has a rating" in look.notes["data.rating_min"]


def test_what_would_be_refused_later_is_said():
    look = first_look(tables([8] * 40, text=" "))
    assert "40 of 40 items have no text (100.0%), more than allowed" in look.notes["data.max_items_without_text"]
    assert "Odd 50%. 1 are above the limit and would be refused" in look.notes["requests.max_concept_share"]
    none = first_look(tables([8] * 40, concepts=())).notes["requests.max_concept_share"]
    assert none.startswith("no item has a concept")


def test_an_empty_table_is_refused():
    full = tables([8] * 40)
    with pytest.raises(DataError, match="The table items has no rows"):
        first_look(Tables(full.interactions, full.items.slice(0, 0)))


def test_the_workspace_has_commented_parameters_without_an_id_and_the_next_commands(tmp_path):
    (tmp_path / "my tables").mkdir()
    write_tables(tables([12] * 40), tmp_path / "my tables")
    made = create(tmp_path / "shop", tmp_path / "my tables")
    text = (tmp_path / "shop" / "params.yaml").read_text()
    assert load_params(tmp_path / "shop" / "params.yaml") == first_look(tables([12] * 40)).params
    lines = text.splitlines()
    above = lines[lines.index(next(line for line in lines if line.startswith("  window: 12"))) - 1]
    assert above.startswith("  # ")
    assert "person-" not in text + str(made)
    assert made["next"] == [
        f"cd {tmp_path}/shop && genrec data check '../my tables'",
        "genrec data fetch tables --from '../my tables'",
        "genrec train",
    ]


def test_tables_that_cannot_be_read_leave_no_workspace(tmp_path):
    with pytest.raises(DataError, match=r"no interactions\.csv"):
        create(tmp_path / "shop", tmp_path)
    assert not (tmp_path / "shop").exists()
