"""The decode index: the SID prefix tree as CSR arrays, dense for the first two levels (after STATIC).

Leaves are items in the lexicographic order of their SIDs, so every node covers one contiguous range of leaves and a
deny mask becomes two look-ups of a cumulative sum per node.
"""

from dataclasses import dataclass

import numpy as np
import torch

from genrec.sid.table import SidTable

DENSE_LEVELS = 2


@dataclass(frozen=True)
class DecodeIndex:
    """Prefix tree of a SID table. Node ids count from 0 within each level; level 0 is the root alone.

    Attributes (per level l = 0 .. L-1, torch tensors on one device):
        start: first child of each node of level l, int64 [nodes_l + 1] (children are nodes of level l + 1)
        code: code of each node of level l + 1 within its level, int64 [nodes_{l+1}]
        dense: child node by (node, code) or -1, int64 [nodes_l, K_l], for the first two levels only, else None
        widest: most children of any node of level l
        leaf_low, leaf_high: leaf range of each node of level l + 1, int64 [nodes_{l+1}]
        leaf_item: item index of each leaf, int64 [n]
        token_offset: first token id of each level
        sizes: codes per level
    """

    start: tuple[torch.Tensor, ...]
    code: tuple[torch.Tensor, ...]
    dense: tuple[torch.Tensor | None, ...]
    widest: tuple[int, ...]
    leaf_low: tuple[torch.Tensor, ...]
    leaf_high: tuple[torch.Tensor, ...]
    leaf_item: torch.Tensor
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
        groups = (self.start, self.code, self.dense, self.leaf_low, self.leaf_high, (self.leaf_item,))
        return sum(t.numel() * t.element_size() for group in groups for t in group if t is not None)

    def allowed(self, deny: torch.Tensor | None) -> tuple[torch.Tensor, ...] | None:
        """Which nodes of each level still lead to an item. `deny` bool [n] or [batch, n]; None allows all.

        Returns per level bool [nodes] or [batch, nodes].
        """
        if deny is None:
            return None
        live = (~deny)[..., self.leaf_item].long().cumsum(-1)
        live = torch.cat([torch.zeros_like(live[..., :1]), live], -1)
        return tuple(live[..., hi] > live[..., lo] for lo, hi in zip(self.leaf_low, self.leaf_high, strict=True))


def build_index(table: SidTable, device: str | torch.device = "cpu") -> DecodeIndex:
    """Build the tree by sorting once: O(n log n), no Python per item."""
    order = np.lexsort(table.sids.T[::-1])
    sids = table.sids[order].astype(np.int64)
    n, levels = sids.shape
    start, code, dense, widest, low, high = [], [], [], [], [], []
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
        widest.append(int(np.diff(child_start).max(initial=0)))
        low.append(first)
        high.append(np.append(first[1:], n))
        if level < DENSE_LEVELS:
            lookup = np.full((len(child_start) - 1, table.vocabulary.sizes[level]), -1, np.int64)
            lookup[parent_of_leaf[first], sids[first, level]] = np.arange(len(first))
            dense.append(lookup)
        else:
            dense.append(None)
        parent_first, parent_of_leaf = np.append(first, n), node_of_leaf

    def tensors(arrays):
        return tuple(None if a is None else torch.as_tensor(a, dtype=torch.int64, device=device) for a in arrays)

    return DecodeIndex(
        tensors(start), tensors(code), tensors(dense), tuple(widest), tensors(low), tensors(high),
        torch.as_tensor(order, dtype=torch.int64, device=device),
        tuple(int(o) for o in table.vocabulary.offsets), table.vocabulary.sizes,
    )  # fmt: skip
