"""Forgetting, always on the bare model: no deny list, no output filter.

Users: how a model's NLL on their training sequences compares with users it never saw, and whether an attacker can tell
the two apart. Concepts: how often the top 10 of people who asked for something else holds the concept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from genrec.data.sequences import HOLDOUT, Dataset
from genrec.evaluation.ranking import Cases, Ranking, training_histories
from genrec.evaluation.statistics import Bootstrap, Measure, auc, matched_gap, mean, wilson
from genrec.models.beam import by_length, encode_histories, exact_scores
from genrec.models.bundle import Bundle
from genrec.training.rows import chunk_all, token_nll

MATCHES = 5
"""Never-seen users each forgotten user is compared with, the nearest in length."""


@dataclass(frozen=True, eq=False)
class UserForgetting:
    """Mean NLL per token (nat) of training sequences: `forgotten` [n], `unseen` [m] of people no training saw, and the
    MATCHES nearest in length of these for each forgotten one, int64 [n, MATCHES]."""

    forgotten: np.ndarray
    unseen: np.ndarray
    matches: np.ndarray

    def gap(self, plan: Bootstrap) -> Measure:
        """NLL(forgotten) - NLL(never seen, matched by length), nat per token."""
        return matched_gap(self.forgotten, self.unseen, self.matches, plan)

    def gap_over(self, other: "UserForgetting", plan: Bootstrap) -> Measure:
        """This model's gap minus another's on the same people, nat per token: paired, so what makes people differ in
        difficulty cancels."""
        return matched_gap(self.forgotten - other.forgotten, self.unseen - other.unseen, self.matches, plan)

    def membership(self, plan: Bootstrap) -> Measure:
        """AUC of the loss attack, forgotten against never seen."""
        return auc(-self.forgotten, -self.unseen, plan)


def user_nll(bundle: Bundle, model: nn.Module, dataset: Dataset, users: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean NLL per token of each user's training sequence (nat) and its length in items: [n], [n]."""
    histories = training_histories(dataset, users)
    rows = chunk_all(histories, bundle.params.architecture.window)
    total, count = token_nll(model, rows, bundle.table)
    owners = np.array([row.user for row in rows], np.int64)
    place = {user: i for i, (user, _) in enumerate(histories)}
    where = np.array([place[o] for o in owners], np.int64)
    nll = np.bincount(where, total, len(histories)) / np.maximum(np.bincount(where, count, len(histories)), 1)
    return nll, np.array([len(items) for _, items in histories], np.int64)


def holdout_users(dataset: Dataset) -> np.ndarray:
    """Indices of the users no training ever saw."""
    first = dataset.offsets[:-1][np.diff(dataset.offsets) > 0]
    users = np.flatnonzero(np.diff(dataset.offsets) > 0)
    return users[dataset.split[first] == HOLDOUT]


def user_forgetting(bundle: Bundle, model: nn.Module, restored: Dataset, forgotten: Sequence[int]) -> UserForgetting:
    """Take the likelihoods on `restored`, the dataset that still holds the forgotten users' rows."""
    nll_f, length_f = user_nll(bundle, model, restored, forgotten)
    nll_h, length_h = user_nll(bundle, model, restored, np.setdiff1d(holdout_users(restored), forgotten))
    distance = np.abs(np.log1p(length_f)[:, None] - np.log1p(length_h))
    return UserForgetting(nll_f, nll_h, np.argsort(distance, axis=1, kind="stable")[:, :MATCHES])


def concept_exposure(ranking: Ranking, cases: Cases, items: np.ndarray, k: int, confidence: float) -> Measure:
    """SH@k: share of cases whose target is no concept item and whose top k holds one. `items`: concept item indices."""
    asked_other = ~np.isin(cases.targets, items)
    shown = np.isin(ranking.top[asked_other, :k], items).any(1)
    return wilson(int(shown.sum()), int(asked_other.sum()), confidence)


def concept_mass(bundle: Bundle, model: nn.Module, cases: Cases, items: np.ndarray, plan: Bootstrap) -> Measure:
    """Probability summed over all SIDs of `items` given each history, exact and teacher-forced: mean over cases."""
    window, size = bundle.params.architecture.window, bundle.params.decoding.batch_size
    mass = np.zeros(len(cases.targets))
    for part in by_length(cases.histories, window, size):
        prompts = encode_histories([cases.histories[i] for i in part], bundle.table, window).to(model.device)
        mass[part] = exact_scores(model, prompts, bundle.table, items=items).exp().sum(1).cpu().numpy()
    return mean(mass, plan)
