"""NPO, negative preference optimisation (arXiv 2404.05868): ascent that fades as the likelihood falls.

L = (2 / beta) mean_y log(1 + (pi_theta(y) / pi_ref(y))^beta) + w NLL_r

y: the forgotten targets of one row, pi(y) their joint probability; pi_ref: the model as it was. As beta goes to 0 the
gradient is that of gradient ascent.
"""

import torch
from torch import nn
from torch.nn import functional as F

from genrec.training.rows import Batch, batch_loss
from genrec.unlearning.descent import Terms, descend, reference_model, sequence_log_p
from genrec.unlearning.problem import Method, Outcome, Problem


def npo_loss(log_p: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """The forget term from log p of each row (nat) under the model and the reference, both [batch]."""
    return 2 / beta * F.softplus(beta * (log_p - reference)).mean()


def npo(problem: Problem) -> Outcome:
    params = problem.params.unlearning.npo
    reference = reference_model(problem)

    def loss(model: nn.Module, forget: Batch, retain: Batch) -> Terms:
        with torch.no_grad():
            before, _ = sequence_log_p(reference, forget)
        log_p, _ = sequence_log_p(model, forget)
        return {
            "forget": npo_loss(log_p, before, params.beta),
            "retain": params.retain_weight * batch_loss(model, retain),
        }

    return descend(problem, params, loss)


METHOD = Method("npo", npo)
