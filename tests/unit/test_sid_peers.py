"""The comparison with published SIDs: numbering and figures of a made-up file of four items."""

import gzip
import json

import pytest

from benchmarks.sid_peers import COLUMNS, numbered, report, row
from genrec.sid.published import read_published

IDS, LEAVES = ["1", "2", "3", "4"], ["Nails", "Nails", "Hair", "Hair"]


@pytest.fixture
def published(tmp_path):
    """Two items share their codes; item 0 of the file is item 1 of the source."""
    path = tmp_path / "made-up.index.json.gz"
    codes = {"0": ["<a_0>", "<b_1>"], "1": ["<a_0>", "<b_1>"], "2": ["<a_0>", "<b_2>"], "3": ["<a_1>", "<b_0>"]}
    path.write_bytes(gzip.compress(json.dumps(codes).encode()))
    return numbered(read_published(path))


def test_a_published_table_is_read_against_the_leaf_categories(published):
    assert published.item_ids == ("1", "2", "3", "4")
    found = report(published, IDS, LEAVES)
    assert found["collision_share"] == 0.5
    assert [level["codes_used"] for level in found["levels"]] == [2, 3]
    first, second = (level["concept_purity"] for level in found["levels"])
    moved = report(published, IDS, ["Nails", "Hair", "Nails", "Hair"])["levels"]
    assert (moved[0]["concept_purity"], second) == (first, 1)  # three items under one code: two of a leaf, either way
    assert moved[1]["concept_purity"] < second  # the two that share all codes are of one leaf no longer


def test_a_row_has_a_cell_for_every_column_and_no_error_where_embeddings_are_unknown(published):
    found = report(published, IDS, LEAVES)
    cells = dict(zip(COLUMNS, row("made up", found), strict=True))
    assert (cells["SIDs"], cells["levels"], cells["colliding items"]) == ("made up", "2", "50.0%")
    assert cells["codes used"] == "2 / 3"
    assert cells["items per prefix 1 / 2"] == "2.0 / 1.3"
    assert (cells["largest 2"], cells["quantisation error"], cells["extra by repair"]) == ("2", "", "")
    ours = row("ours", found | {"quantisation_error": 0.25, "extra_quantisation_error": 0.0044})
    assert ours[-2:] == ["0.2500", "0.0044"]
