"""Forgetting against utility, one point per method, the retrained model marked: a self-contained HTML page."""

from collections.abc import Sequence
from pathlib import Path

from genrec.bench.candidates import ORIGINAL, RETRAINED

UTILITY = "test NLL increase"
FORGETTING = {"users": "user NLL gap over retrained", "concept": "sh@10"}


def axis_name(row: dict, scenario: str) -> str:
    return FORGETTING[scenario] if scenario == "users" else f"sh@10 {row['label']}"


def write_plot(rows: Sequence[dict], scenario: str, path: Path) -> Path:
    """Draw `matrix.table`'s rows with their intervals; several concepts share one plot, told apart by hover text."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name in dict.fromkeys(row["method"] for row in rows):
        cells = [row for row in rows if row["method"] == name and row.get("figures")]
        if not cells:
            continue
        x = [row["figures"][UTILITY] for row in cells]
        y = [row["figures"][axis_name(row, scenario)] for row in cells]
        marked = name in (ORIGINAL, RETRAINED)
        figure.add_scatter(
            x=[p["value"] for p in x], y=[p["value"] for p in y], name=name, mode="markers",
            text=[f"{name}, {row['label']}: {row['verdicts']}" for row in cells],
            error_x=_error(x), error_y=_error(y),
            marker={"size": 14 if marked else 9, "symbol": "star" if name == RETRAINED else "circle"},
        )  # fmt: skip
    figure.update_layout(
        title=f"Forgetting against utility ({scenario}); the star is the retrained model",
        xaxis_title="test NLL increase over the champion, nat/token (left is better)",
        yaxis_title=f"{FORGETTING[scenario]} ({'0 is the retrained model' if scenario == 'users' else 'low is good'})",
        template="plotly_white",
    )  # fmt: skip
    figure.write_html(path, include_plotlyjs=True)
    return path


def _error(points: Sequence[dict]) -> dict:
    return {
        "type": "data", "symmetric": False, "thickness": 1,
        "array": [p["high"] - p["value"] for p in points], "arrayminus": [p["value"] - p["low"] for p in points],
    }  # fmt: skip
