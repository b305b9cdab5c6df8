"""The attacks against scikit-learn and loops, and that they find memorised people and nobody else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from genrec.data.sequences import HOLDOUT
from genrec.evaluation.forgetting import holdout_users, user_nll
from genrec.evaluation.membership import (
    FPRS,
    TokenNll,
    attack,
    membership,
    roc,
    row_token_nll,
    tpr_at_fpr,
    user_token_nll,
)
from genrec.evaluation.ranking import training_histories
from genrec.evaluation.statistics import NOTHING, Bootstrap, wilson
from genrec.training.base import train_adapter
from genrec.training.rows import Row, chunk, token_nll, whole

PLAN = Bootstrap(200)


@pytest.fixture(scope="module")
def trained(dataset):
    return [u for u in range(len(dataset.user_ids)) if len(dataset.training_rows(u))]


@pytest.fixture(scope="module")
def parrot(backbone, bundle, dataset, trained, table, params, small):
    """A bundle that knows its first 15 people by heart."""
    longer = small(params, "train", epochs=100, batch_tokens=600, dropout=0.0)
    rows = whole((u, dataset.training_rows(u)) for u in trained[:15])
    return replace(bundle, adapter=train_adapter(backbone, rows, table, longer)[0])


@torch.no_grad()
def slow_tokens(model, items, table, window):
    """The NLL of each token of a history, in order, from a float64 softmax and one forward pass per item."""
    found, levels = [], table.vocabulary.levels
    for row in chunk(items, window):
        for at in range(row.loss_from, len(row.items)):
            tokens = torch.tensor([[1, *table.tokens[row.items[: at + 1]].ravel()]])
            logp = model(input_ids=tokens, use_cache=False).logits[0].double().log_softmax(-1)
            places = 1 + at * levels + np.arange(levels)
            found += [-logp[place - 1, tokens[0, place]].item() for place in places]
    return np.array(found)


def test_token_nlls_equal_a_loop_in_order(bundle, model, dataset, table, params, trained):
    longest = max(trained, key=lambda u: len(dataset.training_rows(u)))
    users = [trained[0], longest, int(holdout_users(dataset)[0]), trained[0]]
    found = user_token_nll(bundle, model, dataset, users)
    assert found.users.tolist() == users
    histories = [items for _, items in training_histories(dataset, users)]
    assert len(histories[1]) > params.architecture.window  # more than one chunk
    for nll, items in zip(found.tokens, histories, strict=True):
        assert len(nll) == len(items) * table.vocabulary.levels
        np.testing.assert_allclose(nll, slow_tokens(model, items, table, params.architecture.window), atol=1e-5)
    np.testing.assert_allclose(found.mean()[:3], user_nll(bundle, model, dataset, users[:3])[0], atol=1e-5)


def test_token_nlls_of_rows_sum_to_those_of_token_nll(model, table):
    rows = [Row(np.array([3, 1, 4, 1, 5]), 2), Row(np.array([9, 2]), 0, 7, np.array([True, False])), Row(np.arange(8))]
    for limit in (10, 25_600):  # one row per batch, and all in one
        found = row_token_nll(model, rows, table, limit)
        total, count = token_nll(model, rows, table)
        assert [len(nll) for nll in found] == count.tolist()
        np.testing.assert_allclose([nll.sum() for nll in found], total, atol=1e-4)


def test_people_without_a_training_sequence_have_no_place(bundle, model, dataset, trained):
    user = trained[0]
    split = dataset.split.copy()
    split[dataset.offsets[user] : dataset.offsets[user + 1]] = 2
    found = user_token_nll(bundle, model, replace(dataset, split=split), [user, trained[1]])
    assert found.users.tolist() == [trained[1]]
    assert len(found.tokens) == 1


@pytest.mark.parametrize(("percent", "counts"), [(20, [1, 2, 3]), (50, [2, 5, 6]), (100, [3, 10, 11])])
def test_min_k_is_the_mean_of_the_least_likely_tokens(percent, counts):
    rng = np.random.default_rng(0)
    tokens = tuple(rng.exponential(size=n) for n in (3, 10, 11))
    slow = [np.mean(sorted(nll, reverse=True)[:count]) for nll, count in zip(tokens, counts, strict=True)]
    np.testing.assert_allclose(TokenNll(np.arange(3), tokens).highest(percent), slow)


def slow_tpr(positive, negative, fpr):
    """The best true positive rate over all thresholds whose false positive rate is allowed."""
    thresholds = [-np.inf, *positive, *negative]
    return max((positive > t).mean() for t in thresholds if (negative > t).mean() <= fpr + 1e-12)


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("strangers", [7, 99, 100, 250])
def test_tpr_at_fpr_equals_a_search_over_thresholds(strangers, fpr):
    rng = np.random.default_rng(strangers)
    for positive, negative in (
        (rng.normal(1.5, 1, 60), rng.normal(0, 1, strangers)),
        (rng.integers(0, 9, 60).astype(float), rng.integers(0, 7, strangers).astype(float)),  # with ties
    ):
        found = tpr_at_fpr(positive, negative, 0.95, fpr)
        assert found.value == pytest.approx(slow_tpr(positive, negative, fpr))
        labels = np.r_[np.ones(60), np.zeros(strangers)]
        curve = roc_curve(labels, np.r_[positive, negative], drop_intermediate=False)
        assert found.value == pytest.approx(curve[1][curve[0] <= fpr + 1e-12].max())
        assert found == wilson(round(60 * found.value), 60, 0.95)


def test_an_attack_is_auc_and_tpr_and_nothing_without_people():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 50), rng.normal(0, 1, 120)
    found = attack(positive, negative, PLAN)
    labels = np.r_[np.ones(50), np.zeros(120)]
    assert found.auc.value == pytest.approx(roc_auc_score(labels, np.r_[positive, negative]))
    assert found.tpr == tpr_at_fpr(positive, negative, PLAN.confidence, 0.01)
    for nobody in (attack(np.empty(0), negative, PLAN), attack(positive, np.empty(0), PLAN)):
        assert (nobody.auc, nobody.tpr) == (NOTHING, NOTHING)


def test_each_attack_scores_what_it_says(bundle, model, dataset, trained):
    """All three from one user's tokens at a time."""
    users, strangers = trained[:12], holdout_users(dataset)
    reference = bundle.backbone.model()
    found = membership(bundle, model, dataset, users, PLAN, reference=reference)
    scores = {"loss": [], "calibrated": [], "min_k": []}
    for user in [*users, *strangers]:
        nll = user_token_nll(bundle, model, dataset, [user]).tokens[0]
        base = user_token_nll(bundle, reference, dataset, [user]).tokens[0]
        scores["loss"].append(-nll.mean())
        scores["calibrated"].append(base.mean() - nll.mean())
        scores["min_k"].append(-np.mean(sorted(nll)[-int(np.ceil(len(nll) / 5)) :]))
    labels = np.r_[np.ones(len(users)), np.zeros(len(strangers))]
    for name, values in scores.items():
        result = getattr(found, name)
        assert result.auc.value == pytest.approx(roc_auc_score(labels, values)), name
        assert result.auc.n == result.tpr.n == len(users)
    assert found == membership(bundle, model, dataset, users, PLAN)  # the backbone is the default reference


def test_memorised_people_are_found_by_every_attack(parrot, dataset, trained):
    found = membership(parrot, parrot.model(), dataset, trained[:15], PLAN)
    for result in (found.loss, found.calibrated, found.min_k):
        assert result.auc.low > 0.8
        assert result.tpr.low > 0.5


def test_a_user_free_model_tells_calibrated_attackers_nothing(bundle, dataset, trained):
    """The backbone saw nobody: measured against itself everybody scores zero, and no one is flagged."""
    found = membership(bundle, bundle.backbone.model(), dataset, trained, PLAN).calibrated
    assert (found.auc.value, found.auc.low, found.auc.high) == (0.5, 0.5, 0.5)
    assert found.tpr.value == 0


def test_people_no_training_saw_are_not_found(parrot, dataset, trained):
    """Half of the people whom the model never saw against the other half."""
    strangers = trained[15:]
    split = dataset.split.copy()
    for user in strangers[1::2]:
        split[dataset.offsets[user] : dataset.offsets[user + 1]] = HOLDOUT
    found = membership(parrot, parrot.model(), replace(dataset, split=split), strangers[::2], PLAN)
    for result in (found.loss, found.calibrated, found.min_k):
        assert result.auc.low < 0.5 < result.auc.high
        assert result.tpr.value < 0.5


def test_who_counts_as_never_seen_can_be_given(bundle, model, dataset, trained):
    strangers = holdout_users(dataset)
    fewer = membership(bundle, model, dataset, trained[:9], PLAN, unseen=strangers[:4])
    nll_f, nll_h = (user_token_nll(bundle, model, dataset, users).mean() for users in (trained[:9], strangers[:4]))
    assert fewer.loss == attack(-nll_f, -nll_h, PLAN)
    both = membership(bundle, model, dataset, trained[:9], PLAN, unseen=[*strangers, *trained[:3]])
    assert both == membership(bundle, model, dataset, trained[:9], PLAN)  # nobody is compared with themselves


@pytest.mark.parametrize("ties", [False, True])
def test_a_curve_is_the_best_that_scikit_learn_finds_at_each_false_positive_rate(ties):
    rng = np.random.default_rng(4)
    positive, negative = rng.normal(0.6, 1, 37), rng.normal(0, 1, 150)
    if ties:
        positive, negative = positive.round(), negative.round()
    fpr, tpr, _ = roc_curve([1] * 37 + [0] * 150, np.concatenate([positive, negative]), drop_intermediate=False)
    found = roc(positive, negative)
    assert found == pytest.approx([tpr[fpr <= at + 1e-9].max() for at in FPRS])
    assert found[np.flatnonzero(FPRS == 0.01)[0]] == tpr_at_fpr(positive, negative, 0.95).value
    assert len(FPRS) <= 100
    assert (FPRS[0], FPRS[-1], found[-1]) == (0, 1, 1)
