"""The night's lineage as a graph: which data and which model each version came from, from top to bottom.

Three lanes: data, requests, models. The page draws it as SVG; the list below it says the same in words.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from genrec.report.figures import GLYPHS
from genrec.report.summary import Summary
from genrec.report.text import shortened

STEP_PX, TOP_PX, WIDTH_PX, TEXT_X = 46, 24, 360, 82
LANES = {"square": 14, "diamond": 37, "circle": 60}
"""Shapes are lanes: data, requests and their batch, models. Pixels from the left."""

BULGE_PX = 16
NAMED = 4
"""Requests named in the graph; the rest are in their table."""


@dataclass(frozen=True)
class Node:
    """One row: a mark, filled where the model is served at the end, and two lines of text. y: pixels from the top."""

    key: str
    shape: str
    title: str
    note: str
    parents: tuple[str, ...]
    served: bool = False
    y: int = 0

    @property
    def x(self) -> int:
        return LANES[self.shape]

    @property
    def lines(self) -> tuple[str, str]:
        """Both lines, cut to the room they have."""
        return shortened(self.title, 36), shortened(self.note, 42)


@dataclass(frozen=True)
class Graph:
    """Rows from top to bottom, and the lines between them as SVG path data. height: pixels at a width of WIDTH_PX."""

    nodes: tuple[Node, ...]
    edges: tuple[str, ...]
    height: int


def lineage_graph(summary: Summary) -> Graph | None:
    """The graph, or None for a run that had no batch."""
    if summary.batch_id is None:
        return None
    placed = [replace(node, y=TOP_PX + i * STEP_PX) for i, node in enumerate(_nodes(summary))]
    at = {node.key: node for node in placed}
    edges = tuple(_edge(at[parent], node, placed) for node in placed for parent in node.parents if parent in at)
    return Graph(tuple(placed), edges, TOP_PX + len(placed) * STEP_PX)


def _nodes(s: Summary) -> Iterator[Node]:
    served = s.champion_after
    if s.data_version_before:
        yield Node("data before", "square", f"Data {shortened(s.data_version_before, 13)}", "before the night", ())
    if s.champion_before:
        stays = s.champion_before == served
        note = "served before the night, and still" if stays else "served before the night"
        key = f"model {s.champion_before}"
        yield Node(key, "circle", f"Model version {s.champion_before}", note, ("data before",), stays)
    named = [(f"Request {r.id}", f"{r.kind}, {r.state}") for r in s.requests[:NAMED]]
    if len(s.requests) > NAMED:
        named.append((f"{len(s.requests) - NAMED} more requests", "in the table of requests"))
    for title, note in named:
        yield Node(title, "diamond", title, note, ())
    count = f"{len(s.requests)} request{'s' * (len(s.requests) != 1)} served together"
    yield Node("batch", "diamond", f"Batch {s.batch_id}", count, tuple(title for title, _ in named))
    if s.data_version:
        note = "without the erased rows" if s.outcome == "promoted" else "without the rows; put back at the end"
        title = f"Data {shortened(s.data_version, 13)}"
        yield Node("data after", "square", title, note, ("data before", "batch"))
    seen = {s.champion_before}
    for a in s.attempts:
        if a.version is None or a.version in seen:
            continue
        seen.add(a.version)
        now = a.version == served
        note = f"{a.method} for {a.group}"
        title = f"Model version {a.version}, {GLYPHS[a.verdict]} {a.verdict}{', served now' if now else ''}"
        parents = (f"model {a.made_from or s.champion_before}", "data after")
        yield Node(f"model {a.version}", "circle", title, note, parents, now)


def _edge(parent: Node, node: Node, placed: list[Node]) -> str:
    """Down the parent's lane, then over to that of `node`; around what lies between them in the same lane."""
    if parent.x != node.x:
        return f"M{parent.x} {parent.y}V{node.y - STEP_PX // 2}L{node.x} {node.y}"
    if not any(other.x == node.x and parent.y < other.y < node.y for other in placed):
        return f"M{parent.x} {parent.y}V{node.y}"
    half, aside = STEP_PX // 2, node.x + BULGE_PX
    return f"M{parent.x} {parent.y}C{aside} {parent.y + half} {aside} {node.y - half} {node.x} {node.y}"
