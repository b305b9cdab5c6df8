"""U-CAN+: its contrast against removed weights, the bound on forgetting, and what it leaves alone."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.errors import UnlearningError
from genrec.training.loop import warmup_cosine
from genrec.training.rows import token_nll
from genrec.unlearning.descent import forget_rows
from genrec.unlearning.ucan_plus import attribution, chosen_weights, ucan_plus


@pytest.fixture(scope="module")
def rows(user_problem):
    return forget_rows(user_problem)


@pytest.fixture(scope="module")
def problem(user_problem, small):
    return replace(user_problem, params=small(user_problem.params, "unlearning.ucan_plus", batch_tokens=800))


@pytest.fixture(scope="module")
def outcome(problem):
    return ucan_plus(problem)


def mean_nll(model, rows, table):
    total, count = token_nll(model, rows, table)
    return total.sum() / count.sum()


def test_the_attribution_is_the_loss_change_of_removing_weights(bundle, rows):
    """To first order: shrink a whole matrix by e and divide the change of the loss by e."""
    model = bundle.adapted()
    found = attribution(model, rows, bundle.table)
    e, predicted, measured = 0.02, [], []
    for name, p in list(model.named_parameters()):
        if not p.requires_grad:
            continue
        losses = []
        for factor in (1 - e, 1 + e):
            kept = p.data.clone()
            p.data.mul_(factor)
            losses.append(mean_nll(model, rows, bundle.table))
            p.data.copy_(kept)
        predicted.append(found[name].sum().item())
        measured.append((losses[0] - losses[1]) / (2 * e))
    assert max(map(abs, measured)) > 1e-3
    np.testing.assert_allclose(predicted, measured, rtol=0.05, atol=1e-4)


def test_the_weights_with_the_largest_contrast_are_chosen_over_all_parameters():
    contrast = {"a": torch.tensor([[3.0, -1.0], [0.5, 9.0]]), "b": torch.tensor([4.0, 0.0])}
    mask = chosen_weights(contrast, 0.5)
    assert mask["a"].tolist() == [[1, 0], [0, 1]]
    assert mask["b"].tolist() == [1, 0]
    assert sum(m.sum() for m in chosen_weights(contrast, 1.0).values()) == 6
    assert sum(m.sum() for m in chosen_weights(contrast, 1e-9).values()) == 1


def test_the_rate_rises_and_falls_to_nearly_nothing():
    rates = [warmup_cosine(step, 30, 3) for step in range(30)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(a >= b for a, b in itertools.pairwise(rates[2:]))
    assert 0 < rates[-1] < 0.01


def test_the_forgotten_become_less_likely_and_the_retained_hardly(problem, outcome, bundle, rows):
    before, after = bundle.model(), outcome.bundle.model()
    risen = mean_nll(after, rows, bundle.table) - mean_nll(before, rows, bundle.table)
    kept = forget_rows(replace(problem, users=problem.retained_users, restored=problem.retained))
    lost = mean_nll(after, kept, bundle.table) - mean_nll(before, kept, bundle.table)
    assert risen > 0.02
    assert lost < risen / 2


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_the_forgotten_rise_to_the_bound_and_not_beyond_however_heavy_the_weight(problem, small, rows, weight):
    start = mean_nll(problem.bundle.model(), rows, problem.bundle.table)
    for bound in (0.05, 0.3):
        settings = {"forget_rise": bound, "forget_weight": weight, "share": 1.0, "steps": 60}
        found = ucan_plus(replace(problem, params=small(problem.params, "unlearning.ucan_plus", **settings)))
        risen = mean_nll(found.bundle.model(), rows, problem.bundle.table) - start
        assert 0.6 * bound < risen < 1.4 * bound


def test_one_person_is_not_forgotten_beyond_the_bound(problem):
    """Whose few rows could be pushed anywhere within the first steps."""
    alone = replace(problem, users=problem.users[:1])
    rows, bound = forget_rows(alone), problem.params.unlearning.ucan_plus.forget_rise
    found = ucan_plus(alone)
    start, end = (mean_nll(b.model(), rows, problem.bundle.table) for b in (problem.bundle, found.bundle))
    assert 0.3 * bound < end - start < 1.7 * bound


def test_only_the_chosen_share_of_the_weights_moves(problem, small, bundle):
    for share in (0.1, 0.6):
        params = small(problem.params, "unlearning.ucan_plus", share=share)
        after = ucan_plus(replace(problem, params=params)).bundle.adapter.state
        moved = sum(int((after[name] != before).sum()) for name, before in bundle.adapter.state.items())
        total = sum(t.numel() for t in bundle.adapter.state.values())
        assert 0.5 * share < moved / total <= share + 1e-3


def test_backbone_sids_and_the_start_bundle_stay(outcome, bundle, problem):
    before = {name: tensor.clone() for name, tensor in bundle.adapter.state.items()}
    again = ucan_plus(problem).bundle
    assert outcome.bundle.backbone is bundle.backbone
    assert outcome.bundle.table is bundle.table
    assert all(torch.equal(bundle.adapter.state[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(again.adapter.state[name], t) for name, t in outcome.bundle.adapter.state.items())
    other = ucan_plus(replace(problem, seed=problem.seed + 1)).bundle
    assert any(not torch.equal(other.adapter.state[name], t) for name, t in outcome.bundle.adapter.state.items())


def test_it_serves_a_concept_as_well(concept_problem, bundle):
    found = ucan_plus(concept_problem)
    rows = forget_rows(concept_problem)
    assert mean_nll(found.bundle.model(), rows, bundle.table) > mean_nll(bundle.model(), rows, bundle.table)


def test_nobody_to_forget_is_refused(problem):
    untrained = [u for u in range(len(problem.restored.user_ids)) if not len(problem.restored.training_rows(u))]
    with pytest.raises(UnlearningError, match="nothing to unlearn"):
        ucan_plus(replace(problem, users=np.array(untrained)))
