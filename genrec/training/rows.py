"""Token rows: how histories become the sequences a model trains on and is scored on.

A row is `[BOS] sid(i1) sid(i2) ...` with the loss on every item from `loss_from` on, so that one pass trains on all
prefixes. A history longer than the window is cut, and each item is a target once: for scoring into chunks that overlap
by half, for training without overlap at places that change every epoch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from genrec.data.sequences import Dataset
from genrec.sid.table import SidTable, Vocabulary


@dataclass(frozen=True)
class Row:
    """Item indices of one sequence, where the targets begin, and who it belongs to (user index, -1 for nobody).

    skip: positions (within items) that are context only, bool [len(items)], or None.
    """

    items: np.ndarray
    loss_from: int = 0
    user: int = -1
    skip: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """Right-padded tokens int64 [batch, 1 + length] and labels [batch, length] (-100 where no loss)."""

    tokens: torch.Tensor
    labels: torch.Tensor
    rows: tuple[Row, ...]

    def beside(self, model: torch.nn.Module) -> "Batch":
        """The same batch on the model's device."""
        device = next(model.parameters()).device
        return replace(self, tokens=self.tokens.to(device), labels=self.labels.to(device))


def chunk(items: Sequence[int], window: int, user: int = -1, loss_from: int = 0) -> list[Row]:
    """Rows of at most `window` items that cover every item from `loss_from` on exactly once as a target."""
    items = np.asarray(items, np.int64)
    rows, end = [], loss_from
    while end < len(items):
        low = max(0, min(end - window // 2, len(items) - window))
        high = min(low + window, len(items))
        rows.append(Row(items[low:high], end - low, user))
        end = high
    return rows


def shifted_chunks(rows: Sequence[Row], window: int, rng: np.random.Generator) -> list[Row]:
    """Rows longer than the window cut into pieces without overlap, the first of random length: for training.

    Every item is a target once per epoch at the cost of one pass, and with other context in the next epoch.
    """
    pieces = []
    for row in rows:
        if len(row.items) <= window:
            pieces.append(row)
            continue
        cuts = np.arange(rng.integers(1, window + 1), len(row.items), window)
        pieces += [Row(items, 0, row.user) for items in np.split(row.items, cuts)]
    return pieces


def collate(rows: Sequence[Row], table: SidTable) -> Batch:
    levels = table.vocabulary.levels
    length = max(len(row.items) for row in rows) * levels
    tokens = np.full((len(rows), 1 + length), Vocabulary.PAD, np.int64)
    labels = np.full((len(rows), length), -100, np.int64)
    tokens[:, 0] = Vocabulary.BOS
    for i, row in enumerate(rows):
        ids = table.tokens[row.items]
        tokens[i, 1 : 1 + ids.size] = ids.ravel()
        target = ids.copy()
        target[: row.loss_from] = -100
        if row.skip is not None:
            target[row.skip] = -100
        labels[i, : ids.size] = target.ravel()
    return Batch(torch.from_numpy(tokens), torch.from_numpy(labels), tuple(rows))


def split_batch(batch: Batch, count: int) -> list[tuple[Batch, float]]:
    """`count` parts of a batch and each one's share of its target tokens; where rows are too few, one without share."""
    total = max(1, int((batch.labels >= 0).sum()))
    parts = []
    for i in range(count):
        rows = slice(i, None, count) if i < len(batch.tokens) else slice(0, 1)
        part = Batch(batch.tokens[rows], batch.labels[rows], batch.rows[rows])
        share = int((part.labels >= 0).sum()) / total if i < len(batch.tokens) else 0.0
        parts.append((part, share))
    return parts


class Collated(Sequence):
    """Batches that are collated when they are asked for."""

    def __init__(self, parts: Sequence[Sequence[Row]], table: SidTable):
        self.parts, self.table = parts, table

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Batch:
        return collate(self.parts[number], self.table)


def bucketed(rows: Sequence[Row], levels: int, batch_tokens: int, rng: np.random.Generator) -> list[list[Row]]:
    """Batches of similar length, each at most `batch_tokens` tokens with padding, in random order."""
    order = rng.permutation(len(rows))
    order = order[np.argsort([len(rows[i].items) for i in order], kind="stable")]
    batches, current, longest = [], [], 0
    for i in order:
        size = 1 + len(rows[i].items) * levels
        if current and max(longest, size) * (len(current) + 1) > batch_tokens:
            batches.append(current)
            current, longest = [], 0
        current.append(rows[i])
        longest = max(longest, size)
    if current:
        batches.append(current)
    return [batches[i] for i in rng.permutation(len(batches))]


def cycle(count: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless index batches int64 [size] that use every one of `count` before any again."""
    pool = np.empty(0, np.int64)
    while True:
        while len(pool) < size:
            pool = np.append(pool, rng.permutation(count))
        yield pool[:size]
        pool = pool[size:]


def token_batches(rows: Sequence[Row], levels: int, tokens: int, rng: np.random.Generator) -> Iterator[list[Row]]:
    """`bucketed` without end: all rows once before any again, in new batches each time round."""
    while True:
        yield from bucketed(rows, levels, tokens, rng)


def token_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """NLL of every target token (nat), 0 where there is no loss: float32 [batch, length].

    Right padding needs no mask under causal attention. The result is on the model's device.
    """
    batch = batch.beside(model)
    logits = model(input_ids=batch.tokens[:, :-1], use_cache=False).logits.float()
    return F.cross_entropy(logits.transpose(1, 2), batch.labels, ignore_index=-100, reduction="none")


def batch_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean NLL per target token (nat)."""
    return token_losses(model, batch).sum() / (batch.labels >= 0).sum().clamp(min=1)


@torch.inference_mode()
def token_nll(
    model: torch.nn.Module, rows: Sequence[Row], table: SidTable, batch_tokens: int = 25_600
) -> tuple[np.ndarray, np.ndarray]:
    """Summed NLL (nat) and number of target tokens of each row: float64 [rows], int64 [rows]."""
    rows = [replace(row) for row in rows]  # a row given twice has two places
    total, count = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    place = {id(row): i for i, row in enumerate(rows)}
    for part in bucketed(rows, table.vocabulary.levels, batch_tokens, np.random.default_rng(0)):
        batch = collate(part, table)
        where = [place[id(row)] for row in part]
        total[where] = token_losses(model, batch).sum(1).double().cpu().numpy()
        count[where] = (batch.labels >= 0).sum(1).numpy()
    return total, count


def chunk_all(histories: Iterable[tuple[int, Sequence[int]]], window: int) -> list[Row]:
    """Chunks of many users for scoring: (user index, items) pairs -> rows."""
    return [row for user, items in histories for row in chunk(items, window, user)]


def trained_rows(dataset: Dataset) -> list[Row]:
    """`whole` of all that training may see of `dataset`, its users in order."""
    return whole((int(user), dataset.training_rows(user)) for user in dataset.trained_users)


def whole(histories: Iterable[tuple[int, Sequence[int]]]) -> list[Row]:
    """One row per user for training, which cuts them anew each epoch: (user index, items) pairs -> rows."""
    return [Row(np.asarray(items, np.int64), 0, user) for user, items in histories]
