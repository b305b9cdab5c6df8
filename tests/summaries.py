"""Summaries of nights that never were: one with everything a report can show, and one with nothing to do."""

from copy import deepcopy
from datetime import UTC, datetime, timedelta

from genrec.report.summary import Summary

START = datetime(2026, 3, 2, 2, 0, tzinfo=UTC)
GAP, SH = "user NLL gap", "sh@10 Horror"
NEAR = [
    {"item_id": "i9", "title": "Dust", "shared": 2, "before": 0.21, "after": 0.09, "place_before": 3.5}
    | {"place_after": 7.25},
    {"item_id": "i10", "title": "Ash", "shared": 3, "before": 0.0, "after": 0.11, "place_before": None}
    | {"place_after": 2.0},
    {"item_id": "i2", "title": "Moor", "shared": 2, "before": 0.05, "after": 0.04, "place_before": 4.0}
    | {"place_after": 4.0},
]
CHECKS = [
    {"suite": "interactions", "expectation": "expect_column_values_to_be_between(rating)", "success": False}
    | {"observed": "7 of 3055 rows"},
    {"suite": "interactions", "expectation": "expect_chronological_order", "success": True, "observed": "0 rows"},
    {"suite": "items", "expectation": "expect_column_types", "success": True, "observed": "{'item_id': 'string'}"},
]
HOSTILE = "</script><script>alert(\"1\")</script><img src='https://evil.example/x'>"


def gate(name, verdict, value, low=None, high=None, limit=None, n=None, rule="", blocking=True):
    return dict(locals())


def measure(value, low, high, n):
    return dict(locals())


def curve(auc):
    """An attack on 60 people that finds a share `x ** k` of them, with this area."""
    points = [(x / 50, (x / 50) ** (1 / auc - 1)) for x in range(51)]
    found = measure(auc, auc - 0.06, auc + 0.06, 60), measure(0.05, 0.017, 0.137, 60)
    return {"forgotten": 60, "unseen": 94, "least": 20, "auc": found[0], "tpr": found[1], "points": points}


def full_night(**changes) -> dict:
    times = {"received_at": START - timedelta(days=2), "verified_at": START - timedelta(days=2)}
    done = times | {"suppressed_at": times["verified_at"], "unlearned_at": START, "due_at": START + timedelta(days=28)}
    users = [
        gate("integrity", "PASS", 1.0, rule="every hash and every SID as expected"),
        gate("user-nll", "FAIL", 0.081234, 0.052, 0.110499, [-0.05, 0.05], 12, "equivalent to 0 within 0.05 nat"),
        gate("membership", "INCONCLUSIVE", 0.531, 0.402, 0.655, [0.45, 0.55], 12, "AUC interval inside the limits"),
        gate("utility", "PASS", 1.0031, 0.9872, 1.0204, 0.98, 811, "lower bound >= 0.98"),
    ]
    concept = [
        gate("concept", "PASS", 0.00123, 0.00031, 0.004987, 0.005, 811, "Wilson upper bound of SH@10 <= 0.5 %"),
        gate("collateral", "PASS", 0.99, 0.97, 1.02, 0.95, 214, "NDCG@10 ratio to the champion"),
        gate("cost", "FAIL", 0.1432, limit=0.1, rule="wall time <= 10 % of retraining", blocking=False),
    ]
    night = {
        "schema": 2,
        "batch_id": "b-4fd21c07",
        "outcome": "promoted",
        "reason": "The final candidate passed every blocking gate.",
        "started_at": START,
        "finished_at": START + timedelta(minutes=19),
        "wall_s": 1152.4,
        "data_version_before": "9d1c3f2a",
        "data_version": "1f0b77de",
        "champion_before": "7",
        "champion_after": "8",
        "requests": [
            {"id": "r-1", "kind": "user", "digest": "a3" * 32, "state": "fulfilled", "method": "retrain"} | done,
            {"id": "r-2", "kind": "concept", "digest": "0c" * 32, "label": "Horror", "state": "fulfilled"} | done,
        ],
        "attempts": [
            {"group": "users", "method": "ucan", "verdict": "FAIL", "wall_s": 42.13, "gates": users}
            | {"reason": "first rung", "diagnostics": {"dimensions decayed": 311, "quantile": 0.9, "device": "cpu"}}
            | {"version": "9", "made_from": "7", "forgetting": {GAP: measure(0.081234, 0.052, 0.110499, 12)}}
            | {"nll_increase": measure(0.0021, -0.0032, 0.0071, 811)},
            {"group": "concept: Horror", "method": "tracer", "verdict": "PASS", "wall_s": 95.5, "gates": concept}
            | {"version": "8", "made_from": "7", "forgetting": {SH: measure(0.00123, 0.00031, 0.005, 811)}}
            | {"nll_increase": measure(-0.0004, -0.0051, 0.0042, 811)},
        ],
        "utility": {
            "before": {"NDCG@10": {"value": 0.0812, "low": 0.074, "high": 0.0885, "n": 811}},
            "after": {"NDCG@10": {"value": 0.0815, "low": 0.0743, "high": 0.0888, "n": 811}},
        },
        "forgetting": {
            "before": {SH: measure(0.142, 0.12, 0.167, 811), GAP: measure(-0.05, -0.09, -0.02, 12)},
            "after": {SH: measure(0.00123, 0.00031, 0.004987, 811)},
        },
        "reference": {
            "at": START - timedelta(days=3),
            "n": 85,
            "nll_increase": measure(0.004, -0.001, 0.009, 802),
            "forgetting": {GAP: measure(0.002, -0.011, 0.013, 85)},
        },
        "membership": {"attempt": 0, "before": curve(0.7), "after": curve(0.53)},
        "neighbours": {"attempt": 1, "total": 31, "least": 2, "levels": 3, "lists": 811, "items": NEAR},
        "sid_diff": [{"item_id": "i42", "title": "The Hollow", "before": [3, 7, 1, 0], "after": [5, 2, 6, 0]}],
        "validation": {"success": False, "checks": 3, "failed": 1, "results": CHECKS},
        "lineage": {"parent": "7", "version": "8", "code_version": "3ab9f10", "backbone_hash": "sha256:77aa"},
        "cost": {"retrain_s": 840.0, "device": "cpu"},
    }
    return deepcopy(night | changes)  # a test may change what it got


def summarise(**changes) -> Summary:
    return Summary.model_validate(full_night(**changes))


def quiet_night() -> Summary:
    return Summary(outcome="nothing to do", started_at=START, finished_at=START, champion_after="7")
