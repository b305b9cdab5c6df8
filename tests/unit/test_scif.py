"""SCIF: the Gauss-Newton product against a dense matrix, the solver against a dense solve, the step against both."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from genrec.config import ArchitectureParams
from genrec.errors import UnlearningError
from genrec.models.adapter import attach
from genrec.models.backbone import architecture, initialise
from genrec.training.rows import Row, batch_loss, collate, token_nll
from genrec.unlearning.descent import forget_rows, retain_rows
from genrec.unlearning.scif import conjugate_gradient, gauss_newton_product, mean_gradient, scif


@pytest.fixture(scope="module")
def tiny(table):
    """A float64 model of width 8 whose adapter has some hundred weights, B not zero (its norms compute in float32)."""
    shape = ArchitectureParams(hidden=8, layers=1, heads=2, feed_forward=8, window=8)
    model = attach(initialise(architecture(shape, table.vocabulary), 0), rank=1, alpha=2, dropout=0.0, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model.eval()


@pytest.fixture(scope="module")
def batches(table):
    """Two batches of unequal size, with padding, history and context that is no target."""
    first = [Row(np.array([3, 8]), loss_from=1), Row(np.array([5]))]
    second = [Row(np.array([9, 2]), skip=np.array([True, False]))]
    return [collate(first, table), collate(second, table)]


@pytest.fixture(scope="module")
def dense(tiny, batches):
    """The matrix: sum over target tokens of J^T (diag(p) - p p^T) J / tokens, J one row per logit."""
    weights = [p for p in tiny.parameters() if p.requires_grad]
    total, tokens = 0.0, 0
    for batch in batches:
        logits = tiny(input_ids=batch.tokens[:, :-1], use_cache=False).logits
        for row, at in (batch.labels >= 0).nonzero().tolist():
            z = logits[row, at]
            jacobian = torch.stack(
                [
                    torch.cat([g.flatten() for g in torch.autograd.grad(value, weights, retain_graph=True)])
                    for value in z
                ]
            )
            p = z.detach().softmax(-1)
            total = total + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
            tokens += 1
    assert tokens == 12
    return total / tokens


def test_the_product_equals_the_dense_matrix(tiny, batches, dense):
    size = sum(p.numel() for p in tiny.parameters() if p.requires_grad)
    assert dense.shape == (size, size)
    assert dense.abs().max() > 1e-3
    for seed in range(3):
        v = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(gauss_newton_product(tiny, batches, v), dense @ v, rtol=1e-3, atol=1e-6)


def test_the_matrix_is_positive_semi_definite_and_the_curvature_of_the_kl(tiny, batches, dense):
    """Second difference of KL(p || p_moved) along v is v^T G v."""
    assert torch.linalg.eigvalsh(dense).min() > -1e-10
    weights = [p for p in tiny.parameters() if p.requires_grad]
    v = torch.randn(len(dense), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    step = 1e-3 * v / v.norm()

    @torch.no_grad()
    def log_p(sign):
        for w, part in zip(weights, (sign * step).split([w.numel() for w in weights]), strict=True):
            w += part.view_as(w)
        found = [
            tiny(input_ids=b.tokens[:, :-1], use_cache=False).logits[b.labels >= 0].log_softmax(-1) for b in batches
        ]
        for w, part in zip(weights, (sign * step).split([w.numel() for w in weights]), strict=True):
            w -= part.view_as(w)
        return torch.cat(found)

    here = log_p(0)
    kl = sum((here.exp() * (here - log_p(sign))).sum(-1).mean() for sign in (1, -1))
    assert kl.item() == pytest.approx((step @ dense @ step).item(), rel=1e-3)


def test_the_gradient_is_that_of_the_mean_over_all_tokens(tiny, table, batches):
    """Batches count by their tokens: as one batch they give the same."""
    rows = [row for batch in batches for row in batch.rows]
    loss = batch_loss(tiny.double(), collate(rows, table))
    expected = torch.autograd.grad(loss, [p for p in tiny.parameters() if p.requires_grad])
    found = mean_gradient(tiny, batches)
    torch.testing.assert_close(found.float(), torch.cat([g.flatten() for g in expected]).float(), rtol=1e-4, atol=1e-6)


def test_conjugate_gradients_solve_the_damped_system(tiny, batches, dense):
    right = torch.randn(len(dense), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    damped = dense + 0.01 * torch.eye(len(dense), dtype=torch.float64)
    x, residual = conjugate_gradient(
        lambda v: gauss_newton_product(tiny, batches, v) + 0.01 * v, right, steps=2 * len(dense)
    )
    torch.testing.assert_close(x, torch.linalg.solve(damped, right), rtol=1e-5, atol=1e-6)
    assert residual < 1e-8


def test_each_step_of_the_solver_comes_closer():
    root = torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix, right = root @ root.T + torch.eye(20, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, right)

    def distance(steps):
        x, residual = conjugate_gradient(lambda v: matrix @ v, right, steps)
        assert residual == pytest.approx(((matrix @ x - right).norm() / right.norm()).item(), abs=1e-8)
        return ((x - exact) @ matrix @ (x - exact)).item()

    distances = [distance(steps) for steps in (0, 1, 3, 8, 20)]
    assert all(later < earlier for earlier, later in pairwise(distances))
    assert distances[-1] < 1e-8
    zero, residual = conjugate_gradient(lambda v: matrix @ v, torch.zeros(20, dtype=torch.float64), 5)
    assert (zero.abs().max(), residual) == (0, 0)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome(user_problem):
    return scif(user_problem)


def flat(model, adapter):
    """An adapter's weights in the order of the model's parameters."""
    names = [n.replace(".default", "") for n, p in model.named_parameters() if p.requires_grad]
    return torch.cat([adapter.state[name].flatten() for name in names])


def test_the_step_solves_the_system_of_the_retained_rows(user_problem, bundle, small):
    """(G + damping) (theta' - theta) = (n_f / n_r) g_f, with all retained rows in the sample and enough steps."""
    settings = {"retain_rows": 10_000, "damping": 0.2, "cg_steps": 25}
    problem = replace(user_problem, params=small(user_problem.params, "unlearning.scif", **settings))
    found, model = scif(problem), bundle.adapted()
    assert found.diagnostics["cg_residual"] < 0.01
    forget, retain = forget_rows(problem), retain_rows(problem)
    share = sum(len(r.items) for r in forget) / sum(len(r.items) for r in retain)
    assert found.diagnostics["token_ratio"] == pytest.approx(share)
    step = flat(model, found.bundle.adapter) - flat(model, bundle.adapter)
    right = share * mean_gradient(model, [collate(forget, bundle.table)])
    left = gauss_newton_product(model, [collate(retain, bundle.table)], step) + 0.2 * step
    assert ((left - right).norm() / right.norm()).item() < 0.02
    assert found.diagnostics["step_norm"] == pytest.approx(step.norm().item(), rel=1e-3)


@pytest.mark.parametrize("kind", ["user_problem", "concept_problem"])
def test_what_is_forgotten_becomes_less_likely(kind, request):
    problem = request.getfixturevalue(kind)
    after = scif(problem).bundle
    rows = forget_rows(problem)
    before, now = (token_nll(b.adapted(), rows, b.table)[0].sum() for b in (problem.bundle, after))
    assert now > before * 1.005


def test_only_the_adapter_changes_and_overlays_are_folded(user_problem, bundle, outcome):
    before = {name: tensor.clone() for name, tensor in bundle.adapter.state.items()}
    again = scif(user_problem)
    assert again.diagnostics == outcome.diagnostics
    assert all(torch.equal(t, outcome.bundle.adapter.state[n]) for n, t in again.bundle.adapter.state.items())
    assert all(torch.equal(tensor, bundle.adapter.state[name]) for name, tensor in before.items())
    assert outcome.bundle.backbone is bundle.backbone
    assert outcome.bundle.overlays == ()


def test_the_seed_chooses_the_sample(user_problem, outcome, small):
    params = small(user_problem.params, "unlearning.scif", retain_rows=10, cg_steps=3)
    few, other = (scif(replace(user_problem, params=params, seed=seed)).bundle.adapter.state for seed in (0, 1))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in few.items())


def test_a_step_that_is_not_finite_names_the_remedy(user_problem, bundle):
    state = {name: tensor * float("inf") for name, tensor in bundle.adapter.state.items()}
    broken = replace(bundle, adapter=replace(bundle.adapter, state=state))
    with pytest.raises(UnlearningError, match=r"not finite\. Raise unlearning\.scif\.damping"):
        scif(replace(user_problem, bundle=broken))
