"""The night as one self-contained HTML page: verdict first, then the figures it rests on.

Notable choices: nothing is fetched (plotly.js is inlined once, a content security policy forbids the rest); every
figure drawn is also in a table; a gate keeps its own axis, because shares, ratios and nats do not share one; the plots
take their ink from the style sheet, so that light, dark and print need no script; summary values are inert text in
HTML (autoescape), in the plot data (`<` is escaped) and in Plotly's own mark-up.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from genrec.report.summary import Comparison, Gate, Measure, Summary, write_atomic, write_summary

DASH = "–"
GLYPHS = {"PASS": "●", "FAIL": "✕", "INCONCLUSIVE": "◇"}
SYMBOLS = {"PASS": "circle", "FAIL": "x", "INCONCLUSIVE": "diamond-open"}
# Mid-tones: at least 3:1 on the light and on the dark ground.
COLOURS = {"PASS": "#2f8f5b", "FAIL": "#d9483f", "INCONCLUSIVE": "#b9770e"}
BEFORE, AFTER = ("Before", "#7a828c", "circle-open"), ("After", "#3b7dc4", "circle")
NUMERIC = ("Figure", "Low", "High", "Limit", "n", "Before", "After", "Change")
ROW_PX, LABEL_PX, BAND_PX = 68, 22, 22


def write_report(summary: Summary, directory: Path) -> Path:
    """Write `summary.json` and `index.html` into `directory`, each atomically; returns the page's path."""
    page = render(summary)
    write_summary(summary, directory)
    return write_atomic(directory / "index.html", page)


def render(summary: Summary) -> str:
    """The page as HTML text."""
    figures: dict[str, dict] = {}
    for index, attempt in enumerate(summary.attempts):
        figures[f"gates-{index}"] = plot([_gate_row(g) for g in attempt.gates if _drawable(g)])
    for name, comparison in (("utility", summary.utility), ("forgetting", summary.forgetting)):
        figures[name] = plot([_comparison_row(metric, comparison) for metric in metrics(comparison)])
    figures = {name: figure for name, figure in figures.items() if figure["data"]}
    environment = Environment(
        loader=PackageLoader("genrec.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": number, "time": time, "duration": duration, "limit": limit, "sid": sid}
    environment.globals |= {"GLYPHS": GLYPHS, "NUMERIC": NUMERIC, "DASH": DASH, "metrics": metrics, "change": change}
    indexed = enumerate(summary.attempts)
    return environment.get_template("night.html.j2").render(
        s=summary,
        headline=headline(summary),
        deadline=deadline(summary),
        groups=[(name, list(rungs)) for name, rungs in groupby(indexed, key=lambda pair: pair[1].group)],
        costs=costs(summary),
        figures=figures,
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


def metrics(comparison: Comparison) -> list[str]:
    """Metric names of either side, sorted."""
    return sorted(comparison.before | comparison.after, key=str.lower)


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


def number(value: float | str | None) -> str:
    """Six significant digits, whole numbers in full, a dash where there is none; text as it is."""
    if value is None:
        return DASH
    return str(value) if isinstance(value, int | str) else f"{value:.6g}"


def limit(value: float | Sequence[float | None] | None) -> str:
    return f"{number(value[0])} to {number(value[1])}" if isinstance(value, tuple) else number(value)


def sid(tokens: Sequence[int]) -> str:
    return " · ".join(map(str, tokens)) or DASH


def time(value: datetime, zone: str = " UTC") -> str:
    return f"{value:%Y-%m-%d %H:%M}{zone}"


def duration(seconds: float | None) -> str:
    """`42.1 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class Point:
    """A figure with its interval; `name` is what the pointer shows."""

    name: str
    colour: str
    symbol: str
    measure: Gate | Measure


@dataclass(frozen=True)
class Row:
    """One axis of a plot: text at its left and right end, points, and the limits drawn as lines."""

    label: str
    note: str
    points: tuple[Point, ...]
    limits: tuple[float, ...] = ()


def _drawable(gate: Gate) -> bool:
    """A yes-or-no gate, without interval and limit, has nothing to draw."""
    return gate.value is not None and any(x is not None for x in (gate.low, gate.high, gate.limit))


def _gate_row(gate: Gate) -> Row:
    point = Point(gate.verdict, COLOURS[gate.verdict], SYMBOLS[gate.verdict], gate)
    limits = gate.limit if isinstance(gate.limit, tuple) else (gate.limit,)
    note = "" if gate.limit is None else f"limit {limit(gate.limit)}"
    return Row(f"{GLYPHS[gate.verdict]} {gate.name}", note, (point,), tuple(x for x in limits if x is not None))


def _comparison_row(metric: str, comparison: Comparison) -> Row:
    sides = ((BEFORE, comparison.before.get(metric)), (AFTER, comparison.after.get(metric)))
    return Row(metric, "", tuple(Point(*style, m) for style, m in sides if m and m.value is not None))


def plot(rows: Sequence[Row]) -> dict[str, Any]:
    """A forest plot as Plotly JSON: one row per figure, each on its own axis."""
    rows = [row for row in rows if row.points]
    height = max(len(rows), 1) * ROW_PX
    layout: dict[str, Any] = {
        "height": height,
        "margin": {"l": 12, "r": 12, "t": 0, "b": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "annotations": [],
        "shapes": [],
    }
    data = []
    for index, row in enumerate(rows):
        axis = str(index + 1) if index else ""
        top = 1 - (index * ROW_PX + LABEL_PX) / height
        layout[f"xaxis{axis}"] = {
            "anchor": f"y{axis}",
            "range": _range(row),
            "nticks": 5,
            "zeroline": False,
            "fixedrange": True,
            "tickfont": {"size": 11},
        }
        layout[f"yaxis{axis}"] = {
            "anchor": f"x{axis}",
            "domain": [top - BAND_PX / height, top],
            "range": [-1, 1],
            "visible": False,
            "fixedrange": True,
        }
        for text, side in ((_inert(row.label), "left"), (_inert(row.note), "right")):
            place = {"xref": "paper", "yref": "paper", "x": float(side == "right"), "y": top}
            layout["annotations"].append(
                place | {"text": text, "xanchor": side, "yanchor": "bottom", "showarrow": False}
            )
        for x in row.limits:
            place = {"xref": f"x{axis}", "yref": f"y{axis} domain", "x0": x, "x1": x, "y0": 0, "y1": 1}
            layout["shapes"].append({"type": "line", "line": {"width": 2, "dash": "dot"}} | place)
        spread = (0.0,) if len(row.points) == 1 else (0.5, -0.5)
        data += [_trace(point, y, axis) for point, y in zip(row.points, spread, strict=True)]
    return {"data": data, "layout": layout}


def _trace(point: Point, y: float, axis: str) -> dict[str, Any]:
    m = point.measure
    hover = f"{point.name}: {number(m.value)} ({number(m.low)} to {number(m.high)}), n = {number(m.n)}<extra></extra>"
    line = {"width": 2, "color": point.colour}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [m.value],
        "y": [y],
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "marker": {"size": 11, "color": point.colour, "symbol": point.symbol, "line": line},
        "cliponaxis": False,
        "error_x": {
            "array": [None if m.high is None else m.high - m.value],
            "arrayminus": [None if m.low is None else m.value - m.low],
            "symmetric": False,
            "color": point.colour,
            "thickness": 2,
            "width": 5,
        },
        "hovertemplate": hover,
    }


def _range(row: Row) -> list[float]:
    values = [x for p in row.points for x in (p.measure.value, p.measure.low, p.measure.high) if x is not None]
    low, high = min([*values, *row.limits]), max([*values, *row.limits])
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - pad, high + pad]


def _inert(text: str, width: int = 44) -> str:
    """Text for Plotly, which reads a small mark-up of its own."""
    return escape(text if len(text) <= width else text[: width - 1] + "…", quote=False)
