"""A night with the method and the gate of another package (docs/how-to/extend.md), through the real command line."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from genrec.config import Settings
from genrec.data.version import data_version
from genrec.errors import ConfigError
from genrec.lineage import of_version
from genrec.planning import claim
from genrec.registry import open_registry
from genrec.requests.certificates import verify
from genrec.requests.store import open_ledger
from tests.conftest import TINY, copied, genrec, set_params
from tests.plugin import install_example, path_with

CONCEPT = "Gambling"
LAX = {"concept_sh10": 1.0, "utility_nll": 100.0, "collateral_nll": 100.0}
"""Limits by which genrec's own gates pass whatever is registered: what decides here is the other package's gate."""


@pytest.fixture(scope="module")
def acme(trained, tmp_path_factory):
    """A workspace that uses the package, after a night; the summary; the environment in which the package is there."""
    home = tmp_path_factory.mktemp("acme") / "shop"
    copied(trained, home)
    environment = {"PYTHONPATH": path_with(install_example(tmp_path_factory.mktemp("site")))}
    set_params(
        home, gates={**TINY["gates"], **LAX},
        unlearning={**TINY["unlearning"], "concept_ladder": ["acme_shrink", "output_filter"]},
        plugins={"methods": {"acme_shrink": {"factor": 0.001}}, "gates": {"acme-nll": {"most": 1.15}}},
    )  # fmt: skip
    request = json.loads(genrec(home, "forget", "concept", CONCEPT, "--json", **environment).stdout)["id"]
    workspace = Settings(home=home).workspace
    newest = max(int(version.number) for version in open_registry(workspace).versions())
    with pytest.raises(ConfigError) as refused:  # in this process the package is not installed
        claim(workspace, datetime.now(UTC))
    left = open_ledger(workspace).get(request).state, open_ledger(workspace).open_batch()
    summary = json.loads(genrec(home, "night", "--json", **environment).stdout)
    return SimpleNamespace(
        workspace=workspace,
        environment=environment,
        request=request,
        refused=refused.value,
        left=left,
        summary=summary,
        versions=(str(newest + 1), str(newest + 2)),
    )


def test_a_process_without_the_package_claims_nothing(acme):
    assert str(acme.refused).startswith("Unknown method 'acme_shrink'. ")
    assert acme.left == ("queued", None)


def test_a_gate_of_another_package_holds_a_candidate_that_every_other_gate_lets_pass(acme):
    first, second = acme.summary["attempts"]
    assert (first["method"], first["verdict"]) == ("acme_shrink", "FAIL")
    failed = [gate for gate in first["gates"] if gate["blocking"] and gate["verdict"] != "PASS"]
    assert [(gate["name"], gate["limit"]) for gate in failed] == [("acme-nll", 1.15)]
    assert failed[0]["low"] > 1.15
    assert first["diagnostics"] == {"factor": 0.001}
    assert (second["method"], second["verdict"]) == ("output_filter", "PASS")
    assert acme.summary["champion_after"] == acme.versions[1]


def test_the_version_names_the_packages_that_made_and_judged_it(acme):
    held, champion = (of_version(acme.workspace, number) for number in acme.versions)
    provider = "acme-genrec 1.2.0"
    assert held["providers"] == {"method": provider, "gate.acme-nll": provider}
    assert champion["providers"] == {"gate.acme-nll": provider}
    assert held["gates"]["acme-nll"] == held["verdict"] == "FAIL"


def test_its_certificate_verifies_without_the_package(acme):
    path = acme.workspace.certificates / f"{acme.request}.json"
    found = verify(path)
    assert found.ok
    assert set(found.not_recomputed) == set()
    body = json.loads(path.read_text())
    assert "The gate acme-nll is by acme-genrec 1.2.0, which is no part of genrec." in body["limits_of_the_claim"]
    (gate,) = [gate for gate in body["gates"] if gate["name"] == "acme-nll"]
    text = path.read_text().replace(f'"high":{gate["high"]}', '"high":1.2')
    path.with_name("changed.json").write_text(text)
    assert "Gate 'acme-nll': its figures do not give its verdict." in verify(path.with_name("changed.json")).problems


def test_the_bench_knows_the_method(acme):
    arguments = ("bench", "unlearn", "--methods", "nonsense")
    said = genrec(acme.workspace.root, *arguments, check=False, **acme.environment).stderr
    assert "Unknown method 'nonsense'. Known methods: acme_shrink, finetune, " in said


def test_a_source_of_another_package_is_fetched_and_pinned(acme, tmp_path):
    """The last test: it replaces the workspace's data."""
    (tmp_path / "orders.csv").write_text("u1,p1,Lamp,Home\nu2,p1,Lamp,Home\nu1,p2,Rope,Sport\n")
    home, before = acme.workspace.root, data_version(acme.workspace.data_pin)
    told = genrec(home, "data", "fetch", "acme-orders", "--from", str(tmp_path), **acme.environment).stderr
    assert "Licence: Acme's own orders." in told
    assert json.loads((acme.workspace.data / "source.json").read_text())["provider"] == "acme-genrec 1.2.0"
    assert data_version(acme.workspace.data_pin) != before
