"""`genrec bench train`: what either side trains on, and what is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.bench import train as bench
from genrec.bench.train import Looks, Point, Setting, Trained, sliding_windows, trainer_batch
from genrec.errors import ConfigError
from genrec.models.backbone import Backbone
from genrec.training.rows import Row, batch_loss, collate

SETTING = Setting(epochs=2, loop_epochs=1, minutes=5, batch_size=256, users=20)


def test_every_item_with_a_history_is_one_sample():
    rows = [Row(np.arange(5), user=7), Row(np.array([9]), user=8)]
    samples = sliding_windows(rows, window=3)
    assert [s.items.tolist() for s in samples] == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]
    assert all(s.loss_from == len(s.items) - 1 and s.user == 7 for s in samples)


def test_the_trainer_gets_the_same_loss(bundle, model, table):
    """transformers shifts labels itself; the value is that of our own loss on the same samples."""
    rows = sliding_windows([Row(np.arange(6))], window=3)
    with torch.no_grad():
        theirs = model(**trainer_batch(rows, table)).loss.item()
        assert theirs == pytest.approx(batch_loss(model, collate(rows, table)).item(), abs=1e-5)


def test_the_clock_stands_still_while_looking(monkeypatch):
    now = iter([10.0, 13.0, 100.0, 104.0, 200.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(now))
    looks = Looks(lambda model: 0.5, seconds=7, say=lambda line: None)
    assert not looks.look(None, 1.0)
    assert looks.look(None, 2.0)
    assert [point.seconds for point in looks.points] == [3.0, 7.0]


def test_time_to_quality_is_that_of_the_first_look_that_has_it():
    run = Trained((Point(1, 0.5, 0.1), Point(2, 1, 0.3), Point(4, 2, 0.2)), epoch_tokens=100)
    assert run.seconds_to(0.2) == 2
    assert run.best == 0.3
    assert run.tokens_per_s == 50


def test_both_are_trained_and_compared(bundle, dataset):
    lines = []
    result = bench.run(bundle, dataset, SETTING, lines.append)
    ours, loop = result["ours"], result["trainer"]
    assert [point["epochs"] for point in ours["points"]] == [1, 2]
    assert loop["points"][-1]["epochs"] == 1
    assert len(loop["points"]) >= bench.LOOKS
    assert result["ndcg@10"] == min(ours["best_ndcg@10"], loop["best_ndcg@10"])
    assert result["ratio"] == pytest.approx(loop["seconds_to_quality"] / ours["seconds_to_quality"], rel=0.1)
    trained = [dataset.training_rows(u) for u in range(len(dataset.user_ids))]
    levels = bundle.table.vocabulary.levels
    assert ours["epoch_target_tokens"] == levels * sum(map(len, trained))
    assert loop["epoch_target_tokens"] == levels * sum(len(items) - 1 for items in trained if len(items))
    assert result["cases"] == 20
    speeds = [run["target_tokens_per_s"] for run in (ours, loop)]
    assert result["tokens_ratio"] == pytest.approx(speeds[0] / speeds[1], rel=0.01)


def test_a_training_ends_when_its_time_is_up(bundle, dataset):
    result = bench.run(bundle, dataset, replace(SETTING, epochs=5, minutes=0), lambda line: None)
    assert len(result["ours"]["points"]) == len(result["trainer"]["points"]) == 1


def test_t5_is_refused(bundle, dataset):
    other = replace(bundle, backbone=Backbone({"model_type": "t5"}, {}))
    with pytest.raises(ConfigError, match="compares causal models"):
        bench.run(other, dataset, SETTING, lambda line: None)
