"""The decode index: the SID prefix tree as CSR arrays, dense for the first two levels (after STATIC).

Leaves are items in the lexicographic order of their SIDs, so every node covers one contiguous range of leaves: what may
be recommended below it is the difference of two values of a cumulative sum. Items denied to all are counted for all
nodes once, items seen by one user on the path of each alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from genrec.sid.table import SidTable

DENSE_LEVELS = 2


@dataclass(frozen=True)
class DecodeIndex:
    """Prefix tree of a SID table. Node ids count from 0 within each level; level 0 is the root alone.

    Attributes (per level l = 0 .. L-1, torch tensors on one device):
        start: first child of each node of level l, int64 [nodes_l + 1] (children are nodes of level l + 1)
        code: code of each node of level l + 1 within its level, int64 [nodes_{l+1}]
        parent: node of level l above each node of level l + 1, int64 [nodes_{l+1}]
        dense: child node by (node, code) or -1, int64 [nodes_l, K_l], for the first two levels only, else None
        widest: most children of any node of level l
        leaf: first leaf of each node of level l + 1, then n, int64 [nodes_{l+1} + 1]
        leaf_item, item_leaf: item index of each leaf and leaf of each item, int64 [n]
        token_offset: first token id of each level
        sizes: codes per level
    """

    start: tuple[torch.Tensor, ...]
    code: tuple[torch.Tensor, ...]
    parent: tuple[torch.Tensor, ...]
    dense: tuple[torch.Tensor | None, ...]
    widest: tuple[int, ...]
    leaf: tuple[torch.Tensor, ...]
    leaf_item: torch.Tensor
    item_leaf: torch.Tensor
    token_offset: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def levels(self) -> int:
        return len(self.sizes)

    @property
    def items(self) -> int:
        return len(self.leaf_item)

    @property
    def nbytes(self) -> int:
        groups = (*self.start, *self.code, *self.parent, *self.dense, *self.leaf, self.leaf_item, self.item_leaf)
        return sum(tensor.nbytes for tensor in groups if tensor is not None)

    def to(self, device: torch.device) -> "DecodeIndex":
        """The same index on `device`."""

        def moved(value):
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            return value.to(device) if isinstance(value, torch.Tensor) else value

        return DecodeIndex(*map(moved, vars(self).values()))

    def masks(self, deny: torch.Tensor | None, seen: torch.Tensor | None) -> "Masks":
        """Nodes of each level that lead to no item any more.

        deny: bool [n], removed for all. seen: item indices int64 [batch, width], removed from their row; -1 fills up.
        """
        if deny is None and seen is None:
            return Masks(self.dense, None, None)
        left = torch.ones_like(self.leaf_item) if deny is None else (~deny[self.leaf_item]).long()
        total = _running(left)
        counts = [torch.diff(total[bounds]) for bounds in self.leaf]
        live, dense = None, self.dense
        if deny is not None:
            live = tuple(count > 0 for count in counts)
            dense = tuple(
                None if nodes is None else torch.where(F.pad(leads, (0, 1))[nodes], nodes, -1)  # -1 reads the padding
                for nodes, leads in zip(dense, live, strict=True)
            )
        if seen is None:
            return Masks(dense, live, None)
        at = torch.where(seen < 0, self.items, self.item_leaf[seen.clamp(min=0)]).sort(1).values
        first = F.pad(at[:, 1:] > at[:, :-1], (1, 0), value=True)  # an item seen twice is one item
        gone = _running(first * F.pad(left, (0, 1))[at])
        closed, node = (
            [at.masked_fill(at == self.items, -1)],
            at.clamp(max=self.items - 1),
        )  # of the last level: one item
        for bounds, count, parent in zip(self.leaf[-2::-1], counts[-2::-1], self.parent[:0:-1], strict=True):
            node = parent[node]
            places = torch.searchsorted(at, torch.cat([bounds[node], bounds[node + 1]], 1))
            low, high = gone.gather(1, places).chunk(2, 1)
            closed.append(torch.where(count[node] > high - low, -1, node))
        return Masks(dense, live, tuple(reversed(closed)))


@dataclass(frozen=True)
class Masks:
    """Nodes under which nothing may be recommended, per level; None where nothing is removed.

    live: bool [nodes], False where every item below is denied. dense: that of the index, -1 for the children that are
    not live. closed: int64 [batch, width], nodes whose last items their row has seen, filled up with -1: a few
    positions, where a mask over all nodes would be [batch, nodes].
    """

    dense: tuple[torch.Tensor | None, ...]
    live: tuple[torch.Tensor, ...] | None
    closed: tuple[torch.Tensor, ...] | None


def _running(count: torch.Tensor) -> torch.Tensor:
    """Cumulative sum over the last dimension, with the 0 in front of it."""
    return F.pad(count.cumsum(-1), (1, 0))


def build_index(table: SidTable) -> DecodeIndex:
    """Build the tree on the CPU by sorting once: O(n log n), no Python per item."""
    order = np.lexsort(table.sids.T[::-1])
    sids = table.sids[order].astype(np.int64)
    n, levels = sids.shape
    start, code, parent, dense, widest, leaf = [], [], [], [], [], []
    parent_first = np.array([0, n])  # leaf boundaries of the nodes one level up
    parent_of_leaf = np.zeros(n, np.int64)
    for level in range(levels):
        new = np.ones(n, bool)
        new[1:] = (sids[1:, : level + 1] != sids[:-1, : level + 1]).any(1)
        first = np.flatnonzero(new)
        node_of_leaf = np.cumsum(new) - 1
        child_start = np.append(node_of_leaf[parent_first[:-1]], len(first)) if n else np.array([0, 0])
        start.append(child_start)
        code.append(sids[first, level])
        parent.append(parent_of_leaf[first])
        widest.append(int(np.diff(child_start).max(initial=0)))
        leaf.append(np.append(first, n))
        if level < DENSE_LEVELS:
            lookup = np.full((len(child_start) - 1, table.vocabulary.sizes[level]), -1, np.int64)
            lookup[parent[-1], code[-1]] = np.arange(len(first))
            dense.append(lookup)
        else:
            dense.append(None)
        parent_first, parent_of_leaf = leaf[-1], node_of_leaf

    def tensors(arrays):
        return tuple(None if a is None else torch.as_tensor(a, dtype=torch.int64) for a in arrays)

    return DecodeIndex(
        tensors(start), tensors(code), tensors(parent), tensors(dense), tuple(widest), tensors(leaf),
        *tensors((order, np.argsort(order))),
        tuple(int(o) for o in table.vocabulary.offsets), table.vocabulary.sizes,
    )  # fmt: skip
