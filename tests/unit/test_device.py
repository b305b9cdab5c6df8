"""Methods, gates and audits on a device that is not the CPU: nothing is mixed, and the result is the CPU's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.audit_params import RelearnParams
from genrec.evaluation.forgetting import concept_mass, holdout_users
from genrec.evaluation.judge import Erased, Forgotten, judge, measure
from genrec.evaluation.membership import membership
from genrec.evaluation.ranking import held_out
from genrec.evaluation.robustness import extraction, relearn
from genrec.evaluation.shift import token_shift, user_rows
from genrec.evaluation.statistics import Bootstrap
from genrec.models import adapter
from genrec.serving import recommend
from genrec.unlearning import METHODS
from genrec.unlearning.descent import forget_rows
from tests.unit.other_device import FarTensor, other_device

PLAN = Bootstrap(50)


def assert_same(a, b):
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-3, atol=2e-5)
    assert a.keys() == b.keys()


@pytest.fixture
def elsewhere(monkeypatch):
    """Models compute on the other device."""
    with other_device() as device:
        monkeypatch.setattr(adapter, "best_device", lambda: device)
        yield device


@pytest.fixture(scope="module")
def problems(user_problem, concept_problem, params, small):
    brief = params
    for name in ("finetune", "gradient_ascent", "graddiff", "npo", "simnpo", "ucan_plus", "ucan_plus_attenuate"):
        brief = small(brief, f"unlearning.{name}", steps=3)
    brief = small(brief, "unlearning.scif", cg_steps=2, retain_rows=8)
    brief = small(small(brief, "unlearning.tracer", steps=5, batch_tokens=3000), "train", epochs=1)
    return {"users": replace(user_problem, params=brief), "concept": replace(concept_problem, params=brief)}


def test_a_model_is_on_the_other_device_and_refuses_what_is_not(bundle, elsewhere):
    model = bundle.model()
    assert all(isinstance(p, FarTensor) for p in model.parameters())
    with pytest.raises(RuntimeError, match="on the CPU"):
        model(input_ids=torch.ones(1, 4, dtype=torch.int64))


FOR_CONCEPTS = ("output_filter", "scif", "tracer")
FOR_USERS = sorted(METHODS.keys() - {"output_filter", "tracer", "tracer_repair", "untouched"})


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "users") for name in FOR_USERS), *((name, "concept") for name in FOR_CONCEPTS)]
)
def test_every_method_makes_there_what_it_makes_on_the_cpu(name, kind, problems, request):
    here = METHODS[name].run(problems[kind])
    request.getfixturevalue("elsewhere")
    there = METHODS[name].run(problems[kind])
    assert all(type(weight) is torch.Tensor for weight in there.bundle.adapter.state.values())
    assert_same(there.bundle.adapter.state, here.bundle.adapter.state)
    np.testing.assert_array_equal(there.bundle.table.sids, here.bundle.table.sids)
    for a, b in zip(there.bundle.overlays, here.bundle.overlays, strict=True):
        assert_same(a.scales, b.scales)


def test_the_gates_find_there_what_they_find_on_the_cpu(problems, params, bundle, request):
    def found(problem, group):
        erased = Erased(problem.retained, problem.restored, params.gates.model_copy(update={"min_users": 3}), PLAN)
        before, candidate = measure(erased, bundle, [group]), bundle.with_lineage(method="other")
        start = bundle.with_lineage(retrain_s=10.0)
        return judge(erased, [group], bundle, start, before, candidate, exact=False, wall_s=1.0)

    def judged():
        nobody = np.empty(0, np.int64)
        return [
            found(problems["users"], Forgotten("people", problems["users"].users, nobody)),
            found(problems["concept"], Forgotten("Cycling", nobody, problems["concept"].items)),
        ]

    here = judged()
    request.getfixturevalue("elsewhere")
    for (gates, measured), (gates_here, measured_here) in zip(judged(), here, strict=True):
        assert [(gate.name, gate.verdict) for gate in gates] == [(gate.name, gate.verdict) for gate in gates_here]
        np.testing.assert_array_equal(measured.ranking.rank, measured_here.ranking.rank)
        np.testing.assert_allclose(measured.ranking.nll, measured_here.ranking.nll, rtol=1e-5)


def test_the_audits_find_there_what_they_find_on_the_cpu(problems, bundle, dataset, request):
    forgotten, strangers = problems["users"].users, holdout_users(problems["users"].restored)
    restored, items = problems["users"].restored, problems["concept"].items

    def audited():
        model, cases = bundle.model(), held_out(dataset)
        served = bundle, model
        return [
            *attack_figures(membership(bundle, model, restored, forgotten, PLAN)),
            extraction(bundle, model, restored, forgotten, strangers, PLAN, beam=5).forgotten.value,
            concept_mass(bundle, model, cases, items, PLAN).value,
            token_shift((bundle, bundle.backbone.model().to(model.device)), served, rows, PLAN).kl.value,
            recommend(bundle, model, [[dataset.item_ids[0]]], 3)[0][0]["score"],
        ]

    rows = user_rows(bundle, restored, forgotten)
    here = audited()
    request.getfixturevalue("elsewhere")
    np.testing.assert_allclose(audited(), here, rtol=1e-4)


def attack_figures(found):
    return [getattr(found, name).auc.value for name in ("loss", "calibrated", "min_k")]


def test_relearning_starts_from_weights_that_were_there(problems, bundle, request):
    rows, attacker = forget_rows(problems["users"]), RelearnParams(steps=2)
    here = relearn(bundle, rows, attacker)
    request.getfixturevalue("elsewhere")
    assert_same(relearn(bundle, rows, attacker).adapter.state, here.adapter.state)
