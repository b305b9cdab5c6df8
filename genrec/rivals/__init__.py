"""Recommenders without semantic IDs, one file each behind one interface, ranked by the same evaluator."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from genrec.data.sequences import Dataset
from genrec.errors import ConfigError, unknown
from genrec.rivals import item_knn, popularity, sasrec
from genrec.rivals_params import RivalsParams


class Rival(Protocol):
    """A fitted recommender. It knows the items of the dataset it was fitted on, and users by their history alone."""

    @property
    def parameters(self) -> int:
        """How many numbers were fitted."""

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Score of every item, higher is better: item indices, oldest first -> float32 [batch, items]."""


RIVALS: dict[str, Callable[[Dataset, RivalsParams, int, Path | None], Rival]] = {
    "sasrec": sasrec.fit, "item_knn": item_knn.fit, "popularity": popularity.fit,
}  # fmt: skip
"""Fit on the training rows of a dataset, from a seed; an interrupted training goes on from its checkpoint."""

SEEDED = ("sasrec",)
"""The rivals that a seed changes."""


def check_rivals(names: Sequence[str]) -> tuple[str, ...]:
    """`sasrec` first, which all are compared with, then `names`. Raises ConfigError listing the known rivals."""
    for name in names:
        if name not in RIVALS:
            raise ConfigError(unknown("rival", name, RIVALS, "Give them as --rivals a,b,c."))
    return tuple(dict.fromkeys(("sasrec", *names)))
