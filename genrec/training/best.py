"""The best epoch of a training, chosen by a score that no test item enters."""

from collections.abc import Callable

import torch
from torch import nn


class BestEpoch:
    """A `watch` of `genrec.training.loop.train` that ends nothing and keeps the weights of the best epoch.

    Attributes: score - of the model in eval mode, higher is better; best - the highest score so far; state - a copy of
    the weights that had it first, on the CPU.
    """

    def __init__(self, score: Callable[[nn.Module], float]):
        self.score = score
        self.best = float("-inf")
        self.state: dict[str, torch.Tensor] = {}

    def __call__(self, model: nn.Module) -> bool:
        value = self.score(model)
        if value > self.best:
            self.best = value
            self.state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        return False
