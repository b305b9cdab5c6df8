"""How the report writes figures, times and names."""

from collections.abc import Sequence
from datetime import datetime
from html import escape

DASH = "–"


def number(value: float | str | None) -> str:
    """Six significant digits, whole numbers in full, a dash where there is none; text as it is."""
    if value is None:
        return DASH
    return str(value) if isinstance(value, int | str) else f"{value:.6g}"


def limit(value: float | Sequence[float | None] | None) -> str:
    return f"{number(value[0])} to {number(value[1])}" if isinstance(value, tuple) else number(value)


def percent(value: float | None) -> str:
    """A share in per cent, three significant digits."""
    return DASH if value is None else f"{100 * value:.3g} %"


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


HOLDS = {
    "integrity": "The model is whole, its unchanging part is unchanged, and the erased rows are gone.",
    "concept": "The concept has all but vanished from the lists.",
    "user-nll": "Forgotten people are as unknown to the model as people it never saw.",
    "membership": "An attacker cannot tell forgotten people from people it never saw.",
    "over-forgetting": "Forgotten people are not less known than that, which would give them away.",
    "utility": "Those who stay get as good recommendations as before.",
    "collateral": "Items much like the forgotten ones are recommended as well as before.",
    "robustness int8": "Forgetting holds when the model is compressed.",
    "robustness unmerged": "Forgetting holds in the other form in which the model is stored.",
    "relearn": "Taught the same again, the model is no quicker than one that never knew it.",
    "drift": "Little quality was lost since the last full training.",
    "cost": "It took a fraction of the time of retraining.",
    "base": "The model beats a list of what is popular.",
}
"""What each of genrec's own checks asks for, by its name, in plain words."""


def holds(name: str) -> str:
    """What the check of this name asks for; nothing of a package's own, whose rule says it."""
    return HOLDS.get(name, "")


def expectation(name: str) -> str:
    """`expect_column_values_to_be_unique(item_id)` as `column values to be unique (item_id)`."""
    kind, bracket, columns = name.removeprefix("expect_").partition("(")
    return f"{kind.replace('_', ' ')} {bracket}{columns}".strip()


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def inert(text: str, width: int = 44) -> str:
    """Text for Plotly, which reads a small mark-up of its own."""
    return escape(shortened(text, width), quote=False)
