"""Rivals against slow oracles, and against each other on histories that follow a chain."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from genrec.data.sequences import TEST, TRAIN, VALID, Dataset
from genrec.errors import ConfigError, DataError
from genrec.evaluation.ranking import TOP, Cases, held_out, popularity_ranks, rank_scores, validation_cases
from genrec.rivals import RIVALS, check_rivals, sasrec
from genrec.rivals_params import ItemKnnParams, RivalsParams, SasRecParams
from genrec.training.best import BestEpoch

ITEMS, LENGTH = 40, 9
SMALL = RivalsParams(
    validation_users=60,
    sasrec=SasRecParams(
        hidden=32, layers=1, heads=2, feed_forward=64, dropout=0.1, window=6, epochs=8, batch_tokens=256,
        learning_rate=1e-2,
    ),
    item_knn=ItemKnnParams(neighbours=5, shrinkage=2.0, recency=0.8),
)  # fmt: skip


@pytest.fixture(scope="module")
def chain():
    """300 histories without repeats of which nine in ten items follow the one before; item 39 is in nobody's."""
    rng = np.random.default_rng(0)
    circle = rng.permutation(ITEMS - 1)
    follows = dict(zip(circle, np.roll(circle, -1), strict=True))
    histories = np.empty((300, LENGTH), np.int32)
    for history in histories:
        others = iter(rng.permutation(ITEMS - 1))
        history[0] = next(others)
        for at in range(1, LENGTH):
            following = follows[history[at - 1]]
            if rng.random() < 0.1 or following in history[:at]:
                following = next(item for item in others if item not in history[:at])
            history[at] = following
    return Dataset(
        item_ids=tuple(f"i{i:02d}" for i in range(ITEMS)), titles=("",) * ITEMS, texts=("",) * ITEMS, concepts={},
        user_ids=tuple(f"u{u:03d}" for u in range(300)), offsets=np.arange(301) * LENGTH, items=histories.ravel(),
        split=np.tile(np.array([TRAIN] * (LENGTH - 2) + [VALID, TEST], np.int8), 300),
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted(chain):
    return SimpleNamespace(**{name: fit(chain, SMALL, 0, None) for name, fit in RIVALS.items()})


def test_sasrec_learns_the_chain_and_popularity_cannot(chain, fitted):
    cases = held_out(chain)
    sasrec, popularity = (rank_scores(m.scores, cases).ndcg(10).mean() for m in (fitted.sasrec, fitted.popularity))
    assert popularity < 0.3
    assert sasrec > 0.6


def test_a_seed_decides_all_weights_of_sasrec(chain, fitted):
    brief = SMALL.model_copy(update={"sasrec": SMALL.sasrec.model_copy(update={"epochs": 1})})
    first, again, other = (RIVALS["sasrec"](chain, brief, seed).network.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["items.weight"], other["items.weight"])


def test_sasrec_scores_a_batch_as_each_history_alone(chain, fitted):
    histories = [chain.history(u)[: 1 + u % LENGTH] for u in range(20)]
    found = fitted.sasrec.scores(histories)
    assert found.dtype == np.float32
    assert found.shape == (20, ITEMS)
    for row, history in zip(found, histories, strict=True):
        alone = torch.from_numpy(history[-SMALL.sasrec.window :].astype(np.int64))[None]
        np.testing.assert_allclose(row, fitted.sasrec.network(alone)[0, -1].detach().numpy(), atol=1e-4)


def test_sasrec_does_not_look_ahead(chain, fitted):
    """Every position of one pass has the logits of a pass over its prefix alone."""
    network, items = fitted.sasrec.network, torch.from_numpy(chain.history(3)[:6].astype(np.int64))[None]
    whole = network(items).detach()
    for end in range(1, 7):
        torch.testing.assert_close(whole[:, end - 1], network(items[:, :end])[:, -1].detach(), atol=1e-4, rtol=1e-4)
    changed = items.clone()
    changed[0, -1] = (changed[0, -1] + 1) % ITEMS
    torch.testing.assert_close(network(changed)[:, :-1], network(items)[:, :-1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(network(changed)[:, -1], network(items)[:, -1], atol=1e-2)


def test_sasrec_refuses_an_empty_history_and_heads_that_do_not_divide(fitted):
    with pytest.raises(DataError, match="A history is empty"):
        fitted.sasrec.scores([np.array([1]), np.array([], np.int64)])
    with pytest.raises(ValidationError, match="hidden = 30 is no multiple of heads = 4"):
        SasRecParams(hidden=30, heads=4)


def test_the_best_epoch_is_kept_with_the_weights_it_had():
    model, scores = torch.nn.Linear(1, 1), iter([0.1, 0.3, 0.3, 0.2])
    best = BestEpoch(lambda model: next(scores))
    for value in range(4):
        torch.nn.init.constant_(model.weight, value)
        best.look(model)
    assert (best.score, best.state["weight"].item()) == (0.3, 1)


def test_an_interrupted_sasrec_goes_on_and_ends_the_same(chain, fitted, tmp_path, monkeypatch):
    """Killed in the seventh of eight epochs; on other data, or from another seed, its checkpoint is not taken."""
    path, original, epochs = tmp_path / "sasrec.safetensors", sasrec.shifted_chunks, []

    def killed(*arguments):
        epochs.append(1)
        if len(epochs) == 8:  # the schedule asks for the first epoch once more
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sasrec, "shifted_chunks", killed)
        with pytest.raises(KeyboardInterrupt):
            sasrec.fit(chain, SMALL, 0, path)
    shutil.copy(path, tmp_path / "other.safetensors")
    epochs.clear()
    monkeypatch.setattr(sasrec, "shifted_chunks", lambda *given: epochs.append(1) or original(*given))
    resumed, whole = sasrec.fit(chain, SMALL, 0, path).network.state_dict(), fitted.sasrec.network.state_dict()
    assert len(epochs) == 3
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert not path.exists()
    epochs.clear()
    sasrec.fit(chain, SMALL, 1, tmp_path / "other.safetensors")
    assert len(epochs) == 9


def test_item_knn_equals_a_double_loop(chain, fitted):
    section, users = SMALL.item_knn, [set(chain.training_rows(u).tolist()) for u in range(300)]
    similarity = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        for j in range(ITEMS):
            both = sum(i in had and j in had for had in users)
            sizes = sum(i in had for had in users) * sum(j in had for had in users)
            similarity[i, j] = both / (sizes**0.5 + section.shrinkage) if i != j else 0
        order = sorted(range(ITEMS), key=lambda j, i=i: (-similarity[i, j], j))
        similarity[i, order[section.neighbours :]] = 0
    histories = [chain.history(u)[: 1 + u % LENGTH] for u in range(30)]
    for row, history in zip(fitted.item_knn.scores(histories), histories, strict=True):
        newest_first = enumerate(history[::-1])
        np.testing.assert_allclose(row, sum(section.recency**age * similarity[i] for age, i in newest_first), rtol=1e-5)


def test_an_item_nobody_had_says_nothing_and_its_ties_go_by_item(fitted):
    nobody = np.array([ITEMS - 1])
    assert not fitted.item_knn.scores([nobody]).any()
    found = rank_scores(fitted.item_knn.scores, Cases(np.array([0]), (nobody,), np.array([7])))
    assert found.top[0].tolist() == list(range(TOP))
    assert found.rank.tolist() == [7]
    assert np.isfinite(fitted.sasrec.scores([nobody])).all()


def test_popularity_ranks_as_the_gate_has_it(chain, fitted):
    cases = held_out(chain)
    assert rank_scores(fitted.popularity.scores, cases).rank.tolist() == popularity_ranks(chain, cases).tolist()


def test_ranks_by_score_equal_a_sort_of_each_user():
    rng = np.random.default_rng(1)
    scores = rng.integers(5, size=(23, 8)).astype(np.float32)  # many ties
    cases = Cases(np.arange(23), tuple(np.array([i] * (1 + i % 3)) for i in range(23)), rng.integers(8, size=23))
    found = rank_scores(lambda histories: scores[[h[0] for h in histories]], cases, batch_size=5)
    for i, target in enumerate(cases.targets):
        order = sorted(range(8), key=lambda item, i=i: (-scores[i, item], item))
        assert found.rank[i] == order.index(target)
        assert found.top[i].tolist() == [*order, -1, -1]


def test_rivals_are_known_by_name_and_sasrec_always_takes_part():
    assert check_rivals(["popularity"]) == ("sasrec", "popularity")
    with pytest.raises(ConfigError, match=r"Unknown rival 'itemknn'\. Known rivals near it: item_knn"):
        check_rivals(["itemknn"])


def test_a_best_epoch_needs_validation_items(chain):
    with pytest.raises(DataError, match="0 users have a validation item"):
        validation_cases(replace(chain, split=np.zeros_like(chain.split)), 10, 0)
