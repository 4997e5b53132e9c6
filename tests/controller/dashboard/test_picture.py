"""What is drawn: where nodes stand, how states are told apart, and that names stay names."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.dashboard.picture import (
    DARK,
    LIGHT,
    MARKS,
    RADIUS,
    RING,
    SYMBOLS,
    Palette,
    mesh_options,
    positions,
    throughput_options,
)
from controller.dashboard.view import Sighting, State, mesh_view
from controller.status import Traffic
from tests.controller.dashboard.sightings import peer, seen, silent


@pytest.mark.parametrize("count", [0, 1, 2, 3, RING, RING + 1, 500])
def test_nodes_stand_apart_and_within_the_picture(count: int) -> None:
    places = positions(count)

    assert len(places) == count and all(math.hypot(x, y) <= RADIUS + 1e-9 for x, y in places)
    closest = min((math.dist(one, other) for index, one in enumerate(places) for other in places[:index]), default=RADIUS)
    assert closest > 0.9 * RADIUS / max(math.sqrt(count), 10)


def test_the_same_mesh_looks_the_same() -> None:
    view = mesh_view([seen("a", peer("b")), seen("b", silent("a"))], "calico")

    assert mesh_options(view, LIGHT) == mesh_options(view, LIGHT)


def test_nodes_and_links_are_drawn_as_they_are() -> None:
    view = mesh_view([seen("a", peer("b", Traffic.CLEAR, "no key")), seen("b", peer("a")), Sighting("c")], "calico", "b")
    (graph,) = mesh_options(view, DARK, "b")["series"]

    assert [(node["name"], node["symbol"]) for node in graph["data"]] == [
        ("a", "triangle"),
        ("b", "circle"),
        ("c", "emptyCircle"),
    ]
    assert graph["data"][1]["symbolSize"] > graph["data"][0]["symbolSize"]
    assert len(graph["links"]) == 3
    link = graph["links"][-1]
    assert (link["source"], link["target"]) == ("a", "b")
    assert link["lineStyle"]["color"] == DARK.states[State.CLEAR] and link["lineStyle"]["type"] == "solid"
    assert "no key" in link["tooltip"]["formatter"]


def test_a_link_is_told_by_more_than_its_colour() -> None:
    sightings = [
        seen("a", peer("b"), peer("c", Traffic.CLEAR), peer("d", Traffic.REFUSED), silent("e")),
        *map(Sighting, "bcde"),
    ]
    (graph,) = mesh_options(mesh_view(sightings, "calico"), LIGHT)["series"]

    looks = [(link["lineStyle"]["type"], link["lineStyle"]["width"]) for link in graph["links"]]
    assert len(looks) == len(set(looks)) == 4


def test_states_that_mean_different_things_have_different_shapes_or_colours() -> None:
    for palette in (LIGHT, DARK):
        looks = {(SYMBOLS[state], palette.states[state]) for state in State}
        assert len(looks) >= len(State) - 2  # no agent and at rest are one, and so are not ready and no answer
    worst = (State.ENCRYPTED, State.SILENT, State.REFUSED, State.CLEAR, State.LOST, State.NO_AGENT)
    assert len({SYMBOLS[state] for state in worst}) == len({MARKS[state] for state in worst}) == len(worst)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_everything_can_be_read_on_its_background(palette: Palette) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5."""
    for colour in (palette.text, palette.muted, palette.received, palette.sent, *palette.states.values()):
        bright, dim = sorted((luminance(colour), luminance(palette.background)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, colour


def every(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys and their values, however deep."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield key, each
            yield from every(each)
    elif isinstance(value, list):
        for each in value:
            yield from every(each)


@given(st.text(min_size=1), st.text())
def test_what_comes_from_the_cluster_is_never_code(name: str, why: str) -> None:
    """Keys that begin with a colon are evaluated in the browser, and braces in a formatter are templates."""
    view = mesh_view([seen(name, peer("b", Traffic.CLEAR, why), failure=why), seen("b")], "calico")
    options = mesh_options(view, LIGHT, name)

    assert not [key for key, _ in every(options) if key.startswith(":")]
    formatters = [value for key, value in every(options) if key == "formatter"]
    assert formatters[0] == "{b}" and not [text for text in formatters[1:] if "{" in text or "}" in text]
    assert options["tooltip"]["renderMode"] == "richText"
    json.dumps(options)


def test_throughput_is_in_megabits_and_milliseconds() -> None:
    options = throughput_options([(1000.0, 125_000.0, 250_000.0), (1002.0, 0.0, 0.0)], LIGHT)

    assert [line["data"] for line in options["series"]] == [[[1000000, 1.0], [1002000, 0.0]], [[1000000, 2.0], [1002000, 0.0]]]
    received, sent = (line["lineStyle"] for line in options["series"])
    assert received["color"] != sent["color"] and received["type"] != sent["type"]
