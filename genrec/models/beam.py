"""Constrained beam search over the SID tree, and the exact scorer that is its oracle.

Beams of one user are positions of one sequence, not rows of a bigger batch (methods.md, "Decoding"): after the prompt
each step feeds the k surviving tokens of a user side by side under a 4D mask that lets a token see the prompt and its
own ancestors, with equal position ids. The key-value cache only grows; it is never copied or reordered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from genrec.errors import DataError
from genrec.sid.index import DecodeIndex
from genrec.sid.table import SidTable, Vocabulary

CHUNK = 512
"""Items that are scored exactly at once."""


@dataclass(frozen=True)
class Prompts:
    """Left-padded histories: tokens int64 [batch, length], mask bool [batch, length] (True where a token is)."""

    tokens: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device) -> "Prompts":
        return replace(self, tokens=self.tokens.to(device), mask=self.mask.to(device))


def encode_histories(histories: Sequence[Sequence[int]], table: SidTable, window: int) -> Prompts:
    """[BOS] and the SIDs of the last `window` items of each history (item indices); an empty history is refused."""
    rows = []
    for number, history in enumerate(histories):
        if len(history) == 0:
            raise DataError(f"History {number} is empty. Give at least one known item.")
        items = np.asarray(history, np.int64)[-window:]
        rows.append(np.concatenate([[Vocabulary.BOS], table.tokens[items].ravel()]))
    length = max(map(len, rows))
    tokens = np.full((len(rows), length), Vocabulary.PAD, np.int64)
    for row, filled in zip(tokens, rows, strict=True):
        row[length - len(filled) :] = filled
    tokens = torch.from_numpy(tokens)
    return Prompts(tokens, tokens != Vocabulary.PAD)


def by_length(histories: Sequence[Sequence[int]], window: int | None, size: int) -> list[np.ndarray]:
    """Positions of `histories` in batches of at most `size`, near in length so that little is padded.

    window: items a prompt is cut to, None for no limit.
    """
    order = np.argsort([min(len(history), window or len(history)) for history in histories], kind="stable")
    return [order[at : at + size] for at in range(0, len(order), size)]


def prefill(model, prompts: Prompts):
    """Log-probabilities [batch, vocabulary] of the token after each prompt, the cache, and that token's position
    [batch]."""
    positions = (prompts.mask.long().cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=prompts.tokens, attention_mask=prompts.mask.long(), position_ids=positions,
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    return out.logits[:, -1].float().log_softmax(-1), out.past_key_values, positions[:, -1] + 1


def continued(
    model: torch.nn.Module, tokens: torch.Tensor, visible: torch.Tensor, positions: torch.Tensor, cache
) -> torch.Tensor:
    """Log-probabilities float32 [batch, tokens, vocabulary] after `tokens` [batch, tokens], which join the cache.

    visible: bool [batch, tokens, keys], what each token sees of prompt, earlier tokens and these; positions: position
    ids that broadcast to `tokens`.
    """
    out = model(
        input_ids=tokens, attention_mask=_additive(visible, model.dtype), position_ids=positions.expand_as(tokens),
        past_key_values=cache, use_cache=True,
    )  # fmt: skip
    return out.logits.float().log_softmax(-1)


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """bool [batch, queries, keys] -> the additive 4D mask a Hugging Face model takes as it is."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


@torch.inference_mode()
def beam_search(
    model: torch.nn.Module,
    prompts: Prompts,
    index: DecodeIndex,
    beam: int,
    deny: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Top items by log-probability under the full-vocabulary softmax, restricted to SIDs that exist and are allowed.

    deny: bool [items], True removes the item before the search; seen: items int64 [batch, width] that are removed for
    their user alone, filled up with -1. Model, prompts, index and masks lie on one device, which no step waits for.
    Returns items int64 [batch, k] and log-probabilities float32 [batch, k], best first, k = min(beam, items);
    where fewer items are allowed or reached the tail is -1 with -inf.
    """
    beam = min(beam, index.items)
    masks = index.masks(deny, seen)
    batch = len(prompts.tokens)
    device = prompts.tokens.device
    logp, cache, position = prefill(model, prompts)
    logp = logp[:, None]  # [batch, beams, vocabulary]
    node = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    score = torch.zeros(batch, 1, device=device)
    ancestors = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)  # [batch, beams, tokens fed so far]
    for level in range(index.levels):
        offset, size = index.token_offset[level], index.sizes[level]
        if masks.dense[level] is not None:
            child = masks.dense[level][node]  # [batch, beams, K]
            lp = logp[..., offset : offset + size]
        else:
            child = index.start[level][node][..., None] + torch.arange(index.widest[level], device=device)
            child = child.masked_fill(child >= index.start[level][node + 1][..., None], -1)
            lp = logp.gather(-1, offset + index.code[level][child.clamp(min=0)])
        exists = child >= 0
        if masks.dense[level] is None and masks.live is not None:
            exists &= masks.live[level][child.clamp(min=0)]
        candidates = (score[..., None] + lp).masked_fill(~exists, -torch.inf).flatten(1)
        if masks.closed is not None:
            candidates.scatter_add_(1, *_closed(index, level, masks.closed[level], node, score))
        score, pick = candidates.topk(min(beam, candidates.shape[1]), dim=1)
        parent = pick // child.shape[-1]
        node = child.flatten(1).gather(1, pick).clamp(min=0)
        if level + 1 == index.levels:
            break
        count = node.shape[1]
        ancestors = ancestors.gather(1, parent[..., None].expand(-1, -1, ancestors.shape[-1]))
        own = torch.eye(count, dtype=torch.bool, device=device).expand(batch, -1, -1)
        ancestors = torch.cat([ancestors, own], -1)
        visible = torch.cat([prompts.mask[:, None].expand(-1, count, -1), ancestors], -1)
        logp = continued(model, offset + index.code[level][node], visible, (position + level)[:, None], cache)
    items = index.leaf_item[node].masked_fill(score == -torch.inf, -1)
    if items.shape[1] < beam:
        pad = (0, beam - items.shape[1])
        items = torch.nn.functional.pad(items, pad, value=-1)
        score = torch.nn.functional.pad(score, pad, value=-torch.inf)
    return items, score


def _closed(
    index: DecodeIndex, level: int, closed: torch.Tensor, node: torch.Tensor, score: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of `closed` nodes among the candidates of a step and -inf for each; 0 where its parent is in no beam."""
    child = closed.clamp(min=0)
    parent = index.parent[level][child]
    dense = index.dense[level] is not None
    width = index.sizes[level] if dense else index.widest[level]
    place = index.code[level][child] if dense else child - index.start[level][parent]
    alive = node.masked_fill(score == -torch.inf, -1)  # beams that died point at node 0 as well
    held, beam = (alive[:, None] == parent.masked_fill(closed < 0, -2)[..., None]).max(-1)
    return beam * width + place, torch.where(held, -torch.inf, 0.0)


@torch.inference_mode()
def greedy(model: torch.nn.Module, prompts: Prompts, count: int) -> torch.Tensor:
    """The likeliest token, `count` times, without any constraint: int64 [batch, count]."""
    logp, cache, position = prefill(model, prompts)
    tokens = logp.argmax(-1, keepdim=True)
    for fed in range(1, count):
        visible = torch.nn.functional.pad(prompts.mask, (0, fed), value=True)
        logp = continued(model, tokens[:, -1:], visible[:, None], (position + fed - 1)[:, None], cache)
        tokens = torch.cat([tokens, logp[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens


@torch.inference_mode()
def exact_scores(
    model: torch.nn.Module, prompts: Prompts, table: SidTable, chunk: int = CHUNK, items: np.ndarray | None = None
) -> torch.Tensor:
    """log p(SID | history) of every item, or of `items` (indices), teacher-forced: float32 [batch, items].

    Each item's path is fed as its own positions after the shared prompt, `chunk` items at a time.
    """
    logp, cache, position = prefill(model, prompts)
    wanted = table.tokens if items is None else table.tokens[items]
    tokens = torch.from_numpy(wanted).to(prompts.tokens.device)  # [items, levels]
    batch, fed = len(prompts.tokens), tokens.shape[1] - 1
    scores = []
    for part in tokens.split(chunk):
        n = len(part)
        path = torch.ones(fed, fed, dtype=torch.bool, device=tokens.device).tril()
        own = torch.block_diag(*[path] * n) if n > 1 else path
        visible = torch.cat([prompts.mask[:, None].expand(-1, n * fed, -1), own.bool().expand(batch, -1, -1)], -1)
        places = position[:, None] + torch.arange(fed, device=tokens.device).repeat(n)
        later = continued(model, part[:, :-1].reshape(1, -1).expand(batch, -1), visible, places, cache)
        cache.crop(-n * fed)
        later = later.view(batch, n, fed, -1)
        later = later.gather(-1, part[None, :, 1:, None].expand(batch, -1, -1, -1))[..., 0].sum(-1)
        scores.append(logp[:, part[:, 0]] + later)
    return torch.cat(scores, 1)
