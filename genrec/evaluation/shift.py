"""How far unlearning moved the model: divergence from another model, perplexity, and what is still recommended.

Figures per token pool the tokens of all users, and their intervals resample users.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from genrec.data.sequences import Dataset
from genrec.errors import UnlearningError
from genrec.evaluation.ranking import TOP, Cases, Ranking, rank, training_histories
from genrec.evaluation.statistics import Bootstrap, Measure, mean, ratio, wilson
from genrec.models.bundle import Bundle
from genrec.sid.table import Vocabulary
from genrec.training.rows import Row, bucketed, chunk_all, collate, token_nll

BATCH_TOKENS = 6400
"""Two models' log-probabilities over the vocabulary are held in float64 for so many tokens."""

Served = tuple[Bundle, nn.Module]
"""A bundle and a model of it, merged or not."""


@dataclass(frozen=True)
class TokenShift:
    """kl: KL(original || candidate) over the full softmax, nat per target token; changed: share of target tokens where
    the most likely item token is another one."""

    kl: Measure
    changed: Measure


@dataclass(frozen=True)
class ForgetSetRanking:
    """Recall and NDCG at 10 of each forgotten user's last training item, given the ones before it."""

    recall: Measure
    ndcg: Measure


def user_rows(bundle: Bundle, dataset: Dataset, users: Sequence[int]) -> list[Row]:
    """Rows with every item of the users' training sequences as a target once."""
    return chunk_all(training_histories(dataset, users), bundle.params.architecture.window)


def case_rows(bundle: Bundle, cases: Cases) -> list[Row]:
    """One row per case with its target item's tokens as targets, after as much history as the window holds."""
    window = bundle.params.architecture.window
    rows = []
    for user, history, target in zip(cases.users, cases.histories, cases.targets, strict=True):
        items = np.append(history[-(window - 1) :], target)
        rows.append(Row(items, len(items) - 1, int(user)))
    return rows


def token_shift(original: Served, candidate: Served, rows: Sequence[Row], plan: Bootstrap) -> TokenShift:
    """Compare two models token by token on `rows` (`user_rows`, `case_rows`), teacher-forced.

    Raises UnlearningError when the two do not read the same SIDs: their tokens then mean different items, and only
    `top_item_shift` compares them.
    """
    table = original[0].table
    if not np.array_equal(table.sids, candidate[0].table.sids):
        moved = int((table.sids != candidate[0].table.sids).any(1).sum())
        raise UnlearningError(
            f"The candidate gave {moved} items another SID, so that tokens are not comparable. Use top_item_shift."
        )
    place = {user: i for i, user in enumerate(dict.fromkeys(row.user for row in rows))}
    kl, changed, count = np.zeros((3, len(place)))
    for part in bucketed(rows, table.vocabulary.levels, BATCH_TOKENS, np.random.default_rng(0)):
        batch = collate(part, table).beside(original[1])
        target = batch.labels >= 0
        with torch.inference_mode():
            p, q = (
                model(input_ids=batch.tokens[:, :-1], use_cache=False).logits[target].double().log_softmax(-1)
                for _, model in (original, candidate)
            )
        owners = np.repeat([place[row.user] for row in part], target.sum(1).cpu().numpy())
        argmax_p, argmax_q = (x[:, Vocabulary.SPECIAL :].argmax(-1) for x in (p, q))
        np.add.at(kl, owners, (p.exp() * (p - q)).sum(-1).cpu().numpy())
        np.add.at(changed, owners, (argmax_p != argmax_q).cpu().numpy())
        np.add.at(count, owners, 1)
    return TokenShift(ratio(kl, count, plan), ratio(changed, count, plan))


def top_item_shift(original: Ranking, candidate: Ranking, confidence: float) -> Measure:
    """Prediction shift: share of cases whose first recommended item is another one. Both rankings of the same cases."""
    changed = original.top[:, 0] != candidate.top[:, 0]
    return wilson(int(changed.sum()), len(changed), confidence)


def perplexity(bundle: Bundle, model: nn.Module, restored: Dataset, users: Sequence[int], plan: Bootstrap) -> Measure:
    """exp(mean NLL per token) over the users' training sequences."""
    rows = user_rows(bundle, restored, users)
    total, count = token_nll(model, rows, bundle.table)
    _, place = np.unique([row.user for row in rows], return_inverse=True)
    nll = ratio(np.bincount(place, total), np.bincount(place, count), plan)
    return Measure(*(float(np.exp(x)) for x in (nll.value, nll.low, nll.high)), nll.n)


def last_training_cases(dataset: Dataset, users: Sequence[int]) -> Cases:
    """Each user's last training item after the training items before it; users with fewer than two have no case."""
    histories = [(user, items) for user, items in training_histories(dataset, users) if len(items) > 1]
    return Cases(
        np.array([user for user, _ in histories], np.int64),
        tuple(items[:-1] for _, items in histories),
        np.array([items[-1] for _, items in histories], np.int64),
    )


def forget_set_ranking(
    bundle: Bundle, model: nn.Module, restored: Dataset, forgotten: Sequence[int], plan: Bootstrap
) -> ForgetSetRanking:
    """Rank the last training item of each forgotten user of `restored`, on the bare model."""
    ranking = rank(bundle, model, last_training_cases(restored, forgotten))
    return ForgetSetRanking(mean(ranking.recall(TOP), plan), mean(ranking.ndcg(TOP), plan))


def trade_off(forget_before: float, forget_after: float, retain_before: float, retain_after: float) -> float:
    """U-CAN's Trade-off, from Recall@10 on the forget set and on the retain set before and after unlearning:

        100 (forget_before - forget_after) / forget_before - 100 (retain_before - retain_after) / retain_before

    Percentage points, higher is better; it rewards forgetting without end, below the retrained model as well.
    *Reconstruction*: the paper (arXiv 2602.23400) gives figures and no formula; this one comes within about 1 to 2.5
    points of most of its figures, but not exactly. nan where either recall was zero before.
    """
    if forget_before == 0 or retain_before == 0:
        return float("nan")
    forgotten = (forget_before - forget_after) / forget_before
    lost = (retain_before - retain_after) / retain_before
    return 100 * forgotten - 100 * lost
