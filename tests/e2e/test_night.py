"""One whole night on tiny data through the real command line, and everything it must leave behind."""

import json
import sqlite3
from pathlib import Path

import pandas as pd
import pytest

from genrec.requests import certificates
from tests.browser import artefacts, quiet_page, serious_findings, visit
from tests.conftest import copied, genrec

CONCEPT = "Gambling"
USERS = 3


def raw_users(home: Path) -> list[str]:
    return sorted(pd.read_csv(home / "data" / "interactions.csv", dtype=str).user_id.unique())


def trained_users(home: Path) -> list[str]:
    rows = pd.read_parquet(home / "prepared" / "interactions.parquet")
    return sorted(rows[rows.split == "train"].user_id.unique())


def files(*folders: Path):
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def night(trained, tmp_path_factory):
    """The workspace after a night of three people and one concept, with what was known before it."""
    copied(trained, home := tmp_path_factory.mktemp("night") / "shop")
    before = {
        "pin": (home / "data.dvc").read_text(),
        "all_users": raw_users(home),
        "users": trained_users(home)[5 : 5 + USERS],
        "output": "",
    }
    for user in before["users"]:
        before["output"] += genrec(home, "forget", "user", user, "--json").stdout
    again = json.loads(genrec(home, "forget", "user", before["users"][0], "--json").stdout)
    before["again"] = again["id"]
    asked = genrec(home, "forget", "concept", CONCEPT, "--json")
    before["concept_request"] = json.loads(asked.stdout)
    shown = genrec(home, "recommend", "--history", "i0001", "--json", check=False)
    before["shown_early"] = shown
    done = genrec(home, "night", "--json")
    before["output"] += done.stdout + done.stderr
    before["summary"] = json.loads(done.stdout)
    return home, before


def test_every_request_is_fulfilled_once_and_says_how(night):
    home, before = night
    requests = json.loads(genrec(home, "requests", "list", "--json").stdout)
    assert len(requests) == USERS + 1
    assert {r["state"] for r in requests} == {"fulfilled"}
    assert all(r["method"] and r["unlearned_at"] and r["suppressed_at"] <= r["unlearned_at"] for r in requests)
    assert before["again"] in {r["id"] for r in requests}


def test_summary_has_what_the_report_promises(night):
    home, before = night
    summary = json.loads((home / "reports" / "latest" / "summary.json").read_text())
    assert summary == before["summary"]
    keys = ["batch_id", "data_version", "champion_before", "champion_after"]
    keys += ["requests", "attempts", "utility", "forgetting"]
    assert all(key in summary for key in keys)
    assert summary["outcome"] == "promoted"
    assert summary["validation"]["success"]
    assert summary["validation"]["checks"] > 10
    assert (summary["champion_before"], summary["data_version"]) != (summary["champion_after"], None)
    for attempt in summary["attempts"]:
        assert {"method", "verdict", "wall_s", "gates"} <= attempt.keys()
        for gate in attempt["gates"]:
            assert {"name", "verdict", "value", "low", "high", "limit", "n"} <= gate.keys()
    passed = {a["group"]: a["method"] for a in summary["attempts"] if a["verdict"] == "PASS"}
    assert {"users", f"concept: {CONCEPT}", "final"} <= passed.keys()
    assert (home / "reports" / "latest" / "index.html").read_text().count(CONCEPT) > 0


def test_every_attempt_has_its_figures_and_where_it_came_from(night):
    home, before = night
    summary = before["summary"]
    made = {a["version"]: a["made_from"] for a in summary["attempts"] if a["version"]}
    champion, line = summary["champion_after"], []
    while champion in made:
        line.append(champion)
        champion = made[champion]
    assert champion == summary["champion_before"]
    assert len(line) == len({a["group"] for a in summary["attempts"]} - {"final"})
    final = summary["attempts"][-1]
    assert final["exact"]
    assert final["forgetting"].keys() == summary["forgetting"]["before"].keys() == summary["forgetting"]["after"].keys()
    change = summary["utility"]["after"]["test NLL"]["value"] - summary["utility"]["before"]["test NLL"]["value"]
    assert final["nll_increase"]["value"] == pytest.approx(change)
    assert final["nll_increase"]["low"] < change < final["nll_increase"]["high"]
    assert summary["reference"] is None  # the night has a retrained model of its own
    few = {"forgotten": USERS, "least": 20, "points": [], "auc": None, "tpr": None}
    assert {name: summary["membership"]["before"][name] for name in few} == few
    assert {name: summary["membership"]["after"][name] for name in few} == few
    near = summary["neighbours"]
    assert near["total"] >= len(near["items"]) > 0
    items = pd.read_parquet(home / "prepared" / "items.parquet")
    concept = set(items[items.concepts.map(lambda tags: CONCEPT in tags)].item_id)
    assert concept
    assert not concept & {item["item_id"] for item in near["items"]}
    assert {check["suite"] for check in summary["validation"]["results"]} == {"interactions", "items"}
    assert len(summary["validation"]["results"]) == summary["validation"]["checks"]


def test_the_report_of_the_night_in_a_browser(night, browser, tmp_path):
    home, before = night
    summary = before["summary"]
    page_file = home / "reports" / "nights" / summary["batch_id"] / "index.html"
    assert page_file.stat().st_size < 6_000_000
    with quiet_page(browser) as page:
        assert visit(page, page_file.as_uri()) == [page_file.as_uri()]
        page.screenshot(path=artefacts(tmp_path) / "night-report.png", full_page=True)
        assert "4 requests were carried out" in page.locator(".headline").inner_text()
        assert page.locator("[id^=gates-] .scatterlayer").count() >= len(summary["attempts"])
        for index, metric in enumerate(["membership AUC", f"sh@10 {CONCEPT}", "user NLL gap"]):
            measured = [a for a in summary["attempts"] if metric in a["forgetting"] and a["group"] != "final"]
            assert page.locator(f"#tradeoff-{index} .xtitle").text_content() == metric
            assert page.locator(f"#tradeoff-{index} .scatterlayer .trace").count() >= 1 + len(measured)
        assert "3 forgotten and " in page.locator("section:has(#membership-title)").inner_text()
        assert page.locator("table:has(#neighbours-table) tbody tr").count() == len(summary["neighbours"]["items"])
        served = page.locator(".graph text", has_text=", served now")
        assert served.text_content().startswith(f"Model version {summary['champion_after']}")
        assert serious_findings(page) == []


def test_no_approximate_method_is_tried_on_three_users_without_a_calibration(night):
    """Three users carry no statistical power and nothing else vouches for a method: retrain at once, and it is said."""
    home, before = night
    attempts = [a for a in before["summary"]["attempts"] if a["group"] == "users"]
    assert [(a["method"], a["verdict"]) for a in attempts] == [("retrain", "PASS")]
    about_people = [r for r in before["summary"]["requests"] if r["kind"] == "user"]
    assert len(about_people) == USERS
    for request in about_people:
        assert "ucan is not tried: it has no calibration" in request["plan"]
        assert attempts[0]["reason"].startswith(request["plan"])
        shown = json.loads(genrec(home, "requests", "show", request["id"], "--json").stdout)
        assert shown["plan"] == request["plan"]


def test_champion_moved_and_the_old_one_is_kept(night):
    home, before = night
    versions = {v["version"]: v for v in json.loads(genrec(home, "models", "list", "--json").stdout)}
    summary = before["summary"]
    assert "champion" in versions[summary["champion_after"]]["aliases"]
    assert "previous" in versions[summary["champion_before"]]["aliases"]
    candidates = [a for a in summary["attempts"] if a["group"] != "final" and a["gates"]]  # no gates: no candidate
    assert len(versions) == 1 + len(candidates)
    tags = versions[summary["champion_after"]]["tags"]
    assert tags["batch_id"] == summary["batch_id"]
    assert tags["parent"] == summary["champion_before"]
    assert tags["backbone_hash"] == versions[summary["champion_before"]]["tags"]["backbone_hash"]
    lineage = json.loads(genrec(home, "lineage", "version", summary["champion_after"], "--json").stdout)
    assert set(lineage["requests"]) == {r["id"] for r in summary["requests"]}


def test_rows_are_gone_from_the_data_and_the_sealed_copy_is_destroyed(night):
    home, before = night
    rows = pd.read_parquet(home / "prepared" / "interactions.parquet")
    items = pd.read_parquet(home / "prepared" / "items.parquet")
    concept = set(items[items.concepts.map(lambda tags: CONCEPT in tags)].item_id)
    assert concept
    assert not set(before["users"]) & (set(rows.user_id) | set(raw_users(home)))
    assert not concept & set(rows.item_id)
    assert not files(home / "var" / "sealed")
    assert not (home / "var" / "nights" / before["summary"]["batch_id"]).exists()
    assert (home / "data.dvc").read_text() != before["pin"]
    assert before["summary"]["data_version"] in (home / "data.dvc").read_text()


def test_no_raw_user_id_in_runs_logs_or_reports(night):
    """Users forgotten and users who stay: neither may appear outside the data itself."""
    home, before = night
    needles = [user.encode() for user in before["all_users"]]
    places = files(home / "mlruns", home / "reports", home / "var" / "prefect")
    assert any("mlflow.db" in p.name for p in places)
    assert any(p.suffix == ".db" and "prefect" in p.parts for p in places)
    leaks = [(p.name, n) for p in places for content in [p.read_bytes()] for n in needles if n in content]
    assert not leaks
    assert not [user for user in before["all_users"] if user in before["output"]]
    ledger = b"".join(p.read_bytes() for p in files(home / "var") if p.name.startswith("ledger.db"))
    assert not [user for user in before["users"] if user.encode() in ledger]


def test_a_certificate_for_each_request_verifies_and_names_the_versions(night):
    home, before = night
    summary = before["summary"]
    for request in summary["requests"]:
        path = home / "reports" / "certificates" / f"{request['id']}.json"
        checked = certificates.verify(path)
        assert checked.problems == ()
        assert checked.gates_checked > 0
        body = json.loads(path.read_text())
        assert body["model_version_after"] == summary["champion_after"]
        assert body["data_version_before"] != body["data_version_after"] == summary["data_version"]
        assert body["bundle_hash_before"] != body["bundle_hash_after"]


def test_audit_chain_holds_and_a_changed_row_breaks_it(night, tmp_path):
    from genrec.errors import RequestError
    from genrec.requests.audit import verify_chain
    from genrec.requests.database import connect

    home, _ = night
    assert verify_chain(connect(f"sqlite:///{home / 'var' / 'ledger.db'}")) > 10
    copy = tmp_path / "ledger.db"
    with sqlite3.connect(home / "var" / "ledger.db") as source, sqlite3.connect(copy) as target:
        source.backup(target)
        target.execute("UPDATE audit SET at = '1999-01-01 00:00:00' WHERE seq = 3")
    with pytest.raises(RequestError, match="3"):
        verify_chain(connect(f"sqlite:///{copy}"))


def test_the_served_champion_recommends_and_never_the_concept(night, monkeypatch):
    import mlflow

    home, _ = night
    items = pd.read_parquet(home / "prepared" / "items.parquet")
    concept = set(items[items.concepts.map(lambda tags: CONCEPT in tags)].item_id)
    other = [i for i in items.item_id if i not in concept]
    mlflow.set_tracking_uri(f"sqlite:///{home / 'mlruns' / 'mlflow.db'}")
    monkeypatch.setenv("GENREC_HOME", str(home))
    model = mlflow.pyfunc.load_model("models:/genrec@champion")
    histories = pd.DataFrame({"history": [other[:3], sorted(concept)[:2], other[5:6]]})
    found = model.predict(histories, params={"k": 5})
    assert [len(row) for row in found.item_ids] == [5, 5, 5]
    assert not concept & {item for row in found.item_ids for item in row}
    (printed,) = json.loads(genrec(home, "recommend", "--history", ",".join(other[:3]), "--k", "5", "--json").stdout)
    assert [row["item_id"] for row in printed] == found.item_ids[0]


def test_rollback_to_a_version_that_knows_the_forgotten_is_refused(night):
    home, before = night
    refused = genrec(home, "models", "rollback", check=False)
    assert refused.returncode == 1
    assert "knows what they forgot" in refused.stderr
    versions = json.loads(genrec(home, "models", "list", "--json").stdout)
    assert next(v for v in versions if "champion" in v["aliases"])["version"] == before["summary"]["champion_after"]


def test_lineage_and_purge_name_the_old_version_and_nobody(night):
    home, before = night
    summary = before["summary"]
    asked = before["concept_request"]["id"]
    told = json.loads(genrec(home, "lineage", "request", asked, "--json").stdout)
    assert told["forgotten_by"] == summary["champion_after"]
    assert summary["champion_before"] in [one["version"] for one in told["knew"]]
    purged = genrec(home, "purge", "run", "--json")
    listed = json.loads(purged.stdout)
    assert listed["removed"] == listed["kept"] == []
    names = {(item["kind"], item["name"]) for item in listed["waiting"]}
    assert {("version", summary["champion_before"]), ("objects", summary["data_version_before"])} <= names
    assert not {("version", summary["champion_after"]), ("objects", summary["data_version"])} & names
    assert not [user for user in before["all_users"] if user in purged.stdout + purged.stderr]


def test_prefect_holds_the_nights_tables(night):
    home, before = night
    summary = before["summary"]
    with sqlite3.connect(home / "var" / "prefect" / "prefect.db") as database:
        kept = dict(database.execute("SELECT key, data FROM artifact WHERE key LIKE 'night-%'"))
    requests, attempts, gates = (json.loads(json.loads(kept[f"night-{t}"])) for t in ("requests", "attempts", "gates"))
    assert {r["id"]: r["method"] for r in requests} == {r["id"]: r["method"] for r in summary["requests"]}
    assert [(a["group"], a["verdict"]) for a in attempts] == [(a["group"], a["verdict"]) for a in summary["attempts"]]
    assert len(gates) == sum(len(a["gates"]) for a in summary["attempts"])
    assert {"low", "high", "limit", "n", "blocking"} <= gates[0].keys()
    page = f"reports/nights/{summary['batch_id']}/index.html"
    assert page in kept["night-report"]
    assert (home / page).exists()


def test_a_night_without_requests_changes_nothing(night):
    home, before = night
    pin = (home / "data.dvc").read_text()
    summary = json.loads(genrec(home, "night", "--json").stdout)
    assert summary["outcome"] == "nothing to do"
    assert summary["champion_after"] == before["summary"]["champion_after"]
    assert (home / "data.dvc").read_text() == pin


def test_a_forgotten_person_is_unknown_from_now_on(night):
    home, before = night
    refused = genrec(home, "forget", "user", before["users"][0], check=False)
    assert refused.returncode == 1
    assert "Unknown user" in refused.stderr
    assert before["users"][0] not in refused.stderr
