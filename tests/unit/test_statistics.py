"""Intervals against scipy, scikit-learn and slow loops."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from genrec.evaluation.statistics import NOTHING, Bootstrap, Measure, auc, difference, matched_gap, mean, ratio, wilson


def draws(plan, n, stream):
    """The resamples as index lists, from the counts: what a textbook bootstrap would have drawn."""
    return [np.repeat(np.arange(n), row.astype(int)) for row in plan.weights(n, stream)]


def percentiles(values, confidence):
    tail = (1 - confidence) / 2
    return np.quantile(values, [tail, 1 - tail])


def assert_measure(measure, value, interval, n):
    assert measure.value == pytest.approx(value)
    np.testing.assert_allclose([measure.low, measure.high], interval, atol=1e-12)
    assert measure.n == n


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("k", "n"), [(0, 30), (1, 30), (13, 30), (30, 30), (2, 900), (0, 1)])
def test_wilson_equals_scipy(k, n, confidence):
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert_measure(wilson(k, n, confidence), k / n, [theirs.low, theirs.high], n)


def test_no_examples_say_nothing():
    plan = Bootstrap(50)
    empty = np.empty(0)
    assert wilson(0, 0) is NOTHING
    assert mean(empty, plan) is NOTHING
    assert auc(empty, np.ones(3), plan) is NOTHING
    assert auc(np.ones(3), empty, plan) is NOTHING
    assert difference(empty, np.ones(3), plan) is NOTHING
    assert difference(np.ones(3), empty, plan) is NOTHING
    assert matched_gap(empty, np.ones(3), np.empty((0, 2), int), plan) is NOTHING
    assert np.isnan(NOTHING.value)
    assert (NOTHING.low, NOTHING.high, NOTHING.n) == (-np.inf, np.inf, 0)


def test_resamples_draw_n_of_n():
    weights = Bootstrap(300, seed=1).weights(17)
    assert weights.shape == (300, 17)
    assert (weights.sum(1) == 17).all()
    assert weights.mean() == pytest.approx(1)
    assert weights.std() == pytest.approx(np.sqrt(16 / 17), abs=0.05)


def test_the_bootstrap_mean_comes_close_to_students_interval():
    x = np.random.default_rng(0).exponential(size=4000)
    measure = mean(x, Bootstrap(4000))
    low, high = stats.t.interval(0.95, len(x) - 1, x.mean(), stats.sem(x))
    width = high - low
    assert measure.value == pytest.approx(x.mean())
    assert measure.low == pytest.approx(low, abs=0.1 * width)
    assert measure.high == pytest.approx(high, abs=0.1 * width)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    found = [mean(rng.normal(size=80), Bootstrap(300, seed=i)) for i in range(300)]
    covered = sum(m.low <= 0 <= m.high for m in found)
    assert stats.binomtest(covered, 300, 0.95).pvalue > 0.001


def test_mean_and_ratio_equal_a_loop_over_resamples():
    rng = np.random.default_rng(1)
    a, b = rng.random(25), rng.random(25) + 0.5
    plan = Bootstrap(150, confidence=0.9, seed=4)
    rows = draws(plan, 25, 0)
    assert_measure(mean(a, plan), a.mean(), percentiles([a[r].mean() for r in rows], 0.9), 25)
    slow = [a[r].mean() / b[r].mean() for r in rows]
    assert_measure(ratio(a, b, plan), a.mean() / b.mean(), percentiles(slow, 0.9), 25)


def test_a_ratio_is_paired():
    x = np.random.default_rng(2).exponential(size=50)
    exact = ratio(0.5 * x, x, Bootstrap(100))
    assert (exact.low, exact.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_a_ratio_to_nothing_is_unknown():
    unknown = ratio(np.ones(5), np.zeros(5), Bootstrap(50))
    assert np.isnan(unknown.value)
    assert (unknown.low, unknown.high, unknown.n) == (-np.inf, np.inf, 5)
    mostly = ratio(np.array([1.0, 0, 0]), np.array([1.0, 0, 0]), Bootstrap(200))  # some resamples are all zero
    assert (mostly.value, mostly.low, mostly.high) == (1, 1, 1)


def test_auc_equals_scikit_learn_also_with_ties():
    rng = np.random.default_rng(0)
    plan = Bootstrap(120, seed=5)
    for positive, negative in (
        (rng.normal(1, 1, 40), rng.normal(0, 1, 30)),
        (rng.integers(0, 4, 40), rng.integers(0, 4, 30)),
        (np.ones(5), np.ones(7)),
    ):
        labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
        slow = [
            roc_auc_score(labels, np.r_[positive[p], negative[n]])
            for p, n in zip(draws(plan, len(positive), 1), draws(plan, len(negative), 2), strict=True)
        ]
        value = roc_auc_score(labels, np.r_[positive, negative])
        assert_measure(auc(positive, negative, plan), value, percentiles(slow, 0.95), len(positive))


def test_difference_equals_a_loop_over_resamples_of_both_groups():
    rng = np.random.default_rng(7)
    x, y = rng.normal(1, 1, 14), rng.normal(0, 2, 9)
    plan = Bootstrap(120, confidence=0.9, seed=3)
    pairs = zip(draws(plan, 14, 1), draws(plan, 9, 2), strict=True)
    slow = [x[own].mean() - y[others].mean() for own, others in pairs]
    assert_measure(difference(x, y, plan), x.mean() - y.mean(), percentiles(slow, 0.9), 14)


def test_matched_gap_equals_a_loop_over_resamples():
    rng = np.random.default_rng(6)
    x, y = rng.normal(1, 1, 12), rng.normal(0, 1, 6)
    matches = np.array([rng.choice(6, 3, replace=False) for _ in x])
    plan = Bootstrap(100, seed=2)
    slow = []
    for own, others in zip(draws(plan, 12, 1), draws(plan, 6, 2), strict=True):
        gaps = []
        for i in own:
            drawn = [y[j] for j in others if j in matches[i]]  # a match drawn twice counts twice
            gaps.append(x[i] - (np.mean(drawn) if drawn else y[matches[i]].mean()))
        slow.append(np.mean(gaps))
    value = np.mean([x[i] - np.mean([y[j] for j in matches[i]]) for i in range(12)])
    assert_measure(matched_gap(x, y, matches, plan), value, percentiles(slow, 0.95), 12)


def test_figures_depend_on_the_seed_and_on_nothing_else():
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    for figure in (
        lambda plan: mean(x, plan),
        lambda plan: ratio(x + 5, y + 5, plan),
        lambda plan: auc(x, y, plan),
        lambda plan: difference(x, y, plan),
        lambda plan: matched_gap(x, y, np.arange(20)[:, None], plan),
    ):
        assert figure(Bootstrap(60, seed=1)) == figure(Bootstrap(60, seed=1))
        assert figure(Bootstrap(60, seed=1)) != figure(Bootstrap(60, seed=2))
    assert Measure(1.0, 0.5, 2.0, 3).as_dict() == {"value": 1.0, "low": 0.5, "high": 2.0, "n": 3}
