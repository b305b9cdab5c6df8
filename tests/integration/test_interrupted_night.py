"""A night that fails leaves everything as it was. Nights that are killed: test_crash.py."""

import json
import re

import pandas as pd
import pytest

from tests.conftest import TINY, copied, genrec, set_params
from tests.webhook import http_server


@pytest.fixture
def home(trained, tmp_path):
    """A copy: a night that fails leaves requests, reports and versions behind all the same."""
    copied(trained, home := tmp_path / "shop")
    return home


def requests_of(home):
    return json.loads(genrec(home, "requests", "list", "--json").stdout)


def champion_of(home):
    versions = json.loads(genrec(home, "models", "list", "--json").stdout)
    return next(v["version"] for v in versions if "champion" in v["aliases"])


def someone(home, at: int) -> str:
    rows = pd.read_parquet(home / "prepared" / "interactions.parquet")
    return sorted(rows[rows.split == "train"].user_id.unique())[at]


def snapshot(home):
    return (
        champion_of(home),
        (home / "data.dvc").read_text(),
        (home / "data" / "interactions.csv").read_bytes(),
        pd.read_parquet(home / "prepared" / "interactions.parquet").to_csv(),
    )


def test_bad_data_stops_the_night_before_any_model_and_the_next_one_recovers(home):
    """A rating range the data breaks: expectation and rows are named, the champion and the data stay.

    Once it is put right the same request is served.
    """
    before = snapshot(home)
    person = someone(home, 3)
    genrec(home, "forget", "user", person)
    set_params(home, data={**TINY["data"], "rating_max": 2.0})
    with http_server() as (hook, told):
        failed = genrec(home, "night", check=False, GENREC_ALERT_WEBHOOK=hook)
    assert failed.returncode == 3
    check = r"interactions: expect_column_values_to_be_between\(rating\) failed: \d+ of \d+ rows.* E\.g\. row \d+"
    assert re.search(f"NightError: .*{check}", failed.stderr, re.DOTALL), failed.stderr
    assert "Correct the source" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert [body["kind"] for body in told] == ["night failed"]
    assert "The champion stays" in told[0]["text"]
    request = requests_of(home)[-1]
    assert request["state"] == "failed"
    assert snapshot(home) == before
    assert not list((home / "var" / "sealed").glob("*"))
    summary = json.loads((home / "reports" / "latest" / "summary.json").read_text())
    assert (summary["outcome"], summary["attempts"]) == ("failed", [])
    (broken,) = [check for check in summary["validation"]["results"] if not check["success"]]
    assert broken["expectation"] == "expect_column_values_to_be_between(rating)"
    page = (home / "reports" / "latest" / "index.html").read_text()
    assert "No candidate came to be measured" not in page  # nothing was tried, so nothing is missed
    assert broken["observed"] in page
    set_params(home)
    assert json.loads(genrec(home, "night", "--json").stdout)["outcome"] == "promoted"
    assert requests_of(home)[-1]["state"] == "fulfilled"
    assert champion_of(home) != before[0]
    assert person not in (home / "data" / "interactions.csv").read_text()


def test_gates_that_do_not_pass_hold_the_champion(home):
    """With only an approximate method allowed and a limit no interval can meet, the champion stays."""
    before = snapshot(home)
    genrec(home, "forget", "concept", "Cycling")
    impossible = {**TINY["gates"], "concept_sh10": 0.0}
    set_params(home, unlearning={**TINY["unlearning"], "concept_ladder": ["tracer"]}, gates=impossible)
    with http_server() as (hook, told):
        held = genrec(home, "night", check=False, GENREC_ALERT_WEBHOOK=hook)
    set_params(home)
    assert held.returncode == 3
    assert "held" in held.stderr
    assert [body["kind"] for body in told] == ["night held"]
    assert "tracer" in told[0]["text"]
    assert snapshot(home) == before
    summary = json.loads((home / "reports" / "latest" / "summary.json").read_text())
    assert summary["outcome"] == "held"
    assert [a["verdict"] != "PASS" for a in summary["attempts"]] == [True]
    (tried,) = summary["attempts"]
    shown = "sh@10 Cycling"
    assert tried["forgetting"][shown]["value"] < summary["forgetting"]["before"][shown]["value"]
    assert (summary["membership"], summary["reference"]) == (None, None)
    page = (home / "reports" / "latest" / "index.html").read_text()
    assert 'id="tradeoff-0"' in page
    assert "Nobody asked that their own history be forgotten" in page
    assert "No model was retrained without the data this night: none is shown beside." in page
    request = requests_of(home)[-1]
    assert request["state"] == "failed"
    genrec(home, "requests", "cancel", request["id"])
