"""Utility figures against torchmetrics, held-out cases on a hand-made dataset, ranks against exact scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics import classification, retrieval, text
from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG, RetrievalRecall

from genrec.data.sequences import HOLDOUT, TEST, TRAIN, VALID, Dataset
from genrec.evaluation.metrics import METRICS
from genrec.evaluation.ranking import (
    TOP,
    Cases,
    Ranking,
    held_out,
    popularity_ranks,
    rank,
    target_nll,
    training_histories,
    utility,
)
from genrec.evaluation.statistics import Bootstrap, auc
from genrec.models.adapter import Adapter, adapter_state, attach
from genrec.models.backbone import architecture, initialise
from genrec.models.beam import encode_histories, exact_scores
from genrec.models.bundle import Bundle, Lineage
from genrec.sid.quantise import Codebooks
from genrec.sid.table import build_table
from genrec.training.rows import Row, token_nll


def hand_made(histories, items=6):
    """A dataset of (item, split) histories."""
    rows = [row for history in histories for row in history]
    return Dataset(
        item_ids=tuple(f"i{i}" for i in range(items)),
        titles=("",) * items,
        texts=("",) * items,
        concepts={},
        user_ids=tuple(f"u{u}" for u in range(len(histories))),
        offsets=np.cumsum([0, *map(len, histories)]),
        items=np.array([item for item, _ in rows], np.int32),
        split=np.array([split for _, split in rows], np.int8),
    )


@pytest.fixture(scope="module")
def toy():
    return hand_made(
        [
            [(0, TRAIN), (1, TRAIN), (2, VALID), (3, TEST)],
            [(4, HOLDOUT), (1, HOLDOUT), (0, HOLDOUT), (2, HOLDOUT)],
            [(5, TEST)],  # all that is left of someone
            [(1, TRAIN), (5, VALID)],
            [(1, TRAIN), (2, TRAIN), (4, TEST)],
        ]
    )


@pytest.mark.parametrize("k", [1, 5, 10])
def test_figures_equal_torchmetrics(k):
    """Random ranks among 40 items; a target outside the beam is at no rank at all."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, 40, size=60)
    places[:5] = range(5)
    ranking = Ranking(np.zeros((60, TOP), int), np.where(places < 20, places, -1), np.zeros(60))
    scores = np.tile(np.arange(40.0, 0, -1), (60, 1))
    target = np.arange(40) == places[:, None]
    flat = [torch.from_numpy(x).flatten() for x in (scores, target)]
    queries = torch.arange(60).repeat_interleave(40)
    for ours, theirs in (
        (ranking.recall(k), RetrievalRecall(top_k=k)),
        (ranking.ndcg(k), RetrievalNormalizedDCG(top_k=k)),
        (ranking.mrr(k), RetrievalMRR(top_k=k)),
    ):
        assert ours.mean() == pytest.approx(theirs(*flat, indexes=queries).item(), abs=1e-6)
        assert len(ours) == 60


def test_torchmetrics_has_the_metrics_the_reference_names():
    known = {name for module in (retrieval, classification, text) for name in module.__all__}
    named = {metric.torchmetrics for metric in METRICS} - {""}
    assert {"RetrievalRecall", "RetrievalNormalizedDCG", "RetrievalMRR", "BinaryAUROC", "Perplexity"} == named <= known


def test_auc_equals_torchmetrics():
    rng = np.random.default_rng(1)
    scores, member = rng.integers(0, 8, 90) / 8, np.arange(90) < 40  # with ties
    theirs = classification.BinaryAUROC()(torch.from_numpy(scores), torch.from_numpy(member).int()).item()
    assert auc(scores[member], scores[~member], Bootstrap(10)).value == pytest.approx(theirs, abs=1e-6)


def test_held_out_cases(toy):
    cases = held_out(toy)
    assert cases.users.tolist() == [0, 4]
    assert cases.targets.tolist() == [3, 4]
    assert [h.tolist() for h in cases.histories] == [[0, 1, 2], [1, 2]]
    valid = held_out(toy, VALID)
    assert valid.users.tolist() == [0, 3]
    assert [h.tolist() for h in valid.histories] == [[0, 1], [1]]
    last = cases.select(np.array([False, True]))
    assert (last.users.tolist(), last.targets.tolist(), [h.tolist() for h in last.histories]) == ([4], [4], [[1, 2]])


def test_training_histories_leave_out_targets_and_the_holdouts_last_two(toy):
    found = {user: items.tolist() for user, items in training_histories(toy, range(5))}
    assert found == {0: [0, 1], 1: [4, 1], 3: [1], 4: [1, 2]}


def test_popularity_counts_training_rows_only(toy):
    # Training counts: item 1 three times, 0 and 2 once; then ties by index.
    cases = Cases(np.arange(6), (np.array([0]),) * 6, np.arange(6))
    assert popularity_ranks(toy, cases).tolist() == [1, 0, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def cases(dataset):
    return held_out(dataset).select(np.arange(len(held_out(dataset).targets)) < 40)


@pytest.fixture(scope="module")
def ranked(bundle, model, cases):
    return rank(bundle, model, cases)


def test_ranks_follow_exact_scores(bundle, model, cases, params, small):
    wide = replace(bundle, params=small(params, "decoding", beam=59, batch_size=7))
    found = rank(wide, model, cases)
    for i, (history, target) in enumerate(zip(cases.histories, cases.targets, strict=True)):
        prompt = encode_histories([history], bundle.table, params.architecture.window)
        scores = exact_scores(model, prompt, bundle.table)[0]
        order = scores.argsort(descending=True)
        assert found.rank[i] == (scores > scores[target]).sum()
        assert found.top[i].tolist() == order[:TOP].tolist()


def test_exact_ranking_is_what_the_beam_looks_for(bundle, model, cases, ranked):
    exact = rank(bundle, model, cases, exact=True)
    beam = bundle.params.decoding.beam
    assert (exact.rank < beam).all()
    assert (ranked.rank < beam).all()
    assert (ranked.top == exact.top).mean() > 0.9
    np.testing.assert_array_equal(ranked.nll, exact.nll)


def test_ranking_does_not_look_at_the_deny_list(bundle, model, cases, ranked):
    denying = replace(bundle, deny=bundle.table.item_ids[:40], lineage=Lineage("d", "c"))
    np.testing.assert_array_equal(rank(denying, model, cases).top, ranked.top)


def test_a_catalogue_smaller_than_the_list_leaves_the_tail_empty(params):
    few = build_table(["a", "b", "c"], np.array([[0, 0], [0, 0], [1, 0]]), 2)
    base = initialise(architecture(params.architecture, few.vocabulary), 0)
    adapter = Adapter(2, 4, adapter_state(attach(base, 2, 4, 0.0, 0)))
    tiny = Bundle(base, adapter, few, Codebooks(np.zeros((2, 2, 4), np.float32), 0), params, Lineage("d", "c"))
    found = rank(tiny, tiny.model(), Cases(np.array([0]), (np.array([1]),), np.array([2])))
    assert sorted(found.top[0, :3].tolist()) == [0, 1, 2]
    assert found.top[0, 3:].tolist() == [-1] * 7
    assert found.top[0, found.rank[0]] == 2


def test_target_nll_is_that_of_the_target_alone(bundle, model, cases, ranked, params):
    window = params.architecture.window
    pairs = zip(cases.histories, cases.targets, strict=True)
    rows = [Row(np.append(history, target)[-window:], min(len(history), window - 1)) for history, target in pairs]
    total, count = token_nll(model, rows, bundle.table)
    assert set(count) == {bundle.table.vocabulary.levels}
    np.testing.assert_allclose(target_nll(bundle, model, cases), total / count)
    np.testing.assert_allclose(ranked.nll, total / count)


def test_utility_of_a_hand_made_ranking():
    top = np.array([[3, 4] + [-1] * 8, [3, 5] + [-1] * 8])
    ranking = Ranking(top, np.array([1, -1]), np.array([0.5, 1.5]))
    figures = utility(ranking, items=6, plan=Bootstrap(100))
    assert figures["recall@10"].value == 0.5
    assert figures["ndcg@5"].value == pytest.approx(0.5 / np.log2(3))
    assert figures["mrr@10"].value == 0.25
    assert figures["test NLL"].value == 1.0
    assert figures["coverage@10"].value == 0.5
    assert {name for name in figures if "@" in name} == {
        *(f"{m}@{k}" for m in ("recall", "ndcg", "mrr") for k in (5, 10)),
        "coverage@10",
    }
    one = ranking.select(np.array([False, True]))
    assert (one.rank.tolist(), one.nll.tolist(), one.top.tolist()) == ([-1], [1.5], [top[1].tolist()])
