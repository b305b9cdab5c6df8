"""Utility: full-catalogue ranking of held-out targets and their likelihood, one value per user.

Item-level hits (a SID names one item, so a colliding prefix is no hit for its neighbours); items already seen are not
removed from the ranking. Names and definitions follow RecBole and torchmetrics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from genrec.data.sequences import HOLDOUT, TEST, TRAIN, VALID, Dataset
from genrec.errors import DataError
from genrec.evaluation.statistics import Bootstrap, Measure, mean
from genrec.models.beam import beam_search, by_length, encode_histories, exact_scores
from genrec.models.bundle import Bundle
from genrec.progress import tracked
from genrec.training.rows import Row, token_nll

TOP = 10


@dataclass(frozen=True)
class Cases:
    """Held-out targets: user index [n], the history before each target, the target item [n]."""

    users: np.ndarray
    histories: tuple[np.ndarray, ...]
    targets: np.ndarray

    def select(self, mask: np.ndarray) -> "Cases":
        rows = np.flatnonzero(mask)
        return Cases(self.users[rows], tuple(self.histories[i] for i in rows), self.targets[rows])

    def sample(self, count: int, seed: int) -> "Cases":
        """At most `count` of them, drawn by `seed`, in their order."""
        mask = np.zeros(len(self.users), bool)
        mask[np.random.default_rng(seed).permutation(len(mask))[:count]] = True
        return self.select(mask)


@dataclass(frozen=True)
class Ranking:
    """What a model did with each case.

    top: item indices int64 [n, 10], -1 where none; rank: 0-based rank of the target within the beam, or -1;
    nll: mean NLL of the target's tokens (nat per token) float64 [n], NaN of a model without tokens.
    """

    top: np.ndarray
    rank: np.ndarray
    nll: np.ndarray

    def recall(self, k: int) -> np.ndarray:
        return ((self.rank >= 0) & (self.rank < k)).astype(np.float64)

    def ndcg(self, k: int) -> np.ndarray:
        return self.recall(k) / np.log2(np.maximum(self.rank, 0) + 2.0)

    def mrr(self, k: int) -> np.ndarray:
        return self.recall(k) / (np.maximum(self.rank, 0) + 1.0)

    def figures(self) -> dict[str, np.ndarray]:
        """Recall, NDCG and MRR at 5 and 10, each float64 [n]."""
        found = {}
        for k in (5, TOP):
            found |= {f"recall@{k}": self.recall(k), f"ndcg@{k}": self.ndcg(k), f"mrr@{k}": self.mrr(k)}
        return found

    def coverage(self, items: int) -> float:
        """Share of the `items` of the catalogue that are in somebody's top 10."""
        return len(np.unique(self.top[self.top >= 0])) / items

    def select(self, mask: np.ndarray) -> "Ranking":
        return Ranking(self.top[mask], self.rank[mask], self.nll[mask])


def held_out(dataset: Dataset, split: int = TEST) -> Cases:
    """One case per user that has a row of `split` with something before it."""
    rows = np.flatnonzero(dataset.split == split)
    users = np.searchsorted(dataset.offsets, rows, side="right") - 1
    keep = rows > dataset.offsets[users]
    rows, users = rows[keep], users[keep]
    histories = tuple(dataset.items[dataset.offsets[u] : r] for u, r in zip(users, rows, strict=True))
    return Cases(users, histories, dataset.items[rows].astype(np.int64))


def validation_cases(dataset: Dataset, users: int, seed: int) -> Cases:
    """The validation items of at most `users` users, drawn by `seed`. Raises DataError when fewer than two have one."""
    cases = held_out(dataset, VALID).sample(users, seed)
    if len(cases.users) < 2:
        raise DataError(
            f"{len(cases.users)} users have a validation item, at least 2 are needed. Add data, or lower data.k_core."
        )
    return cases


def training_histories(dataset: Dataset, users: Sequence[int]) -> list[tuple[int, np.ndarray]]:
    """(user, items a model trained on them would have seen): a holdout user's last two are left out as well."""
    histories = []
    for user in users:
        low, high = dataset.offsets[user], dataset.offsets[user + 1]
        held = len(dataset.split[low:high]) and dataset.split[low] == HOLDOUT
        items = dataset.history(user)[:-2] if held else dataset.training_rows(user)
        if len(items):
            histories.append((int(user), items))
    return histories


def rank(bundle: Bundle, model: nn.Module, cases: Cases, exact: bool = False) -> Ranking:
    """Beam search (bare model: no deny list) and teacher-forced likelihood of the target, in batches.

    exact: score every item instead of searching.
    """
    decoding, window = bundle.params.decoding, bundle.params.architecture.window
    beam, device = max(TOP, decoding.beam), next(model.parameters()).device
    top = np.full((len(cases.targets), TOP), -1, np.int64)
    place = np.full(len(cases.targets), -1, np.int64)
    for part in tracked("ranking", by_length(cases.histories, window, decoding.batch_size)):
        prompts = encode_histories([cases.histories[i] for i in part], bundle.table, window).to(device)
        if exact:
            items = exact_scores(model, prompts, bundle.table).topk(min(beam, bundle.index.items), dim=1).indices
        else:
            items = beam_search(model, prompts, bundle.index_on(device), beam)[0]
        items = items.cpu().numpy()
        top[part, : items.shape[1]] = items[:, :TOP]
        hit = items == cases.targets[part][:, None]
        place[part] = np.where(hit.any(1), hit.argmax(1), -1)
    return Ranking(top, place, target_nll(bundle, model, cases))


def target_nll(bundle: Bundle, model: nn.Module, cases: Cases) -> np.ndarray:
    """Mean NLL of each target's tokens given its history, nat per token: float64 [n]."""
    total, count = token_nll(model, target_rows(cases, bundle.params.architecture.window), bundle.table)
    return total / np.maximum(count, 1)


def target_rows(cases: Cases, window: int) -> list[Row]:
    """Rows of at most `window` items whose only target is that of the case."""
    histories = [history[-(window - 1) :] for history in cases.histories]
    return [
        Row(np.append(history, target), len(history)) for history, target in zip(histories, cases.targets, strict=True)
    ]


def rank_scores(scores: Callable[[Sequence[np.ndarray]], np.ndarray], cases: Cases, batch_size: int = 128) -> Ranking:
    """Rank the whole catalogue by `scores(histories)` [batch, items], highest first, ties by item index."""
    top = np.full((len(cases.targets), TOP), -1, np.int64)
    place = np.empty(len(cases.targets), np.int64)
    for part in tracked("ranking", by_length(cases.histories, None, batch_size)):
        items = np.argsort(-scores([cases.histories[i] for i in part]), axis=1, kind="stable")
        top[part, : items.shape[1]] = items[:, :TOP]
        place[part] = (items == cases.targets[part][:, None]).argmax(1)
    return Ranking(top, place, np.full(len(place), np.nan))


def training_counts(dataset: Dataset) -> np.ndarray:
    """Training rows of each item, int64 [items]."""
    return np.bincount(dataset.items[dataset.split == TRAIN], minlength=len(dataset.item_ids))


def popularity_ranks(dataset: Dataset, cases: Cases) -> np.ndarray:
    """0-based rank of each target when items are ranked by training count, ties by item index: int64 [n]."""
    order = np.argsort(-training_counts(dataset), kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place[cases.targets]


def utility(ranking: Ranking, items: int, plan: Bootstrap) -> dict[str, Measure]:
    """Recall, NDCG and MRR at 5 and 10, test NLL per token, and coverage of the catalogue by the top 10."""
    figures = {name: mean(values, plan) for name, values in ranking.figures().items()}
    figures["test NLL"] = mean(ranking.nll, plan)
    covered = ranking.coverage(items)
    figures["coverage@10"] = Measure(covered, covered, covered, len(ranking.rank))
    return figures
