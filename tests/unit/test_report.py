"""The night's summary and its page: complete, self-contained, inert, and strict JSON."""

import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest
from pydantic import ValidationError

from genrec.errors import DataError
from genrec.report.page import deadline, duration, headline, limit, number, render, write_report
from genrec.report.summary import Summary, read_summary, write_summary

START = datetime(2026, 3, 2, 2, 0, tzinfo=UTC)
HOSTILE = "</script><script>alert(\"1\")</script><img src='https://evil.example/x'>"


def gate(name, verdict, value, low=None, high=None, limit=None, n=None, rule="", blocking=True):
    return dict(locals())


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
        gate("cost", "FAIL", 0.1432, limit=0.1, rule="wall time <= 10 % of retraining", blocking=False),
    ]
    night = {
        "schema": 1,
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
            | {"reason": "first rung", "diagnostics": {"dimensions decayed": 311, "quantile": 0.9, "device": "cpu"}},
            {"group": "concept: Horror", "method": "tracer", "verdict": "PASS", "wall_s": 95.5, "gates": concept},
        ],
        "utility": {
            "before": {"NDCG@10": {"value": 0.0812, "low": 0.074, "high": 0.0885, "n": 811}},
            "after": {"NDCG@10": {"value": 0.0815, "low": 0.0743, "high": 0.0888, "n": 811}},
        },
        "forgetting": {
            "before": {"sh@10 Horror": {"value": 0.142, "low": 0.12, "high": 0.167, "n": 811}},
            "after": {"sh@10 Horror": {"value": 0.00123, "low": 0.00031, "high": 0.004987, "n": 811}},
        },
        "sid_diff": [{"item_id": "i42", "title": "The Hollow", "before": [3, 7, 1, 0], "after": [5, 2, 6, 0]}],
        "validation": {"success": True, "checks": 34, "failed": 0},
        "lineage": {"parent": "7", "version": "8", "code_version": "3ab9f10", "backbone_hash": "sha256:77aa"},
        "cost": {"retrain_s": 840.0, "device": "cpu"},
    }
    return night | changes


def summarise(**changes) -> Summary:
    return Summary.model_validate(full_night(**changes))


def quiet_night() -> Summary:
    return Summary(outcome="nothing to do", started_at=START, finished_at=START, champion_after="7")


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and the plot data."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.inside: tuple[str, dict] = ("", {})
        self.text, self.plots = "", {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside = (tag, dict(attrs))
        self.tags.append(self.inside)

    def handle_endtag(self, tag):
        self.inside = ("", {})

    def handle_data(self, data):
        tag, attrs = self.inside
        if attrs.get("id") == "plots":
            self.plots = json.loads(data)
        elif tag not in ("script", "style"):
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.mark.parametrize("summary", [summarise(), quiet_night()], ids=["full", "nothing to do"])
def test_page_is_self_contained_and_structured(summary):
    page = Page(render(summary))
    links = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "action", "data") if key in attrs]
    assert set(links) <= {"#main", "summary.json", "#attempt-0", "#attempt-1"}
    assert page.count("link") == 0
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = [attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs]
    assert set(named) <= set(ids)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert page.count("table") == page.count("caption")
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert page.text.index(headline(summary)) < page.text.index("Limits of the claim")


def test_plotly_is_inlined_once_and_only_where_something_is_drawn():
    assert Page(render(summarise())).count("script") == 4
    quiet = render(quiet_night())
    assert "Plotly" not in quiet
    assert len(quiet) < 30_000


def test_every_gate_figure_is_in_the_table_and_in_the_plot():
    summary = summarise()
    page = Page(render(summary))
    for index, attempt in enumerate(summary.attempts):
        drawn = [g for g in attempt.gates if g.limit is not None]
        for g in attempt.gates:
            for figure in (number(g.value), number(g.low), number(g.high), number(g.n), limit(g.limit), g.rule):
                assert figure in page.text
        plot = page.plots[f"gates-{index}"]
        figure = go.Figure(plot)  # refuses what Plotly does not know
        assert [trace.x[0] for trace in figure.data] == [g.value for g in drawn]
        for trace, g in zip(figure.data, drawn, strict=True):
            if g.low is not None:
                assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(g.low)
                assert trace.x[0] + trace.error_x.array[0] == pytest.approx(g.high)
    marks = {(t["marker"]["color"], t["marker"]["symbol"]) for i in (0, 1) for t in page.plots[f"gates-{i}"]["data"]}
    assert len(marks) == len({colour for colour, _ in marks}) == len({symbol for _, symbol in marks}) == 3


def test_values_are_inert():
    night = full_night(reason=HOSTILE, batch_id=HOSTILE, data_version=HOSTILE)
    night["requests"][1]["label"] = HOSTILE
    night["attempts"][0]["gates"][1]["name"] = HOSTILE
    night["attempts"][0]["group"] = HOSTILE
    night["attempts"][0]["diagnostics"] = {HOSTILE: HOSTILE}
    night["sid_diff"][0]["title"] = HOSTILE
    night["forgetting"]["after"][HOSTILE] = {"value": 0.5}
    html = render(Summary.model_validate(night))
    page, plain = Page(html), Page(render(summarise()))
    assert page.count("script") == plain.count("script")
    assert page.count("img") == 0
    assert "alert(" in page.text
    labels = [a["text"] for plot in page.plots.values() for a in plot["layout"]["annotations"]]
    assert any("&lt;/script" in label for label in labels)
    assert not any("<" in label for label in labels)


def test_summary_round_trip_is_exact_and_stable(tmp_path):
    summary = summarise()
    path = write_summary(summary, tmp_path)
    assert read_summary(path) == summary
    first = path.read_bytes()
    assert write_summary(read_summary(path), tmp_path).read_bytes() == first
    tree = json.loads(first)
    assert tree["schema"] == 1
    assert list(tree) == sorted(tree)


@pytest.mark.parametrize("missing", [float("nan"), float("inf"), np.float32("nan"), None])
def test_figures_without_a_value_become_null_and_a_dash(tmp_path, missing):
    night = full_night(wall_s=missing, cost={"retrain_s": missing})
    night["attempts"][0]["gates"] = [gate("utility", "INCONCLUSIVE", missing, missing, missing, missing, None)]
    night["utility"]["after"]["NDCG@10"] = {"value": np.float32(0.5), "low": missing, "high": missing, "n": np.int64(3)}
    summary = Summary.model_validate(night)
    written = read_summary(write_summary(summary, tmp_path)).attempts[0].gates[0]
    assert (written.value, written.low, written.high, written.limit) == (None, None, None, None)
    page = Page(render(summary))
    assert "gates-0" not in page.plots
    assert "nan" not in re.findall(r"\w+", page.text.lower())
    assert "took –." in page.text


def test_report_leaves_two_files_and_replaces_the_last_ones(tmp_path):
    write_report(quiet_night(), tmp_path / "latest")
    index = write_report(summarise(), tmp_path / "latest")
    assert sorted(p.name for p in index.parent.iterdir()) == ["index.html", "summary.json"]
    assert index.read_text(encoding="utf-8") == render(read_summary(index.with_name("summary.json")))


def test_a_wrong_summary_is_named(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(DataError, match="No summary at"):
        read_summary(path)
    path.write_text('{"schema": 2')
    with pytest.raises(DataError, match="is not JSON"):
        read_summary(path)
    path.write_text(json.dumps({"schema": 2, "outcome": "held", "started_at": 0, "finished_at": 0}))
    with pytest.raises(DataError, match="schema = 2"):
        read_summary(path)
    with pytest.raises(ValidationError, match="mood"):
        summarise(mood="good")


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        ("promoted", "Forgotten: 2 requests were carried out"),
        ("held", "Not yet forgotten: 2 requests must wait"),
        ("failed", "The run failed: 2 requests must wait"),
    ],
)
def test_headline_says_what_happened(outcome, says):
    assert says in headline(summarise(outcome=outcome))


def test_headline_without_a_model():
    assert "no model is served" in headline(summarise(outcome="failed", champion_after=None))


def test_headline_counts_only_what_is_unlearned():
    night = full_night()
    night["requests"][0] |= {"unlearned_at": None, "due_at": START}
    summary = Summary.model_validate(night)
    assert "1 of 2 requests" in headline(summary)
    assert deadline(summary) == ("2026-03-02 02:00 UTC", True)
    assert "Overdue" in Page(render(summary)).text


def test_times_without_a_zone_are_utc():
    assert summarise(started_at=datetime(2026, 3, 2, 2, 0)).started_at == START


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.5, "0.5 s"), (59.96, "60 s"), (192, "3 min 12 s"), (7500, "2 h 5 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
