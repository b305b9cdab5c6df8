"""Power: against simulations of the gates themselves, and what is told where no number of users is enough."""

import numpy as np
import pytest

from genrec.config import GateParams
from genrec.evaluation import gates, power
from genrec.evaluation.forgetting import MATCHES, UserForgetting
from genrec.evaluation.statistics import Bootstrap, Measure, mean, wilson

PLAN = Bootstrap(200)
CONFIDENCE, POWER = 0.95, 0.8
RUNS = 300
NEAR = 0.075  # three standard errors of a share of .8 over RUNS runs


def likelihoods(rng, forgotten, holdout, spread=0.15):
    """People whose likelihood depends on their length and on nothing else: perfect forgetting."""
    lengths = [rng.integers(5, 40, size) for size in (forgotten, holdout)]
    nll = [1.4 - 0.1 * np.log1p(length) + rng.normal(0, spread, len(length)) for length in lengths]
    distance = np.abs(np.log1p(lengths[0])[:, None] - np.log1p(lengths[1]))
    return UserForgetting(*nll, np.argsort(distance, axis=1, kind="stable")[:, :MATCHES])


def test_the_likelihood_gate_passes_with_the_number_it_is_said_to_need():
    rng = np.random.default_rng(0)
    limits = GateParams(user_nll=0.05)
    need = power.user_nll(likelihoods(rng, 2000, 600), limits.user_nll, CONFIDENCE, POWER)
    assert need.holdout is None
    passed = [
        gates.user_gates(likelihoods(rng, need.needed, 600), limits, PLAN)[0].verdict == "PASS" for _ in range(RUNS)
    ]
    assert abs(np.mean(passed) - POWER) < NEAR


def test_with_few_never_seen_people_no_number_is_enough_and_the_holdout_size_is_told():
    rng = np.random.default_rng(1)
    limits = GateParams(user_nll=0.05)
    need = power.user_nll(likelihoods(rng, 2000, 60), limits.user_nll, CONFIDENCE, POWER)
    assert need.needed is None
    assert "60 never-seen users are too few" in need.note
    size = need.holdout
    passed = [gates.user_gates(likelihoods(rng, size, size), limits, PLAN)[0].verdict == "PASS" for _ in range(RUNS)]
    assert abs(np.mean(passed) - POWER) < NEAR + 0.05  # the holdout's share is extrapolated from 60 people


@pytest.mark.parametrize("holdout", [None, 2000])
def test_the_attack_gate_passes_with_the_number_it_is_said_to_need(holdout):
    """None: the group size that is told when the holdout group is too small."""
    band, rng = (0.4, 0.6), np.random.default_rng(2)
    need = power.membership(holdout or 20, band, CONFIDENCE, POWER)
    assert (need.needed is None) == (holdout is None)
    n, m = (need.needed, holdout) if holdout else (need.holdout, need.holdout)
    nobody = np.zeros((n, MATCHES), np.int64)
    limits = GateParams(membership=band)
    passed = [
        gates.user_gates(UserForgetting(rng.normal(size=n), rng.normal(size=m), nobody), limits, PLAN)[1].verdict
        for _ in range(RUNS)
    ]
    assert abs(np.mean([verdict == "PASS" for verdict in passed]) - POWER) < NEAR


@pytest.mark.parametrize("limit", [0.005, 0.02, 0.3])
def test_the_concept_gate_needs_exactly_so_many_clean_cases(limit):
    needed = power.concept(limit, CONFIDENCE).needed
    assert wilson(0, needed, CONFIDENCE).high <= limit < wilson(0, needed - 1, CONFIDENCE).high
    assert wilson(1, needed, CONFIDENCE).high > limit


def test_no_number_of_cases_meets_a_limit_of_zero():
    assert power.concept(0.0, CONFIDENCE).needed is None


def test_a_measured_interval_is_scaled_to_the_number_that_is_enough():
    """A paired loss seen on 400 cases; the one-sided gate passes with the told number as often as wanted."""
    rng = np.random.default_rng(3)
    seen = mean(rng.normal(0, 0.3, 400), Bootstrap(2000))
    largest = power.one_sided_se(0.02, CONFIDENCE, POWER)
    need = power.from_interval("utility", "test cases", seen, largest, CONFIDENCE)
    expected = 400 * ((seen.high - seen.low) / (2 * 1.959964) / largest) ** 2
    assert need.needed == int(np.ceil(expected))
    passed = [mean(rng.normal(0, 0.3, need.needed), PLAN).high <= 0.02 for _ in range(RUNS)]
    assert abs(np.mean(passed) - POWER) < NEAR + 0.03  # the spread itself is an estimate


def test_more_power_and_a_closer_limit_need_more():
    seen = Measure(0.0, -0.02, 0.02, 100)
    sizes = [
        power.from_interval("g", "u", seen, power.equivalence_se(bound, CONFIDENCE, wanted), CONFIDENCE).needed
        for bound, wanted in ((0.05, 0.8), (0.05, 0.95), (0.02, 0.95))
    ]
    assert sizes == sorted(set(sizes))
