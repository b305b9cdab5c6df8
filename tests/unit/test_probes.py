"""Health probes: a healthy model passes, and each way to be ill trips the probe that is made for it."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec import pipeline
from genrec.config import Settings
from genrec.errors import TrainingError
from genrec.evaluation.ranking import training_counts
from genrec.models.backbone import save_backbone
from genrec.models.beam import encode_histories, greedy
from genrec.models.bundle import load_bundle
from genrec.sid.quantise import save_codebooks
from genrec.sid.table import build_table, save_table
from genrec.training import probes
from genrec.training.base import train_adapter
from genrec.workspace import params_yaml


@pytest.fixture(scope="module")
def health(dataset, table, params):
    return probes.prepare(dataset, table, params)


@contextmanager
def logits(model, constant):
    """`model` answers `constant` [vocabulary] whatever it is asked."""
    head = model.get_base_model().lm_head
    hook = head.register_forward_hook(lambda module, _, out: constant.expand_as(out))
    yield model
    hook.remove()


def test_a_healthy_model_passes(health, model):
    figures = health.check(model)
    assert figures.keys() == {
        "non-finite weights", "dead codes", "distinct items", "history effect", "invalid SIDs"
    }  # fmt: skip
    assert figures["distinct items"] > 20
    assert figures["history effect"] > 0.02
    assert figures["invalid SIDs"] < 0.3


def test_equal_logits_are_a_collapse(health, model, table):
    with logits(model, torch.zeros(table.vocabulary.size)) as collapsed, pytest.raises(TrainingError) as error:
        health.check(collapsed)
    message = str(error.value)
    assert "distinct items 10, at least 15. Everybody gets the same" in message
    assert "history effect 0, at least 0.001" in message
    assert "invalid SIDs 1, at most 0.5" in message
    assert "probes in params.yaml" in message
    assert "\n" not in message


def test_a_copy_of_popularity_trips_both_probes_on_users(health, model, table, dataset):
    """Each token as likely as it is frequent in the training rows: far from random, and the same for everybody."""
    seen = np.bincount(table.tokens.ravel(), np.repeat(training_counts(dataset), 4), table.vocabulary.size)
    with logits(model, torch.from_numpy(np.log(seen + 1)).float()) as copy, pytest.raises(TrainingError) as error:
        health.check(copy)
    assert "distinct items 10" in str(error.value)
    assert "history effect" in str(error.value)


def test_a_broken_weight_is_found_before_anything_else_is_measured(health, bundle):
    model = bundle.adapted()
    weight = next(p for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        weight.view(-1)[3] = torch.nan
    with pytest.raises(TrainingError, match="non-finite weights 1, at most 0"):
        health.check(model)
    assert health.measure(model).keys() == {"non-finite weights", "dead codes"}


def test_codes_without_items_are_counted_in_the_worst_level(params):
    table = build_table(("a", "b", "c"), np.array([[0, 0], [1, 0], [2, 0]]), 4)
    assert probes.dead_codes(table) == 0.75
    with pytest.raises(TrainingError, match=r"dead codes 0\.75, at most 0\.5\. Lower sid\.codes"):
        probes.check({"dead codes": probes.dead_codes(table)}, params.probes)
    probes.check({"dead codes": 0.5}, params.probes)


def test_a_figure_that_is_no_number_fails(params):
    with pytest.raises(TrainingError, match="history effect nan"):
        probes.check({"history effect": float("nan")}, params.probes)


def test_everybody_gets_the_history_of_somebody_else(health, dataset):
    users, others = health.cases, health.swapped
    assert others.targets.tolist() == users.targets.tolist()
    assert {id(h) for h in others.histories} == {id(h) for h in users.histories}
    assert not any(mine is other for mine, other in zip(users.histories, others.histories, strict=True))
    assert health.cases.users.tolist() == health.swapped.users.tolist()


def test_greedy_takes_the_likeliest_token_of_a_pass_without_cache(health, model, table, params):
    histories = health.cases.histories[:6]
    found = greedy(model, encode_histories(histories, table, params.architecture.window), 4)
    for tokens, history in zip(found, histories, strict=True):
        fed = encode_histories([history], table, params.architecture.window).tokens
        for token in tokens:
            assert model(input_ids=fed).logits[0, -1].argmax() == token
            fed = torch.cat([fed, token.view(1, 1)], 1)


def test_watching_changes_no_weight_and_ends_a_bad_training(health, backbone, training, table, params, small):
    brief = small(params, "train", epochs=3)
    expected, _ = train_adapter(backbone, training[:20], table, brief)
    lenient = params.probes.model_copy(update={"every": 1})
    watched, curve = train_adapter(backbone, training[:20], table, brief, watch=replace(health, limits=lenient).watch())
    assert len(curve.losses) == 3
    assert all(torch.equal(expected.state[name], watched.state[name]) for name in expected.state)

    epochs = []
    impossible = replace(health, limits=params.probes.model_copy(update={"every": 2, "distinct_items": 1000}))
    look = impossible.watch()
    with pytest.raises(TrainingError, match="distinct items"):
        train_adapter(backbone, training[:20], table, brief, watch=lambda model: epochs.append(1) or look(model))
    assert len(epochs) == 2


def test_the_train_stage_writes_what_it_found_or_nothing(
    health, backbone, table, codebooks, params, small, shop, tmp_path
):
    workspace = Settings(home=tmp_path).workspace
    shutil.copytree(shop.root / "prepared", workspace.prepared)
    workspace.data_pin.write_text("outs:\n- md5: d0\n")
    (workspace.artefacts / "sid").mkdir(parents=True)
    save_table(table, workspace.artefacts / "sid" / "sid_table.parquet")
    save_codebooks(codebooks, workspace.artefacts / "sid" / "codebooks.safetensors")
    save_backbone(backbone, workspace.artefacts / "backbone")
    brief = small(params, "train", epochs=1)
    workspace.params_file.write_text(params_yaml(small(brief, "probes", distinct_items=1000)))
    with pytest.raises(TrainingError, match="at least 1000"):
        pipeline.train(workspace)
    assert not {"bundle", "probes.json", "train_curve.csv"} & {path.name for path in workspace.artefacts.iterdir()}
    workspace.params_file.write_text(params_yaml(brief))
    told = pipeline.train(workspace)["probes"]
    assert json.loads((workspace.artefacts / "probes.json").read_text()) == told
    assert told == pytest.approx(health.measure(load_bundle(workspace.artefacts / "bundle").model()))
