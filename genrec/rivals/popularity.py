"""Popularity: every user gets the items with most training rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.data.sequences import Dataset
from genrec.evaluation.ranking import training_counts
from genrec.rivals_params import RivalsParams


@dataclass(frozen=True, eq=False)
class Popularity:
    """counts: training rows of each item, int64 [items]."""

    counts: np.ndarray

    @property
    def parameters(self) -> int:
        return len(self.counts)

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        return np.tile(self.counts.astype(np.float32), (len(histories), 1))


def fit(dataset: Dataset, params: RivalsParams, seed: int, checkpoint: Path | None = None) -> Popularity:
    """Neither a parameter nor the seed changes it, and there is nothing to go on with."""
    return Popularity(training_counts(dataset))
