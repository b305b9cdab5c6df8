"""The unlearning bench on the small shop: what it erases, that it resumes, and what its figures mean."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

import genrec
from genrec.audit_params import BenchParams, RelearnParams
from genrec.bench import matrix, unlearn
from genrec.bench import retrained as module
from genrec.bench.candidates import RELEARNED, Bench, Case, run, slices
from genrec.bench.cells import CODE, code_hash, machine
from genrec.bench.erasures import (
    SCENARIOS,
    choose_concepts,
    concept_erasures,
    concept_shares,
    user_draws,
    user_pool,
)
from genrec.bench.memory import peak_memory
from genrec.bench.plot import write_plot
from genrec.bench.stream import Night, Stream, draw_nights, run_stream
from genrec.data.files import finite
from genrec.data.sequences import TEST, VALID
from genrec.data.sources import SOURCES
from genrec.errors import ConfigError, DataError
from genrec.evaluation.metrics import METRICS
from genrec.evaluation.ranking import TOP, held_out
from genrec.evaluation.statistics import Measure
from genrec.sid.table import reassign
from genrec.training.base import train_adapter
from genrec.training.rows import whole
from genrec.unlearning import METHODS
from genrec.unlearning.retrain import retrain

SMALL = BenchParams(
    user_share=0.1, tuning_share=0.25, tuning_concepts=("Cycling",), concepts=2, concept_share=(0.02, 0.2),
    nights=3, night_users=(0.02, 0.04), concept_nights=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def bench(bundle, dataset, embeddings, params, tmp_path_factory):
    chosen = params.model_copy(update={"bench": SMALL, "relearn": RelearnParams(steps=2)})
    return Bench("hash", bundle, dataset, embeddings, chosen, tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def quick(bench, small):
    """With a retraining of two epochs."""
    return replace(bench, params=small(bench.params, "train", epochs=2))


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


@pytest.mark.parametrize(
    ("scenario", "methods", "more", "said"),
    [
        ("stream", ("ucan", "ucan_plus", "tracer"), {}, "not also ucan_plus"),
        ("stream", ("ucan", "tracer", "tracer_repair"), {}, "not also tracer_repair"),
        ("stream", ("original", "tracer"), {}, "not also original"),
        ("stream", ("ucan", "tracer"), {"tuning": True}, "knows no --tuning"),
        ("stream", ("ucan", "tracer"), {"concepts": ("Garden",)}, "--concepts names what --scenario concept"),
        ("users", ("ucan",), {"concepts": ("Garden",)}, "--concepts names what --scenario concept"),
    ],
)
def test_what_would_be_left_unused_is_refused(scenario, methods, more, said):
    with pytest.raises(ConfigError, match=said):
        unlearn.check(unlearn.Order(scenario, methods, 1, **more))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_a_scenario_runs_where_no_method_is_named_is_known_to_it(scenario):
    unlearn.check(unlearn.Order(scenario, unlearn.DEFAULT_METHODS[scenario], 1))


@pytest.mark.parametrize("name", SOURCES)
def test_raw_files_are_those_of_their_source(name, tmp_path):
    """Packed or not: amazon-scientific, say, wants no name for --data to work in any scenario."""
    for file in SOURCES[name].files:
        path = tmp_path / f"{file}{'' if file.endswith('.gz') else '.gz'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert unlearn.source_of(tmp_path) == name


# --- cells -----------------------------------------------------------------------------------------------------------


def test_the_retrained_model_is_the_one_training_makes_without_the_rows(bench, draw):
    case = Case(bench, draw)
    data, bundle = case.erased.retained, bench.bundle
    assert not {bench.dataset.user_ids[u] for u in draw.users} & set(data.user_ids)
    rows = whole((u, data.training_rows(u)) for u in range(len(data.user_ids)) if len(data.training_rows(u)))
    expected = train_adapter(bundle.backbone, rows, bundle.table, bench.params, seed=bench.params.seed)[0]
    adapter, seconds = case.retrained.bundle.adapter, case.retrained.seconds
    assert all(torch.equal(adapter.state[name], tensor) for name, tensor in expected.state.items())
    again = Case(bench, replace(draw, seed=9))  # read, not trained again: the seconds are the first run's
    assert again.retrained.seconds == seconds > 0
    assert again.champion.lineage.retrain_s == seconds


@pytest.mark.parametrize(("name", "other"), [("code_hash", "other code"), ("machine", "another machine")])
def test_other_code_or_another_machine_retrains_so_that_seconds_are_comparable(quick, draw, monkeypatch, name, other):
    first = Case(quick, draw).retrained
    assert (first.date, first.machine) == (datetime.now(UTC).date().isoformat(), machine())
    monkeypatch.setattr(module, name, lambda: other)
    trained = []
    monkeypatch.setitem(METHODS, "retrain", replace(METHODS["retrain"], run=lambda p: trained.append(p) or retrain(p)))
    again = Case(quick, draw).retrained
    assert len(trained) == 1
    assert again.seconds != first.seconds
    assert Case(quick, draw).retrained.seconds == again.seconds
    assert len(trained) == 1
    state = first.bundle.adapter.state
    assert all(torch.equal(again.bundle.adapter.state[key], tensor) for key, tensor in state.items())
    monkeypatch.undo()
    assert Case(quick, draw).retrained.seconds == first.seconds  # each is kept


def test_a_retraining_that_was_cut_short_is_not_taken_for_one(quick, draw, tmp_path):
    """The weights are there, and what they cost is not."""
    here = replace(quick, folder=tmp_path)
    first = Case(here, draw).retrained
    (record,) = (tmp_path / "retrained").glob("*.json")
    record.unlink()
    again = Case(here, draw).retrained
    assert again.seconds != first.seconds
    assert json.loads(record.read_text())["seconds"] == again.seconds


def test_code_is_everything_that_a_figure_depends_on(monkeypatch, tmp_path):
    root = tmp_path / "genrec"
    for folder in CODE:
        (root / folder).mkdir(parents=True)
        (root / folder / "some.py").write_text("a")
    monkeypatch.setattr(genrec, "__file__", str(root / "__init__.py"))
    hashes = {code_hash()}
    for folder in CODE:
        (root / folder / "some.py").write_text("b")
        hashes.add(code_hash())
    assert len(hashes) == len(CODE) + 1
    assert {"bench", "data", "evaluation", "models", "sid", "training", "unlearning"} <= set(CODE)


def test_every_method_is_beside_the_original_and_the_retrained_model(records):
    assert [r["method"] for r in records] == ["original", "retrain", "finetune", "output_filter"]
    original, retrained, finetuned, filtered = records
    assert original["figures"]["test NLL increase"]["value"] == 0
    assert original["figures"]["KL from original"]["value"] == pytest.approx(0, abs=1e-9)
    assert original["figures"]["trade-off@10"]["value"] == 0
    assert retrained["figures"]["user NLL gap over retrained"]["value"] == 0
    assert retrained["figures"]["KL from retrained"]["value"] == pytest.approx(0, abs=1e-9)
    assert retrained["exact"]
    assert retrained["peak_mib"] > retrained["peak_above_start_mib"] >= 0  # 0: it fits into what was freed before
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
    fewer = bench.params.model_copy(update={"bench": SMALL.model_copy(update={"max_cases": 7})})
    keys = [
        matrix.cell_key(bench, draw, "ucan", "code"),
        matrix.cell_key(bench, draw, "npo", "code"),
        matrix.cell_key(bench, draw, "ucan", "edoc"),
        matrix.cell_key(bench, replace(draw, seed=1), "ucan", "code"),
        matrix.cell_key(bench, replace(draw, users=draw.users[1:]), "ucan", "code"),
        matrix.cell_key(replace(bench, identity="other"), draw, "ucan", "code"),
        matrix.cell_key(replace(bench, params=params), draw, "ucan", "code"),
        matrix.cell_key(replace(bench, params=fewer), draw, "ucan", "code"),
        matrix.cell_key(replace(bench, split=VALID), draw, "ucan", "code"),
    ]
    assert len(set(keys)) == len(keys)
    assert matrix.cell_key(bench, replace(draw), "ucan", "code") == keys[0]


def metrics_of(record):
    """Names of the reference's metrics that a record's figures have; each figure has one."""
    found = {figure: {metric.name for metric in METRICS if metric.names(figure)} for figure in record["figures"]}
    assert {len(names) for names in found.values()} == {1}, found
    return set.union(*found.values())


def test_the_reference_names_every_figure_of_the_bench_and_no_other(records):
    concepts_only = {
        "sh@10 ...", "likers sh@10", "others sh@10", "exposure share", "target mass",
        "relearning gains over retrained, same SIDs",
    }  # fmt: skip
    assert metrics_of(records[2]) | concepts_only == {metric.name for metric in METRICS if "bench" in metric.used}


def test_a_concept_gets_figures_of_its_own(bench):
    (erasure,) = concept_erasures(bench.dataset, SMALL, [0], ["Garden"])
    case = Case(bench, erasure)
    record = run(case, "output_filter")
    figures, label = record["figures"], "sh@10 Garden"
    names = {"sh@10 ...", "likers sh@10", "others sh@10", "exposure share", "target mass", "recall@k"}
    assert names <= metrics_of(record)
    assert figures[label] == case.before.forgetting[label].as_dict()  # a filter changes nothing on the bare model
    asked = ~np.isin(held_out(bench.dataset).targets, erasure.items)
    assert figures[label]["n"] == asked.sum()
    assert 0 < figures["target mass"]["value"] < 1
    shown = np.isin(case.before.ranking.top[:, :TOP], erasure.items).mean()
    assert figures["exposure share"]["value"] == pytest.approx(shown)
    assert record["diagnostics"]["kind"] == "suppression"
    hits = likers = 0
    for history, target, top in zip(
        (cases := held_out(bench.dataset)).histories, cases.targets, case.before.provoked.top, strict=True
    ):
        if target not in erasure.items and set(history.tolist()) & set(erasure.items.tolist()):
            likers += 1
            hits += bool(set(top.tolist()) & set(erasure.items.tolist()))
    assert 0 < likers < asked.sum()
    assert (figures["likers sh@10"]["n"], figures["likers sh@10"]["value"]) == (likers, pytest.approx(hits / likers))
    assert figures["others sh@10"]["n"] == asked.sum() - likers
    shown = sum(figures[f"{who} sh@10"]["value"] * figures[f"{who} sh@10"]["n"] for who in ("likers", "others"))
    assert shown == pytest.approx(figures[label]["value"] * asked.sum())


def test_slices_by_popularity_and_by_shared_tokens_part_the_cases(bench):
    (erasure,) = concept_erasures(bench.dataset, SMALL, [0], ["Garden"])
    case = Case(bench, erasure)
    found, cases, sids = slices(case), case.erased.cases, bench.bundle.table.sids[:, :-1]
    for parts in (("head", "mid", "tail"), ("short history", "long history")):
        assert (sum(found[name].astype(int) for name in parts) == 1).all()
    most = np.array([max((sids[target] == sids[item]).sum() for item in erasure.items) for target in cases.targets])
    assert found["sharing 1 SID token"].tolist() == (most == 1).tolist()
    assert found["sharing 2+ SID tokens"].tolist() == (most >= 2).tolist()
    assert found["sharing 2+ SID tokens"].tolist() == case.erased.beside(bench.bundle, erasure.items).tolist()
    counts = np.bincount(case.erased.retained.items[case.erased.retained.split == 0], minlength=len(sids))
    means = [counts[cases.targets[found[name]]].mean() for name in ("head", "mid", "tail")]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(("scenario", "method"), [("users", "finetune"), ("concept", "tracer")])
def test_what_is_tuned_never_reads_a_test_row(quick, tmp_path, scenario, method):
    """With garbage in every test row all figures are the same, to the last digit."""
    data, rng = quick.dataset, np.random.default_rng(0)
    garbage = np.where(data.split == TEST, rng.integers(len(data.item_ids), size=len(data.items)), data.items)
    other = replace(data, items=garbage.astype(data.items.dtype))
    assert (other.items != data.items).sum() > 40
    draws = user_draws if scenario == "users" else concept_erasures
    found = []
    for rows in (data, other):
        (erasure,) = draws(rows, SMALL, [0], tuning=True)
        case = Case(replace(quick, dataset=rows, split=VALID, folder=tmp_path), erasure)
        found.append(finite(run(case, method)["figures"]))
        assert found[-1]["test NLL"]["n"] == len(held_out(case.erased.retained, VALID).targets) > 30
    assert found[0] == found[1]
    assert len(list((tmp_path / "retrained").glob("*.json"))) == 1  # nor does the retrained model read one


# --- what is written -------------------------------------------------------------------------------------------------


def cell(method, seed, value, low, high, verdict="PASS"):
    figure = {"value": value, "low": low, "high": high, "n": 5}
    gate = {"name": "utility", "verdict": verdict, "value": value}
    return {
        "label": "users", "method": method, "seed": seed, "verdict": verdict, "figures": {"x": figure},
        "gates": [gate], "seconds": 2.0 + seed, "share_of_retraining": 0.1, "peak_mib": 300.0 - 100 * seed,
        "peak_above_start_mib": 5.0 if seed else None, "peak_gpu_mib": None,
    }  # fmt: skip


def test_relearning_is_compared_on_the_new_sids_too(bench):
    """The retrained model on other SIDs remembers nothing more than the retrained model on other SIDs."""
    (erasure,) = concept_erasures(bench.dataset, SMALL, [0], ["Garden"])
    case = Case(bench, erasure)
    gold = case.retrained.bundle
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
    assert first["seconds"] == {"mean": 2.5, "min": 2.0, "max": 3.0}
    assert first["peak_mib"] == {"mean": 250.0, "min": 200.0, "max": 300.0}
    assert first["peak_above_start_mib"] == {"mean": 5.0, "min": 5.0, "max": 5.0}
    assert first["peak_gpu_mib"] is None
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
    seconds = records[2]["seconds"]
    assert shown[2]["seconds"] == f"{seconds:.1f} [{seconds:.1f}, {seconds:.1f}]"


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
    assert (small.gpu_mib is None) == (not torch.cuda.is_available())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_peak_on_a_gpu_is_that_of_the_block():
    before = torch.cuda.memory_allocated() / 2**20
    for mib in (64, 16):
        with peak_memory() as peak:
            block = torch.ones(mib * 2**18, device="cuda")
            del block
        assert peak.gpu_mib == pytest.approx(before + mib, abs=1)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_nights_forget_other_people_each_time(bench):
    nights = draw_nights(bench, 0)
    everyone = np.concatenate([night.users for night in nights])
    assert len(np.unique(everyone)) == len(everyone)
    assert [night.concept is not None for night in nights] == [True, False, False]
    people = len(bench.dataset.user_ids)
    assert all(round(0.02 * people) <= len(night.users) <= round(0.04 * people) for night in nights)
    assert not set(everyone.tolist()) & set(user_pool(bench.dataset, SMALL, True).tolist())


@pytest.mark.parametrize(("least", "sizes"), [(2, {2, 3}), (3, {3}), (4, {2, 3})])
def test_a_night_has_enough_people_for_a_verdict_wherever_its_share_allows(bench, small, least, sizes):
    """2 to 4 % of 80 people are 2 or 3; four would be beyond the share, and then it stays as it was."""
    here = replace(bench, params=small(bench.params, "gates", min_users=least))
    assert {len(night.users) for seed in range(12) for night in draw_nights(here, seed)} == sizes


def test_who_went_with_a_concept_is_no_part_of_a_later_night(bench):
    """Everything that somebody ever had is erased as items in night 1: in night 2 there is nothing left to forget."""
    user = int(bench.dataset.trained_users[0])
    items = np.unique(bench.dataset.history(user)).astype(np.int64)
    nights = [Night(1, bench.dataset.trained_users[1:3], items, "everything of theirs"),
              Night(2, np.array([user]), np.empty(0, np.int64), None)]  # fmt: skip
    stream = Stream(bench, nights, 0)
    assert len(stream.problem(bench.bundle, nights[1], nights[1].users, nights[1].items).users) == 0
    assert stream.run_night(bench.bundle, nights[1], "ucan", "tracer")[0] is bench.bundle


@pytest.fixture(scope="module")
def stream(bench):
    return run_stream(bench, 0, "ucan", "tracer", say=lambda _: None)


def test_an_interrupted_stream_goes_on_where_it_stopped(bench, stream, tmp_path, monkeypatch):
    here, made, said, original = replace(bench, folder=tmp_path), [], [], Stream.run_night
    shutil.copytree(bench.folder / "retrained", tmp_path / "retrained")  # trained once

    def interrupted(self, bundle, night, *methods):
        made.append(night.number)
        if made == [1, 2]:
            raise KeyboardInterrupt
        return original(self, bundle, night, *methods)

    monkeypatch.setattr(Stream, "run_night", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stream(here, 0, "ucan", "tracer", say=said.append)
    found = run_stream(here, 0, "ucan", "tracer", say=said.append)
    assert made == [1, 2, 2, 3]
    assert ["(reused)" in line for line in said if ", night " in line] == [False, True, False, False]
    assert without_seconds(found) == without_seconds(stream)
    assert run_stream(here, 0, "ucan", "tracer", say=said.append) == found
    assert made == [1, 2, 2, 3]


def without_seconds(stream):
    nights = [{key: value for key, value in row.items() if key != "seconds"} for row in stream["nights"]]
    return {key: value for key, value in stream.items() if key != "retrain_s"} | {"nights": nights}


def test_a_stream_reports_every_night_and_judges_every_request_at_the_end(bench, stream):
    found, nights = stream, draw_nights(bench, 0)
    assert [row["users"] for row in found["nights"]] == [len(night.users) for night in nights]
    judged = [(row["night"], row["label"]) for row in found["requests_at_the_end"]]
    assert judged == [(1, "night 1"), (1, nights[0].concept), (2, "night 2"), (3, "night 3"), (0, "all nights")]
    few = bench.params.gates.min_users
    assert found["nights_with_too_few_people"] == sum(len(night.users) < few for night in nights) == 3
    for row in found["requests_at_the_end"]:
        verdicts = {gate["verdict"] for gate in row["gates"]}
        assert row["verdict"] == ("FAIL" if "FAIL" in verdicts else "PASS" if verdicts == {"PASS"} else "INCONCLUSIVE")
        if 0 < row["people"] < few:
            assert row["verdict"] == "INCONCLUSIVE"
            assert all("people decide nothing" in gate["rule"] for gate in row["gates"])
    assert found["requests_at_the_end"][-1]["people"] == sum(len(night.users) for night in nights)
    (*_, last), ends = unlearn.summary_rows({"streams": [found]}), found["requests_at_the_end"]
    assert (last["night"], last["at the end"]) == ("all people", ends[-1]["verdict"])
    (order,) = found["order"]
    assert order["method"] == "ucan"
    assert order["test NLL"] < 0.2
    assert found["retrained"]["drift"]["n"] == found["nights"][0]["drift"]["n"]
