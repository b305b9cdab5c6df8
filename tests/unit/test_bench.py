"""The unlearning bench on the small shop: what it erases, that it resumes, and what its figures mean."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.audit_params import BenchParams, RelearnParams
from genrec.bench import matrix, unlearn
from genrec.bench.candidates import RELEARNED, Bench, Case, run
from genrec.bench.erasures import (
    choose_concepts,
    concept_erasures,
    concept_shares,
    user_draws,
    user_pool,
)
from genrec.bench.memory import peak_memory
from genrec.bench.plot import write_plot
from genrec.bench.stream import draw_nights, run_stream
from genrec.errors import ConfigError, DataError
from genrec.evaluation.metrics import METRICS
from genrec.evaluation.ranking import TOP, held_out
from genrec.evaluation.statistics import Measure
from genrec.sid.table import reassign
from genrec.training.base import train_adapter
from genrec.training.rows import whole

SMALL = BenchParams(
    user_share=0.1, tuning_share=0.25, tuning_concepts=("Cycling",), concepts=2, concept_share=(0.02, 0.2),
    nights=3, night_users=(0.02, 0.04), concept_nights=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def bench(bundle, dataset, embeddings, params, tmp_path_factory):
    chosen = params.model_copy(update={"bench": SMALL, "relearn": RelearnParams(steps=2)})
    return Bench("hash", bundle, dataset, embeddings, chosen, tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def draw(bench):
    return user_draws(bench.dataset, SMALL, [0])[0]


@pytest.fixture(scope="module")
def records(bench, draw):
    return matrix.fill(bench, [draw], ["finetune", "output_filter"], say=lambda _: None)


# --- what is erased --------------------------------------------------------------------------------------------------


def test_nobody_that_methods_are_tuned_on_is_ever_reported(dataset):
    tuning, reported = (set(user_pool(dataset, SMALL, flag).tolist()) for flag in (True, False))
    assert tuning.isdisjoint(reported)
    assert tuning | reported == set(dataset.trained_users.tolist())
    assert 0.1 < len(tuning) / len(tuning | reported) < 0.45
    for seed in range(5):
        (draw,) = user_draws(dataset, SMALL, [seed])
        assert set(draw.users.tolist()) <= reported
        assert len(draw.users) == round(0.1 * len(dataset.trained_users))
    first, second = user_draws(dataset, SMALL, [0, 1])
    assert first.users.tolist() != second.users.tolist()
    assert set(user_draws(dataset, SMALL, [0], tuning=True)[0].users.tolist()) <= tuning


def test_more_users_than_there_are_is_refused(dataset):
    with pytest.raises(DataError, match=r"bench\.user_share asks for"):
        user_draws(dataset, SMALL.model_copy(update={"user_share": 0.9}), [0])


def test_concepts_run_from_rare_to_frequent_within_the_limits(dataset):
    shares, names = concept_shares(dataset), choose_concepts(dataset, SMALL)
    rows = dataset.items[dataset.split == 0]
    for name in names:
        assert shares[name] == pytest.approx(np.isin(rows, dataset.concepts[name]).mean())
        assert 0.02 <= shares[name] <= 0.2
        assert name != "Cycling"
    inside = [s for n, s in shares.items() if 0.02 <= s <= 0.2 and n != "Cycling"]
    assert sorted(shares[name] for name in names) == [min(inside), max(inside)]
    assert [e.label for e in concept_erasures(dataset, SMALL, [0, 1], tuning=True)] == ["Cycling", "Cycling"]


def test_wrong_names_list_the_known_ones(dataset):
    with pytest.raises(ConfigError, match=r"Unknown concept 'Cyclng'.*Cycling"):
        concept_erasures(dataset, SMALL, [0], ["Cyclng"])
    with pytest.raises(ConfigError, match=r"Unknown method 'ucann'.*ucan"):
        unlearn.check(unlearn.Order("users", ("ucann",), 1))
    with pytest.raises(ConfigError, match=r"Unknown scenario 'user'.*users"):
        unlearn.check(unlearn.Order("user", ("ucan",), 1))


# --- cells -----------------------------------------------------------------------------------------------------------


def test_the_retrained_model_is_the_one_training_makes_without_the_rows(bench, draw):
    case = Case(bench, draw)
    data, bundle = case.erased.retained, bench.bundle
    assert not {bench.dataset.user_ids[u] for u in draw.users} & set(data.user_ids)
    rows = whole((u, data.training_rows(u)) for u in range(len(data.user_ids)) if len(data.training_rows(u)))
    expected = train_adapter(bundle.backbone, rows, bundle.table, bench.params, seed=bench.params.seed)[0]
    adapter, seconds = case.retrained[0].adapter, case.retrained[1]
    assert all(torch.equal(adapter.state[name], tensor) for name, tensor in expected.state.items())
    again = Case(bench, replace(draw, seed=9))  # read, not trained again: the seconds are the first run's
    assert again.retrained[1] == seconds > 0


def test_every_method_is_beside_the_original_and_the_retrained_model(records):
    assert [r["method"] for r in records] == ["original", "retrain", "finetune", "output_filter"]
    original, retrained, finetuned, filtered = records
    assert original["figures"]["test NLL increase"]["value"] == 0
    assert original["figures"]["KL from original"]["value"] == pytest.approx(0, abs=1e-9)
    assert original["figures"]["trade-off@10"]["value"] == 0
    assert retrained["figures"]["user NLL gap over retrained"]["value"] == 0
    assert retrained["figures"]["KL from retrained"]["value"] == pytest.approx(0, abs=1e-9)
    assert retrained["exact"]
    assert finetuned["share_of_retraining"] == pytest.approx(finetuned["seconds"] / retrained["seconds"])
    assert {"integrity", "user-nll", "membership", "over-forgetting", "utility", "relearn", "drift", "cost"} <= {
        gate["name"] for gate in finetuned["gates"]
    }
    assert filtered["verdict"] == "REFUSED"
    assert "cannot hide a person" in filtered["reason"]


def test_an_interrupted_bench_goes_on_where_it_stopped(bench, draw, records, monkeypatch):
    made = []
    monkeypatch.setattr(matrix, "run", lambda case, name: made.append(name) or run(case, name))
    again = matrix.fill(bench, [draw], ["finetune", "output_filter", "ucan"], say=lambda _: None)
    assert made == ["ucan"]
    assert again[:4] == records
    monkeypatch.setattr(matrix, "code_hash", lambda: "other code")
    assert matrix.fill(bench, [draw], [], say=lambda _: None)[0]["figures"] == records[0]["figures"]
    assert made == ["ucan", "original", "retrain"]


def test_what_no_seed_changes_is_measured_once(bench, monkeypatch):
    made = []
    monkeypatch.setattr(matrix, "run", lambda case, name: made.append((name, case.erasure.seed)) or {"figures": {}} | {
        "verdict": "PASS", "seconds": 0.0,
    })  # fmt: skip
    monkeypatch.setattr(matrix, "code_hash", lambda: "counting")
    matrix.fill(bench, concept_erasures(bench.dataset, SMALL, [0, 1], ["Garden"]), ["tracer"], say=lambda _: None)
    assert made == [("original", 0), ("retrain", 0), ("tracer", 0), ("tracer", 1)]
    made.clear()
    matrix.fill(bench, user_draws(bench.dataset, SMALL, [0, 1]), [], say=lambda _: None)
    assert made == [("original", 0), ("retrain", 0), ("original", 1), ("retrain", 1)]


def test_a_cell_hangs_on_everything_that_could_change_it(bench, draw):
    params = bench.params.model_copy(update={"relearn": RelearnParams(steps=3)})
    keys = [
        matrix.cell_key(bench, draw, "ucan", "code"),
        matrix.cell_key(bench, draw, "npo", "code"),
        matrix.cell_key(bench, draw, "ucan", "edoc"),
        matrix.cell_key(bench, replace(draw, seed=1), "ucan", "code"),
        matrix.cell_key(bench, replace(draw, users=draw.users[1:]), "ucan", "code"),
        matrix.cell_key(replace(bench, identity="other"), draw, "ucan", "code"),
        matrix.cell_key(replace(bench, params=params), draw, "ucan", "code"),
    ]
    assert len(set(keys)) == len(keys)
    assert matrix.cell_key(bench, replace(draw), "ucan", "code") == keys[0]


def metrics_of(record):
    """Names of the reference's metrics that a record's figures have; each figure has one."""
    found = {figure: {metric.name for metric in METRICS if metric.names(figure)} for figure in record["figures"]}
    assert {len(names) for names in found.values()} == {1}, found
    return set.union(*found.values())


def test_the_reference_names_every_figure_of_the_bench_and_no_other(records):
    concepts_only = {"sh@10 ...", "exposure share", "target mass", "relearning gains over retrained, same SIDs"}
    assert metrics_of(records[2]) | concepts_only == {metric.name for metric in METRICS if "bench" in metric.used}


def test_a_concept_gets_figures_of_its_own(bench):
    (erasure,) = concept_erasures(bench.dataset, SMALL, [0], ["Garden"])
    case = Case(bench, erasure)
    record = run(case, "output_filter")
    figures, label = record["figures"], "sh@10 Garden"
    assert {"sh@10 ...", "exposure share", "target mass", "recall@k"} <= metrics_of(record)
    assert figures[label] == case.before.forgetting[label].as_dict()  # a filter changes nothing on the bare model
    asked = ~np.isin(held_out(bench.dataset).targets, erasure.items)
    assert figures[label]["n"] == asked.sum()
    assert 0 < figures["target mass"]["value"] < 1
    shown = np.isin(case.before.ranking.top[:, :TOP], erasure.items).mean()
    assert figures["exposure share"]["value"] == pytest.approx(shown)
    assert record["diagnostics"]["kind"] == "suppression"


# --- what is written -------------------------------------------------------------------------------------------------


def cell(method, seed, value, low, high, verdict="PASS"):
    figure = {"value": value, "low": low, "high": high, "n": 5}
    gate = {"name": "utility", "verdict": verdict, "value": value}
    return {
        "label": "users", "method": method, "seed": seed, "verdict": verdict, "figures": {"x": figure},
        "gates": [gate], "seconds": 2.0 + seed, "share_of_retraining": 0.1, "peak_mib": None,
        "peak_above_start_mib": None,
    }  # fmt: skip


def test_relearning_is_compared_on_the_new_sids_too(bench):
    """The retrained model on other SIDs remembers nothing more than the retrained model on other SIDs."""
    (erasure,) = concept_erasures(bench.dataset, SMALL, [0], ["Garden"])
    case = Case(bench, erasure)
    gold = case.retrained[0]
    codes = (gold.table.sids[erasure.items, :-1] + 1) % gold.codebooks.codes
    gains = case.relearn_gains(replace(gold, table=reassign(gold.table, erasure.items, codes)))
    assert gains[f"{RELEARNED}, same SIDs"] == Measure(0.0, 0.0, 0.0, gains[RELEARNED].n)
    assert list(case.relearn_gains(gold)) == [RELEARNED]
    assert case.relearn_gains(gold)[RELEARNED].value == 0


def test_the_table_pools_seeds_and_counts_verdicts():
    cells = [cell("a", 0, 1.0, 0.0, 2.0), cell("a", 1, 3.0, 1.0, 6.0, "FAIL"), cell("b", 0, None, None, None)]
    first, second = matrix.table(cells)
    assert first["figures"]["x"] == {"value": 2.0, "low": 0.5, "high": 4.0, "n": 5, "seeds": 2}
    assert first["verdicts"] == {"PASS": 1, "FAIL": 1} == first["gates"]["utility"]
    assert first["seconds"] == 2.5
    assert second["figures"]["x"]["value"] is None


def test_the_result_is_json_with_a_plot_and_a_child_per_cell(records, tmp_path):
    result = {"scenario": "users", "records": records, "table": matrix.table(records)}
    written, page = unlearn.write(result, tmp_path / "out" / "users.json")
    assert json.loads(written.read_text())["table"] == result["table"]
    assert page == tmp_path / "out" / "users.html"
    assert "retrain" in page.read_text()
    children = unlearn.children(result)
    assert [child["tags"]["method"] for child in children] == [r["method"] for r in records]
    assert all(isinstance(value, float) for child in children for value in child["metrics"].values())
    assert children[2]["metrics"]["test NLL increase"] == records[2]["figures"]["test NLL increase"]["value"]
    shown = unlearn.summary_rows(result)
    assert [row["method"] for row in shown] == [r["method"] for r in records]


def test_a_plot_without_figures_is_still_a_page(tmp_path):
    rows = [{"label": "users", "method": "output_filter", "verdicts": {"REFUSED": 1}, "reason": "no"}]
    assert "<html>" in write_plot(rows, "users", tmp_path / "p.html").read_text()


def test_the_peak_is_that_of_the_block():
    with peak_memory() as small:
        pass
    with peak_memory() as large:
        block = np.ones(40 * 2**20 // 8)
    assert block.sum() > 0
    assert large.above_start_mib > 35
    assert small.above_start_mib < 20


# --- streams ---------------------------------------------------------------------------------------------------------


def test_nights_forget_other_people_each_time(bench):
    nights = draw_nights(bench, 0)
    everyone = np.concatenate([night.users for night in nights])
    assert len(np.unique(everyone)) == len(everyone)
    assert [night.concept is not None for night in nights] == [True, False, False]
    people = len(bench.dataset.user_ids)
    assert all(round(0.02 * people) <= len(night.users) <= round(0.04 * people) for night in nights)
    assert not set(everyone.tolist()) & set(user_pool(bench.dataset, SMALL, True).tolist())


def test_a_stream_reports_every_night_and_judges_every_request_at_the_end(bench):
    found = run_stream(bench, 0, "ucan", "tracer", say=lambda _: None)
    nights = draw_nights(bench, 0)
    assert [row["users"] for row in found["nights"]] == [len(night.users) for night in nights]
    judged = [(row["night"], row["label"]) for row in found["requests_at_the_end"]]
    assert judged == [(1, "night 1"), (1, nights[0].concept), (2, "night 2"), (3, "night 3"), (0, "all nights")]
    (order,) = found["order"]
    assert order["method"] == "ucan"
    assert order["test NLL"] < 0.2
    assert found["retrained"]["drift"]["n"] == found["nights"][0]["drift"]["n"]
