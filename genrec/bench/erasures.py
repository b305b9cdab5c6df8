"""What the unlearning bench erases: draws of users, and concepts from rare to frequent.

Tuning and reporting never meet: a seeded fifth of the trained users and the tuning concepts are what methods are tuned
on (`tuning=True`), all others are what is reported.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec.config import BenchParams
from genrec.data.sequences import TRAIN, Dataset
from genrec.errors import ConfigError, DataError, unknown

SCENARIOS = ("users", "concept", "stream")
NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Erasure:
    """One thing to forget and the seed of the methods that forget it. users, items: indices into the dataset."""

    label: str
    seed: int
    users: np.ndarray
    items: np.ndarray


def check_scenario(name: str) -> None:
    """Raises ConfigError listing the known scenarios."""
    if name not in SCENARIOS:
        raise ConfigError(unknown("scenario", name, SCENARIOS, "See genrec bench unlearn --help."))


def user_pool(dataset: Dataset, params: BenchParams, tuning: bool) -> np.ndarray:
    """Trained users that may be drawn: `tuning_share` of them by a hash of their id, or all the others."""
    users = dataset.trained_users
    draws = [int.from_bytes(hashlib.sha256(f"tune|{dataset.user_ids[u]}".encode()).digest()[:8], "big") for u in users]
    return users[(np.array(draws) / 2**64 < params.tuning_share) == tuning]


def user_draws(dataset: Dataset, params: BenchParams, seeds: Sequence[int], tuning: bool = False) -> list[Erasure]:
    """One draw of `user_share` of the trained users per seed. Raises DataError when the pool is too small."""
    pool, size = user_pool(dataset, params, tuning), round(params.user_share * len(dataset.trained_users))
    if not 0 < size <= len(pool):
        raise DataError(
            f"bench.user_share asks for {size} users and {len(pool)} may be drawn. Change it in params.yaml."
        )
    return [
        Erasure("users", seed, np.sort(np.random.default_rng([seed, 17]).choice(pool, size, replace=False)), NOTHING)
        for seed in seeds
    ]


def concept_shares(dataset: Dataset) -> dict[str, float]:
    """Share of the training rows that each concept covers."""
    rows = np.bincount(dataset.items[dataset.split == TRAIN], minlength=len(dataset.item_ids))
    return {name: float(rows[items].sum() / rows.sum()) for name, items in dataset.concepts.items()}


def choose_concepts(dataset: Dataset, params: BenchParams) -> list[str]:
    """`concepts` of them between the two limits of share, nearest to even steps of log share, tuning ones left out."""
    low, high = params.concept_share
    shares = {
        name: share for name, share in concept_shares(dataset).items()
        if low <= share <= high and name not in params.tuning_concepts
    }  # fmt: skip
    if len(shares) < params.concepts:
        raise DataError(f"Only {len(shares)} concepts cover {low:.3f} to {high:.2f} of the rows. Lower bench.concepts.")
    chosen: list[str] = []
    ends = np.log(min(shares.values())), np.log(max(shares.values()))
    for wanted in np.linspace(*ends, params.concepts):
        chosen.append(min(shares.keys() - set(chosen), key=lambda name: (abs(np.log(shares[name]) - wanted), name)))
    return chosen


def concept_erasures(
    dataset: Dataset, params: BenchParams, seeds: Sequence[int], concepts: Sequence[str] = (), tuning: bool = False
) -> list[Erasure]:
    """Each concept with each seed. Raises ConfigError on a name the catalogue does not have."""
    names = list(concepts) or ([*params.tuning_concepts] if tuning else choose_concepts(dataset, params))
    for name in names:
        if name not in dataset.concepts:
            raise ConfigError(unknown("concept", name, dataset.concepts, "See genrec data concepts."))
    return [Erasure(name, seed, NOTHING, dataset.concepts[name].astype(np.int64)) for name in names for seed in seeds]
