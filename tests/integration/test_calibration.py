"""`genrec calibrate`, what reads its results, and `genrec bench`, through the real command line on a trained copy."""

import json
import sqlite3

import pandas as pd
import pytest

from genrec.calibration import OVER_RETRAINED
from genrec.config import Settings
from genrec.data.subjects import Subject
from genrec.evaluation.judge import GAP
from genrec.night import Night
from genrec.night_report import evidence
from genrec.registry import open_registry
from genrec.report.summary import Reference
from genrec.requests.ledger import Batch
from tests.conftest import copied, genrec


@pytest.fixture(scope="module")
def calibrated(trained, tmp_path_factory):
    home = tmp_path_factory.mktemp("calibrated") / "shop"
    copied(trained, home)
    return home, json.loads(genrec(home, "calibrate", "--json").stdout)


def test_each_approximate_method_of_the_user_ladder_is_calibrated_and_listed(calibrated):
    home, found = calibrated
    assert [one["method"] for one in found] == ["ucan", "ucan_plus"]
    rows = pd.read_parquet(home / "prepared" / "interactions.parquet")
    trained = rows[rows.split == "train"].user_id.nunique()
    assert {one["n"] for one in found} == {min(85, trained // 3)}
    listed = json.loads(genrec(home, "calibrations", "--json").stdout)
    assert listed == found
    with sqlite3.connect(home / "var" / "ledger.db") as ledger:
        assert ledger.execute("SELECT count(*) FROM audit WHERE event = 'calibrated'").fetchone() == (2,)
        assert ledger.execute("SELECT expires_at <= datetime('now', '+1 second') FROM leases").fetchone() == (1,)


def test_a_calibration_is_a_run_in_mlflow_and_names_nobody(calibrated):
    home, found = calibrated
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as runs:
        tags = dict(runs.execute("SELECT key, value FROM tags WHERE key LIKE 'verdict.%'"))
    assert tags == {f"verdict.{one['method']}": one["verdict"] for one in found}
    people = pd.read_csv(home / "data" / "interactions.csv", dtype=str).user_id.unique()
    kept = [p for p in (home / "mlruns").rglob("*") if p.is_file()] + list((home / "var").glob("ledger.db*"))
    content = b"".join(path.read_bytes() for path in kept) + json.dumps(found).encode()
    assert not [user for user in people if user.encode() in content]


def test_a_night_that_retrains_nothing_is_shown_beside_the_calibrations_retrained_model(calibrated):
    home, found = calibrated
    workspace = Settings(home=home).workspace
    champion = open_registry(workspace).champion().number
    about = {"user": Subject("user", user_id="somebody"), "concept": Subject("concept", concept="Gambling")}
    nights = {
        kind: Night(workspace, Batch("b-1", ("r-1",), (("r-1", subject),), found[0]["at"], "erased"), champion)
        for kind, subject in about.items()
    }
    reference = Reference.model_validate(evidence(nights["user"], [])["reference"])
    own, over = (found[0]["figures"][name]["value"] for name in (GAP, OVER_RETRAINED))
    assert reference.forgetting[GAP].value == pytest.approx(own - over)
    assert (reference.n, reference.at.isoformat()) == (found[0]["n"], found[0]["at"])
    assert reference.nll_increase.low < reference.nll_increase.value < reference.nll_increase.high
    assert evidence(nights["concept"], [])["reference"] is None


def test_power_is_told_for_each_gate(calibrated):
    home, _ = calibrated
    needs = json.loads(genrec(home, "power", "--json").stdout)
    assert [need["gate"] for need in needs[:3]] == ["user-nll", "membership", "concept"]
    assert needs[2]["needed"] == 765
    for need in needs:
        assert (need["needed"] is None) == (need["holdout"] is not None), need
    assert {need["gate"] for need in needs[3:]} == {"user-nll", "utility"}


def test_the_bench_compares_with_retraining_and_resumes(calibrated, tmp_path):
    home, _ = calibrated
    file = tmp_path / "users.json"
    arguments = ("bench", "unlearn", "--scenario", "users", "--methods", "ucan", "--seeds", "1", "--json", str(file))
    genrec(home, *arguments)
    first = json.loads(file.read_text())
    assert [row["method"] for row in first["table"]] == ["original", "retrain", "ucan"]
    assert first["table"][2]["figures"]["test NLL increase"]["n"] > 50
    assert (tmp_path / "users.html").exists()
    again = genrec(home, *arguments)
    assert again.stderr.count("(reused)") == 3
    assert json.loads(file.read_text())["records"] == first["records"]
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as runs:
        children = runs.execute("SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId'").fetchone()
    assert children == (6,)
