"""The mesh as a picture, in three languages."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from controller.graph import FORMATS, MOST_WHOLE, Edge, Graph, Vertex, dot, graph, mermaid, svg, unusable
from controller.meshes.calico import observe
from controller.model import Cluster, Family
from controller.status import FamilyStatus, PeerStatus, Traffic
from tests.controller.cluster import KEYS, block, keyed, node, objects
from wgpy.wgconf import format_key

PODS = {"n2": [("10.42.2.5", "default/web"), ("fd00::5", "default/web")]}
EVIL = 'a"b<c>&]'


def cluster(*manifests: object) -> Cluster:
    nodes = manifests or (
        keyed("n1", "192.0.2.1/24"),
        keyed("n2", "192.0.2.2/24"),
        node("n3", "192.0.2.3/24"),
        block("10.42.2.0/26", "n2"),
    )
    return observe(objects(*nodes), "n1").cluster  # type: ignore[arg-type]


def words(drawn: Graph) -> list[str]:
    return [edge.words for edge in drawn.edges]


def test_pairs_by_what_the_cluster_says() -> None:
    drawn = graph(cluster(), Family.IPV4, PODS, "n1", None)

    assert words(drawn) == [
        "n1 - n2: encrypted",
        "n1 - n3: in clear: n3 has no public key",
        "n2 - n3: in clear: n3 has no public key",
    ]
    one, two, three = drawn.vertices
    assert (one.is_own, two.is_own) == (True, False)
    assert two.lines == ["n2", "192.0.2.2", "10.42.2.0/26", "1 pod"]
    assert f"key {format_key(KEYS['n2'])}" in two.details and "10.42.2.5 default/web" in two.details
    assert three.why == "has no public key" and "no key" in three.details


def test_a_key_that_two_have_encrypts_to_nobody() -> None:
    same = cluster(keyed("n1", "192.0.2.1/24"), keyed("n2", "192.0.2.2/24", key=KEYS["n1"]), keyed("n3", "192.0.2.3/24"))

    assert sorted(unusable(same, Family.IPV4)) == ["n1", "n2"]
    assert all("claims the same public key" in edge.why for edge in graph(same, Family.IPV4, {}, "n1", None).edges)


def test_an_agent_is_believed_about_its_own_packets() -> None:
    peers = (
        PeerStatus("n2", Traffic.REFUSED, "not on the device yet"),
        PeerStatus("n3", Traffic.ENCRYPTED, is_silent=True),
        PeerStatus("X" * 44, Traffic.ENCRYPTED, is_external=True, ranges=("10.9.0.0/16",)),
    )

    drawn = graph(cluster(), Family.IPV4, {}, "n1", FamilyStatus(Family.IPV4, peers=peers))

    assert words(drawn) == [
        "n1 - n2: refused: not on the device yet",
        "n1 - n3: encrypted, does not answer",
        "n2 - n3: in clear: n3 has no public key",
        "n1 - external XXXXXXXX…: encrypted",
    ]
    resting = FamilyStatus(Family.IPV4, rest="off", peers=peers)
    assert words(graph(cluster(), Family.IPV4, {}, "n1", resting))[0] == "n1 - n2: encrypted"


def test_many_that_are_as_they_ought_to_be_are_not_drawn() -> None:
    names = [f"n{number}" for number in range(MOST_WHOLE + 1)]
    vertices = tuple(map(Vertex, names))
    edges = (
        Edge("n0", "n1", Traffic.ENCRYPTED),
        Edge("n0", "n2", Traffic.CLEAR),
        Edge("n1", "n2", Traffic.ENCRYPTED, is_seen=True),
    )

    assert Graph(Family.IPV4, vertices, edges).shown == list(edges[1:])
    assert Graph(Family.IPV4, vertices[1:], edges).shown == list(edges)


DRAWN = Graph(
    Family.IPV4,
    (Vertex(EVIL, "192.0.2.1", "K", ("10.0.0.0/26",), (("10.0.0.1", "x/y"),), is_own=True), Vertex("n2"), Vertex("n3", why="no")),
    (
        Edge(EVIL, "n2", Traffic.ENCRYPTED),
        Edge(EVIL, "n3", Traffic.CLEAR, "n3 no"),
        Edge("n2", "n3", Traffic.ENCRYPTED, is_silent=True),
    ),
)


def test_svg_is_xml_with_every_node_and_link() -> None:
    root = ElementTree.fromstring(svg(DRAWN))
    space = "{http://www.w3.org/2000/svg}"

    assert root.tag == f"{space}svg"
    assert len(root.findall(f"{space}line")) == 3 and len(root.findall(f"{space}g")) == 3
    titles = [title.text for title in root.iter(f"{space}title")]
    assert f"{EVIL} - n3: in clear: n3 no" in titles
    assert any(text.text == EVIL for text in root.iter(f"{space}text"))
    assert [line.get("stroke-dasharray") for line in root.findall(f"{space}line")] == [None, "8 5", None]
    assert "encrypted: 2, in clear: 1, refused: 0" in str(titles[0])
    assert not re.search(r"href|url\(|<script", svg(DRAWN))


def test_nodes_do_not_lie_on_each_other() -> None:
    many = Graph(Family.IPV4, tuple(Vertex(f"n{number}") for number in range(40)), ())
    boxes = [
        (float(box.get("x", "")), float(box.get("y", "")), float(box.get("width", "")), float(box.get("height", "")))
        for box in ElementTree.fromstring(svg(many)).iter("{http://www.w3.org/2000/svg}rect")
    ]
    assert len(boxes) == 40
    for index, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, _, _ in boxes[:index]:
            assert abs(x - other_x) >= width or abs(y - other_y) >= height


def test_dot_quotes_names() -> None:
    text = dot(DRAWN)

    assert text.startswith('graph "IPv4 mesh" {\n') and text.endswith("}\n")
    assert r'"a\"b<c>&]" -- "n2" [color="#2e7d32", style=solid, ' in text
    assert r'"n2" -- "n3" [color="#c62828", style=solid, tooltip="n2 - n3: encrypted, does not answer"];' in text
    assert text.count(" -- ") == 3 and text.count("[label=") == 3
    assert re.sub(r'\\"', "", text).count('"') % 2 == 0


def test_mermaid_has_entities() -> None:
    lines = mermaid(DRAWN).splitlines()

    assert lines[0] == "flowchart LR"
    assert lines[1] == '  n0["a#quot;b&lt;c&gt;&amp;]<br/>192.0.2.1<br/>10.0.0.0/26<br/>1 pod"]'
    assert lines[4:7] == ["  n0 --- n1", "  n0 -.-|in clear| n2", "  n1 ---|encrypted| n2"]
    assert lines[7:] == ["  linkStyle 0 stroke:#2e7d32", "  linkStyle 1 stroke:#c77700", "  linkStyle 2 stroke:#c62828"]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_empty_mesh_is_a_picture_too(name: str) -> None:
    assert FORMATS[name](Graph(Family.IPV6, (), ()))
    assert FORMATS[name](replace(DRAWN, edges=(), vertices=DRAWN.vertices[:1]))
