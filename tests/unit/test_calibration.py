"""Calibration: the shadow cohort, what a small shop's methods get, what is stored and what is never kept."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from genrec import calibration
from genrec.calibration import GOLD, OVER_RETRAINED, TEST_NLL, calibrate, cohort, params_hash, shadow
from genrec.config import CalibrationParams, Params
from genrec.data.sequences import HOLDOUT, TRAIN
from genrec.errors import DataError, UnlearningError
from genrec.evaluation.judge import ATTACK, GAP
from genrec.requests.audit import verify_chain
from genrec.requests.calibrations import Calibration, latest, listed, record
from genrec.requests.database import migrate, writing
from genrec.requests.schema import AuditRow
from genrec.unlearning import METHODS
from genrec.unlearning.problem import Method

NOW = datetime(2031, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)  # a Sunday
WEEK = timedelta(days=7)


@pytest.fixture(scope="module")
def few(params):
    """Cohorts of twelve; a short ladder whose cheap rungs stand for what is calibrated."""
    ladder = params.unlearning.model_copy(update={"user_ladder": ("ucan", "ucan_plus", "retrain")})
    return params.model_copy(update={"calibration": CalibrationParams(users=12), "unlearning": ladder})


@pytest.fixture(scope="module")
def problem(bundle, few, dataset, embeddings):
    return shadow(bundle, few, dataset, embeddings, NOW)


@pytest.fixture(scope="module")
def found(problem):
    return calibrate(problem, "7", NOW)


def test_the_cohort_is_trained_people_and_another_one_each_week(dataset, few):
    users = cohort(dataset, few, NOW)
    assert len(set(users)) == 12
    assert all(len(dataset.training_rows(u)) for u in users)
    assert users.tolist() == cohort(dataset, few, NOW - timedelta(days=6)).tolist()
    assert users.tolist() != cohort(dataset, few, NOW + timedelta(days=1)).tolist()
    assert users.tolist() != cohort(dataset, few, NOW.replace(year=2030)).tolist()
    other = few.model_copy(update={"seed": 1})
    assert users.tolist() != cohort(dataset, other, NOW).tolist()


def test_a_shop_without_never_seen_people_is_not_calibrated(dataset, few):
    everybody = replace(dataset, split=np.where(dataset.split == HOLDOUT, TRAIN, dataset.split))
    with pytest.raises(DataError, match=r"no calibration can pass. Set split\.holdout_users above 0"):
        cohort(everybody, few, NOW)


def test_the_cohort_is_at_most_a_third_of_the_trained(dataset, few):
    many = few.model_copy(update={"calibration": CalibrationParams(users=1000)})
    trained = sum(len(dataset.training_rows(u)) > 0 for u in range(len(dataset.user_ids)))
    assert len(cohort(dataset, many, NOW)) == trained // 3


def test_nobody_trained_is_an_error_with_a_remedy(dataset, few):
    from dataclasses import replace

    with pytest.raises(DataError, match="0 trained users are too few"):
        cohort(replace(dataset, split=np.full_like(dataset.split, 3)), few, NOW)


def test_the_shadow_erasure_takes_the_cohort_and_nobody_else(problem, dataset):
    gone = {dataset.user_ids[u] for u in problem.users}
    assert set(problem.retained.user_ids) == set(dataset.user_ids) - gone
    assert problem.restored is dataset
    assert len(problem.items) == 0


def test_each_approximate_method_is_judged_against_the_retrained_model(found, problem, few):
    assert [one.method for one in found] == ["ucan", "ucan_plus"]
    for one in found:
        assert {"user-nll", "membership", "over-forgetting", "utility", "integrity"} <= {g["name"] for g in one.gates}
        rules = {g["name"]: g for g in one.gates}
        assert rules["integrity"]["verdict"] == "PASS"
        assert one.verdict in ("PASS", "FAIL", "INCONCLUSIVE")
        assert (one.n, one.champion, one.at) == (12, "7", NOW)
        assert one.backbone_hash == problem.bundle.backbone.hash
        assert one.params_hash == params_hash(few, one.method)
        assert one.gold_s > 0
        assert {OVER_RETRAINED, TEST_NLL} <= one.figures.keys()
        assert one.figures[OVER_RETRAINED]["n"] == 12
    assert found[0].split_half is not None


def test_the_retrained_models_own_figures_are_kept_for_nights_that_have_none(found):
    """The paired gap is a method's gap minus the retrained model's, so the three must agree."""
    for one in found:
        gold, own = one.figures[GOLD.format(GAP)], one.figures[GAP]
        assert own["value"] - gold["value"] == pytest.approx(one.figures[OVER_RETRAINED]["value"])
        assert gold["low"] < gold["value"] < gold["high"]
        assert {GOLD.format(ATTACK), GOLD.format(TEST_NLL)} <= one.figures.keys()


def test_nothing_in_a_calibration_names_the_cohort(found, problem, dataset):
    text = json.dumps([one.as_dict() for one in found])
    assert not [u for u in problem.users if dataset.user_ids[u] in text]


def test_a_method_that_copies_the_retrained_model_passes_what_compares_with_it(problem, monkeypatch):
    """Zero distance to the gold model: only then is user-nll conclusive on twelve people."""
    monkeypatch.setitem(METHODS, "ucan", Method("ucan", METHODS["retrain"].run))
    monkeypatch.setattr(calibration, "approximate", lambda params: ("ucan",))
    [one] = calibrate(problem, "7", NOW)
    verdicts = {g["name"]: g["verdict"] for g in one.gates}
    assert {verdicts[name] for name in ("user-nll", "membership", "over-forgetting")} == {"PASS"}
    assert one.figures[OVER_RETRAINED]["value"] == pytest.approx(0, abs=1e-6)


def test_a_method_that_cannot_run_has_failed(problem, monkeypatch):
    def broken(problem):
        raise UnlearningError("nothing to attenuate")

    monkeypatch.setitem(METHODS, "ucan", Method("ucan", broken))
    monkeypatch.setattr(calibration, "approximate", lambda params: ("ucan",))
    [one] = calibrate(problem, "7", NOW)
    assert (one.verdict, one.gates, one.split_half) == ("FAIL", [], None)


def changed(section, **values):
    tree = Params().model_dump()
    place = tree
    for part in section.split("."):
        place = place[part]
    place |= values
    return Params.model_validate(tree)


@pytest.mark.parametrize(
    ("section", "values", "touched"),
    [
        ("unlearning.ucan_plus", {"steps": 7}, {"ucan_plus"}),
        ("unlearning.ucan", {"decay": 7.0}, {"ucan", "hard_prune", "ucan_without_contrast", "ucan_without_utility"}),
        ("gates", {"user_nll": 0.5}, set(METHODS) - {"retrain"}),
        ("train", {"epochs": 99}, set()),
    ],
)
def test_a_model_family_ends_where_the_methods_or_the_gates_parameters_change(section, values, touched):
    approximate = set(METHODS) - {"retrain"}
    hashes = {name: params_hash(Params(), name) for name in approximate}
    assert len(set(hashes.values())) == len(approximate)
    after = changed(section, **values)
    assert {name for name in approximate if params_hash(after, name) != hashes[name]} == touched


# --- storage --------------------------------------------------------------------------------------------------------


def stored(number, method="ucan", at=NOW, backbone="b1", params="p1", verdict="PASS"):
    gate = {"name": "membership", "verdict": verdict, "limit": [0.45, 0.55], "high": None}
    return Calibration(f"c-{number}", method, at, verdict, 85, 0.31, 2.5, 61.0, backbone, params, "7", [gate], {})


@pytest.fixture
def engine(tmp_path):
    return migrate(f"sqlite:///{tmp_path / 'ledger.db'}")


def test_calibrations_are_kept_as_they_were_and_each_is_in_the_audit_chain(engine):
    old, new = stored(1), stored(2, "ucan_plus", NOW + WEEK)
    record(engine, [old])
    record(engine, [new])
    assert listed(engine) == [new, old]
    assert listed(engine)[1].at == NOW
    assert verify_chain(engine) == 2
    with Session(engine) as session:
        [row, _] = session.scalars(select(AuditRow).order_by(AuditRow.seq))
    assert (row.event, row.subject) == ("calibrated", "c-1")
    assert json.loads(row.payload)["verdict"] == "PASS"


def test_either_all_methods_of_a_calibration_are_stored_or_none(engine):
    from sqlalchemy.exc import IntegrityError

    with pytest.raises(IntegrityError):
        record(engine, [stored(1), stored(1)])
    assert (listed(engine), verify_chain(engine)) == ([], 0)


def test_the_newest_calibration_of_the_same_family_speaks(engine):
    record(engine, [stored(1), stored(2, at=NOW + WEEK, verdict="FAIL"), stored(3, "ucan_plus", at=NOW - WEEK)])
    record(engine, [stored(4, at=NOW + 2 * WEEK, backbone="b2"), stored(5, at=NOW + 2 * WEEK, params="p2")])
    known = latest(engine, "b1", {"ucan": "p1", "ucan_plus": "p1"})
    assert {name: one.id for name, one in known.items()} == {"ucan": "c-2", "ucan_plus": "c-3"}
    assert latest(engine, "b1", {"ucan_plus": "p1"}).keys() == {"ucan_plus"}
    assert latest(engine, "b3", {"ucan": "p1"}) == {}


def test_the_migration_goes_down_and_up_and_keeps_the_rest(engine):
    config = Config()
    config.set_main_option("script_location", "genrec.requests:migrations")

    def shape():
        with engine.connect() as connection:
            tables = inspect(connection)
            columns = {column["name"] for column in tables.get_columns("requests")}
            return MigrationContext.configure(connection).get_current_revision(), set(tables.get_table_names()), columns

    def move(to):
        with writing(engine) as session:
            config.attributes["connection"] = session.connection()
            (command.downgrade if to == "0001" else command.upgrade)(config, to)

    record(engine, [stored(1)])
    newest = shape()
    move("0001")
    revision, tables, columns = shape()
    assert revision == "0001"
    assert "calibrations" not in tables
    assert "plan" not in columns
    assert verify_chain(engine) == 1  # what happened stays in the chain
    move("head")
    assert shape() == newest
    record(engine, [stored(2)])
    assert [asdict(one) for one in listed(engine)] == [asdict(stored(2))]
