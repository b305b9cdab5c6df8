"""`genrec bench quality`: what is trained and ranked, figures against the slow way, and what is measured again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.bench import quality
from genrec.bench.candidates import Bench
from genrec.bench.quality import SERVED, WHOLE, Order
from genrec.data.files import finite
from genrec.errors import ConfigError
from genrec.evaluation import statistics
from genrec.evaluation.ranking import held_out, popularity_ranks, rank
from genrec.evaluation.statistics import Bootstrap
from genrec.rivals_params import RivalsParams, SasRecParams, WholeParams
from genrec.training import base
from genrec.training.base import train_whole
from genrec.training.rows import whole

RIVALS = RivalsParams(
    validation_users=20,
    sasrec=SasRecParams(hidden=16, layers=1, heads=2, feed_forward=16, epochs=2, learning_rate=1e-2),
    whole=WholeParams(epochs=2),
)
ORDER = Order(2, ("item_knn", "popularity"), whole=True)


@pytest.fixture(scope="module")
def bench(bundle, dataset, embeddings, params, small, tmp_path_factory):
    brief = small(params, "train", epochs=2).model_copy(update={"rivals": RIVALS})
    return Bench("b0", bundle.with_lineage(retrain_s=7.0), dataset, embeddings, brief, tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def result(bench, lines):
    return quality.run(bench, ORDER, lines.append)


@pytest.fixture(scope="module")
def records(bench, result):
    found = [json.loads(path.read_text()) for path in (bench.folder / "quality").iterdir()]
    return {(record["model"], record["seed"]): record for record in found}


def test_all_models_stand_in_one_table(bench, result, lines):
    rows = {row["model"]: row for row in result["models"]}
    assert list(rows) == [SERVED, WHOLE, "sasrec", "item_knn", "popularity"]
    assert [row["seeds"] for row in rows.values()] == [2, 2, 2, 1, 1]
    assert len(lines) == 8
    assert lines[0].startswith("backbone + LoRA, seed 0: recall@10 0.")
    assert result["cases"] == len(held_out(bench.dataset).targets)
    assert rows["sasrec"]["ratio"]["ndcg@10"]["value"] == 1
    assert result["ratio"] == pytest.approx(rows[SERVED]["ratio"]["ndcg@10"]["value"], abs=1e-4)
    assert result["compares"] == "NDCG@10 of backbone + LoRA over sasrec, paired by user"
    assert rows[SERVED]["whole_compares"] == "backbone + LoRA over trained whole, paired by user"
    assert rows[WHOLE]["parameters"] == sum(t.numel() for t in bench.bundle.backbone.state.values())
    assert rows[SERVED]["parameters"] > rows[WHOLE]["parameters"]
    text = json.dumps(finite(result))
    assert not any(user in text for user in bench.dataset.user_ids)


def test_the_seed_of_the_workspace_is_its_own_bundle(bench, model, records):
    place = rank(bench.bundle, model, held_out(bench.dataset)).rank
    assert records[SERVED, 0]["rank"] == np.where(place < 10, place, -1).tolist()
    assert records[SERVED, 0]["seconds"] == 7.0
    assert records[SERVED, 1]["rank"] != records[SERVED, 0]["rank"]


def test_popularity_has_the_ranks_of_the_gate(bench, records):
    place = popularity_ranks(bench.dataset, held_out(bench.dataset))
    assert records["popularity", 0]["rank"] == np.where(place < 10, place, -1).tolist()


def test_figures_are_those_of_one_model_after_the_other(bench, result, records):
    plan = Bootstrap.of(bench.params)

    def values(model):
        places = [np.array(record["rank"]) for (name, _), record in sorted(records.items()) if name == model]
        return np.mean([np.where(place >= 0, 1 / np.log2(np.maximum(place, 0) + 2), 0) for place in places], 0)

    for row in result["models"]:
        mean = statistics.mean(values(row["model"]), plan)
        assert row["figures"]["ndcg@10"] == pytest.approx(mean.as_dict())
        assert np.mean(row["by_seed"]["ndcg@10"]) == pytest.approx(mean.value)
        ratio = statistics.ratio(values(row["model"]), values("sasrec"), plan)
        assert row["ratio"]["ndcg@10"] == pytest.approx(ratio.as_dict(), nan_ok=True)
    ratio = statistics.ratio(values(SERVED), values(WHOLE), plan).as_dict()
    assert result["models"][0]["whole_ratio"]["ndcg@10"] == pytest.approx(ratio, nan_ok=True)


def test_an_interrupted_bench_goes_on_where_it_stopped(bench, result, monkeypatch):
    made, measure = [], quality.cell
    monkeypatch.setattr(quality, "cell", lambda *args: made.append(args[2:4]) or measure(*args))
    lines = []
    assert quality.run(bench, ORDER, lines.append) == result
    assert made == []
    assert all(line.endswith("(reused)") for line in lines)
    key = quality.cell_key(bench, "popularity", 0, quality.code_hash())
    (bench.folder / "quality" / f"{key}.json").unlink()
    quality.run(bench, replace(ORDER, whole=False), lines.append)
    assert made == [("popularity", 0)]


def test_a_cell_hangs_on_everything_that_could_change_it(bench, dataset):
    other = bench.params.model_copy(update={"rivals": RIVALS.model_copy(update={"validation_users": 21})})
    split = dataset.split.copy()
    split[0] = 3

    def keys(name):
        return [
            quality.cell_key(changed, name, seed, code)
            for changed, seed, code in (
                (bench, 0, "code"), (bench, 1, "code"), (bench, 0, "edoc"), (replace(bench, params=other), 0, "code"),
                (replace(bench, dataset=replace(dataset, split=split)), 0, "code"),
            )
        ]  # fmt: skip

    assert len({*keys(SERVED), *keys("sasrec")}) == 10
    assert quality.cell_key(replace(bench, identity="b1"), SERVED, 0, "code") != keys(SERVED)[0]
    assert quality.cell_key(replace(bench, identity="b1"), "sasrec", 0, "code") == keys("sasrec")[0]


def test_trained_whole_moves_every_weight_and_keeps_the_best_epoch(bench, dataset, table):
    rows = whole((int(user), dataset.training_rows(user)) for user in dataset.trained_users[:20])
    first, last = (
        train_whole(rows, table, bench.params, 0, lambda model, scores=iter(scores): next(scores)).state_dict()
        for scores in ([0.2, 0.1], [0.1, 0.2])
    )
    assert not any(torch.equal(first[name], last[name]) for name in first)


def test_an_interrupted_cell_goes_on_from_its_checkpoint(bench, records, monkeypatch, tmp_path):
    """Killed in the second epoch of two: the same model, and the record says that its seconds are not all."""
    path, count, original = tmp_path / "cell.safetensors", [0], base.shifted_chunks
    cases = held_out(bench.dataset)

    def killed(*arguments):
        count[0] += 1
        if count[0] == 3:  # the schedule asks for the first epoch once more
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(base, "shifted_chunks", killed)
        with pytest.raises(KeyboardInterrupt):
            quality.cell(bench, cases, WHOLE, 0, path)
    assert path.exists()
    found = quality.cell(bench, cases, WHOLE, 0, path)
    whole_run = records[WHOLE, 0]
    assert (found["resumed"], whole_run["resumed"]) == (True, False)
    assert {**found, "seconds": 0, "resumed": 0} == {**whole_run, "seconds": 0, "resumed": 0}


def test_a_pretrained_model_is_not_trained_whole(bench, small, table):
    params = small(bench.params, "architecture", name="pretrained", checkpoint="somewhere")
    with pytest.raises(ConfigError, match="not trained whole"):
        train_whole([], table, params, 0, lambda model: 0.0)


def test_an_unknown_rival_is_refused_before_anything_is_trained():
    with pytest.raises(ConfigError, match=r"Unknown rival 'sasrecc'"):
        _ = Order(1, ("sasrecc",)).models
