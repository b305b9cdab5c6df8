"""Planning on a real ledger: a night keeps its plan, its requests say why, and too few people may wait."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from genrec import planning
from genrec.calibration import params_hash
from genrec.config import Params, RequestParams, Settings
from genrec.data.subjects import Subject
from genrec.errors import ConfigError
from genrec.evaluation import gates
from genrec.evaluation.gates import Gate
from genrec.night import carry
from genrec.requests.audit import verify_chain
from genrec.requests.calibrations import Calibration, record
from genrec.requests.ledger import Known
from genrec.requests.store import open_ledger
from genrec.workspace import params_yaml

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
KNOWN = Known({"person-1"}, {"film-1"}, {"Horror": 1}, 100, lambda user, item: False)
BACKBONE = "b" * 64


@pytest.fixture
def workspace(tmp_path):
    tree = {"requests": RequestParams(defer_days=5).model_dump()}
    (tmp_path / "params.yaml").write_text(params_yaml(Params.model_validate(tree)))
    return Settings(home=tmp_path, pseudonym_key="key").workspace


def ask(workspace, subject, deny_items=()):
    ledger = open_ledger(workspace)
    request = ledger.submit(subject, KNOWN, now=NOW)
    return ledger.verify(request.id, now=NOW, verifier="desk", deny_items=deny_items).id


def calibrate(workspace, method, verdict="PASS", at=NOW):
    family = params_hash(workspace.params(), method)
    one = Calibration(f"c-{method}", method, at, verdict, 85, None, 3.0, 60.0, BACKBONE, family, "7", [], {})
    record(open_ledger(workspace).engine, [one])


def opened(workspace):
    """What `plan` needs of a night of one person and one concept."""
    batch = open_ledger(workspace).claim(now=NOW)
    by_kind = {subject.kind: request for request, subject in batch.subjects}
    ladders = {"user": workspace.params().unlearning.user_ladder, "concept": ("tracer", "retrain")}
    groups = [
        SimpleNamespace(
            name=kind, kind=kind, request_ids=(request,), users=np.zeros(int(kind == "user")), ladder=ladders[kind]
        )
        for kind, request in by_kind.items()
    ]
    champion = SimpleNamespace(backbone=SimpleNamespace(hash=BACKBONE), lineage=SimpleNamespace(retrain_s=60.0))
    return SimpleNamespace(
        workspace=workspace, batch=batch, champion=champion, params=workspace.params(), groups=groups
    ), by_kind


def test_a_resumed_night_keeps_its_plan_and_its_requests_say_why(workspace):
    ask(workspace, Subject("user", user_id="person-1"))
    ask(workspace, Subject("concept", concept="Horror"), ["film-1"])
    night, requests = opened(workspace)
    plans = planning.plan(night, NOW)
    assert plans["user"] == {"ladder": ["retrain"], "reason": plans["user"]["reason"], "carried": {}}
    calibrate(workspace, "ucan_plus")
    assert planning.plan(night, NOW + timedelta(hours=1)) == plans
    ledger = open_ledger(workspace)
    for kind, request in requests.items():
        assert ledger.get(request).plan == plans[kind]["reason"]
    assert "ucan_plus is not tried" in ledger.get(requests["user"]).as_dict()["plan"]
    assert ledger.stage(night.batch.id).name == "planned"
    assert verify_chain(ledger.engine) > 5


def test_a_calibration_of_this_family_puts_the_rung_back(workspace):
    ask(workspace, Subject("user", user_id="person-1"))
    calibrate(workspace, "ucan_plus")
    calibrate(workspace, "ucan", "FAIL")
    plan = planning.plan(opened(workspace)[0], NOW + timedelta(days=1))["user"]
    assert plan["ladder"] == ["ucan_plus", "retrain"]
    assert plan["carried"] == {"ucan_plus": {"id": "c-ucan_plus", "at": NOW.isoformat(), "n": 85}}


def test_the_stored_plan_carries_what_a_small_group_cannot_show(workspace):
    ask(workspace, Subject("user", user_id="person-1"))
    calibrate(workspace, "ucan_plus")
    carried = planning.plan(opened(workspace)[0], NOW)["user"]["carried"]
    unsure = Gate("user-nll", "INCONCLUSIVE", 0.0, -1.0, 1.0, (-0.05, 0.05), 1, gates.INSIDE, "NLL gap")
    assert gates.decide(carry([unsure], carried["ucan_plus"]), exact=False) == "PASS"
    assert carry([unsure], carried["ucan_plus"])[0].rule.endswith(
        "carried by the calibration of 2031-05-04 on 85 users"
    )
    assert carry([unsure], None) == [unsure]


def climbed(workspace, *attempts, at=NOW, outcome="held"):
    """A night about Horror with these attempts, closed; its request fails, and the next night's is the same."""
    if not open_ledger(workspace).requests("failed"):
        ask(workspace, Subject("concept", concept="Horror"), ["film-1"])
    night, _ = opened(workspace)
    planning.plan(night, at)
    ledger, shared = open_ledger(workspace), {"method": "tracer", "group": "concept: Horror", "gates": [{"name": "x"}]}
    told = [shared | {"verdict": "FAIL", "wall_s": 5.0} | attempt for attempt in attempts]
    ledger.set_stage(night.batch.id, "failing", {"attempts": told, "outcome": outcome}, now=at)
    ledger.fail(night.batch.id, "gates", now=at)


def next_plan(workspace, at, params=None):
    if params:
        workspace.params_file.write_text(params_yaml(Params.model_validate(params)))
    night, requests = opened(workspace)
    plan = planning.plan(night, at)["concept"]
    assert open_ledger(workspace).get(requests["concept"]).plan == plan["reason"]
    return plan


def test_a_rung_that_cost_more_than_retraining_is_dropped_until_that_is_old(workspace):
    climbed(workspace, {"verdict": "PASS", "wall_s": 61.0})
    plan = next_plan(workspace, NOW + timedelta(days=14))
    assert plan["ladder"] == ["retrain"]
    assert "tracer is not tried: its last run on this model family (2031-05-04) took 61.0 s" in plan["reason"]
    open_ledger(workspace).fail(open_ledger(workspace).open_batch().id, "gates", now=NOW + timedelta(days=14))
    assert next_plan(workspace, NOW + timedelta(days=15))["ladder"] == ["tracer", "retrain"]


def test_a_rung_that_failed_again_and_again_is_dropped(workspace):
    for night in range(3):
        at = NOW + timedelta(days=night)
        climbed(workspace, {}, {"method": "retrain", "verdict": "PASS"}, at=at)
    plan = next_plan(workspace, NOW + timedelta(days=4))
    assert plan["ladder"] == ["retrain"]
    assert "its last 3 runs on this model family (since 2031-05-04) were FAIL" in plan["reason"]


@pytest.mark.parametrize(
    ("attempt", "params"),
    [
        ({"gates": []}, None),  # refused, so never judged
        ({"group": "final"}, None),
        ({"group": "users"}, None),
        ({"method": "tracer_repair"}, None),
        ({}, {"unlearning": {"tracer": {"steps": 61}}}),  # another model family
        ({}, {"gates": {"utility_ratio": 0.9}}),
    ],
)
def test_what_says_nothing_of_a_rung_does_not_drop_it(workspace, attempt, params):
    climbed(workspace, {"wall_s": 999.0} | attempt)
    assert next_plan(workspace, NOW, params)["ladder"] == ["tracer", "retrain"]


def test_another_backbone_has_no_record(workspace):
    climbed(workspace, {"wall_s": 999.0})
    assert planning.record(workspace, BACKBONE, NOW).keys() == {"tracer"}
    assert planning.record(workspace, "c" * 64, NOW) == {}


def test_another_backbone_is_another_family(workspace):
    calibrate(workspace, "ucan_plus")
    assert planning.family(workspace, BACKBONE).keys() == {"ucan_plus"}
    assert planning.family(workspace, "c" * 64) == {}


def test_a_misspelt_rung_is_refused_rather_than_skipped(workspace):
    tree = {"unlearning": {"user_ladder": ["ucn", "retrain"]}}
    workspace.params_file.write_text(params_yaml(Params.model_validate(tree)))
    with pytest.raises(ConfigError, match="Unknown method 'ucn'"):
        planning.family(workspace, BACKBONE)


def test_too_few_people_wait_while_nothing_carries_them_and_the_rest_is_claimed(workspace, monkeypatch):
    monkeypatch.setattr(planning, "_champions_family", lambda workspace: planning.family(workspace, BACKBONE))
    person = ask(workspace, Subject("user", user_id="person-1"))
    assert planning.claim(workspace, NOW) == (None, planning.WAITING.format(1))

    concept = ask(workspace, Subject("concept", concept="Horror"), ["film-1"])
    batch, said = planning.claim(workspace, NOW)
    assert batch.request_ids == (concept,)
    assert said
    ledger = open_ledger(workspace)
    assert ledger.get(person).state == "queued"
    ledger.fail(batch.id, "gates", now=NOW)
    calibrate(workspace, "ucan_plus")
    batch, said = planning.claim(workspace, NOW)
    assert (set(batch.request_ids), said) == ({person, concept}, "")


def test_people_who_are_nearly_due_wait_no_longer(workspace, monkeypatch):
    monkeypatch.setattr(planning, "_champions_family", lambda workspace: {})
    person = ask(workspace, Subject("user", user_id="person-1"))
    assert planning.claim(workspace, NOW + timedelta(days=24))[0] is None
    assert planning.claim(workspace, NOW + timedelta(days=25))[0].request_ids == (person,)
