"""What the gradient baselines share: their rows, their likelihoods, and one loop of AdamW on the adapter."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from genrec.errors import UnlearningError
from genrec.models.adapter import Adapter, adapted_model, adapter_state, fold
from genrec.progress import tracked
from genrec.training.rows import Batch, Row, collate, cycle, token_losses
from genrec.unlearning.problem import Outcome, Problem
from genrec.unlearning_params import DescentParams

Terms = Mapping[str, torch.Tensor]
"""Terms of a loss by name, weights included: their sum is minimised, each is reported."""


def windows(items: np.ndarray, window: int, user: int) -> list[Row]:
    """Rows of at most `window` items without overlap: every item is a target once."""
    return [Row(part, 0, user) for part in np.split(items, range(window, len(items), window))] if len(items) else []


def staying_histories(problem: Problem) -> list[tuple[int, np.ndarray]]:
    """(user, training items) of everybody who is still trained on, as they were: with what is to be forgotten."""
    staying = {problem.retained.user_ids[u] for u in problem.retained_users}
    data = problem.restored
    return [(u, data.training_rows(u)) for u, name in enumerate(data.user_ids) if name in staying]


def forget_rows(problem: Problem) -> list[Row]:
    """Rows of `restored` whose loss is on forgotten targets alone.

    For users all their training rows; for items those of staying users, with every other item as context only. Raises
    UnlearningError when there are none.
    """
    data, window = problem.restored, problem.params.architecture.window
    if len(problem.users):
        rows = [row for u in problem.users for row in windows(data.training_rows(u), window, int(u))]
    else:
        found = [row for u, items in staying_histories(problem) for row in windows(items, window, u)]
        rows = [replace(row, skip=~np.isin(row.items, problem.items)) for row in found]
        rows = [row for row in rows if not row.skip.all()]
    if not rows:
        raise UnlearningError(
            "No training row holds what is to be forgotten: the weights never saw it, so there is nothing to unlearn."
        )
    return rows


def retain_rows(problem: Problem) -> list[Row]:
    """Training rows of the retained users, cut to the window. Raises UnlearningError when nobody is left."""
    data, window = problem.retained, problem.params.architecture.window
    rows = [row for u in problem.retained_users for row in windows(data.training_rows(u), window, int(u))]
    if not rows:
        raise UnlearningError("No user with training rows is retained. Train a new base model: dvc repro.")
    return rows


def start_adapter(problem: Problem) -> Adapter:
    """The effective weights to start from: the bundle's adapter with its overlays multiplied in."""
    return fold(problem.bundle.adapter, problem.bundle.overlays)


def reference_model(problem: Problem) -> nn.Module:
    """The model as it was, frozen."""
    return adapted_model(problem.bundle.backbone, start_adapter(problem)).requires_grad_(False)


def sequence_log_p(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log p (nat) of each row's target tokens, float32 [batch], and their number, int64 [batch]."""
    batch = batch.beside(model)
    return -token_losses(model, batch).sum(1), (batch.labels >= 0).sum(1)


def descend(problem: Problem, params: DescentParams, loss: Callable[[nn.Module, Batch, Batch], Terms]) -> Outcome:
    """AdamW on the adapter from the effective weights, for `params.steps`; overlays are folded in and gone.

    loss: (model, forget batch, retain batch) -> terms. Either kind of row is used up before any is used again; there
    is no dropout, so that a likelihood ratio to the start model is 1 at the first step. Raises UnlearningError when
    there is nothing to forget, or when a loss or gradient is not finite.
    """
    table, rng, half = problem.bundle.table, np.random.default_rng(problem.seed), params.batch_size // 2
    forget, retain = forget_rows(problem), retain_rows(problem)
    start = start_adapter(problem)
    model = adapted_model(problem.bundle.backbone, start)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=params.learning_rate, weight_decay=0.0)
    drawn = zip(cycle(len(forget), half, rng), cycle(len(retain), half, rng), strict=True)
    for step, (f, r) in zip(tracked("unlearning", range(params.steps)), drawn, strict=False):
        terms = loss(model, collate([forget[i] for i in f], table), collate([retain[i] for i in r], table))
        optimiser.zero_grad()
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        norm = nn.utils.clip_grad_norm_(weights, problem.params.train.clip_norm)
        if not (total.isfinite() and norm.isfinite()):
            raise UnlearningError(
                f"The loss became {total.item()} (gradient norm {norm.item()}) at step {step + 1} of {params.steps}. "
                f"Lower the method's learning_rate ({params.learning_rate}) in params.yaml."
            )
        optimiser.step()
    adapter = Adapter(start.rank, start.alpha, adapter_state(model))
    last = {f"{name}_loss": value.item() for name, value in terms.items()}
    return Outcome(replace(problem.bundle, adapter=adapter, overlays=()), last)
