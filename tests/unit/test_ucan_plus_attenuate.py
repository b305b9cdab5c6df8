"""U-CAN+ in its first form: the decay of the top share against its equation, the repair, and what it leaves alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.errors import UnlearningError
from genrec.training.rows import token_nll
from genrec.unlearning import METHODS
from genrec.unlearning.descent import forget_rows, retain_rows
from genrec.unlearning.ucan_plus_attenuate import attenuation, ucan_plus_attenuate
from genrec.unlearning_params import UcanPlusAttenuateParams


@pytest.fixture(scope="module")
def with_params(user_problem, small):
    def change(**values):
        values = {"batch_tokens": 800, **values}
        return replace(user_problem, params=small(user_problem.params, "unlearning.ucan_plus_attenuate", **values))

    return change


@pytest.fixture(scope="module")
def cut(with_params):
    return ucan_plus_attenuate(with_params(steps=0))


def mean_nll(bundle, rows):
    total, count = token_nll(bundle.model(), rows, bundle.table)
    return total.sum() / count.sum()


def test_the_scale_is_one_below_the_share_and_decays_by_rank_above_it():
    params = UcanPlusAttenuateParams(share=0.5, decay=2.0, floor=0.1)
    contrast = {"a": torch.tensor([[3.0, -1.0], [0.5, 9.0]]), "b": torch.tensor([4.0, 0.0])}
    found = attenuation(contrast, params)

    def s(rank):
        return 0.1 + 0.9 * np.exp(-2.0 * (rank / 6 - 0.5) / 0.5)

    expected = {"a": [[s(4), 1], [1, s(6)]], "b": [s(5), 1]}
    for name, scale in found.items():
        torch.testing.assert_close(scale, torch.tensor(expected[name], dtype=torch.float32))
    assert found["a"][1, 1].item() == pytest.approx(0.1 + 0.9 * np.exp(-2.0))
    cut_out = attenuation(contrast, UcanPlusAttenuateParams(share=0.5, decay=1e6, floor=0.0))
    assert cut_out["a"].tolist() == [[0, 1], [1, 0]]


def test_without_repair_each_weight_is_scaled_and_the_share_of_them_decays(cut, bundle, with_params):
    share = with_params().params.unlearning.ucan_plus_attenuate.share
    assert cut.diagnostics["attenuated_share"] == pytest.approx(share, abs=1e-3)
    scales = torch.cat(
        [(cut.bundle.adapter.state[name] / before).flatten() for name, before in bundle.adapter.state.items()]
    )
    scales = scales[scales.isfinite()]
    assert (scales < 1).float().mean().item() == pytest.approx(share, abs=0.01)
    assert 0.05 < scales.min() < 0.2
    assert scales.max() <= 1 + 1e-6


def test_it_costs_the_forgotten_more_than_the_retained(cut, bundle, user_problem):
    rows = {"forgotten": forget_rows(user_problem), "retained": retain_rows(user_problem)}
    rise = {side: mean_nll(cut.bundle, some) - mean_nll(bundle, some) for side, some in rows.items()}
    assert rise["forgotten"] > 1.5 * rise["retained"] > 0


def test_the_repair_brings_the_retained_back(cut, with_params, user_problem):
    repaired, rows = ucan_plus_attenuate(with_params(steps=20)), retain_rows(user_problem)
    assert mean_nll(repaired.bundle, rows) < mean_nll(cut.bundle, rows) - 0.01


def test_backbone_sids_and_the_start_bundle_stay_and_a_run_is_a_function_of_its_seed(with_params, bundle):
    problem = with_params(steps=3)
    before = {name: tensor.clone() for name, tensor in bundle.adapter.state.items()}
    first, again = (METHODS["ucan_plus_attenuate"].run(problem) for _ in range(2))
    assert first.bundle.backbone is bundle.backbone
    assert first.bundle.table is bundle.table
    assert first.diagnostics == again.diagnostics
    assert all(torch.equal(bundle.adapter.state[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(again.bundle.adapter.state[name], t) for name, t in first.bundle.adapter.state.items())
    other = ucan_plus_attenuate(replace(problem, seed=problem.seed + 1)).bundle
    assert any(not torch.equal(other.adapter.state[name], t) for name, t in first.bundle.adapter.state.items())


def test_nobody_to_forget_is_refused(with_params):
    problem = with_params()
    untrained = [u for u in range(len(problem.restored.user_ids)) if not len(problem.restored.training_rows(u))]
    with pytest.raises(UnlearningError, match="nothing to unlearn"):
        ucan_plus_attenuate(replace(problem, users=np.array(untrained)))
