"""The decode index against dictionaries of prefixes."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from genrec.sid.index import Masks, build_index
from genrec.sid.table import SidTable, Vocabulary, build_table


def random_table(items, levels, codes, seed):
    drawn = np.random.default_rng(seed).integers(codes, size=(items, levels)).astype(np.int32)
    return build_table([f"i{i:03d}" for i in range(items)], drawn, codes)


TABLES = [random_table(200, 3, 5, 0), random_table(60, 2, 9, 1), random_table(1, 3, 4, 2), random_table(300, 4, 3, 3)]


def prefixes(table, level):
    """Sorted prefixes of `level` + 1 codes -> the items below each."""
    below = {}
    for item, sid in enumerate(table.sids.tolist()):
        below.setdefault(tuple(sid[: level + 1]), []).append(item)
    return dict(sorted(below.items()))


@pytest.mark.parametrize("table", TABLES)
def test_tree_equals_the_prefix_dictionaries(table):
    index = build_index(table)
    order = sorted(range(len(table.sids)), key=lambda i: table.sids[i].tolist())
    assert index.leaf_item.tolist() == order
    assert index.item_leaf.tolist() == [order.index(item) for item in range(len(order))]
    above = [()]
    for level in range(index.levels):
        nodes = prefixes(table, level)
        names = list(nodes)
        assert index.code[level].tolist() == [name[-1] for name in names]
        assert index.parent[level].tolist() == [above.index(name[:-1]) for name in names]
        for number, parent in enumerate(above):
            children = [i for i, name in enumerate(names) if name[:-1] == parent]
            start, end = index.start[level][number], index.start[level][number + 1]
            assert list(range(start, end)) == children
        assert index.widest[level] == max(sum(n[:-1] == p for n in names) for p in above)
        for number, name in enumerate(names):
            low, high = index.leaf[level][number : number + 2]
            assert sorted(index.leaf_item[low:high].tolist()) == nodes[name]
        above = names
    assert index.sizes == table.vocabulary.sizes
    assert index.token_offset == tuple(table.vocabulary.offsets)


@pytest.mark.parametrize("table", TABLES)
def test_dense_levels_hold_every_child_and_nothing_else(table):
    index, above = build_index(table), [()]
    for level in range(index.levels):
        names = list(prefixes(table, level))
        if level >= 2:
            assert index.dense[level] is None
            continue
        expected = np.full((len(above), table.vocabulary.sizes[level]), -1)
        for number, name in enumerate(names):
            expected[above.index(name[:-1]), name[-1]] = number
        np.testing.assert_array_equal(index.dense[level].numpy(), expected)
        above = names


@pytest.mark.parametrize("table", TABLES)
def test_masks_close_exactly_the_nodes_without_an_allowed_item(table):
    index, rng = build_index(table), np.random.default_rng(7)
    assert index.masks(None, None) == Masks(index.dense, None, None)
    shares = (0.0, 0.3, 0.9, 1.0)
    drawn = [rng.permutation(index.items)[: round(share * index.items)] for share in shares]
    twice = [torch.from_numpy(rng.permutation(np.concatenate([items, items[::2]]))) for items in drawn]
    seen = pad_sequence(twice, batch_first=True, padding_value=-1)
    for denied in ([], drawn[1]):
        deny = torch.zeros(index.items, dtype=torch.bool)
        deny[denied] = True
        assert index.masks(None, seen).live is None
        masks = index.masks(deny, seen)
        for level in range(index.levels):
            below = prefixes(table, level).values()
            assert index.masks(deny, None).live[level].tolist() == masks.live[level].tolist()
            assert masks.live[level].tolist() == [any(not deny[i] for i in items) for items in below]
            if index.dense[level] is not None:
                kept = index.dense[level].clone()
                kept[~torch.isin(kept, masks.live[level].nonzero())] = -1
                assert torch.equal(masks.dense[level], kept)
            for row, own in enumerate(drawn):
                gone, seen_below = {*own, *denied}, [node for node, items in enumerate(below) if {*own} & {*items}]
                closed = {node for node in masks.closed[level][row].tolist() if node >= 0}
                assert closed >= {n for n in seen_below if all(i in gone for i in list(below)[n])}
                assert all(i in gone for n in closed for i in list(below)[n])


def test_leaves_follow_the_codes_and_not_the_row_order():
    sids = np.array([[1, 0, 0], [0, 2, 0], [0, 1, 1], [0, 1, 0]], np.int32)
    index = build_index(SidTable(("a", "b", "c", "d"), sids, Vocabulary((3, 3, 8))))
    assert index.leaf_item.tolist() == [3, 2, 1, 0]
    assert index.nbytes == sum(
        t.numel() * 8
        for group in (
            index.start,
            index.code,
            index.parent,
            index.dense,
            index.leaf,
            (index.leaf_item, index.item_leaf),
        )
        for t in group
        if t is not None
    )
