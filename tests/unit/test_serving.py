"""Recommending: the best items that are neither in the history nor denied."""

from dataclasses import replace

import pytest

from genrec.errors import BundleError
from genrec.models.beam import encode_histories, exact_scores
from genrec.serving import recommend


@pytest.fixture(scope="module")
def ids(bundle):
    return bundle.table.item_ids


@pytest.fixture(scope="module")
def wide(bundle, small):
    """The bundle with a beam as wide as the catalogue, so that lists are exact."""
    return replace(bundle, params=small(bundle.params, "decoding", beam=59))


def exact(bundle, model, history, without):
    """Item ids by exact score."""
    index = bundle.table.index
    prompt = encode_histories([[index[i] for i in history]], bundle.table, bundle.params.architecture.window)
    scores = exact_scores(model, prompt, bundle.table)[0]
    order = [bundle.table.item_ids[i] for i in scores.argsort(descending=True).tolist()]
    return [item for item in order if item not in without], scores


def test_lists_are_the_best_items_outside_history_and_deny_lists(wide, model, ids):
    histories = [list(ids[3:6]), list(ids[20:33]), [ids[50]]]
    favourites = [exact(wide, model, history, set(history))[0] for history in histories]
    own, asked = (favourites[0][0], favourites[1][1]), [favourites[2][0], favourites[0][2]]
    denying = replace(wide, deny=own)
    found = recommend(denying, model, histories, 7, deny=asked)
    for history, entries in zip(histories, found, strict=True):
        expected, scores = exact(wide, model, history, {*history, *own, *asked})
        assert [entry["item_id"] for entry in entries] == expected[:7]
        for entry in entries:
            row = wide.table.index[entry["item_id"]]
            assert entry["title"] == wide.titles[row]
            assert entry["score"] == pytest.approx(scores[row].item(), abs=1e-4)


@pytest.mark.parametrize("k", [1, 10, 30])
def test_k_items_come_back_also_beyond_the_beam(bundle, model, ids, k):
    (entries,) = recommend(bundle, model, [[ids[1]]], k)
    assert len({entry["item_id"] for entry in entries}) == k
    scores = [entry["score"] for entry in entries]
    assert scores == sorted(scores, reverse=True)


def test_lists_come_back_in_the_order_of_the_histories_whatever_the_batches(bundle, model, ids, small):
    histories = [list(ids[3:9]), [ids[50]], list(ids[20:33]), list(ids[7:9]), [ids[1], ids[1], ids[2]]]
    pairs = replace(bundle, params=small(bundle.params, "decoding", batch_size=2))
    for history, entries in zip(histories, recommend(pairs, model, histories, 5), strict=True):
        (alone,) = recommend(bundle, model, [history], 5)
        assert [entry["item_id"] for entry in entries] == [entry["item_id"] for entry in alone]
        assert [entry["score"] for entry in entries] == pytest.approx([entry["score"] for entry in alone], abs=1e-4)


def test_unknown_items_are_passed_over(bundle, model, ids):
    known = recommend(bundle, model, [list(ids[3:6])], 5)
    assert recommend(bundle, model, [["gone", *ids[3:5], "x", ids[5]]], 5, deny=["nobody"]) == known


def test_a_history_of_which_nothing_is_known_is_refused(bundle, model, ids):
    with pytest.raises(BundleError, match="None of the 2 items of history 2 of 2 is known"):
        recommend(bundle, model, [[ids[0]], ["gone", "lost"]], 5)
    with pytest.raises(BundleError, match="None of the 0 items"):
        recommend(bundle, model, [[]], 5)


def test_a_deny_list_of_everything_is_refused(bundle, model, ids):
    with pytest.raises(BundleError, match="Every item of the catalogue is denied"):
        recommend(bundle, model, [[ids[0]]], 5, deny=ids)
    with pytest.raises(BundleError, match="Every item of the catalogue is denied"):
        recommend(replace(bundle, deny=ids[:30]), model, [[ids[0]]], 5, deny=ids[30:])


def test_fewer_come_back_when_fewer_are_left(bundle, model, ids):
    (entries,) = recommend(bundle, model, [[ids[0]]], 5, deny=ids[3:])
    assert {entry["item_id"] for entry in entries} == {ids[1], ids[2]}
    assert recommend(bundle, model, [[ids[0]]], 5, deny=ids[1:]) == [[]]  # the only one left was seen
