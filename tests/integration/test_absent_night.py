"""Nights about people of whom nothing is left, and an error nobody foresaw, through the real command line."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from genrec.config import Settings
from genrec.requests.audit import verify_chain
from genrec.requests.certificates import verify
from genrec.requests.database import connect
from tests.conftest import TINY, copied, genrec, set_params

TAG, RARE = "Left with it", "rare-person-4711"
LAX = {"utility_nll": 100.0, "collateral_nll": 100.0, "concept_sh10": 1.0}
BROKEN = """
import sys
from genrec import night
from genrec.cli import main
person = sys.argv.pop()
def attempt(*_):
    return {}[person]
night.attempt = attempt
main()
"""
"""A night whose first rung looks up its last argument where it is not."""


@pytest.fixture(scope="module")
def shop(trained, tmp_path_factory):
    """A workspace in which all rows of one person carry a tag of their own, and somebody is below the k-core.

    Its night for the tag began with an error that names the person, whose own request was held meanwhile.
    """
    home = tmp_path_factory.mktemp("absent") / "shop"
    copied(trained, home)
    set_params(
        home, gates={**TINY["gates"], **LAX}, requests={"max_concept_share": 0.6},
        unlearning={**TINY["unlearning"], "concept_ladder": ["retrain"]},
    )  # fmt: skip
    source = home.parent / "source"
    shutil.copytree(home / "data", source)
    rows, items = (pd.read_csv(source / f"{name}.csv", dtype=str) for name in ("interactions", "items"))
    prepared = pd.read_parquet(home / "prepared" / "interactions.parquet")
    person = prepared[prepared.split == "train"].user_id.value_counts().index[-1]
    theirs = set(rows[rows.user_id == person].item_id)
    items["concepts"] = items.concepts.fillna("").where(~items.item_id.isin(theirs), items.concepts + "|" + TAG)
    rare = rows[~rows.item_id.isin(theirs)].iloc[[0]].assign(user_id=RARE)  # what the tag does not take along
    pd.concat([rows, rare]).to_csv(source / "interactions.csv", index=False)
    items.to_csv(source / "items.csv", index=False)
    genrec(home, "data", "fetch", "tables", "--from", str(source))
    genrec(home, "data", "prepare")
    asked = SimpleNamespace(
        gone=ask(home, "user", person), tag=ask(home, "concept", TAG), workspace=Settings(home=home).workspace
    )
    genrec(home, "requests", "hold", asked.gone, "--reason", "identity in doubt")
    before = state(asked.workspace)
    command = [sys.executable, "-c", BROKEN, "night", person]
    environment = {**os.environ, "GENREC_HOME": str(home)}
    broken = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    return SimpleNamespace(home=home, person=person, before=before, broken=broken, **vars(asked))


def ask(home, *subject):
    return json.loads(genrec(home, "forget", *subject, "--json").stdout)["id"]


def state(workspace):
    champion = next(v for v in models(workspace.root) if "champion" in v["aliases"])
    return champion["version"], workspace.data_pin.read_text(), (workspace.data / "interactions.csv").read_bytes()


def models(home):
    return json.loads(genrec(home, "models", "list", "--json").stdout)


def request_of(shop, request):
    return json.loads(genrec(shop.home, "requests", "show", request, "--json").stdout)


def night(shop):
    return json.loads(genrec(shop.home, "night", "--json").stdout)


def leaks(shop, name):
    """Files of the reports, of Prefect, of the ledger and of MLflow in which `name` is."""
    stores = [shop.workspace.reports, shop.workspace.var, shop.workspace.certificates, shop.home / "mlruns"]
    files = {file for store in stores for file in store.rglob("*") if file.is_file()}
    assert any(file.name == "prefect.db" for file in files)
    return sorted(file.name for file in files if name.encode() in file.read_bytes())


def test_an_unforeseen_error_closes_its_night_without_its_message(shop):
    assert shop.broken.returncode == 3, shop.broken.stderr
    assert "UnexpectedError: KeyError at " in shop.broken.stderr
    assert shop.person not in shop.broken.stderr + shop.broken.stdout
    assert state(shop.workspace) == shop.before
    failed = request_of(shop, shop.tag)
    assert failed["state"] == "failed"
    assert failed["reason"].startswith("UnexpectedError: KeyError")
    assert set(leaks(shop, shop.person)) <= {"ledger.db", "ledger.db-wal"}  # their request is open
    chain = connect(shop.workspace.ledger_url)
    with chain.connect() as connection:
        text = str(connection.exec_driver_sql("SELECT * FROM audit").all())
    assert shop.person not in text
    assert "KeyError" in text
    chain.dispose()


def test_the_next_night_serves_what_it_left(shop):
    summary = night(shop)
    assert summary["outcome"] == "promoted"
    assert request_of(shop, shop.tag)["state"] == "fulfilled"
    prepared = pd.read_parquet(shop.home / "prepared" / "interactions.parquet")
    assert shop.person not in set(prepared.user_id)


def test_whoever_left_with_a_concept_and_whoever_was_never_in_the_model_are_served_without_an_edit(shop):
    genrec(shop.home, "requests", "release", shop.gone)
    rare = ask(shop.home, "user", RARE)
    dry = json.loads(genrec(shop.home, "forget", "user", RARE, "--dry-run", "--json").stdout)
    assert (dry["method"], dry["rows"], dry["open_request"]) == ("untouched", 0, rare)
    summary = night(shop)
    assert summary["outcome"] == "promoted"
    assert [(a["group"], a["method"], a["verdict"]) for a in summary["attempts"]] == [("absent", "untouched", "PASS")]
    assert summary["data_version"] != summary["data_version_before"]
    new, old = models(shop.home)[:2]
    assert (new["version"], new["tags"]["parent"]) == (summary["champion_after"], old["version"])
    for request in (shop.gone, rare):
        told = request_of(shop, request)
        assert (told["state"], told["method"]) == ("fulfilled", "untouched")
        assert told["plan"].startswith("The prepared tables held no row of it when the night began")
        path = shop.workspace.certificates / f"{request}.json"
        assert verify(path).ok
        assert "held no row of it when the night began" in path.read_text()
    assert "held no row of it when the night began" in (shop.workspace.reports / "latest" / "index.html").read_text()
    raw = (shop.workspace.data / "interactions.csv").read_text()
    assert RARE not in raw
    assert shop.person not in raw
    assert leaks(shop, RARE) == leaks(shop, shop.person) == []
    engine = connect(shop.workspace.ledger_url)
    assert verify_chain(engine) > 10
    engine.dispose()
