"""The best epoch of a training, chosen by a score that no test item enters."""

from collections.abc import Callable

import torch
from torch import nn


class BestEpoch:
    """What `genrec.training.loop.train` looks at after every epoch and ends with: the weights of the best one.

    Attributes: scored - of the model in eval mode, higher is better; score - the highest so far; state - a copy of the
    weights that had it first, on the CPU.
    """

    def __init__(self, scored: Callable[[nn.Module], float]):
        self.scored = scored
        self.score = float("-inf")
        self.state: dict[str, torch.Tensor] = {}

    def look(self, model: nn.Module) -> None:
        value = self.scored(model)
        if value > self.score:
            self.score = value
            self.state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
