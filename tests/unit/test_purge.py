"""The purge on real DVC, MLflow and ledger stores: listed with a date, removed after it, and nothing that is needed.

The tests go through the same weeks in order.
"""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from genrec import purge
from genrec.cli import app
from genrec.cli_bench import bench_workspace
from genrec.data.subjects import Subject, present
from genrec.data.tables import read_tables
from genrec.errors import DataError
from genrec.lineage import of_request, of_version
from genrec.registry import PREVIOUS, Registry
from genrec.requests import purges
from genrec.requests.audit import verify_chain
from tasks.objects import DvcObjects, dvc_objects
from tests.unit.conftest import CONCEPT, KEY
from tests.unit.past import Past

FIRST = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SECOND = FIRST + 10 * DAY
GRACE = 30 * DAY


@pytest.fixture(scope="module")
def user_id(dataset):
    return dataset.user_ids[dataset.trained_users[5]]


@pytest.fixture(scope="module")
def past(tmp_path_factory, shop, bundle, params, user_id):
    """1 base, 2 night of a person, 3 night of a concept ten days later; all data versions pushed to a remote."""
    home = tmp_path_factory.mktemp("purge") / "shop"
    past = Past(home, shop.root, bundle, params)
    past.remote(f"{home}.remote")
    past.data_versions = [past.data_version]
    past.train(FIRST - DAY)
    past.dvc("push")
    for subject, now in ((Subject("user", user_id), FIRST), (Subject("concept", concept=CONCEPT), SECOND)):
        past.night(subject, now=now)
        past.data_versions.append(past.data_version)
        past.dvc("push", ["data.dvc", "prepare"])
    past.person, past.concept = (request.id for request in past.ledger.requests("fulfilled"))
    for name, at in (("checkpoints/adapter.safetensors", FIRST - DAY), ("base/deny.json", SECOND + DAY)):
        path = past.workspace.var / name
        path.parent.mkdir()
        path.write_text("x")
        written(path, at)
    return past


def written(path, at):
    os.utime(path, (at.timestamp(), at.timestamp()))


def run(past, now):
    with dvc_objects(past.workspace) as objects:
        return purge.run(past.workspace, objects, now)


def stores(past):
    root = past.workspace.root
    return [root / ".dvc" / "cache" / "files" / "md5", root.with_name("shop.remote") / "files" / "md5"]


def there(past, version):
    """Whether each store has the directory with this hash."""
    return [(store / version[:2] / version[2:]).exists() for store in stores(past)]


def bundles(past):
    return sorted(path.parent for path in past.workspace.mlruns.rglob("adapter_model.safetensors"))


def names(items):
    return sorted({(item["kind"], item["name"]) for item in items})


def test_what_holds_somebody_is_listed_with_the_date_of_the_oldest_request(past):
    told = run(past, FIRST + GRACE - timedelta(seconds=1))
    assert told["removed"] == told["kept"] == []
    due = {(item["kind"], item["name"]): datetime.fromisoformat(item["due"]) for item in told["waiting"]}
    holds = {(item["kind"], item["name"]): item["holds"] for item in told["waiting"]}
    first, second, current = past.data_versions
    assert due["version", "1"] == due["objects", first] == FIRST + GRACE
    assert due["file", "checkpoints/adapter.safetensors"] == FIRST + GRACE
    assert due["version", "2"] == due["objects", second] == SECOND + GRACE
    assert set(holds["objects", first]) == {past.person, past.concept}
    assert holds["version", "2"] == holds["objects", second] == [past.concept]
    assert not {("version", "3"), ("objects", current), ("file", "base/deny.json")} & due.keys()
    kinds = [kind for kind, _ in due]
    assert {kind: kinds.count(kind) for kind in kinds} == {"objects": 5, "version": 2, "file": 1}
    listed = purges.read(past.ledger.engine).waiting  # two data, two prepared, one bundle: 5
    assert {key: item.due for key, item in listed.items()} == due


def test_a_list_changes_nothing_and_names_nobody(past, user_id):
    before = [sorted(path for path in root.rglob("*")) for root in stores(past)]
    home = str(past.workspace.root)
    environment = {"GENREC_HOME": home, "GENREC_PSEUDONYM_KEY": "key", "PREFECT_HOME": home}
    listed = CliRunner().invoke(app, ["purge", "list", "--json"], env=environment).stdout
    assert len(json.loads(listed)["waiting"]) == 8
    assert user_id not in listed
    assert [sorted(path for path in root.rglob("*")) for root in stores(past)] == before


def test_the_champion_is_kept_whatever_it_holds(past):
    """Somebody moved the alias by hand: serving goes on, and the purge says so."""
    past.registry._client.set_registered_model_alias(past.registry.name, "champion", "1")
    told = run(past, FIRST + GRACE - DAY)
    past.registry._client.set_registered_model_alias(past.registry.name, "champion", "3")
    assert {(kept["name"], kept["why"]) for kept in told["kept"]} == {
        ("1", "the champion"), (past.data_versions[0], "the champion's data")
    }  # fmt: skip
    assert ("version", "1") not in names(told["waiting"])


def test_after_the_grace_period_it_is_gone_from_every_store(past):
    first, second, current = past.data_versions
    assert there(past, first) == [True, True]
    told = run(past, FIRST + GRACE)
    assert {("version", "1"), ("objects", first), ("file", "checkpoints/adapter.safetensors")} < set(
        names(told["removed"])
    )
    assert there(past, first) == [False, False]
    assert there(past, second) == there(past, current) == [True, True]
    assert past.registry.version("1") is None
    assert past.registry.version(PREVIOUS).number == "2"
    assert len(bundles(past)) == 2
    assert not (past.workspace.artefacts / "bundle").exists()  # the base model of the first data version
    assert not (past.workspace.var / "checkpoints" / "adapter.safetensors").exists()
    assert "train:" not in (past.workspace.root / "dvc.lock").read_text()
    assert run(past, FIRST + GRACE + DAY)["removed"] == []


def test_a_purged_version_is_still_in_the_lineage(past):
    assert of_version(past.workspace, "1")["purged_at"] == (FIRST + GRACE).isoformat()
    assert set(of_version(past.workspace, "3")["forgotten"]) == {past.person, past.concept}
    knew = of_request(past.workspace, past.person)["knew"]
    assert [(one["version"], one["purged_at"] is not None) for one in knew] == [("1", True)]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["files of a directory", "bundle without its version", "before the record"])
def test_an_interrupted_purge_is_finished_by_the_next_one(past, monkeypatch, moment):
    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "files of a directory":
            from dvc_data.hashfile.db import HashFileDB

            remove, calls = HashFileDB.list_oids_exists, []

            def die_at_the_third(store, oids):
                calls.append(oids)
                return die() if len(calls) == 3 else remove(store, oids)

            patch.setattr(HashFileDB, "list_oids_exists", die_at_the_third)
        elif moment == "bundle without its version":
            remove_run = Registry.remove_run
            patch.setattr(Registry, "remove_run", lambda *a: (remove_run(*a), die()))
        else:
            patch.setattr(purges, "mark_purged", lambda *a, **k: die())
        with pytest.raises(Killed):
            run(past, SECOND + GRACE)
    if moment != "before the record":
        return
    told = run(past, SECOND + GRACE)
    assert told["waiting"] == []
    second, current = past.data_versions[1:]
    assert there(past, second) == [False, False]
    assert there(past, current) == [True, True]
    assert past.registry.version(PREVIOUS) is None
    assert [version.number for version in past.registry.versions()] == ["3"]
    assert len(bundles(past)) == 1
    assert purges.read(past.ledger.engine).waiting == {}
    verify_chain(past.ledger.engine)
    again = run(past, SECOND + GRACE)
    assert again == {"removed": [], "waiting": [], "kept": []}


def test_a_bundle_that_never_became_a_version_is_purged_too(past, monkeypatch):
    import mlflow

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "register_model", die)
        with pytest.raises(Killed):
            past.register("ucan", "b-killed")
    shutil.rmtree(past.workspace.var / "candidate")
    assert len(bundles(past)) == 2
    (removed,) = run(past, SECOND + GRACE)["removed"]
    assert removed["kind"] == "run"
    assert len(bundles(past)) == 1


def test_nothing_about_a_forgotten_person_is_left_and_what_stays_can_be_made_again(past, user_id):
    root = past.workspace.root
    kept = [
        path.read_bytes() for folder in (*stores(past), root / "mlruns") for path in folder.rglob("*") if path.is_file()
    ]
    assert not [content for content in kept if f"{user_id},".encode() in content]
    assert past.dvc("status", targets=["data.dvc", "prepare"]) == {}
    assert past.registry.bundle(past.champion).deny == ()
    tables = (root / "data" / "interactions.csv").read_bytes(), (root / "prepared" / "items.parquet").read_bytes()
    for folder in (root / "data", root / "prepared", stores(past)[0]):
        shutil.rmtree(folder)
    past.dvc("pull", ["data.dvc", "prepare"])
    assert tables == (
        (root / "data" / "interactions.csv").read_bytes(), (root / "prepared" / "items.parquet").read_bytes()
    )  # fmt: skip
    assert past.dvc("status", targets=["data.dvc", "prepare"]) == {}
    read = read_tables(root / "data")
    gone = {Subject("user", user_id).digest(KEY), Subject("concept", concept=CONCEPT).digest(KEY)}
    assert not gone & present(read.interactions, read.items, ("user", "concept"), KEY)


def test_a_workspace_of_the_bench_goes_as_a_whole_where_it_is_older_or_still_has_the_rows(past, shop, tmp_path):
    """Three sources: copied before the first request, copied since with the person's rows, and since without them."""
    shutil.copytree(past.workspace.data, tmp_path / "older")
    made = {"older": bench_workspace(past.workspace, tmp_path / "older").root}
    for name, data in (("with rows", shop.root / "data"), ("without", past.workspace.data)):
        made[name] = made["older"].with_name(f"tables-{name}")
        shutil.copytree(data, made[name] / "data")
    for name, at in (("older", FIRST - DAY), ("with rows", SECOND + DAY), ("without", SECOND + DAY)):
        for path in made[name].rglob("*"):
            written(path, at)
    written(made["older"] / "params.yaml", SECOND + DAY)  # each bench writes it anew
    waiting = run(past, FIRST + GRACE - DAY)["waiting"]
    assert {item["name"]: set(item["holds"]) for item in waiting} == {
        f"bench/workspaces/tables-{name}": {past.person, past.concept} for name in ("older", "with rows")
    }  # fmt: skip
    assert names(run(past, FIRST + GRACE)["removed"]) == names(waiting)
    assert [root.exists() for root in made.values()] == [False, False, True]
    (made["without"] / "data" / "items.csv").unlink()  # what cannot be followed counts as knowing
    assert names(run(past, FIRST + GRACE)["removed"]) == [("folder", "bench/workspaces/tables-without")]
    assert not made["without"].exists()


def test_a_store_that_cannot_be_reached_stops_the_purge_before_anything_is_removed(past):
    past.remote("s3://nowhere/store", endpointurl="http://127.0.0.1:1", read_timeout="1", connect_timeout="1")
    try:
        with pytest.raises(DataError, match="DVC store 'store' failed"), dvc_objects(past.workspace):
            pass
    finally:
        past.remote(f"{past.workspace.root}.remote")


def test_files_that_a_needed_directory_shares_stay(past, tmp_path):
    """Items do not change when a person is erased: old and new data share that file."""
    with dvc_objects(past.workspace) as objects:
        assert isinstance(objects, DvcObjects)
        files = objects.trees()[past.data_version]
        assert objects.fetch(past.data_version, ["items.csv"], tmp_path)
    assert (tmp_path / "items.csv").read_bytes() == (past.workspace.data / "items.csv").read_bytes()
    assert len(files) == 3
