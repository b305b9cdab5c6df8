"""ItemKNN: items that the same users had, by cosine with shrinkage (Deshpande & Karypis 2004).

sim(i, j) = n_ij / (sqrt(n_i n_j) + shrinkage), of which each item keeps its k largest; the score of item j is the sum
of sim(i, j) over the items i of the history, an item weighted by recency ** (number of newer items).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from genrec.data.sequences import TRAIN, Dataset
from genrec.rivals_params import RivalsParams


@dataclass(frozen=True, eq=False)
class ItemKnn:
    """similarity: row i holds the nearest items of item i, [items, items]; an item without training rows has none."""

    similarity: csr_array
    recency: float

    @property
    def parameters(self) -> int:
        return self.similarity.nnz

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        lengths = [len(history) for history in histories]
        weights = np.concatenate([self.recency ** np.arange(length - 1, -1, -1) for length in lengths])
        places = (np.repeat(np.arange(len(histories)), lengths), np.concatenate(histories))
        baskets = csr_array((weights, places), shape=(len(histories), self.similarity.shape[0]))
        return (baskets @ self.similarity).toarray().astype(np.float32)


def fit(dataset: Dataset, params: RivalsParams, seed: int, checkpoint: Path | None = None) -> ItemKnn:
    """No randomness and nothing to go on with: seed and checkpoint change nothing. Equal similarities are kept in item
    order."""
    section, count = params.item_knn, len(dataset.item_ids)
    owner = np.repeat(np.arange(len(dataset.user_ids)), np.diff(dataset.offsets))
    trained = dataset.split == TRAIN
    had = csr_array(
        (np.ones(trained.sum()), (owner[trained], dataset.items[trained])), shape=(len(dataset.user_ids), count)
    )
    users, together = had.sum(0), (had.T @ had).tocoo()
    row, column = together.coords
    similarity = together.data / (np.sqrt(users[row] * users[column]) + section.shrinkage)
    row, column, similarity = (x[row != column] for x in (row, column, similarity))
    order = np.lexsort((column, -similarity, row))
    row, column, similarity = row[order], column[order], similarity[order]
    kept = np.arange(len(row)) - np.searchsorted(row, row) < section.neighbours
    nearest = csr_array((similarity[kept], (row[kept], column[kept])), shape=(count, count))
    return ItemKnn(nearest, section.recency)
