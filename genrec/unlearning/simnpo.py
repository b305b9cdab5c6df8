"""SimNPO (arXiv 2410.07163): NPO without a reference model, on the length-normalised likelihood.

L = - (2 / beta) mean_y log sigmoid(- (beta / |y|) log pi_theta(y) - gamma) + w NLL_r

y: the forgotten targets of one row, |y| their number of tokens. The gradient of a token's NLL is weighted with
2 sigmoid(- beta NLL - gamma): the published beta of 2.5 to 4.5 belongs to texts known by heart. A recommender's
tokens cost 1 to 3 nat before anything is forgotten, where such a beta leaves no gradient, so ours is smaller.
"""

import torch
from torch import nn
from torch.nn import functional as F

from genrec.training.rows import Batch, batch_loss
from genrec.unlearning.descent import Terms, descend, sequence_log_p
from genrec.unlearning.problem import Method, Outcome, Problem


def simnpo_loss(log_p: torch.Tensor, tokens: torch.Tensor, beta: float, gamma: float) -> torch.Tensor:
    """The forget term from log p of each row (nat) and its number of target tokens, both [batch]."""
    return -2 / beta * F.logsigmoid(-beta * log_p / tokens - gamma).mean()


def simnpo(problem: Problem) -> Outcome:
    params = problem.params.unlearning.simnpo

    def loss(model: nn.Module, forget: Batch, retain: Batch) -> Terms:
        return {
            "forget": simnpo_loss(*sequence_log_p(model, forget), params.beta, params.gamma),
            "retain": params.retain_weight * batch_loss(model, retain),
        }

    return descend(problem, params, loss)


METHOD = Method("simnpo", simnpo)
