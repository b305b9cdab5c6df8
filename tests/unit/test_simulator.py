import time
from collections import Counter

import numpy as np
import pytest

from genrec.config import SimulatedParams
from genrec.data.simulator import simulate
from genrec.data.tables import repeated_rows, unordered_rows


@pytest.fixture(scope="module")
def shop():
    return simulate(SimulatedParams(), seed=0)


def test_the_seed_decides_everything_and_it_is_quick(shop):
    started = time.perf_counter()
    again = simulate(SimulatedParams(), seed=0)
    assert time.perf_counter() - started < 3
    assert again.interactions.equals(shop.interactions)
    assert again.items.equals(shop.items)
    assert not simulate(SimulatedParams(), seed=1).interactions.equals(shop.interactions)


def test_sizes_are_those_asked_for(shop):
    lengths = np.array(list(Counter(shop.interactions["user_id"].to_pylist()).values()))
    assert len(lengths) == SimulatedParams().users
    assert lengths.min() >= 6
    assert lengths.mean() == pytest.approx(SimulatedParams().mean_length, abs=2)
    assert len(set(shop.items["title"].to_pylist())) == 320
    in_series = sum(", part " in title for title in shop.items["title"].to_pylist()) / 320
    assert 0.2 < in_series < 0.5


def test_concepts_cover_a_small_part_of_the_shop_each(shop):
    sizes = Counter(concept for tags in shop.items["concepts"].to_pylist() for concept in tags)
    assert 10 <= len(sizes) <= 12
    assert min(sizes.values()) / 320 >= 0.025
    assert max(sizes.values()) / 320 <= 0.18
    assert {len(tags) for tags in shop.items["concepts"].to_pylist()} == {1, 2}


def test_rows_are_in_time_order_without_repeats_and_with_a_few_ties(shop):
    assert len(unordered_rows(shop.interactions)) == 0
    assert len(repeated_rows(shop.interactions)) == 0
    frame = shop.interactions.to_pandas()
    ties = (frame.groupby("user_id")["timestamp"].diff() == 0).mean()
    assert 0 < ties < 0.03


def test_nearly_every_item_and_user_survives_the_five_core(shop):
    rare = sum(count < 5 for count in Counter(shop.interactions["item_id"].to_pylist()).values())
    assert rare <= 3


def test_the_last_item_predicts_the_next_much_better_than_popularity(shop):
    frame = shop.interactions.to_pandas()
    frame["item"] = frame["item_id"].str[1:].astype(int)
    frame["previous"] = frame.groupby("user_id")["item"].shift()
    test = frame.groupby("user_id").tail(1)
    train = frame.drop(test.index)
    popularity = np.bincount(train["item"], minlength=320).astype(float)
    follows = np.zeros((320, 320))
    pairs = train.dropna()
    np.add.at(follows, (pairs["previous"].astype(int), pairs["item"]), 1)
    seen = train.groupby("user_id")["item"].apply(list)

    def hit_rate(score):
        hits = 0
        for row in test.itertuples():
            ranked = score(row).copy()
            ranked[seen[row.user_id]] = -1
            hits += row.item in np.argsort(-ranked)[:10]
        return hits / len(test)

    by_last = hit_rate(lambda row: follows[int(row.previous)] + 1e-6 * popularity)
    assert by_last > 2 * hit_rate(lambda row: popularity)


def test_parts_of_a_series_are_mostly_bought_in_order(shop):
    titles = shop.items["title"].to_pylist()
    following = {i: i + 1 for i in range(319) if ", part " in titles[i + 1] and not titles[i + 1].endswith("part 1")}
    order = shop.interactions.to_pandas().assign(item=lambda f: f["item_id"].str[1:].astype(int))
    right = wrong = 0
    for items in order.groupby("user_id")["item"].apply(list):
        place = {item: position for position, item in enumerate(items)}
        for part, sequel in following.items():
            if part in place and sequel in place:
                right, wrong = right + (place[part] < place[sequel]), wrong + (place[part] > place[sequel])
    assert right > 10 * wrong


@pytest.mark.parametrize("params", [SimulatedParams(users=20, items=40), SimulatedParams(users=30, items=3000)])
def test_small_and_large_shops_can_be_made(params):
    assert len(simulate(params, 3).items) == params.items
