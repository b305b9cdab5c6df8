"""The training loop: resuming, seeds, refusals; and that the backbone knows the catalogue and nobody in it."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from genrec import pipeline
from genrec.config import Settings
from genrec.errors import UnlearningError
from genrec.models.adapter import Overlay
from genrec.models.backbone import architecture, initialise, load_backbone
from genrec.sid.quantise import save_codebooks
from genrec.sid.table import save_table
from genrec.training import base
from genrec.training.base import nearest_items, train_adapter, train_backbone, walks
from genrec.training.best import BestEpoch
from genrec.training.loop import Optimisation, train
from genrec.training.rows import Row, chunk, token_nll, whole
from genrec.unlearning import METHODS
from genrec.workspace import params_yaml

PLAN = Optimisation(learning_rate=1e-2, weight_decay=0.01, warmup=0.1, clip_norm=1.0, seed=7)


class Crash(Exception):
    pass


def regression(epochs=6, crash_in=None, **options):
    """Fit a small net with dropout to noise; optionally raise in the middle of epoch `crash_in`."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    current = [0]

    def batches(epoch):
        current[0] = epoch
        rng = np.random.default_rng([1, epoch])
        return [torch.from_numpy(rng.normal(size=(16, 5)).astype(np.float32)) for _ in range(4)]

    calls = iter(range(10_000))

    def loss(model, batch):
        if crash_in is not None and current[0] == crash_in and next(calls) == 2:
            raise Crash
        return (model(batch[:, :4]) - batch[:, 4:]).square().mean()

    curve = train(model, epochs, batches, loss, PLAN, **options)
    return curve, model.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("crash_in", "every"), [(1, 1), (3, 1), (5, 2), (3, 3), (0, 1)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, crash_in, every):
    whole_curve, whole = regression()
    path = tmp_path / "state" / "checkpoint.safetensors"
    with pytest.raises(Crash):
        regression(crash_in=crash_in, checkpoint=path, checkpoint_epochs=every)
    assert path.exists() == (crash_in >= every)
    torch.rand(13)  # whatever the process drew meanwhile
    curve, resumed = regression(checkpoint=path, checkpoint_epochs=every)
    assert equal(resumed, whole)
    assert curve == whole_curve
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("scores", [[0.9, 0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4, 0.9, 0.5]])
def test_a_resumed_run_ends_with_the_same_best_epoch(tmp_path, scores):
    """The best epoch lies before the crash, of which the checkpoint alone knows, or after it."""
    looks = []

    def run(since=0, **options):
        def scored(model):
            looks.append(model.training)
            return scores[since + len(looks) - 1]

        looks.clear()
        return regression(best=BestEpoch(scored), **options)[1]

    whole, path = run(), tmp_path / "checkpoint.safetensors"
    with pytest.raises(Crash):
        run(crash_in=3, checkpoint=path)
    resumed = run(3, checkpoint=path)
    assert looks == [False] * 3
    assert equal(resumed, whole)
    assert not equal(whole, regression()[1])


def test_a_checkpoint_of_another_run_is_not_resumed_from(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Crash):
        regression(crash_in=3, checkpoint=path, identity="rows of yesterday")
    assert equal(regression(checkpoint=path, identity="rows of today")[1], regression()[1])
    assert not path.exists()


def test_the_loss_falls_and_the_schedule_ends_at_zero():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    seen = []
    target = torch.tensor([[1.0], [-2.0], [0.5]])

    def loss(model, batch):
        seen.append(model.weight.detach().clone())
        return (model(batch) - batch @ target).square().mean()

    x = torch.randn(64, 3)
    plan = Optimisation(learning_rate=0.1, weight_decay=0.0, warmup=0.25, clip_norm=1.0, seed=0)
    curve = train(model, 10, lambda epoch: [x, x], loss, plan)
    moves = [(b - a).norm().item() for a, b in zip(seen, [*seen[1:], model.weight.detach()], strict=True)]
    assert curve.losses[-1] < 0.5 * curve.losses[0]
    assert moves[0] < moves[3]  # warming up
    assert moves[-1] < 0.1 * max(moves)
    assert not model.training


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(bad, tmp_path):
    model = torch.nn.Linear(1, 1)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(UnlearningError, match=r"in epoch 1\. Lower the learning rate \(0\.01\)"):
        train(model, 3, lambda epoch: [0], lambda m, _: m.weight.sum() * bad, PLAN, checkpoint=path)
    assert not path.exists()


def test_frozen_parameters_stay():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, 2, lambda epoch: [torch.randn(8, 2)], lambda m, x: m(x).square().mean(), PLAN)
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"1.weight", "1.bias"}


# --- adapter ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brief(params, small):
    return small(params, "train", epochs=5, checkpoint_epochs=2)


@pytest.fixture(scope="module")
def uninterrupted(backbone, training, table, brief):
    """Adapter, curve and number of steps."""
    calls, original = [], base.batch_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "batch_loss", lambda *arguments: calls.append(1) or original(*arguments))
        adapter, curve = train_adapter(backbone, training[:20], table, brief)
    return adapter, curve, len(calls)


def crash_after(patch, calls):
    left, original = iter([None] * calls), base.batch_loss

    def loss(model, batch):
        if next(left, Crash) is Crash:
            raise Crash
        return original(model, batch)

    patch.setattr(base, "batch_loss", loss)


@pytest.fixture
def interrupted(backbone, training, table, brief, uninterrupted, tmp_path):
    """The checkpoint of a run that ended after two thirds of its steps."""
    path = tmp_path / "adapter.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        crash_after(patch, 2 * uninterrupted[2] // 3)
        with pytest.raises(Crash):
            train_adapter(backbone, training[:20], table, brief, checkpoint=path)
    assert path.exists()
    return path


def test_an_interrupted_adapter_training_resumes_bit_for_bit(
    backbone, training, table, brief, uninterrupted, interrupted, monkeypatch
):
    calls, original = [], base.batch_loss
    monkeypatch.setattr(base, "batch_loss", lambda *arguments: calls.append(1) or original(*arguments))
    adapter, curve = train_adapter(backbone, training[:20], table, brief, checkpoint=interrupted)
    assert len(calls) < 0.8 * uninterrupted[2]  # it did resume
    assert equal(adapter.state, uninterrupted[0].state)
    assert curve == uninterrupted[1]


@pytest.mark.parametrize("change", ["row", "item", "parameter"])
def test_an_interrupted_training_on_other_data_leaves_nothing_behind(
    backbone, training, table, brief, small, interrupted, change
):
    """Someone was erased, an interaction was erased, or params.yaml changed while the run lay there."""
    rows, params = training[:20], brief
    if change == "row":
        rows = training[1:20]
    elif change == "item":
        rows = [replace(rows[0], items=rows[0].items[1:]), *rows[1:]]
    else:
        params = small(brief, "train", weight_decay=0.5)
    adapter, _ = train_adapter(backbone, rows, table, params, checkpoint=interrupted)
    assert equal(adapter.state, train_adapter(backbone, rows, table, params)[0].state)


def test_the_adapter_is_a_function_of_seed_and_rows(backbone, training, table, brief, uninterrupted):
    again, _ = train_adapter(backbone, training[:20], table, brief)
    assert equal(again.state, uninterrupted[0].state)
    other, _ = train_adapter(backbone, training[:20], table, brief, seed=1)
    assert not equal(other.state, uninterrupted[0].state)
    fewer, _ = train_adapter(backbone, training[:19], table, brief)
    assert not equal(fewer.state, uninterrupted[0].state)


def test_training_beats_the_backbone_alone(bundle, training, table, params):
    rows = [piece for row in training for piece in chunk(row.items, params.architecture.window)]
    adapted, plain = (token_nll(m, rows, table)[0].sum() for m in (bundle.model(), bundle.backbone.model()))
    assert adapted < 0.95 * plain


def test_retraining_equals_a_training_that_never_saw_the_forgotten_rows(user_problem, bundle):
    data = user_problem.retained
    assert len(data.user_ids) == len(user_problem.restored.user_ids) - len(user_problem.users)
    rows = whole((u, data.training_rows(u)) for u in range(len(data.user_ids)) if len(data.training_rows(u)))
    overlay = Overlay("b", {})
    outcome = METHODS["retrain"].run(replace(user_problem, bundle=replace(bundle, overlays=(overlay,))))
    expected, _ = train_adapter(bundle.backbone, rows, bundle.table, user_problem.params, seed=user_problem.seed)
    assert equal(outcome.bundle.adapter.state, expected.state)
    assert outcome.bundle.overlays == ()
    assert METHODS["retrain"].exact


# --- backbone --------------------------------------------------------------------------------------------------------


def slow_nearest(embeddings, k, among):
    x = embeddings.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    found = []
    for i in range(len(x)):
        others = [j for j in among if j != i]
        found.append(sorted(others, key=lambda j: -(x[i] @ x[j]))[:k])
    return found


@pytest.mark.parametrize("among", [None, [0, 3, 5, 8, 20, 21, 40, 58]])
def test_neighbours_are_the_nearest_by_cosine_without_the_item_itself(embeddings, among):
    rows = range(len(embeddings)) if among is None else among
    found = nearest_items(embeddings, 4, None if among is None else np.array(among))
    assert found.tolist() == slow_nearest(embeddings, 4, rows)


def test_an_item_is_not_its_own_neighbour_among_copies():
    found = nearest_items(np.ones((6, 3), np.float32), 3)
    assert found.shape == (6, 3)
    assert all(i not in row and len(set(row)) == 3 for i, row in enumerate(found.tolist()))
    assert nearest_items(np.eye(3, dtype=np.float32), 10).shape == (3, 2)


def test_walks_stay_in_the_neighbour_graph_and_avoid_returning(embeddings):
    neighbours = nearest_items(embeddings, 5)
    paths = walks(neighbours, 1000, 7, np.random.default_rng(0))
    assert paths.shape == (1000, 7)
    assert set(paths[:, 0]) == set(range(59))
    for path in paths.tolist():
        for step, (here, there) in enumerate(pairwise(path), 1):
            assert there in neighbours[here]
            if set(neighbours[here]) - set(path[:step]):
                assert there not in path[:step]


def test_a_walk_may_return_when_there_is_nowhere_new_to_go():
    paths = walks(np.array([[1], [0]]), 4, 5, np.random.default_rng(0))
    assert all(set(path) == {0, 1} for path in paths.tolist())


def test_backbone_training_is_seeded_and_learns_the_catalogue(backbone, table, embeddings, params, small):
    assert train_backbone(table, embeddings, params)[0].hash == backbone.hash
    brief = small(params, "backbone", visits=2)
    assert (
        train_backbone(table, embeddings, brief)[0].hash
        != train_backbone(table, embeddings, brief.model_copy(update={"seed": 1}))[0].hash
    )
    paths = walks(nearest_items(embeddings, 5), 50, 8, np.random.default_rng(9))
    untrained = initialise(architecture(params.architecture, table.vocabulary), params.seed)
    rows = [Row(p) for p in paths]
    trained, random = (token_nll(b.model(), rows, table)[0].sum() for b in (backbone, untrained))
    assert trained < 0.7 * random


def test_an_interrupted_backbone_training_resumes(table, embeddings, params, small, tmp_path, monkeypatch):
    brief = small(params, "backbone", visits=60)
    monkeypatch.setattr(base, "STEPS_PER_EPOCH", 5)
    whole = train_backbone(table, embeddings, brief)[0]
    path = tmp_path / "backbone.safetensors"
    with monkeypatch.context() as patch:
        crash_after(patch, 12)
        with pytest.raises(Crash):
            train_backbone(table, embeddings, brief, checkpoint=path)
    assert path.exists()
    assert train_backbone(table, embeddings, brief, checkpoint=path)[0].hash == whole.hash


def test_the_backbone_stage_reads_no_user_data(table, embeddings, codebooks, params, small, dataset, tmp_path, shop):
    """The stage's bytes are the same without interactions, with this shop's and with a changed shop's."""
    from safetensors.numpy import save_file

    brief = small(params, "backbone", visits=5)
    found = []
    for number, interactions in enumerate((None, "all", "half")):
        root = tmp_path / str(number)
        (root / "artefacts" / "sid").mkdir(parents=True)
        (root / "params.yaml").write_text(params_yaml(brief))
        save_table(table, root / "artefacts" / "sid" / "sid_table.parquet")
        save_codebooks(codebooks, root / "artefacts" / "sid" / "codebooks.safetensors")
        save_file({"embeddings": embeddings}, root / "artefacts" / "embeddings.safetensors")
        if interactions:
            for name in ("data", "prepared"):
                shutil.copytree(shop.root / name, root / name)
        if interactions == "half":
            lines = (root / "data" / "interactions.csv").read_text().splitlines()
            (root / "data" / "interactions.csv").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
            (root / "prepared" / "interactions.parquet").unlink()
        pipeline.backbone(Settings(home=root).workspace)
        written = load_backbone(root / "artefacts" / "backbone")
        assert json.loads((root / "artefacts" / "backbone" / "config.json").read_text()) == written.config
        found.append((root / "artefacts" / "backbone" / "model.safetensors").read_bytes())
    assert found[0] == found[1] == found[2]


def test_no_stage_before_the_adapter_depends_on_interactions():
    stages = yaml.safe_load((pipeline.Path(pipeline.__file__).parent / "resources" / "dvc.yaml").read_text())["stages"]
    outputs = SimpleNamespace(**{name: set(stage.get("outs", [])) for name, stage in stages.items()})
    allowed = {"prepared/items.parquet", *outputs.embed, *outputs.sid}
    for name in ("embed", "sid", "backbone"):
        assert set(stages[name]["deps"]) <= allowed, name
