"""Pairs of an item's title and SID, in both directions: what ties SID tokens to a text vocabulary."""

from collections.abc import Sequence

import numpy as np
import torch

from genrec.sid.table import SidTable, Vocabulary
from genrec.training.rows import Batch

TITLE_TOKENS = 32
"""Longer titles are cut."""


def title_batch(items: Sequence[int], titles: Sequence[str], tokenizer, table: SidTable) -> Batch:
    """`[BOS] title sid` with the loss on the SID and `[BOS] sid title` with the loss on the title, for each item.

    tokenizer: of a checkpoint; its ids follow those of the SID tokens (`genrec.models.pretrained`).
    """
    texts = tokenizer(list(titles), add_special_tokens=False, truncation=True, max_length=TITLE_TOKENS)["input_ids"]
    pairs = []
    for sid, text in zip(table.tokens[np.asarray(items)], texts, strict=True):
        text = np.array(text, np.int64) + table.vocabulary.size
        pairs += [(text, sid), (sid, text)]
    length = max(len(given) + len(target) for given, target in pairs)
    tokens = np.full((len(pairs), 1 + length), Vocabulary.PAD, np.int64)
    labels = np.full((len(pairs), length), -100, np.int64)
    tokens[:, 0] = Vocabulary.BOS
    for row, label, (given, target) in zip(tokens, labels, pairs, strict=True):
        end = len(given) + len(target)
        row[1 : 1 + end] = np.concatenate([given, target])
        label[len(given) : end] = target
    return Batch(torch.from_numpy(tokens), torch.from_numpy(labels), ())
