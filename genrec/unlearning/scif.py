"""SCIF (arXiv 2304.10199): one influence-function step instead of training.

theta is near the optimum of the loss over retained and forgotten tokens. Without the forgotten ones the optimum moves,
to first order, by

    theta' = theta + (H_r + damping I)^-1 (n_f / n_r) g_f

g_f: gradient of the mean NLL of forgotten tokens; H_r: curvature of the mean NLL of retained tokens; n_f, n_r: numbers
of tokens. Sign: adding g_f goes *up* on the forgotten rows, as removing their terms from a sum that was at its minimum
does. H_r is the Gauss-Newton matrix mean J^T (diag(p) - p p^T) J (J: d logits / d theta), positive semi-definite where
the Hessian is not, on a seeded sample of retained rows, and the system is solved with a fixed number of
conjugate-gradient steps. The paper selects the embeddings of users and items that the forgotten rows touch; here theta
is the adapter, the only weights that rows ever touch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genrec.errors import UnlearningError
from genrec.models.adapter import Adapter, adapted_model, adapter_state
from genrec.progress import tracked
from genrec.training.rows import Batch, Row, bucketed, collate
from genrec.unlearning.descent import forget_rows, retain_rows, sequence_log_p, start_adapter
from genrec.unlearning.problem import Method, Outcome, Problem


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


def mean_gradient(model: nn.Module, batches: Sequence[Batch]) -> torch.Tensor:
    """Gradient [weights] of the mean NLL per target token, over the weights that require gradients."""
    total, tokens = 0.0, 0
    for batch in batches:
        log_p, count = sequence_log_p(model, batch)
        total = total - _flat(torch.autograd.grad(log_p.sum(), _weights(model)))
        tokens += int(count.sum())
    return total / tokens


def gauss_newton_product(model: nn.Module, batches: Sequence[Batch], vector: torch.Tensor) -> torch.Tensor:
    """G v [weights], G the Gauss-Newton matrix of the mean NLL per target token; never formed.

    J v comes from two reverse passes: u -> J^T u is linear, and its own transpose applied to v is J v.
    """
    weights, total, tokens = _weights(model), torch.zeros_like(vector), 0
    for batch in batches:
        batch = batch.beside(model)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
            logits = model(input_ids=batch.tokens[:, :-1], use_cache=False).logits[batch.labels >= 0]
            u = torch.zeros_like(logits, requires_grad=True)
            pulled = _flat(torch.autograd.grad(logits, weights, u, create_graph=True))
            (j_v,) = torch.autograd.grad(pulled, u, vector, retain_graph=True)
            p = logits.detach().softmax(-1)
            bent = p * (j_v - (p * j_v).sum(-1, keepdim=True))
            total = total + _flat(torch.autograd.grad(logits, weights, bent))
        tokens += len(logits)
    return total / tokens


def conjugate_gradient(
    product: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor, steps: int
) -> tuple[torch.Tensor, float]:
    """x with product(x) ~ right after at most `steps` steps from 0, and the residual's norm relative to `right`'s.

    product: a symmetric positive definite matrix. Stops early at a residual of 1e-10.
    """
    x, residual, direction = torch.zeros_like(right), right.clone(), right.clone()
    square = first = residual @ residual
    for _ in tracked("influence", range(steps)):
        if square <= 1e-20 * first:
            break
        image = product(direction)
        size = square / (direction @ image)
        x, residual = x + size * direction, residual - size * image
        previous, square = square, residual @ residual
        direction = residual + square / previous * direction
    return x, float((square / first).sqrt()) if first > 0 else 0.0


def _targets(rows: Sequence[Row]) -> int:
    return sum(len(row.items) if row.skip is None else int((~row.skip).sum()) for row in rows)


def scif(problem: Problem) -> Outcome:
    """One damped influence step. Raises UnlearningError when there is nothing to forget or the step is not finite."""
    params, table, rng = problem.params.unlearning.scif, problem.bundle.table, np.random.default_rng(problem.seed)
    forget, retain = forget_rows(problem), retain_rows(problem)
    sample = [retain[i] for i in rng.choice(len(retain), min(params.retain_rows, len(retain)), replace=False)]

    def batches(rows: Sequence[Row]) -> list[Batch]:
        return [collate(part, table) for part in bucketed(rows, table.vocabulary.levels, params.batch_tokens, rng)]

    start = start_adapter(problem)
    model = adapted_model(problem.bundle.backbone, start)
    gradient, curvature = mean_gradient(model, batches(forget)), batches(sample)
    share = _targets(forget) / _targets(retain)
    step, residual = conjugate_gradient(
        lambda v: gauss_newton_product(model, curvature, v) + params.damping * v, share * gradient, params.cg_steps
    )
    if not step.isfinite().all():
        raise UnlearningError(f"The influence step is not finite. Raise unlearning.scif.damping ({params.damping}).")
    weights = _weights(model)
    with torch.no_grad():
        for weight, part in zip(weights, step.split([w.numel() for w in weights]), strict=True):
            weight += part.view_as(weight)
    return Outcome(
        replace(problem.bundle, adapter=Adapter(start.rank, start.alpha, adapter_state(model)), overlays=()),
        {"token_ratio": share, "step_norm": float(step.norm()), "cg_residual": residual},
    )


METHOD = Method("scif", scif)
