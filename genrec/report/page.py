"""The night as one self-contained HTML page: verdict first, then the figures it rests on.

Notable choices: nothing is fetched (plotly.js is inlined once, a content security policy forbids the rest); every
figure drawn is also in a table, a curve's points in summary.json; where a night has no such figure the page says why;
summary values are inert text in HTML (autoescape), in the plot data (`<` is escaped) and in Plotly's own mark-up.
"""

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from genrec.report import text
from genrec.report.figures import GLYPHS, drawn, measured, metrics, models
from genrec.report.graph import TEXT_X, WIDTH_PX, lineage_graph
from genrec.report.summary import Check, Comparison, Gate, Measure, Summary, write_atomic, write_summary
from genrec.report.text import DASH, duration, number, time

NUMERIC = (
    "Figure", "Limit", "Before", "After", "Change", "Test NLL increase", "AUC", "Found at 1 % FPR", "Forgotten",
    "Never seen", "Shared codes", "Lists before", "Lists after", "Place before", "Place after", "Expectations",
    "Failed",
)  # fmt: skip


def write_report(summary: Summary, *directories: Path) -> Path:
    """Write `summary.json` and `index.html` into each directory, each atomically; returns the last page's path."""
    page = render(summary)
    for directory in directories:
        write_summary(summary, directory)
        write_atomic(directory / "index.html", page)
    return directories[-1] / "index.html"


def render(summary: Summary) -> str:
    """The page as HTML text."""
    figures, shown = drawn(summary), models(summary)
    environment = Environment(
        loader=PackageLoader("genrec.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {name: getattr(text, name) for name in FILTERS}
    environment.globals |= {"GLYPHS": GLYPHS, "DASH": DASH, "metrics": metrics, "change": change}
    environment.globals |= {"TEXT_X": TEXT_X, "WIDTH_PX": WIDTH_PX}
    indexed = enumerate(summary.attempts)
    forgotten = measured(shown)
    return environment.get_template("night.html.j2").render(
        s=summary,
        headline=headline(summary),
        deadline=deadline(summary),
        groups=[(name, list(rungs)) for name, rungs in groupby(indexed, key=lambda pair: pair[1].group)],
        costs=costs(summary),
        figures=figures,
        models=shown,
        forgotten=forgotten,
        numeric=(*NUMERIC, *forgotten),
        missing=missing(summary),
        collateral=collateral(summary),
        suites=suites(summary),
        graph=lineage_graph(summary),
        plots=Markup(json.dumps(figures, allow_nan=False).replace("<", "\\u003c")),
        plotly=Markup(get_plotlyjs()) if figures else None,
    )


def headline(summary: Summary) -> str:
    """The verdict in one sentence, free of jargon."""
    version = summary.champion_after
    served = f"model version {version} is served" if version else "no model is served"
    stays = f"model version {version} stays in service" if version else served
    total = len(summary.requests)
    waiting = f"{total} request{'s' * (total != 1)}"
    if summary.outcome == "nothing to do":
        nobody = "no request was ready" if summary.reason else "no request was waiting"
        return f"Nothing to forget: {nobody}, and {stays}."
    if summary.outcome == "failed":
        return f"The run failed: {waiting} must wait for the next run, and {stays}."
    if summary.outcome == "held":
        return f"Not yet forgotten: {waiting} must wait because no new model passed every required check, and {stays}."
    done = sum(request.unlearned_at is not None for request in summary.requests)
    counted = waiting if done == total else f"{done} of {waiting}"
    verb = "was" if done == total == 1 else "were"
    carried = f"{counted} {verb} carried out in the data and in the model"
    return f"Forgotten: {carried}, every required check passed, and {served}."


def deadline(summary: Summary) -> tuple[str, bool] | None:
    """The earliest due time of a request that is still open, and whether it has passed."""
    due = [r.due_at for r in summary.requests if r.due_at and r.unlearned_at is None]
    return (time(min(due)), min(due) < summary.finished_at) if due else None


EARLIER = "The record of this night was written by an earlier version, which did not keep it."
FILTERS = ("number", "time", "duration", "limit", "sid", "percent", "expectation", "holds")


def missing(summary: Summary) -> dict[str, str]:
    """Why the night has no reference, no curve and no neighbours, in a sentence by name; "" where it has."""
    s, said = summary, {"tradeoff": "", "reference": "", "membership": "", "neighbours": ""}
    if not any(a.nll_increase for a in s.attempts):
        why = EARLIER if s.schema_version == 1 else "No candidate came to be measured this night."
        return dict.fromkeys(said, why)
    people = any(request.kind == "user" for request in s.requests)
    if not models(s):
        said["tradeoff"] = "Nothing but single interactions was forgotten, for which there is no figure of forgetting."
    if not any(a.exact for a in s.attempts) and not s.reference:
        calibrated = " and no calibration of this model family keeps one" if people else ""
        said["reference"] = f"No model was retrained without the data this night{calibrated}: none is shown beside."
    if not people:
        said["membership"] = "Nobody asked that their own history be forgotten, so there is nobody to tell apart."
    elif not s.membership:
        said["membership"] = "No candidate came to be measured on the people of this night."
    elif not s.membership.after.points:
        c = s.membership.after
        said["membership"] = (
            f"{c.forgotten} forgotten and {c.unseen} never-seen people are too few for a curve: it takes "
            f"{c.least} of each, or each of its steps would be a person."
        )
    if not any(request.kind in ("concept", "item") for request in s.requests):
        said["neighbours"] = "Neither a concept nor an item was forgotten, so no item has forgotten neighbours."
    elif not s.neighbours:
        said["neighbours"] = "No candidate came to be measured on the items of this night."
    elif not s.neighbours.items:
        said["neighbours"] = f"No retained item shares {s.neighbours.least} codes with a forgotten one."
    return said


def collateral(summary: Summary) -> Gate | None:
    """The gate that judges all neighbours together, of the attempt whose neighbours are shown."""
    if summary.neighbours is None:
        return None
    gates = summary.attempts[summary.neighbours.attempt].gates
    return next((gate for gate in gates if gate.name == "collateral"), None)


@dataclass(frozen=True)
class Suite:
    """The expectations about one table."""

    name: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.success)


def suites(summary: Summary) -> list[Suite]:
    """The validation's expectations by table, in their order."""
    results = summary.validation.results if summary.validation else ()
    return [
        Suite(name, tuple(check for check in results if check.suite == name))
        for name in dict.fromkeys(check.suite for check in results)
    ]


def change(comparison: Comparison, metric: str) -> float | None:
    """After minus before; None where either is missing."""
    before, after = (side.get(metric, Measure()).value for side in (comparison.before, comparison.after))
    return None if before is None or after is None else after - before


def costs(summary: Summary) -> list[tuple[str, str]]:
    """Names and figures of the cost, seconds written as durations."""
    rows = [("Whole run", duration(summary.wall_s))]
    for name, value in sorted(summary.cost.items()):
        text = number(value) if isinstance(value, str) or not name.endswith("_s") else duration(value)
        rows.append((name.removesuffix("_s").replace("_", " ").capitalize(), text))
    return rows
