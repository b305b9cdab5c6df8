"""The report's plots as Plotly JSON: forest plots, forgetting against quality, the attack's curve.

Notable choices: a gate keeps its own axis, because shares, ratios and nats do not share one; the plots take their ink
from the style sheet, so that light, dark and print need no script; names are inert in Plotly's own mark-up; colour
never stands alone, every mark has a shape or a letter of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genrec.report.summary import Comparison, Curve, Gate, Measure, Summary
from genrec.report.text import inert, limit, number

GLYPHS = {"PASS": "●", "FAIL": "✕", "INCONCLUSIVE": "◇"}
SYMBOLS = {"PASS": "circle", "FAIL": "x", "INCONCLUSIVE": "diamond-open"}
# Mid-tones: at least 3:1 on the light and on the dark ground.
COLOURS = {"PASS": "#2f8f5b", "FAIL": "#d9483f", "INCONCLUSIVE": "#b9770e"}
BEFORE, AFTER = ("Before", "#7a828c", "circle-open"), ("After", "#3b7dc4", "circle")
ATTEMPT, RETRAINED, REFERENCE = (
    ("Attempt", "#3b7dc4", "circle"), ("Retrained", "#2f8f5b", "diamond"), ("Calibration", "#b9770e", "square-open"),
)  # fmt: skip
CORNERS = ("top right", "bottom right", "bottom left", "top left")
ROW_PX, LABEL_PX, BAND_PX = 68, 22, 22
SQUARE_PX = 340
NLL = "test NLL increase, nat/token"


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


@dataclass(frozen=True)
class Model:
    """A model of the night, for forgetting against quality: `mark` is its letter in the plot, `style` how it is drawn.

    forgetting: its figures; nll_increase: of the test NLL over the champion, nat per token.
    """

    mark: str
    name: str
    style: tuple[str, str, str]
    forgetting: Mapping[str, Measure]
    nll_increase: Measure


def drawn(summary: Summary) -> dict[str, dict[str, Any]]:
    """Every plot of the page by the id of its place; what has no data is left out."""
    figures = {}
    for index, attempt in enumerate(summary.attempts):
        figures[f"gates-{index}"] = forest([_gate_row(g) for g in attempt.gates if _drawable(g)])
    for name, comparison in (("utility", summary.utility), ("forgetting", summary.forgetting)):
        figures[name] = forest([_comparison_row(metric, comparison) for metric in metrics(comparison)])
    shown = models(summary)
    for index, metric in enumerate(measured(shown)):
        figures[f"tradeoff-{index}"] = tradeoff(metric, shown, _limits(summary, metric))
    if summary.membership:
        figures["membership"] = roc(summary.membership.before, summary.membership.after)
    return {name: figure for name, figure in figures.items() if figure["data"]}


def metrics(comparison: Comparison) -> list[str]:
    """Metric names of either side, sorted."""
    return sorted(comparison.before | comparison.after, key=str.lower)


def models(summary: Summary) -> list[Model]:
    """The champion before, every attempt that was measured, and the calibrated reference where there is one.

    A figure is taken once per version: the final judgement adds only what the attempts before it had not measured.
    """
    before = summary.forgetting.before
    found = [Model("0", f"version {summary.champion_before}, before", BEFORE, before, Measure(value=0.0))]
    known: dict[str, set[str]] = {}
    for number_, a in enumerate(summary.attempts, 1):
        new = {name: m for name, m in a.forgetting.items() if name not in known.get(a.version or "", ())}
        known.setdefault(a.version or "", set()).update(new)
        if new and a.nll_increase:
            name = f"version {a.version}, {a.method} ({a.group})"
            found.append(Model(str(number_), name, RETRAINED if a.exact else ATTEMPT, new, a.nll_increase))
    if summary.reference:
        r = summary.reference
        name = f"retrained by the calibration of {r.at:%Y-%m-%d} without {r.n} other people"
        found.append(Model("R", name, REFERENCE, r.forgetting, r.nll_increase))
    return found if len(found) > 1 else []


def measured(shown: Sequence[Model]) -> list[str]:
    """Forgetting figures of any of the models, sorted."""
    return sorted({name for model in shown for name in model.forgetting}, key=str.lower)


def _limits(summary: Summary, metric: str) -> tuple[float, ...]:
    """The limits that the gate about this figure had in the attempts at its own group."""
    gate = {"user NLL gap": "user-nll", "membership AUC": "membership"}.get(metric, "concept")
    about = [a for a in summary.attempts if metric in a.forgetting and a.group != "final"]
    return tuple(sorted({x for a in about for g in a.gates if g.name == gate for x in _bounds(g)}))


def _bounds(gate: Gate) -> tuple[float, ...]:
    limits = gate.limit if isinstance(gate.limit, tuple) else (gate.limit,)
    return tuple(x for x in limits if x is not None)


def _drawable(gate: Gate) -> bool:
    """A yes-or-no gate, without interval and limit, has nothing to draw."""
    return gate.value is not None and any(x is not None for x in (gate.low, gate.high, gate.limit))


def _gate_row(gate: Gate) -> Row:
    point = Point(gate.verdict, COLOURS[gate.verdict], SYMBOLS[gate.verdict], gate)
    note = "" if gate.limit is None else f"limit {limit(gate.limit)}"
    return Row(f"{GLYPHS[gate.verdict]} {gate.name}", note, (point,), _bounds(gate))


def _comparison_row(metric: str, comparison: Comparison) -> Row:
    sides = ((BEFORE, comparison.before.get(metric)), (AFTER, comparison.after.get(metric)))
    return Row(metric, "", tuple(Point(*style, m) for style, m in sides if m and m.value is not None))


def forest(rows: Sequence[Row]) -> dict[str, Any]:
    """A forest plot: one row per figure, each on its own axis."""
    rows = [row for row in rows if row.points]
    height = max(len(rows), 1) * ROW_PX
    layout = _layout(height) | {"margin": {"l": 12, "r": 12, "t": 0, "b": 0}}
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
        for text, side in ((inert(row.label), "left"), (inert(row.note), "right")):
            place = {"xref": "paper", "yref": "paper", "x": float(side == "right"), "y": top}
            layout["annotations"].append(
                place | {"text": text, "xanchor": side, "yanchor": "bottom", "showarrow": False}
            )
        for x in row.limits:
            place = {"xref": f"x{axis}", "yref": f"y{axis} domain", "x0": x, "x1": x, "y0": 0, "y1": 1}
            layout["shapes"].append(_line() | place)
        spread = (0.0,) if len(row.points) == 1 else (0.5, -0.5)
        data += [
            _mark(point, [point.measure.value], [y]) | _bars("error_x", point.measure, point.colour)
            | {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "cliponaxis": False, "hovertemplate": _hover(point)}
            for point, y in zip(row.points, spread, strict=True)
        ]  # fmt: skip
    return {"data": data, "layout": layout}


def tradeoff(metric: str, shown: Sequence[Model], limits: Sequence[float]) -> dict[str, Any]:
    """What a model remembers (`metric`, across) against what it lost in quality (up), with intervals."""
    data = []
    for model in shown:
        x, y = model.forgetting.get(metric), model.nll_increase
        if x is None or x.value is None or y.value is None:
            continue
        role, colour, symbol = model.style
        told = f"{inert(model.name)}<br>{inert(metric)} {_interval(x)}<br>{NLL} {_interval(y)}<extra>{role}</extra>"
        data.append(
            _mark(Point(model.name, colour, symbol, x), [x.value], [y.value])
            | _bars("error_x", x, colour) | _bars("error_y", y, colour)
            | {"mode": "markers+text", "text": [model.mark], "hovertemplate": told}
            | {"textposition": CORNERS[len(data) % len(CORNERS)]}  # two models may lie in one place
        )  # fmt: skip
    layout = _layout(SQUARE_PX) | {"margin": {"l": 64, "r": 16, "t": 12, "b": 48}}
    layout["xaxis"] = _axis(inert(metric))
    layout["yaxis"] = _axis(NLL)
    layout["shapes"] = [_line() | {"yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1} for x in limits]
    return {"data": data, "layout": layout}


def roc(before: Curve | None, after: Curve) -> dict[str, Any]:
    """The attack's curves, and the diagonal of an attack that is no better than guessing."""
    lines = [(BEFORE, "dash", before), (AFTER, "solid", after)]
    data = [
        {
            "type": "scatter", "mode": "lines", "name": name, "line": {"color": colour, "width": 2, "dash": dash},
            "x": [x for x, _ in curve.points], "y": [y for _, y in curve.points],
            "hovertemplate": f"{name}: %{{y:.1%}} found at %{{x:.1%}} false alarms<extra></extra>",
        }
        for (name, colour, _), dash, curve in lines
        if curve and curve.points
    ]  # fmt: skip
    layout = _layout(SQUARE_PX) | {"margin": {"l": 64, "r": 16, "t": 12, "b": 48}, "showlegend": True}
    layout["legend"] = {"x": 0.98, "y": 0.04, "xanchor": "right", "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}
    layout["legend"] |= {"itemclick": False, "itemdoubleclick": False}
    layout["xaxis"] = _axis("never-seen people flagged") | {"range": [-0.01, 1.01], "tickformat": ".0%"}
    layout["yaxis"] = _axis("forgotten people found") | {"range": [-0.01, 1.01], "tickformat": ".0%"}
    layout["shapes"] = [_line() | {"x0": 0, "x1": 1, "y0": 0, "y1": 1}]
    return {"data": data, "layout": layout}


def _layout(height: int) -> dict[str, Any]:
    return {
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "annotations": [],
        "shapes": [],
    }


def _axis(title: str) -> dict[str, Any]:
    font = {"size": 11}
    return {
        "title": {"text": title, "standoff": 8},
        "zeroline": True,
        "fixedrange": True,
        "nticks": 6,
        "tickfont": font,
    }


def _line() -> dict[str, Any]:
    return {"type": "line", "line": {"width": 2, "dash": "dot"}}


def _mark(point: Point, x: list[float], y: list[float]) -> dict[str, Any]:
    line = {"width": 2, "color": point.colour}
    marker = {"size": 11, "color": point.colour, "symbol": point.symbol, "line": line}
    return {"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": marker}


def _bars(name: str, m: Gate | Measure, colour: str) -> dict[str, Any]:
    """Error bars `error_x` or `error_y` of a figure's interval."""
    return {
        name: {
            "array": [None if m.high is None else m.high - m.value],
            "arrayminus": [None if m.low is None else m.value - m.low],
            "symmetric": False,
            "color": colour,
            "thickness": 2,
            "width": 5,
        }
    }


def _hover(point: Point) -> str:
    return f"{point.name}: {_interval(point.measure)}<extra></extra>"


def _interval(m: Gate | Measure) -> str:
    return f"{number(m.value)} ({number(m.low)} to {number(m.high)}), n = {number(m.n)}"


def _range(row: Row) -> list[float]:
    values = [x for p in row.points for x in (p.measure.value, p.measure.low, p.measure.high) if x is not None]
    low, high = min([*values, *row.limits]), max([*values, *row.limits])
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - pad, high + pad]
