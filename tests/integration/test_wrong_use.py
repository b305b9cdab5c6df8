"""Bad input: a clear error with the remedy, and nothing stored or promoted."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from genrec.config import Settings
from genrec.night import open_registry
from tests.conftest import TINY, genrec, make_workspace, set_params


def refused(home, *arguments, **environment) -> str:
    """The single line a refused command prints; it must exit with 1 and show no trace."""
    result = genrec(home, *arguments, check=False, **environment)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if "Error: " in line or "ValidationFailed: " in line]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture
def own(tmp_path):
    """A folder with a user's own two good tables."""
    folder = tmp_path / "own"
    folder.mkdir()
    rows = [(f"p{u}", f"i{(u + k) % 12}", 100 * k) for u in range(12) for k in range(8)]
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).assign(rating=None).to_csv(
        folder / "interactions.csv", index=False
    )
    items = [(f"i{k}", f"Item {k}", f"item number {k}", "Odd" if k % 2 else "Even") for k in range(12)]
    pd.DataFrame(items, columns=["item_id", "title", "text", "concepts"]).to_csv(folder / "items.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A workspace without data."""
    home = tmp_path_factory.mktemp("empty") / "shop"
    genrec(home.parent, "init", str(home))
    return home


def requests_of(home):
    return json.loads(genrec(home, "requests", "list", "--json").stdout)


def champion_of(home):
    versions = json.loads(genrec(home, "models", "list", "--json").stdout)
    return [v["version"] for v in versions if "champion" in v["aliases"]]


def test_good_tables_are_accepted(empty, own):
    genrec(empty, "data", "check", str(own))


def test_missing_file(empty, own):
    (own / "items.csv").unlink()
    assert "items" in refused(empty, "data", "fetch", "tables", "--from", str(own))
    assert not (empty / "data").exists()


def test_wrong_columns(empty, own):
    frame = pd.read_csv(own / "interactions.csv").rename(columns={"item_id": "product"})
    frame.to_csv(own / "interactions.csv", index=False)
    message = refused(empty, "data", "fetch", "tables", "--from", str(own))
    assert "product" in message
    assert "item_id" in message


def test_unordered_rows(empty, own):
    frame = pd.read_csv(own / "interactions.csv")
    frame.iloc[[2, 3]] = frame.iloc[[3, 2]].to_numpy()
    frame.to_csv(own / "interactions.csv", index=False)
    message = refused(empty, "data", "fetch", "tables", "--from", str(own))
    assert "interactions.csv" in message
    assert "row 4" in message
    assert "Sort the file" in message


def test_duplicate_rows(empty, own):
    frame = pd.read_csv(own / "interactions.csv")
    pd.concat([frame, frame.tail(1)]).to_csv(own / "interactions.csv", index=False)
    message = refused(empty, "data", "fetch", "tables", "--from", str(own)).lower()
    assert "same user and item" in message
    assert not (empty / "data").exists()


def test_unknown_source(empty):
    assert "ml-100k" in refused(empty, "data", "fetch", "ml-10k")


def test_unknown_key_in_params(empty, tmp_path):
    home = tmp_path / "shop"
    shutil.copytree(empty, home)
    (home / "params.yaml").write_text(yaml.safe_dump({**TINY, "trian": {"epochs": 3}}))
    message = refused(home, "data", "concepts")
    assert "'trian'" in message
    assert "train" in message


def test_outside_a_workspace(tmp_path):
    assert "genrec init" in refused(tmp_path, "data", "fetch", "simulated")


def test_nothing_trained_yet(empty):
    assert "genrec train" in refused(empty, "recommend", "--history", "i1")
    assert "genrec train" in refused(empty, "night")


REFUSALS = [
    (("forget", "user", "nobody-at-all"), "Unknown user"),
    (("forget", "user", ""), "non-empty user_id"),
    (("forget", "concept", "Gamblin"), "Gambling"),
    (("forget", "item", "no-such-item"), "Unknown item"),
    (("requests", "show", "r-none"), "requests list"),
    (("recommend", "--history", ""), "empty"),
    (("recommend", "--history", "no-such-item"), "known"),
    (("models", "rollback", "999"), "models list"),
]


def test_refusals_name_the_remedy_and_store_nothing(trained):
    before, champion = requests_of(trained), champion_of(trained)
    said = {arguments: refused(trained, *arguments) for arguments, _ in REFUSALS}
    assert [arguments for arguments, remedy in REFUSALS if remedy not in said[arguments]] == []
    assert (requests_of(trained), champion_of(trained)) == (before, champion)


def test_a_concept_that_covers_most_of_the_catalogue(tmp_path):
    home = make_workspace(tmp_path / "shop")
    set_params(home, requests={"max_concept_share": 0.02})
    genrec(home, "data", "prepare")
    message = refused(home, "forget", "concept", "Gambling")
    assert "requests.max_concept_share" in message
    assert requests_of(home) == []


def test_corrupt_bundle_is_not_served(trained):
    registry = open_registry(Settings(home=trained).workspace)
    part = registry.bundle_path(registry.champion().number) / "deny.json"
    good = part.read_bytes()
    part.write_bytes(b'["x"]\n')
    try:
        assert "deny.json is changed" in refused(trained, "recommend", "--history", "x")
    finally:
        part.write_bytes(good)
    genrec(trained, "evaluate")


def test_bench_lists_the_scenarios_methods_and_sources_it_knows(empty, tmp_path):
    assert "Known scenarios" in refused(empty, "bench", "unlearn", "--scenario", "user")
    line = refused(empty, "bench", "unlearn", "--methods", "ucan,trcer")
    assert "'trcer'" in line
    assert "tracer" in line
    line = refused(empty, "bench", "unlearn", "--data", str(tmp_path))
    assert "neither two canonical tables" in line
    assert "ml-100k" in line
