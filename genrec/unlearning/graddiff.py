"""GradDiff (arXiv 2203.12817, as in TOFU, arXiv 2401.06121): up on the forgotten rows, down on the retained ones.

L = - NLL_f + w R, with R either the mean NLL per retained token, or its KL variant
    R = mean over retained tokens of KL(p_start(. | prefix) || p_theta(. | prefix)),
which holds the model where it was instead of training it on.
"""

import torch
from torch import nn
from torch.nn import functional as F

from genrec.training.rows import Batch, batch_loss
from genrec.unlearning.descent import Terms, descend, reference_model
from genrec.unlearning.problem import Method, Outcome, Problem


def kl_from(reference: nn.Module, model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean KL(p_reference || p_model) per target token (nat)."""
    batch = batch.beside(model)
    inputs, target = batch.tokens[:, :-1], batch.labels >= 0
    with torch.no_grad():
        before = reference(input_ids=inputs, use_cache=False).logits[target].float().log_softmax(-1)
    after = model(input_ids=inputs, use_cache=False).logits[target].float().log_softmax(-1)
    return F.kl_div(after, before, log_target=True, reduction="batchmean")


def graddiff(problem: Problem) -> Outcome:
    params = problem.params.unlearning.graddiff
    reference = reference_model(problem) if params.retain_term == "kl" else None

    def loss(model: nn.Module, forget: Batch, retain: Batch) -> Terms:
        held = batch_loss(model, retain) if reference is None else kl_from(reference, model, retain)
        return {"forget": -batch_loss(model, forget), "retain": params.retain_weight * held}

    return descend(problem, params, loss)


METHOD = Method("graddiff", graddiff)
