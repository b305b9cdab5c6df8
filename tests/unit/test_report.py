"""The night's summary and its page: complete, self-contained, inert, and strict JSON."""

import json
import re
from datetime import datetime
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest
from pydantic import ValidationError

from genrec.errors import DataError
from genrec.evaluation.gates import SHIPPED
from genrec.report.figures import drawn, models
from genrec.report.graph import lineage_graph
from genrec.report.page import deadline, headline, missing, render, write_report
from genrec.report.summary import Summary, read_summary, write_summary
from genrec.report.text import HOLDS, duration, holds, limit, number
from tests.summaries import GAP, HOSTILE, SH, START, full_night, gate, quiet_night, summarise


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
    assert set(links) <= {"#main", "#attempt-0", "#attempt-1"}  # a file beside it would be a dead link elsewhere
    assert page.count("link") == 0
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = [attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs]
    assert {one for names in named for one in names.split()} <= set(ids)
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


def test_every_check_of_our_own_is_said_in_plain_words():
    assert set(HOLDS) == set(SHIPPED)
    text = Page(render(summarise())).text
    for name in ("integrity", "user-nll", "membership", "utility", "concept", "collateral", "cost"):
        assert HOLDS[name] in text
    assert holds("acme-nll") == ""


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
    assert tree["schema"] == 2
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
    path.write_text(json.dumps({"schema": 3, "outcome": "held", "started_at": 0, "finished_at": 0}))
    with pytest.raises(DataError, match=r"schema = 3: .* or open the page beside it"):
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


def first_schema() -> dict:
    """The same night as it was written before schema 2."""
    night = full_night(schema=1, validation={"success": True, "checks": 34, "failed": 0})
    for name in ("reference", "membership", "neighbours"):
        del night[name]
    for attempt in night["attempts"]:
        for name in ("version", "made_from", "forgetting", "nll_increase"):
            del attempt[name]
    return night


def test_a_summary_of_schema_1_still_renders_and_says_what_it_lacks(tmp_path):
    summary = Summary.model_validate(first_schema())
    assert read_summary(write_summary(summary, tmp_path)) == summary
    text = Page(render(summary)).text
    assert text.count("written by an earlier version") == 3
    assert "34 checks" in text


def test_every_model_of_the_night_is_in_the_plot_and_in_the_table():
    summary = summarise()
    shown = models(summary)
    assert [(m.mark, m.style[0]) for m in shown] == [
        ("0", "Before"), ("1", "Attempt"), ("2", "Attempt"), ("R", "Calibration")
    ]  # fmt: skip
    assert [set(m.forgetting) for m in shown] == [{GAP, SH}, {GAP}, {SH}, {GAP}]
    plots = drawn(summary)
    for name, metric in (("tradeoff-0", SH), ("tradeoff-1", GAP)):
        figure = go.Figure(plots[name])
        there = [m for m in shown if metric in m.forgetting]
        assert [trace.text[0] for trace in figure.data] == [m.mark for m in there]
        for trace, m in zip(figure.data, there, strict=True):
            assert (trace.x[0], trace.y[0]) == (m.forgetting[metric].value, m.nll_increase.value)
            for bars, figure_ in ((trace.error_x, m.forgetting[metric]), (trace.error_y, m.nll_increase)):
                if figure_.n is not None:
                    assert (bars.array[0], bars.arrayminus[0]) == pytest.approx(
                        (figure_.high - figure_.value, figure_.value - figure_.low)
                    )
    assert [shape.x0 for shape in go.Figure(plots["tradeoff-1"]).layout.shapes] == [-0.05, 0.05]
    text = Page(render(summary)).text
    assert all(m.name in text and number(m.nll_increase.value) in text for m in shown)


def test_the_final_judgement_adds_only_what_was_not_measured_of_its_version():
    night = full_night()
    last = night["attempts"][1]
    both = last["forgetting"] | night["attempts"][0]["forgetting"]
    night["attempts"].append(last | {"group": "final", "exact": True, "forgetting": both})
    final = models(Summary.model_validate(night))[3]
    assert (final.mark, final.style[0], final.forgetting.keys()) == ("3", "Retrained", {GAP})


def without(night: dict, kind: str) -> dict:
    """The night without the requests of a kind, and what was measured for them."""
    night["requests"] = [request for request in night["requests"] if request["kind"] != kind]
    gone, metric, part = {"user": (0, GAP, "membership"), "concept": (1, SH, "neighbours")}[kind]
    night[part] = None
    night["attempts"] = [a for i, a in enumerate(night["attempts"]) if i != gone]
    night["forgetting"]["before"].pop(metric)
    if kind == "user":
        night |= {"reference": None, "neighbours": night["neighbours"] | {"attempt": 0}}
    return night


def few_people() -> dict:
    few = {"forgotten": 3, "unseen": 94, "least": 20}
    return full_night(membership={"attempt": 0, "before": few, "after": few})


@pytest.mark.parametrize(
    ("night", "name", "says"),
    [
        (without(full_night(), "user"), "membership", "Nobody asked that their own history be forgotten"),
        (without(full_night(), "user"), "reference", "No model was retrained without the data this night: none"),
        (full_night(reference=None), "reference", "no calibration of this model family keeps one"),
        (without(full_night(), "concept"), "neighbours", "Neither a concept nor an item was forgotten"),
        (few_people(), "membership", "3 forgotten and 94 never-seen people are too few for a curve: it takes 20 of"),
        (full_night(attempts=[], membership=None, neighbours=None), "tradeoff", "No candidate came to be measured"),
        (full_night(membership=None), "membership", "No candidate came to be measured on the people"),
        (full_night(neighbours=None), "neighbours", "No candidate came to be measured on the items"),
    ],
    ids=["no people", "no model", "no calibration", "no concept", "few people", "no attempt", "no curve", "no items"],
)  # fmt: skip
def test_what_a_night_cannot_show_is_said(night, name, says):
    summary = Summary.model_validate(night)
    assert says in missing(summary)[name]
    text = Page(render(summary)).text
    assert (says in text) == bool(summary.attempts)
    assert set(missing(summarise()).values()) == {""}


def test_the_validation_names_what_failed_and_the_collateral_gate_speaks_for_all_neighbours():
    text = re.sub(r"\s+", " ", Page(render(summarise())).text)
    assert "interactions21column values to be between (rating): 7 of 3055 rows" in text
    assert "items10–" in text
    assert "collateral: ● PASS, NDCG@10 ratio to the champion 0.99 (0.97 to 1.02; limit 0.95; n 214)" in text


def test_the_lineage_graph_joins_data_requests_and_models():
    graph = lineage_graph(summarise())
    parents = {node.key: set(node.parents) for node in graph.nodes}
    assert parents["model 8"] == parents["model 9"] == {"model 7", "data after"}
    assert parents["data after"] == {"data before", "batch"}
    assert parents["batch"] == {"Request r-1", "Request r-2"}
    assert [node.key for node in graph.nodes if node.served] == ["model 8"]
    assert len(graph.edges) == sum(len(keys) for keys in parents.values())
    assert [node.y for node in graph.nodes] == sorted({node.y for node in graph.nodes})
    assert max(node.y for node in graph.nodes) < graph.height
    many = summarise(requests=[full_night()["requests"][0] | {"id": f"r-{i}"} for i in range(30)])
    assert "26 more requests" in [node.title for node in lineage_graph(many).nodes]
    assert [node.key for node in lineage_graph(summarise(outcome="held", champion_after="7")).nodes if node.served] == [
        "model 7"
    ]
    assert lineage_graph(quiet_night()) is None


def test_the_page_stays_small():
    assert len(render(summarise()).encode()) < 6_000_000
