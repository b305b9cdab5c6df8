"""What the report shows beside the gates: nobody alone, and what a loop over lists counts."""

from dataclasses import replace

import numpy as np
import pytest

from genrec.evaluation.evidence import LEAST, MOVED, curve, neighbours
from genrec.evaluation.forgetting import UserForgetting
from genrec.evaluation.ranking import Ranking
from genrec.evaluation.statistics import Measure
from genrec.sid.table import SidTable, Vocabulary

AUC = Measure(0.6, 0.5, 0.7, 30)


def likelihoods(forgotten: int, unseen: int) -> UserForgetting:
    rng = np.random.default_rng(0)
    return UserForgetting(rng.normal(1, 0.2, forgotten), rng.normal(1.2, 0.2, unseen), np.zeros((forgotten, 5), int))


@pytest.mark.parametrize(("forgotten", "unseen"), [(LEAST - 1, 500), (500, LEAST - 1), (1, 1)])
def test_a_few_people_have_no_curve_and_no_rate(forgotten, unseen):
    found = curve(likelihoods(forgotten, unseen), AUC, 0.95)
    assert (found.points, found.auc, found.tpr) == ((), None, None)
    assert (found.forgotten, found.unseen, found.least) == (forgotten, unseen, LEAST)


def test_enough_people_have_a_curve_that_holds_none_of_their_scores():
    people = likelihoods(LEAST, LEAST)
    found = curve(people, AUC, 0.95)
    assert found.auc is AUC
    assert (found.tpr.n, found.points[0][0], found.points[-1]) == (LEAST, 0, (1, 1))
    said = {value for point in found.points for value in point}
    assert not said & set(np.concatenate([people.forgotten, people.unseen]).round(4))


def test_neighbours_are_the_items_a_loop_finds_with_the_shares_and_places_it_counts():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 3, (60, 3))
    digits = np.arange(60)[:, None]
    table = SidTable(tuple(f"i{i}" for i in range(60)), np.hstack([codes, digits]), Vocabulary((3, 3, 3, 60)))
    before, after = (
        Ranking(np.array([rng.permutation(60)[:10] for _ in range(40)]), np.zeros(40, int), np.zeros(40))
        for _ in range(2)
    )
    before.top[:5, 7:] = -1  # lists that the search did not fill
    forgotten, gone = np.array([4, 11]), np.zeros(60, bool)
    gone[[4, 11, 20]] = True
    titles = tuple(f"title {i}" for i in range(60))
    found = neighbours(table, titles, forgotten, gone, 2, before, after)

    shared = {i: max(sum(codes[i] == codes[f]) for f in forgotten) for i in range(60)}
    near = [i for i in range(60) if shared[i] >= 2 and not gone[i]]
    assert (found.total, found.least, found.levels, found.lists) == (len(near), 2, 3, 40)
    assert len(found.items) == min(MOVED, len(near)) < 60
    for one in found.items:
        item = int(one.item_id[1:])
        assert item in near
        assert (one.shared, one.title) == (shared[item], titles[item])
        for ranking, share, place in ((before, one.before, one.place_before), (after, one.after, one.place_after)):
            places = [list(row).index(item) + 1 for row in ranking.top if item in row]
            assert share == pytest.approx(len(places) / 40)
            assert place == pytest.approx(np.mean(places) if places else np.nan, nan_ok=True)
    changes = [abs(one.after - one.before) for one in found.items]
    assert changes == sorted(changes, reverse=True)
    swapped = neighbours(table, titles, forgotten, gone, 2, after, replace(before))
    assert [one.after for one in swapped.items] == [one.before for one in found.items]
