"""What is drawn, as options of ECharts: the mesh with its links, and throughput over time. Pure.

Positions are worked out here and not by a simulation in the browser: a mesh looks the same every time, and 500 nodes are no
trouble. A state is told by colour *and* shape, and links by colour and dashes, so that nobody has to tell colours apart. Colours
come in two sets, for light and dark, each with a contrast of 4.5 and more to its background where there is text.

Names come from the cluster and are data only. No option here is a function, and what is shown on hovering is drawn on the canvas
(``renderMode: richText``), never read as HTML.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from controller.dashboard.view import Link, MeshView, NodeView, State

RING = 60
"""Up to so many nodes stand on a circle, with their names; more fill a disc like the seeds of a sunflower, nameless."""

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
RADIUS = 100.0


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one scheme."""

    text: str
    muted: str
    line: str
    background: str
    received: str
    sent: str
    states: dict[State, str]


LIGHT = Palette(
    text="#1b2430",
    muted="#56606e",
    line="#d5dbe3",
    background="#ffffff",
    received="#1d5fbf",
    sent="#a3480a",
    states={
        State.ENCRYPTED: "#0a7a5c",
        State.NO_AGENT: "#69737f",
        State.RESTS: "#69737f",
        State.WAITING: "#6b46c1",
        State.SILENT: "#6b46c1",
        State.LOST: "#8a1c5b",
        State.REFUSED: "#b3261e",
        State.CLEAR: "#b54708",
    },
)
DARK = Palette(
    text="#e8edf4",
    muted="#a3afbd",
    line="#36424f",
    background="#161d26",
    received="#79b0ff",
    sent="#ffb26b",
    states={
        State.ENCRYPTED: "#3ed6a8",
        State.NO_AGENT: "#98a4b1",
        State.RESTS: "#98a4b1",
        State.WAITING: "#bfa4ff",
        State.SILENT: "#bfa4ff",
        State.LOST: "#ff93cf",
        State.REFUSED: "#ff8f87",
        State.CLEAR: "#ffb454",
    },
)

SYMBOLS = {
    State.ENCRYPTED: "circle",
    State.NO_AGENT: "emptyCircle",
    State.RESTS: "emptyCircle",
    State.WAITING: "rect",
    State.SILENT: "rect",
    State.LOST: "emptyRect",
    State.REFUSED: "diamond",
    State.CLEAR: "triangle",
}
MARKS = {
    State.ENCRYPTED: "●",
    State.NO_AGENT: "○",
    State.RESTS: "○",
    State.WAITING: "■",
    State.SILENT: "■",
    State.LOST: "□",
    State.REFUSED: "◆",
    State.CLEAR: "▲",
}
"""The same shapes, in text."""

_LINES: dict[State, dict[str, Any]] = {
    State.ENCRYPTED: {"type": "solid", "width": 1, "opacity": 0.35},
    State.SILENT: {"type": "dotted", "width": 2, "opacity": 0.9},
    State.REFUSED: {"type": "dashed", "width": 2, "opacity": 0.9},
    State.CLEAR: {"type": "solid", "width": 3, "opacity": 0.9},
}


def positions(count: int) -> list[tuple[float, float]]:
    """Where each of so many nodes stands, within RADIUS of (0, 0)."""
    if count <= RING:
        angles = [2 * math.pi * index / max(count, 1) - math.pi / 2 for index in range(count)]
        return [(RADIUS * math.cos(angle), RADIUS * math.sin(angle)) for angle in angles]
    return [
        (radius * math.cos(index * GOLDEN_ANGLE), radius * math.sin(index * GOLDEN_ANGLE))
        for index in range(count)
        for radius in (RADIUS * math.sqrt((index + 0.5) / count),)
    ]


def mesh_options(view: MeshView, palette: Palette, selected: str | None = None) -> dict[str, Any]:
    """The mesh as a graph. Its nodes go by their names."""
    is_small = len(view.nodes) <= RING
    size = 26 if len(view.nodes) <= 20 else 16 if is_small else 9
    places = positions(len(view.nodes))
    return {
        "animation": False,
        "tooltip": {
            "renderMode": "richText",
            "confine": True,
            "formatter": "{b}",
            "backgroundColor": palette.background,
            "borderColor": palette.line,
            "textStyle": {"color": palette.text},
        },
        "series": [
            {
                "type": "graph",
                "layout": "none",
                "preserveAspect": True,
                "roam": True,
                "scaleLimit": {"min": 0.5, "max": 12},
                "left": 90 if is_small else 20,
                "right": 90 if is_small else 20,
                "top": 30,
                "bottom": 30,
                "label": {"show": is_small, "position": "right", "color": palette.text, "fontSize": 12},
                "emphasis": {"focus": "adjacency", "label": {"show": True}},
                "blur": {"itemStyle": {"opacity": 0.4}},
                "data": [
                    _node(node, place, size, palette, node.name == selected)
                    for node, place in zip(view.nodes, places, strict=True)
                ],
                "links": [_link(link, palette) for link in view.links],
            }
        ],
    }


def _node(node: NodeView, place: tuple[float, float], size: int, palette: Palette, is_selected: bool) -> dict[str, Any]:
    colour = palette.states[node.state]
    position = "right" if place[0] > 1 else "left" if place[0] < -1 else "top" if place[1] < 0 else "bottom"
    return {
        "name": node.name,
        "x": round(place[0], 2),
        "y": round(place[1], 2),
        "symbol": SYMBOLS[node.state],
        "symbolSize": size * 1.5 if is_selected else size,
        "itemStyle": {
            "color": colour,
            "borderColor": palette.text if is_selected else colour,
            "borderWidth": 3 if is_selected else 1,
        },
        "label": {"position": position, "show": True} if is_selected else {"position": position},
        "tooltip": {"formatter": _escaped(f"{node.name}: {node.state.value}{': ' if node.why else ''}{node.why}")},
    }


def _link(link: Link, palette: Palette) -> dict[str, Any]:
    return {
        "source": link.one,
        "target": link.other,
        "lineStyle": {**_LINES.get(link.state, _LINES[State.SILENT]), "color": palette.states[link.state]},
        "tooltip": {"formatter": _escaped(f"{link.one} – {link.other}: {link.state.value}{': ' if link.why else ''}{link.why}")},
    }


def _escaped(text: str) -> str:
    """Text that ECharts does not take for a template: it puts values in the place of {a}, {b} and the like."""
    return text.replace("{", "(").replace("}", ")")


Point = tuple[float, float, float]
"""When, in seconds since 1970, and how many bytes per second were received and sent then."""


def throughput_options(points: Iterable[Point], palette: Palette) -> dict[str, Any]:
    """What all nodes, or one, received and sent over time."""
    taken = list(points)
    axis = {"axisLine": {"lineStyle": {"color": palette.line}}, "axisLabel": {"color": palette.muted, "hideOverlap": True}}
    return {
        "animation": False,
        "grid": {"left": 8, "right": 16, "top": 36, "bottom": 8, "containLabel": True},
        "legend": {"top": 0, "left": 0, "textStyle": {"color": palette.text}, "selectedMode": False},
        "tooltip": {
            "trigger": "axis",
            "renderMode": "richText",
            "backgroundColor": palette.background,
            "textStyle": {"color": palette.text},
        },
        "xAxis": {"type": "time", **axis, "splitLine": {"show": False}},
        "yAxis": {
            "type": "value",
            "min": 0,
            "minInterval": 0.001,
            **axis,
            "splitLine": {"lineStyle": {"color": palette.line}},
        },
        "series": [
            _line("received", palette.received, "solid", [(at, received) for at, received, _ in taken]),
            _line("sent", palette.sent, "dashed", [(at, sent) for at, _, sent in taken]),
        ],
    }


def _line(name: str, colour: str, dashes: str, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {
        "name": name,
        "type": "line",
        "symbol": "none",
        "lineStyle": {"color": colour, "width": 2, "type": dashes},
        "itemStyle": {"color": colour},
        "data": [[round(at * 1000), round(value * 8 / 1e6, 4)] for at, value in points],
    }
