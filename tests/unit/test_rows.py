"""Rows: every target once, batches within their budget, and the NLL against a loop over tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.training.rows import (
    Row,
    batch_loss,
    bucketed,
    chunk,
    chunk_all,
    collate,
    cycle,
    shifted_chunks,
    token_nll,
    whole,
)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_chunks_cover_every_item_once_as_a_target(length, window, data):
    loss_from = data.draw(st.integers(0, length))
    items = np.arange(100, 100 + length)
    targets = []
    for row in chunk(items, window, user=4, loss_from=loss_from):
        assert len(row.items) <= window
        assert row.user == 4
        assert row.items.tolist() == list(range(row.items[0], row.items[-1] + 1))  # a contiguous piece
        assert 0 <= row.loss_from < len(row.items)
        # What precedes a target is at least half a window, or all there is; a full window where the row ends.
        start = row.items[0] - 100
        assert start == 0 or row.loss_from >= window // 2
        assert start == 0 or len(row.items) == window
        targets += row.items[row.loss_from :].tolist()
    assert targets == list(range(100 + loss_from, 100 + length))


def test_chunks_of_many_users_keep_their_owner():
    rows = chunk_all([(3, [1, 2, 3]), (9, [4]), (5, [])], window=2)
    assert [(row.user, row.items[row.loss_from :].tolist()) for row in rows] == [(3, [1, 2]), (3, [3]), (9, [4])]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=6), st.integers(1, 12), st.integers(0, 9))
def test_training_pieces_cover_every_item_once(lengths, window, seed):
    rows = whole((user, range(100 * user, 100 * user + n)) for user, n in enumerate(lengths))
    assert [(row.user, len(row.items), row.loss_from) for row in rows] == [(u, n, 0) for u, n in enumerate(lengths)]
    pieces = shifted_chunks(rows, window, np.random.default_rng(seed))
    assert all(0 < len(piece.items) <= window and piece.loss_from == 0 for piece in pieces)
    assert all((piece.items // 100 == piece.user).all() for piece in pieces)
    assert np.concatenate([[], *(piece.items for piece in pieces)]).tolist() == [i for row in rows for i in row.items]


def test_training_pieces_begin_elsewhere_in_each_epoch():
    rows = whole([(0, range(30))])
    starts = [[piece.items[0] for piece in shifted_chunks(rows, 8, np.random.default_rng(e))] for e in range(40)]
    assert {start[1] for start in starts} == set(range(1, 9))
    assert starts[0] == [piece.items[0] for piece in shifted_chunks(rows, 8, np.random.default_rng(0))]


def test_collate_pads_on_the_right_and_labels_targets_only(table):
    rows = [
        Row(np.array([4, 7, 1]), loss_from=1),
        Row(np.array([2])),
        Row(np.array([5, 6]), skip=np.array([True, False])),
    ]
    batch = collate(rows, table)
    levels = table.vocabulary.levels
    assert batch.tokens.shape == (3, 1 + 3 * levels)
    assert batch.labels.shape == (3, 3 * levels)
    ids = table.tokens
    assert batch.tokens[0].tolist() == [1, *ids[4], *ids[7], *ids[1]]
    assert batch.labels[0].tolist() == [-100] * levels + [*ids[7], *ids[1]]
    assert batch.tokens[1].tolist() == [1, *ids[2]] + [0] * 2 * levels
    assert batch.labels[1].tolist() == [*ids[2]] + [-100] * 2 * levels
    assert batch.labels[2].tolist() == [-100] * levels + [*ids[6]] + [-100] * levels


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=0, max_size=50), st.integers(10, 200), st.integers(0, 5))
def test_buckets_use_every_row_once_within_the_token_budget(lengths, budget, seed):
    rows = [Row(np.arange(n), user=i) for i, n in enumerate(lengths)]
    batches = bucketed(rows, 4, budget, np.random.default_rng(seed))
    assert sorted(row.user for part in batches for row in part) == list(range(len(rows)))
    for part in batches:
        padded = len(part) * max(1 + 4 * len(row.items) for row in part)
        assert padded <= budget or len(part) == 1


def test_buckets_hold_similar_lengths_in_an_order_of_their_own():
    rows = [Row(np.arange(1 + i % 20)) for i in range(200)]
    batches = bucketed(rows, 4, 400, np.random.default_rng(0))
    filled = sum(1 + 4 * len(row.items) for part in batches for row in part)
    padded = sum(len(part) * max(1 + 4 * len(row.items) for row in part) for part in batches)
    assert filled > 0.9 * padded
    longest = [max(len(row.items) for row in part) for part in batches]
    assert longest != sorted(longest)
    again = bucketed(rows, 4, 400, np.random.default_rng(0))
    assert [[id(row) for row in part] for part in again] == [[id(row) for row in part] for part in batches]


@pytest.mark.parametrize(("count", "size"), [(5, 3), (3, 5), (4, 4), (1, 2)])
def test_cycles_use_all_before_any_again(count, size):
    stream = cycle(count, size, np.random.default_rng(0))
    batches = [next(stream) for _ in range(4 * count)]
    assert {len(batch) for batch in batches} == {size}
    drawn = np.concatenate(batches)
    rounds = [drawn[start : start + count].tolist() for start in range(0, len(drawn), count)]
    assert all(sorted(part) == list(range(count)) for part in rounds)
    assert count == 1 or len({tuple(part) for part in rounds}) > 1


@torch.no_grad()
def slow_nll(model, row, table):
    """NLL of a row's targets in float64, one prefix at a time."""
    tokens = [1, *table.tokens[row.items].ravel()]
    nll, count = 0.0, 0
    for at in range(1 + row.loss_from * table.vocabulary.levels, len(tokens)):
        if row.skip is not None and row.skip[(at - 1) // table.vocabulary.levels]:
            continue
        logits = model(input_ids=torch.tensor([tokens[:at]]), use_cache=False).logits[0, -1]
        nll -= logits.log_softmax(-1)[tokens[at]].item()
        count += 1
    return nll, count


@pytest.fixture(scope="module")
def mixed():
    rng = np.random.default_rng(2)
    rows = [Row(rng.integers(59, size=n), loss_from, user=n) for n, loss_from in ((1, 0), (8, 5), (3, 1), (5, 0))]
    return [*rows, Row(np.array([3, 4, 5]), 1, skip=np.array([False, True, False]))]


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_nll_equals_a_loop_over_tokens(bundle, model, mixed, table, batch_tokens):
    total, count = token_nll(model, mixed, table, batch_tokens)
    slow = [slow_nll(bundle.model().double(), row, table) for row in mixed]
    np.testing.assert_allclose(total, [nll for nll, _ in slow], atol=1e-4)
    assert count.tolist() == [n for _, n in slow]
    assert total.dtype == np.float64


def test_a_row_given_twice_is_measured_twice(model, mixed, table):
    total, count = token_nll(model, [mixed[1], mixed[0], mixed[1]], table)
    assert total[0] == pytest.approx(total[2])
    assert count[0] == count[2] > 0


def test_batch_loss_is_the_mean_over_target_tokens(model, mixed, table):
    total, count = token_nll(model, mixed, table)
    with torch.no_grad():
        loss = batch_loss(model, collate(mixed, table)).item()
    assert loss == pytest.approx(total.sum() / count.sum(), abs=1e-5)
