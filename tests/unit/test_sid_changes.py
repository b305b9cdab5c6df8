"""`genrec sid diff`, `report` and `append` on a real registry: what moved and why, and new items."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from genrec.cli import app
from genrec.errors import DataError, RegistryError
from genrec.models.bundle import Lineage, save_bundle
from genrec.promotion import promote
from genrec.sid.build import append
from genrec.sid.quality import quality_report
from genrec.sid.table import SidLineage, reassign, save_table
from genrec.sid_append import append_catalogue
from genrec.sid_changes import changes
from tests.unit.past import Past

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)


def moved_to(bundle, rows, code):
    """`bundle` with `rows` on another code of the second level."""
    codes = bundle.table.sids[rows, :-1].copy()
    codes[:, 1] = (codes[:, 1] + code) % 8
    return replace(bundle, table=reassign(bundle.table, np.array(rows), codes))


@pytest.fixture(scope="module")
def past(tmp_path_factory, shop, bundle, params):
    """1 base, 2 moves items 3 and 4 (batch b-1), 3 moves item 4 again (b-2), 4 a base with other SIDs."""
    past = Past(tmp_path_factory.mktemp("past") / "shop", shop.root, bundle, params)
    past.pin()
    past.register("base", "")
    past.bundle = moved_to(bundle, [3, 4], 1)
    past.register("tracer", "b-1", parent="1")
    past.bundle = moved_to(past.bundle, [4], 2)
    past.register("ucan_plus", "b-2", parent="2")
    past.bundle = moved_to(bundle, [7], 3)
    past.register("base", "")
    return past


def reasons(past, before, after):
    return {move["item_id"]: move["why"] for move in changes(past.workspace, before, after)["moved"]}


def test_a_move_on_the_line_is_told_by_the_batches_that_made_it(past, bundle):
    third, fourth = bundle.table.item_ids[3:5]
    assert reasons(past, "1", "2") == {third: "tracer, batch b-1", fourth: "tracer, batch b-1"}
    assert reasons(past, "1", "3") == {third: "tracer, batch b-1", fourth: "tracer, batch b-1, tracer, batch b-2"}
    assert reasons(past, "2", "3") == {fourth: "tracer, batch b-2"}
    assert reasons(past, "3", "2") == {fourth: "undone: tracer, batch b-2"}
    assert reasons(past, "3", "3") == {}


def test_between_base_models_all_moves_are_a_retrain(past, bundle):
    ids = bundle.table.item_ids
    assert reasons(past, "3", "4") == dict.fromkeys([ids[3], ids[4], ids[7]], "retrain")


def test_levels_and_titles_are_told_and_the_command_prints_the_same(past, bundle):
    told = changes(past.workspace, "1", "3")
    assert (told["items"], told["moved_items"], told["by_level"]) == (len(bundle.table.item_ids), 2, {2: 2})
    assert [move["title"] for move in told["moved"]] == list(bundle.titles[3:5])
    environment = {"GENREC_HOME": str(past.workspace.root), "GENREC_PSEUDONYM_KEY": "key"}
    printed = CliRunner().invoke(app, ["sid", "diff", "1", "3", "--json"], env=environment, catch_exceptions=False)
    assert json.loads(printed.stdout)["moved"] == told["moved"]
    lines = CliRunner().invoke(app, ["sid", "diff", "1", "3"], env=environment, catch_exceptions=False).stdout
    assert "tracer, batch b-2" in " ".join(lines.split())


def test_bundles_may_be_folders_and_other_names_are_refused(past, bundle, codebooks, embeddings, tmp_path):
    grown = append(bundle.table, codebooks, ["i9999"], embeddings[:1])
    new = replace(bundle, table=grown, titles=(*bundle.titles, "New"), lineage=Lineage("d", "c"))
    save_bundle(new, tmp_path / "new")
    told = changes(past.workspace, "1", str(tmp_path / "new"))
    assert (told["added"], told["removed"], told["moved"]) == (["i9999"], [], [])
    with pytest.raises(RegistryError, match="'9' is neither a version nor a folder with a bundle"):
        changes(past.workspace, "1", "9")


def test_the_report_is_that_of_the_workspace_or_of_a_published_file(table, dataset, tmp_path):
    folder = tmp_path / "artefacts" / "sid"
    folder.mkdir(parents=True)
    lineage = SidLineage("e", "{text}", "rq_kmeans", "dedup", 0, "t", "m", "c")
    save_table(replace(table, lineage=lineage), folder / "sid_table.parquet")
    (folder / "quality.json").write_text(json.dumps(quality_report(table, dataset.concepts)))

    def report(*arguments):
        result = CliRunner().invoke(app, ["sid", "report", *arguments], catch_exceptions=False)
        return json.loads(result.stdout)

    found = report("--data", str(tmp_path), "--json")
    assert found["items"] == len(table.item_ids)
    assert found["lineage"] == asdict(lineage)
    published = {
        item: [f"<a_{a}>", f"<b_{b}>", f"<c_{c}>"]
        for item, (a, b, c, _) in zip(table.item_ids, table.sids, strict=True)
    }
    (tmp_path / "x.json").write_text(json.dumps(published))
    other = report("--data", str(tmp_path / "x.json"), "--json")
    for key in ("collision_share", "distinct_before_dedup", "max_dedup_digit"):
        assert other[key] == found[key]
    assert [level["codes_used"] for level in other["levels"]] == [level["codes_used"] for level in found["levels"]]


@pytest.fixture
def grown(tmp_path, shop, bundle, params, embeddings):
    """A workspace whose champion lacks three items of the catalogue."""
    past = Past(tmp_path / "shop", shop.root, bundle, params)
    past.pin()
    keep = np.setdiff1d(np.arange(len(bundle.table.item_ids)), [4, 20, 58])
    ids, titles = (tuple(part[i] for i in keep) for part in (bundle.table.item_ids, bundle.titles))
    table = replace(bundle.table, item_ids=ids, sids=bundle.table.sids[keep])
    past.bundle = replace(bundle, table=table, titles=titles)
    number = past.register("base", "")
    promote(past.workspace, number, None, now=NOW)
    past.workspace.artefacts.mkdir()
    save_file({"embeddings": embeddings}, past.workspace.artefacts / "embeddings.safetensors")
    return past


def test_a_grown_catalogue_is_served_by_the_champion_with_all_its_sids(grown, bundle):
    champion = grown.bundle
    told = append_catalogue(grown.workspace, NOW)
    assert told == {"champion": "2", "previous": "1", "appended": 3}
    served = grown.registry.bundle("2")
    assert served.table.item_ids == bundle.table.item_ids
    assert served.titles == bundle.titles
    assert (served.lineage.method, served.lineage.parent) == ("append", "1")
    np.testing.assert_array_equal(served.table.sids[:, :-1], bundle.table.sids[:, :-1])
    kept = [served.table.index[item] for item in champion.table.item_ids]
    np.testing.assert_array_equal(served.table.sids[kept], champion.table.sids)
    assert append_catalogue(grown.workspace, NOW) == {"champion": "2", "previous": None, "appended": 0}
    told = changes(grown.workspace, "1", "2")
    assert (len(told["added"]), told["moved"]) == (3, [])


def test_embeddings_of_another_catalogue_or_encoder_and_lost_items_are_refused(grown, embeddings):
    save_file({"embeddings": embeddings[:-1]}, grown.workspace.artefacts / "embeddings.safetensors")
    with pytest.raises(DataError, match="Run dvc repro embed"):
        append_catalogue(grown.workspace, NOW)
    rows = pq.read_table(grown.workspace.prepared / "items.parquet")
    items = pq.read_table(grown.workspace.prepared / "interactions.parquet")
    lost = grown.bundle.table.item_ids[0]
    pq.write_table(rows.filter(pc.field("item_id") != lost), grown.workspace.prepared / "items.parquet")
    pq.write_table(items.filter(pc.field("item_id") != lost), grown.workspace.prepared / "interactions.parquet")
    with pytest.raises(DataError, match=f"1 items of the champion are not in the catalogue, first '{lost}'"):
        append_catalogue(grown.workspace, NOW)
