"""The decoding and serving benches on small models: the facts in their figures, not their seconds."""

import json
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from typer.testing import CliRunner

from genrec.bench import decode, serve
from genrec.cli_bench import bench_app
from genrec.errors import BundleError
from genrec.evaluation.ranking import held_out
from genrec.models.bundle import save_bundle
from genrec.models.device import best_device
from genrec.sid.index import build_index


@pytest.fixture(scope="module")
def claims(bundle, dataset):
    setting = decode.Setting(batch=4, beam=5, history=4, turns=1)
    result = decode.run(bundle, setting, held_out(dataset).histories[:20], large=2000, seed=0)
    return {claim["name"]: claim for claim in result["claims"]}


def test_lists_are_those_of_generate_and_hold_nothing_that_is_masked(claims):
    assert claims["same lists"]["ratio"] == 1
    assert claims["valid"]["ratio"] == 1


def test_a_beam_almost_as_wide_as_the_catalogue_is_as_good_as_exact(claims):
    assert claims["as exact"]["ratio"] == 1
    assert claims["as exact"]["figures"]["users"] == 20


def test_every_claim_says_what_it_compares_and_whether_it_holds(claims):
    for claim in claims.values():
        sign, bar = claim["bar"].split()
        assert claim["holds"] == (claim["ratio"] >= float(bar) if sign == ">=" else claim["ratio"] <= float(bar))
        assert " over " in claim["compares"]
    slow = decode.Claim("users per second", 19.9, "a over b", ">= 20", {})
    assert not slow.holds
    assert decode.Claim("masks", 0.02, "a over b", "<= 0.02", {}).holds


def test_ratios_are_of_what_they_say(claims):
    speed, prompt = claims["users per second"], claims["over the prompt"]
    assert speed["ratio"] == pytest.approx(prompt["figures"]["generate_s"] / prompt["figures"]["ours_s"], rel=1e-2)
    assert speed["figures"]["ours"] == pytest.approx(4 / prompt["figures"]["ours_s"], rel=1e-2)
    assert claims["large index"]["figures"]["items"] == 2000
    search, steps = claims["masks"], claims["masks of the steps"]
    whole, prompts = search["figures"]["search_s"], search["figures"]["prefill_s"]
    assert 0 < steps["figures"]["steps_s"] < whole
    assert steps["figures"]["steps_s"] == pytest.approx(whole - prompts, rel=0.5)  # medians of turns, not of sums


def test_the_index_of_12k_items_is_small_and_built_at_once():
    size, seconds = decode.index_size(decode.random_table(12_000, seed=0))
    assert size.holds
    assert seconds.holds
    assert size.figures["bytes"] == build_index(decode.random_table(12_000, seed=0)).nbytes


def test_a_narrow_beam_on_an_untrained_model_is_not_exact(monkeypatch):
    monkeypatch.setattr(decode, "EXACT_BEAM", decode.TOP)
    histories = list(np.random.default_rng(0).integers(300, size=(8, 3)))
    assert decode.exactness(decode.random_bundle(300, seed=0), histories).ratio < 0.5


def test_latency_is_given_for_every_batch_size(bundle):
    loads = serve.run(bundle, history=3, calls=2, seed=0)["loads"]
    assert [load["batch"] for load in loads] == [1, 8, 64]
    assert loads[0]["ratio"] == 1
    for load in loads:
        assert 0 < load["p50_ms"] <= load["p95_ms"]
        assert load["users_per_s"] == pytest.approx(1000 * load["batch"] / load["p50_ms"], rel=1e-2)


def test_commands_write_what_they_measured(tmp_path):
    small = ["--items", "300", "--history", "2", "--repeats", "2", "--json", str(tmp_path / "found.json")]
    for command, more in (("serve", []), ("decode", ["--batch", "2", "--beam", "3", "--large", "300"])):
        done = CliRunner().invoke(bench_app, [command, *small, *more])
        assert done.exit_code == 0, done.output
        found = json.loads((tmp_path / "found.json").read_text())
        assert (found["bundle"], found["seed"]) == ("untrained", 0)
        assert abs(date.fromisoformat(found["date"]) - datetime.now(UTC).date()) <= timedelta(days=1)
        assert found["machine"].endswith(f", {best_device()}")
        assert "code_version" in found
        assert all({"ratio", "compares"} <= claim.keys() for claim in found.get("claims") or found["loads"])
    assert "as exact" not in {claim["name"] for claim in found["claims"]}


def test_a_bundle_of_another_catalogue_is_refused(tmp_path, monkeypatch, shop):
    monkeypatch.setenv("GENREC_HOME", str(shop.root))
    save_bundle(decode.random_bundle(300, seed=0), tmp_path / "other")
    done = CliRunner().invoke(bench_app, ["decode", "--bundle", str(tmp_path / "other")])
    assert isinstance(done.exception, BundleError)
    assert "is not of the catalogue" in str(done.exception)
