"""Membership inference: can an attacker tell forgotten users from users the model never saw?

Each attack scores a user from the NLLs of their training tokens, higher where it thinks "was trained on":

- loss        -mean NLL (Yeom et al., arXiv 1709.01604)
- calibrated  -(mean NLL - the reference model's mean NLL) (difficulty calibration, Watson et al., arXiv 2111.08440)
- min_k       mean log-likelihood of the k % least likely tokens (Shi et al., arXiv 2310.16789)

One forward pass per model feeds all of them. A score is judged by its AUC and by its true positive rate where hardly
any never-seen user is flagged (Carlini et al., arXiv 2112.03570): an attack that is useless on average can still be
certain about a few people.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from genrec.data.sequences import Dataset
from genrec.evaluation.forgetting import holdout_users
from genrec.evaluation.ranking import training_histories
from genrec.evaluation.statistics import NOTHING, Bootstrap, Measure, auc, wilson
from genrec.models.bundle import Bundle
from genrec.sid.table import SidTable
from genrec.training.rows import Row, bucketed, chunk, collate, token_losses

FPR = 0.01
"""Share of never-seen users the attacker may flag by mistake."""

FPRS = np.sort(np.append(np.linspace(0, 1, 51), FPR))
"""False positive rates at which a curve is kept: a fixed grid, so that its corners are not people's scores."""

MIN_K = 20.0
"""Per cent of a user's tokens that Min-K% looks at."""


@dataclass(frozen=True, eq=False)
class TokenNll:
    """NLL (nat) of each token of each user's training sequence: user indices int64 [n], n arrays float64 [tokens].

    Tokens are in the order of the sequence. Users without a training sequence have no place here.
    """

    users: np.ndarray
    tokens: tuple[np.ndarray, ...]

    def mean(self) -> np.ndarray:
        """Mean NLL of each user, nat per token: float64 [n]."""
        return np.array([nll.mean() for nll in self.tokens])

    def highest(self, percent: float = MIN_K) -> np.ndarray:
        """Mean NLL of each user's `percent` % tokens of highest NLL, rounded up to a whole token: float64 [n]."""
        counts = [math.ceil(percent * len(nll) / 100) for nll in self.tokens]
        return np.array([np.sort(nll)[-count:].mean() for nll, count in zip(self.tokens, counts, strict=True)])


@dataclass(frozen=True)
class Attack:
    """auc: P(a forgotten user scores above a never-seen one); tpr: share of forgotten users found at 1 % FPR."""

    auc: Measure
    tpr: Measure


@dataclass(frozen=True)
class Membership:
    """The outcome of each attack on the same users."""

    loss: Attack
    calibrated: Attack
    min_k: Attack


@torch.inference_mode()
def row_token_nll(
    model: nn.Module, rows: Sequence[Row], table: SidTable, batch_tokens: int = 25_600
) -> list[np.ndarray]:
    """NLL (nat) of every target token of each row, in order: one float64 [targets] per row."""
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    numbered = [Row(row.items, row.loss_from, i, row.skip) for i, row in enumerate(rows)]
    for part in bucketed(numbered, table.vocabulary.levels, batch_tokens, np.random.default_rng(0)):
        batch = collate(part, table)
        for row, values, labels in zip(part, token_losses(model, batch).cpu(), batch.labels, strict=True):
            found[row.user] = values[labels >= 0].double().numpy()
    return found


def user_token_nll(bundle: Bundle, model: nn.Module, dataset: Dataset, users: Sequence[int]) -> TokenNll:
    """NLL of every token of each user's training sequence (`training_histories`) under `model`, in one pass."""
    histories = training_histories(dataset, users)
    window = bundle.params.architecture.window
    rows = [row for place, (_, items) in enumerate(histories) for row in chunk(items, window, place)]
    parts: list[list[np.ndarray]] = [[] for _ in histories]
    for row, nll in zip(rows, row_token_nll(model, rows, bundle.table), strict=True):
        parts[row.user].append(nll)
    return TokenNll(np.array([user for user, _ in histories], np.int64), tuple(np.concatenate(p) for p in parts))


def tpr_at_fpr(positive: np.ndarray, negative: np.ndarray, confidence: float, fpr: float = FPR) -> Measure:
    """Largest share of `positive` [n] above a threshold that at most `fpr` of `negative` [m] exceed.

    The interval is Wilson's on the positives *given the threshold*: it covers which forgotten users happened to be
    asked. It does not cover how uncertain the threshold is - it hangs on the few highest of m never-seen users, and
    with fewer than 1 / fpr of them it is simply the highest - nor another training run of the model.
    """
    if len(positive) == 0 or len(negative) == 0:
        return NOTHING
    (threshold,) = _thresholds(negative, np.array([fpr]))
    return wilson(int((positive > threshold).sum()), len(positive), confidence)


def roc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The attack's ROC at `FPRS`: share of `positive` [n] that `tpr_at_fpr` finds at each of them, float64 [points]."""
    return (positive[:, None] > _thresholds(negative, FPRS)).mean(0)


def _thresholds(negative: np.ndarray, fprs: np.ndarray) -> np.ndarray:
    """The lowest score that at most each share of `negative` [m] exceeds, float64 like `fprs`."""
    allowed = np.floor(fprs * len(negative) + 1e-9).astype(np.int64)  # 1e-9: a whole product may lie just below
    return np.append(np.sort(negative)[::-1], -np.inf)[np.minimum(allowed, len(negative))]


def attack(forgotten: np.ndarray, unseen: np.ndarray, plan: Bootstrap) -> Attack:
    """Judge an attack by its scores of forgotten [n] and never-seen users [m], higher for "was trained on"."""
    return Attack(auc(forgotten, unseen, plan), tpr_at_fpr(forgotten, unseen, plan.confidence))


def membership(
    bundle: Bundle,
    model: nn.Module,
    restored: Dataset,
    forgotten: Sequence[int],
    plan: Bootstrap,
    *,
    reference: nn.Module | None = None,
    unseen: Sequence[int] | None = None,
) -> Membership:
    """All attacks on `forgotten` users of `restored`, the dataset that still holds their rows.

    reference: the model that says how hard a user is to predict anyway; by default the user-free backbone, which reads
    the SIDs of `bundle` as they are now. unseen: users no training saw, by default all holdout users.
    """
    unseen = holdout_users(restored) if unseen is None else unseen
    groups = [np.asarray(forgotten, np.int64), np.setdiff1d(unseen, forgotten)]
    reference = bundle.backbone.model().to(model.device) if reference is None else reference
    members, strangers = (user_token_nll(bundle, model, restored, users) for users in groups)
    base_m, base_s = (user_token_nll(bundle, reference, restored, users).mean() for users in groups)
    return Membership(
        loss=attack(-members.mean(), -strangers.mean(), plan),
        calibrated=attack(base_m - members.mean(), base_s - strangers.mean(), plan),
        min_k=attack(-members.highest(), -strangers.highest(), plan),
    )
