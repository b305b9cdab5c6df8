"""SASRec with full softmax cross-entropy: causal self-attention over items (arXiv 1808.09781, loss as in 2309.07602).

Notable choices: the loss is on every position over the whole catalogue, not on sampled negatives; item embeddings are
tied with the output; layers normalise first; the epoch with the best validation NDCG@10 is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from genrec.data.sequences import Dataset
from genrec.errors import DataError
from genrec.evaluation.ranking import rank_scores, validation_cases
from genrec.rivals_params import RivalsParams, SasRecParams
from genrec.training.best import BestEpoch
from genrec.training.loop import Optimisation, run_identity, train
from genrec.training.rows import Row, bucketed, shifted_chunks, trained_rows

NO_TARGET = -100


class Network(nn.Module):
    """Item indices int64 [batch, length] -> logits of the item that follows, [batch, length, items]."""

    def __init__(self, items: int, params: SasRecParams):
        super().__init__()
        self.items = nn.Embedding(items, params.hidden)
        self.positions = nn.Embedding(params.window, params.hidden)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(params.dropout)
        layer = nn.TransformerEncoderLayer(
            params.hidden, params.heads, params.feed_forward, params.dropout, batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(params.hidden)
        self.layers = nn.TransformerEncoder(layer, params.layers, norm, enable_nested_tensor=False)

    def hidden(self, items: torch.Tensor) -> torch.Tensor:
        """[batch, length, hidden]. Right padding changes nothing before it."""
        length, width = items.shape[1], self.items.embedding_dim
        x = self.items(items) * width**0.5 + self.positions.weight[:length]
        causal = nn.Transformer.generate_square_subsequent_mask(length, device=items.device)
        return self.layers(self.dropout(x), mask=causal, is_causal=True)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        return self.hidden(items) @ self.items.weight.T


@dataclass(frozen=True, eq=False)
class SasRec:
    """network: on one device, in eval mode; window: items of history it sees."""

    network: Network
    window: int

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    @torch.inference_mode()
    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Logits of the next item. Raises DataError on an empty history."""
        if any(len(history) == 0 for history in histories):
            raise DataError("A history is empty. Give at least one known item.")
        device = self.network.items.weight.device
        recent = [torch.from_numpy(history[-self.window :].astype(np.int64)) for history in histories]
        hidden = self.network.hidden(pad_sequence(recent, batch_first=True).to(device))
        last = hidden[range(len(recent)), [len(history) - 1 for history in recent]]
        return (last @ self.network.items.weight.T).float().cpu().numpy()


def fit(dataset: Dataset, params: RivalsParams, seed: int, checkpoint: Path | None = None) -> SasRec:
    """Train on all prefixes of the training rows. Raises DataError without validation items."""
    section, cases = params.sasrec, validation_cases(dataset, params.validation_users, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(len(dataset.item_ids), section)
    rows = trained_rows(dataset)

    def batches(epoch: int) -> list[torch.Tensor]:
        rng = np.random.default_rng([seed, epoch])
        pieces = [row for row in shifted_chunks(rows, section.window + 1, rng) if len(row.items) > 1]
        return [collate(part) for part in bucketed(pieces, 1, section.batch_tokens, rng)]

    def ndcg(network: Network) -> float:
        return float(rank_scores(SasRec(network, section.window).scores, cases).ndcg(10).mean())

    optimisation = Optimisation(section.learning_rate, section.weight_decay, section.warmup, section.clip_norm, seed)
    train(
        network, section.epochs, batches, next_item_loss, optimisation, checkpoint=checkpoint,
        identity=run_identity([params, seed, len(dataset.item_ids)], [dataset.offsets, dataset.items, dataset.split]),
        label="sasrec", best=BestEpoch(ndcg),
    )  # fmt: skip
    return SasRec(network, section.window)


def collate(rows: Sequence[Row]) -> torch.Tensor:
    """Right-padded item indices int64 [batch, length], NO_TARGET where a row has ended."""
    items = [torch.from_numpy(row.items.astype(np.int64)) for row in rows]
    return pad_sequence(items, batch_first=True, padding_value=NO_TARGET)


def next_item_loss(network: nn.Module, items: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nat) over the catalogue of every item that has one before it."""
    items = items.to(next(network.parameters()).device)
    logits = network(items[:, :-1].clamp(min=0))
    return F.cross_entropy(logits.float().flatten(0, 1), items[:, 1:].flatten(), ignore_index=NO_TARGET)
