"""Lineage, rollback and promotion on real MLflow, DVC and ledger stores: who knows whom, and what may be served."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import mlflow
import pytest
import torch
from mlflow.models import Model, get_model_info
from safetensors.numpy import save_file
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from flows.unlearn import lease
from genrec import base_model
from genrec.cli import app
from genrec.data.sequences import load_dataset
from genrec.data.subjects import Subject
from genrec.errors import DataError, RegistryError, RequestError
from genrec.lineage import history, of_request, of_version
from genrec.models.bundle import save_bundle
from genrec.promotion import promote
from genrec.registry import PREVIOUS
from genrec.requests.audit import verify_chain
from genrec.requests.intake import known_of
from genrec.requests.schema import AuditRow
from genrec.rollback import rollback
from genrec.training.base import train_adapter
from genrec.training.rows import whole
from tests.unit.conftest import CONCEPT
from tests.unit.past import Past

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def past(tmp_path_factory, shop, bundle, params, embeddings, user_id):
    """1 base, 2 a person's night, 3 trained on the data before it, 4 a held candidate, 5 a concept's night, 6 base."""
    past = Past(tmp_path_factory.mktemp("past") / "shop", shop.root, bundle, params)
    past.old_pin, old = past.workspace.data_pin.read_text(), past.data_version
    past.workspace.artefacts.mkdir()
    save_file({"embeddings": embeddings}, past.workspace.artefacts / "embeddings.safetensors")
    past.train(NOW)
    (past.person,) = past.night(Subject("user", user_id), now=NOW + DAY)
    past.register("base", "", data=old)
    past.register("ucan", "b-held", parent="2", verdict="FAIL")
    (past.concept,) = past.night(Subject("concept", concept=CONCEPT), now=NOW + 2 * DAY)
    past.train(NOW + 3 * DAY)
    return past


@pytest.fixture(scope="module")
def user_id(dataset):
    return dataset.user_ids[dataset.trained_users[5]]


def test_mlflow_knows_the_data_version_each_version_read_and_for_what(past):
    for number, context in (("1", "training"), ("2", "forgetting"), ("6", "training")):
        version = past.registry.version(number)
        (used,) = mlflow.get_run(version.run_id).inputs.dataset_inputs
        assert used.dataset.digest == version.tags["data_version"]
        assert (used.dataset.source_type, json.loads(used.dataset.source)) == ("dvc", {"pin": "data.dvc"})
        assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": context}


def test_the_input_example_is_of_the_catalogue_and_the_model_takes_it(past, bundle, monkeypatch):
    monkeypatch.setenv("GENREC_HOME", str(past.workspace.root))  # whose ledger it looks into
    model = mlflow.pyfunc.load_model("models:/genrec/6")
    assert model.input_example["history"].tolist() == [list(bundle.table.item_ids[:3])]  # the catalogue's first
    asked = Model.load("models:/genrec/6").load_input_example_params("models:/genrec/6")
    (found,) = model.predict(model.input_example, params=asked).item_ids
    assert len(found) == asked["k"] == 10
    assert set(found) <= set(bundle.table.item_ids[3:])


def test_the_model_says_what_it_takes_and_gives(past):
    """The signature: a column of lists of item ids and the parameter k; two columns of lists, item ids and scores."""
    said = get_model_info("models:/genrec/1").signature.to_dict()
    strings, doubles = ({"type": "array", "items": {"type": name}} for name in ("string", "double"))
    assert json.loads(said["inputs"]) == [{"name": "history", "required": True, **strings}]
    assert json.loads(said["outputs"]) == [
        {"name": "item_ids", "required": True, **strings}, {"name": "scores", "required": True, **doubles}
    ]  # fmt: skip
    assert json.loads(said["params"]) == [{"name": "k", "type": "long", "default": 10, "shape": None}]


def numbers(versions):
    return [one["version"] for one in versions]


def moves(past):
    with Session(past.ledger.engine) as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.event == "promoted").order_by(AuditRow.seq))
        return [json.loads(row.payload) for row in rows]


def test_a_request_names_the_versions_that_may_know_it_and_those_that_are_free(past, user_id):
    told = of_request(past.workspace, past.person)
    assert numbers(told["knew"]) == ["1", "3"]  # 3 has a higher number than the night's, and older data
    assert numbers(told["free"]) == ["2", "4", "5", "6"]
    assert told["forgotten_by"] == "2"
    assert told["data_version_before"] != told["data_version_after"]
    assert numbers(of_request(past.workspace, past.concept)["free"]) == ["5", "6"]
    assert user_id not in json.dumps(told)


def test_a_version_names_its_requests_its_parents_and_what_made_it(past, backbone, user_id):
    told = of_version(past.workspace, "5")
    assert told["requests"] == [past.concept]
    assert set(told["forgotten"]) == {past.person, past.concept}
    assert (numbers(told["parents"]), told["knows"]) == (["2", "1"], [])
    assert of_version(past.workspace, "2")["knows"] == [past.concept]
    assert told["data_version"] == past.data_version
    assert (told["backbone_hash"], told["code_version"]) == (backbone.hash, "c0")
    assert (told["verdict"], told["gates"]) == ("PASS", {"utility": "PASS"})
    assert user_id not in json.dumps(told)
    with pytest.raises(RegistryError, match="Unknown version '99'"):
        of_version(past.workspace, "99")
    with pytest.raises(RequestError, match="Unknown request"):
        of_request(past.workspace, "r-none")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("2", "older than 1 fulfilled request.*knows what they forgot.*rollback 2 --reapply"),
        ("3", "older than 2 fulfilled requests.*knows what they forgot"),
        ("4", r"never passed its gates \(FAIL\)"),
        ("99", "No version '99' to roll back to"),
    ],
)
def test_a_rollback_that_would_bring_somebody_back_is_refused(past, version, message):
    with pytest.raises(RegistryError, match=message):
        rollback(past.workspace, version, now=NOW + 4 * DAY)
    assert past.champion == "6"


def test_the_commands_say_the_same_and_no_alias_moves_while_a_run_holds_the_lease(past):
    home = str(past.workspace.root)
    environment = {"GENREC_HOME": home, "GENREC_PSEUDONYM_KEY": "key", "PREFECT_HOME": home}

    def command(*arguments):
        return CliRunner().invoke(app, [*arguments, "--json"], env=environment)

    assert json.loads(command("lineage", "request", past.person).stdout) == of_request(past.workspace, past.person)
    assert json.loads(command("lineage", "version", "5").stdout) == of_version(past.workspace, "5")
    with lease(past.workspace, "night"):
        assert "Lease 'unlearn' is held by 'night" in str(command("models", "rollback", "5").exception)
    assert "knows what they forgot" in str(command("models", "rollback", "2").exception)
    assert past.champion == "6"


def test_a_version_that_knows_nobody_forgotten_may_be_served_again(past):
    told = rollback(past.workspace, now=NOW + 4 * DAY)
    assert told == {"champion": "5", "previous": "6", "rolled_back_to": "5", "reapplied": []}
    assert (past.champion, past.registry.version(PREVIOUS).number) == ("5", "6")
    assert moves(past)[-1] == {"champion": "5", "previous": "6", "rolled_back_to": "5", "reapplied": []}
    rollback(past.workspace, now=NOW + 4 * DAY)
    assert past.champion == "6"


def test_a_base_model_of_old_data_is_not_registered(past, bundle):
    """Its number would be the highest, and it would know everybody."""
    pin, workspace = past.workspace.data_pin.read_text(), past.workspace
    (workspace.artefacts / "metrics.json").write_text(json.dumps({"utility": {}, "gates": [], "verdict": "PASS"}))
    try:
        workspace.data_pin.write_text(past.old_pin)
        past.dvc("checkout", ["data.dvc"], force=True)
        with pytest.raises(DataError, match="dvc repro"):
            base_model.register(workspace)
        save_bundle(bundle.with_lineage(data_version=past.data_version), workspace.artefacts / "bundle")
        with pytest.raises(DataError, match="lacks the tombstones of 2 fulfilled requests"):
            base_model.register(workspace)
    finally:
        workspace.data_pin.write_text(pin)
        past.dvc("checkout", ["data.dvc", "train"], force=True)


def test_while_a_night_is_open_nobody_else_moves_the_champion(past, dataset):
    ledger, known = past.ledger, known_of(load_dataset(past.workspace.prepared))
    request = ledger.submit(Subject("user", dataset.user_ids[dataset.trained_users[9]]), known, now=NOW)
    ledger.verify(request.id, now=NOW, verifier="desk")
    assert numbers(of_request(past.workspace, request.id)["free"]) == []
    batch = ledger.claim(now=NOW)
    for move in (
        lambda: rollback(past.workspace, "5", now=NOW), lambda: base_model.promote(past.workspace, "6", NOW)
    ):  # fmt: skip
        with pytest.raises(RegistryError, match=f"Night {batch.id} is not finished"):
            move()
    ledger.fail(batch.id, "broken off", now=NOW)
    ledger.cancel(request.id, now=NOW, reason="withdrawn")


def test_of_promotions_at_once_from_one_champion_exactly_one_succeeds(past):
    """Each thread opens its own connections to MLflow and to the ledger, as a process does."""
    before = len(moves(past))
    for _ in range(2):
        expected, barrier = past.champion, threading.Barrier(3)
        rivals = [number for number in ("1", "2", "5", "6") if number != expected][:3]

        def race(number, expected=expected, barrier=barrier):
            barrier.wait()
            promote(past.workspace, number, expected, now=NOW)

        with ThreadPoolExecutor(len(rivals)) as threads:
            ended = [threads.submit(race, number).exception for number in rivals]
        errors = [error() for error in ended]
        winner = rivals[errors.index(None)]
        assert (past.champion, past.registry.version(PREVIOUS).number) == (winner, expected)
        refused = [error for error in errors if isinstance(error, RegistryError)]
        assert len(refused) == 2, errors
        assert all(f"the champion is {winner} by now" in str(error) for error in refused)
    assert len(moves(past)) == before + 2
    promote(past.workspace, past.champion, None, now=NOW)  # a repeat
    assert len(moves(past)) == before + 2
    promote(past.workspace, "6", past.champion, now=NOW)
    verify_chain(past.ledger.engine)


def test_reapply_retrains_the_old_version_on_what_is_left(past, bundle, params):
    """The same weights as training on the current rows alone gives: nothing of the forgotten rows went in."""
    told = rollback(past.workspace, "1", now=NOW + 5 * DAY, reapply=True)
    number = told["champion"]
    assert (past.champion, told["previous"]) == (number, "6")
    assert set(told["reapplied"]) == {past.person, past.concept}
    data = load_dataset(past.workspace.prepared)
    rows = whole((int(u), data.training_rows(u)) for u in data.trained_users)
    expected = train_adapter(bundle.backbone, rows, bundle.table, params)[0]
    served = past.registry.bundle(number)
    assert all(torch.equal(tensor, expected.state[name]) for name, tensor in served.adapter.state.items())
    assert set(served.deny) == {data.item_ids[i] for i in data.concepts[CONCEPT]}
    version = of_version(past.workspace, number)
    assert (version["knows"], version["method"], version["verdict"]) == ([], "retrain", "PASS")
    assert numbers(version["parents"]) == ["1"]
    assert {"integrity", "utility", "concept"} <= version["gates"].keys()
    assert set(version["requests"]) == {past.person, past.concept}
    assert not (past.workspace.var / "rollback").exists()


def test_reapply_refuses_data_that_holds_somebody_forgotten(past, shop):
    """Old prepared tables: the rows are compared with the tombstones, whatever any file says of its version."""
    champion, kept = past.champion, past.workspace.var / "kept"
    shutil.move(past.workspace.prepared, kept)
    try:
        shutil.copytree(shop.root / "prepared", past.workspace.prepared)
        with pytest.raises(DataError, match="holds what 2 fulfilled requests forgot"):
            rollback(past.workspace, "1", now=NOW + 6 * DAY, reapply=True)
    finally:
        shutil.rmtree(past.workspace.prepared)
        shutil.move(kept, past.workspace.prepared)
    assert past.champion == champion
    assert history(past.workspace).knows("1") == {past.person, past.concept}


def test_a_night_of_thousands_of_requests_is_registered_with_all_of_them(past):
    """A list of them would be longer than a tag of MLflow may be."""
    requests = [f"r-{number:010}" for number in range(10_000)]
    number = past.register("retrain", "b-large", requests)
    assert of_version(past.workspace, number)["requests"] == requests
