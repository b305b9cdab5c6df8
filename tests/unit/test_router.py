"""The router: which rungs stay, what carries a small group, and that each decision is said."""

from datetime import UTC, datetime, timedelta

import pytest

from genrec.config import CalibrationParams, RouterParams
from genrec.requests.attempts import Tried
from genrec.requests.calibrations import Calibration
from genrec.requests.ledger import Request
from genrec.requests.router import Plan, route, waiting

NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
LADDER = ("ucan", "ucan_plus", "retrain")
SMALL, LARGE = 3, 50
CALIBRATION = CalibrationParams(max_age_days=14)
ROUTER = RouterParams(split_half=0.2, min_users=50, cost_share=0.5, failures=2)


def calibrated(method, verdict="PASS", days=1, split_half=None):
    return Calibration(
        f"c-{method}", method, NOW - timedelta(days=days), verdict, 85, split_half, 3.0, 60.0, "b", "p", "7", [], {}
    )


def planned(*calibrations, size=SMALL, kind="user", ladder=LADDER):
    known = {one.method: one for one in calibrations}
    return route(kind, size, ladder, known, now=NOW, calibration=CALIBRATION, router=ROUTER)


@pytest.mark.parametrize(
    ("size", "ucan", "ladder", "carried", "said"),
    [
        (SMALL, None, ["retrain"], [], "ucan is not tried: it has no calibration"),
        (LARGE - 1, None, ["retrain"], [], "a group of 49 is smaller than the 50 people"),
        (LARGE, None, ["ucan", "ucan_plus", "retrain"], [], "50 users must pass its gates on their own"),
        (SMALL, {}, ["ucan", "retrain"], ["ucan"], "carried by its calibration of 2031-05-03 on 85 users"),
        (LARGE, {}, ["ucan", "ucan_plus", "retrain"], [], "passed its calibration of 2031-05-03 on 85 users"),
        (SMALL, {"days": 14}, ["ucan", "retrain"], ["ucan"], "carried by its calibration of 2031-04-20"),
        (SMALL, {"days": 15}, ["retrain"], [], "of 2031-04-19 on 85 users is older than 14 days"),
        (LARGE, {"days": 15}, ["ucan", "ucan_plus", "retrain"], [], "ucan has no valid calibration"),
        (SMALL, {"verdict": "FAIL"}, ["retrain"], [], "its calibration of 2031-05-03 on 85 users was FAIL"),
        (LARGE, {"verdict": "FAIL"}, ["ucan_plus", "retrain"], [], "was FAIL"),
        (LARGE, {"verdict": "INCONCLUSIVE"}, ["ucan_plus", "retrain"], [], "was INCONCLUSIVE"),
        (LARGE, {"verdict": "FAIL", "days": 99}, ["ucan_plus", "retrain"], [], "was FAIL"),
        (SMALL, {"split_half": 0.05}, ["retrain"], [], "carries no information (split-half correlation 0.05"),
        (LARGE, {"split_half": 0.05}, ["ucan_plus", "retrain"], [], "its contrast carries no information"),
        (SMALL, {"split_half": 0.2}, ["ucan", "retrain"], ["ucan"], "ucan may be carried"),
    ],
)
def test_a_group_of_users(size, ucan, ladder, carried, said):
    plan = planned(*([] if ucan is None else [calibrated("ucan", **ucan)]), size=size)
    assert list(plan.ladder) == ladder
    assert list(plan.carried) == carried
    assert said in plan.reason
    for method in LADDER:
        assert method in plan.reason, "each rung has its sentence"


def test_each_method_has_its_own_calibration():
    plan = planned(calibrated("ucan", "FAIL"), calibrated("ucan_plus"))
    assert plan.ladder == ("ucan_plus", "retrain")
    assert plan.carried == {"ucan_plus": calibrated("ucan_plus")}
    assert plan.as_dict()["carried"] == {"ucan_plus": {"id": "c-ucan_plus", "at": "2031-05-03T03:02:01+00:00", "n": 85}}


@pytest.mark.parametrize("ladder", [(), ("ucan",), ("retrain", "ucan")])
def test_retrain_is_always_the_last_rung_for_users(ladder):
    assert planned(size=LARGE, ladder=ladder).ladder[-1] == "retrain"
    assert planned(size=LARGE, ladder=ladder).ladder.count("retrain") == 1


@pytest.mark.parametrize("kind", ["concept", "item", "interaction"])
def test_other_groups_climb_as_configured(kind):
    plan = planned(kind=kind, size=0, ladder=("tracer",))
    assert plan.ladder == ("tracer",)
    assert plan.carried == {}
    assert ("power from the test cases" in plan.reason) == (kind != "interaction")


def ran(method, *outcomes):
    """Newest first: (verdict, seconds), one a day."""
    return {method: [Tried(method, verdict, s, NOW - timedelta(days=i + 1)) for i, (verdict, s) in enumerate(outcomes)]}


CONCEPT_LADDER = ("tracer", "tracer_repair", "retrain")


@pytest.mark.parametrize(
    ("outcomes", "retrain_s", "said"),
    [
        ([], 60.0, None),
        ([("PASS", 30.0)], 60.0, None),
        (
            [("PASS", 30.1)],
            60.0,
            "its last run on this model family (2031-05-03) took 30.1 s, more than 50% of the 60.0 s",
        ),
        ([("PASS", 30.1)], None, None),
        ([("PASS", 10.0), ("FAIL", 50.0)], 60.0, None),
        ([("FAIL", 10.0)], 60.0, None),
        ([("FAIL", 10.0), ("FAIL", 10.0)], 60.0, "its last 2 runs on this model family (since 2031-05-02) were FAIL"),
        ([("FAIL", 10.0), ("INCONCLUSIVE", 10.0), ("FAIL", 10.0)], 60.0, None),
        ([("FAIL", 10.0), ("FAIL", 10.0), ("PASS", 10.0)], None, "its last 2 runs on this model family"),
    ],
)
@pytest.mark.parametrize("kind", ["concept", "item"])
def test_a_rung_for_concepts_is_dropped_by_its_own_record(outcomes, retrain_s, said, kind):
    plan = route(
        kind, 0, CONCEPT_LADDER, {}, now=NOW, calibration=CALIBRATION, router=ROUTER, tried=ran("tracer", *outcomes),
        retrain_s=retrain_s,
    )  # fmt: skip
    assert plan.ladder == (CONCEPT_LADDER if said is None else ("tracer_repair", "retrain"))
    assert ("Ladder as configured" in plan.reason) == (said is None)
    if said:
        assert f"tracer is not tried: {said}" in plan.reason
        assert "retrain is exact and the last rung" in plan.reason


def test_a_ladder_whose_every_rung_is_dropped_is_retraining_and_the_exact_rung_has_no_record():
    record = ran("tracer", ("PASS", 99.0)) | ran("retrain", ("FAIL", 99.0), ("FAIL", 99.0))
    for ladder in (("tracer",), ("tracer", "retrain"), ("retrain",)):
        plan = route(
            "concept", 0, ladder, {}, now=NOW, calibration=CALIBRATION, router=ROUTER, tried=record, retrain_s=60.0
        )
        assert plan.ladder == ("retrain",)


@pytest.mark.parametrize("kind", ["user", "interaction"])
def test_a_record_about_concepts_says_nothing_about_people(kind):
    record = ran("tracer", ("FAIL", 99.0), ("FAIL", 99.0))
    plan = route(
        kind, LARGE, ("tracer", "retrain"), {}, now=NOW, calibration=CALIBRATION, router=ROUTER, tried=record,
        retrain_s=60.0,
    )  # fmt: skip
    assert plan.ladder == ("tracer", "retrain")


def asked(number, kind="user", due_days=30):
    due = NOW + timedelta(days=due_days)
    return Request(f"r-{number}", kind, "d", None, "queued", None, 0, NOW, NOW, NOW, None, due, None, None, None)


@pytest.mark.parametrize(
    ("requests", "plan", "defer_days", "left"),
    [
        ([asked(1), asked(2, "concept")], Plan((), ""), 5, {"r-1"}),
        ([asked(1)], Plan((), ""), 0, set()),
        ([asked(1), asked(2, due_days=5)], Plan((), ""), 5, set()),
        ([asked(1), asked(2, "concept", due_days=1)], Plan((), ""), 5, {"r-1"}),
        ([asked(1)], Plan((), "", {"ucan": calibrated("ucan")}), 5, set()),
        ([asked(number) for number in range(LARGE)], Plan((), ""), 5, set()),
        ([asked(1, "concept")], Plan((), ""), 5, set()),
    ],
)
def test_too_few_people_wait_until_one_of_them_is_nearly_due(requests, plan, defer_days, left):
    assert waiting(requests, plan, now=NOW, defer_days=defer_days, router=ROUTER) == left
