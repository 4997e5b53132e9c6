"""The mesh as a picture: nodes, what is behind each, and what becomes of packets between any two of them. Pure.

Two things are known. The cluster's objects say which nodes have a key that can be used (:func:`unusable`), and so, for each pair,
whether it is meant to be encrypted: both have one. The agent of one node, *own*, says what really becomes of its packets
(:mod:`controller.status`), and where it speaks it is believed.

Three ways to write it down: :func:`dot` for graphviz, :func:`mermaid` for Markdown, :func:`svg` to be looked at as it is, with
all nodes on a circle and the words to each in its tooltip. Where there are many nodes, links that are as they ought to be
are left out (:data:`MOST_WHOLE`): a picture of 1,225 green lines says less than one sentence.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, repeat
from xml.sax.saxutils import escape

from controller.desired import Identity, prefix_owners, select_peers
from controller.model import Cluster, Family
from controller.prefixes import widest
from controller.state import sorted_prefixes
from controller.status import FamilyStatus, PeerStatus, Traffic
from wgpy.config import NO_KEY, Prefix
from wgpy.wgconf import format_key

Pods = Mapping[str, Sequence[tuple[str, str]]]
"""By node: the address of each pod, and its namespace and name (``default/web-0``)."""

MOST_WHOLE = 50
FEW_PODS = 12

COLOURS = {Traffic.ENCRYPTED: "#2e7d32", Traffic.CLEAR: "#c77700", Traffic.REFUSED: "#c62828"}
SILENT = "#c62828"
DASHES = {Traffic.ENCRYPTED: "solid", Traffic.CLEAR: "dashed", Traffic.REFUSED: "dotted"}
WORDS = {Traffic.ENCRYPTED: "encrypted", Traffic.CLEAR: "in clear", Traffic.REFUSED: "refused"}


@dataclass(frozen=True, slots=True)
class Vertex:
    """A node, or an external peer. ``why`` nothing to it can be encrypted, None if it can."""

    name: str
    address: str = ""
    public_key: str | None = None
    ranges: tuple[str, ...] = ()
    pods: tuple[tuple[str, str], ...] = ()
    why: str | None = None
    is_own: bool = False

    @property
    def lines(self) -> list[str]:
        """Its label."""
        count = f"{len(self.pods)} pod{'s' if len(self.pods) != 1 else ''}" if self.pods else ""
        return [line for line in (self.name, self.address, ", ".join(self.ranges[:2]), count) if line]

    @property
    def details(self) -> list[str]:
        """All that is known of it."""
        found = [*self.lines[:2], f"key {self.public_key}" if self.public_key else "no key"]
        found += [f"{self.why}"] if self.why else []
        found += [*self.ranges, *(f"{address} {name}" for address, name in self.pods[:FEW_PODS])]
        return [*found, f"and {len(self.pods) - FEW_PODS} more pods"] if len(self.pods) > FEW_PODS else found


@dataclass(frozen=True, slots=True)
class Edge:
    """What becomes of packets between two. ``is_seen``: an agent says so, and not only the cluster's objects."""

    one: str
    two: str
    traffic: Traffic
    why: str = ""
    is_silent: bool = False
    is_seen: bool = False

    @property
    def colour(self) -> str:
        return SILENT if self.is_silent else COLOURS[self.traffic]

    @property
    def words(self) -> str:
        said = WORDS[self.traffic] + (f": {self.why}" if self.why else ", does not answer" if self.is_silent else "")
        return f"{self.one} - {self.two}: {said}"


@dataclass(frozen=True, slots=True)
class Graph:
    """The mesh of one family."""

    family: Family
    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]

    @property
    def shown(self) -> list[Edge]:
        """Those that are drawn."""
        if len(self.vertices) <= MOST_WHOLE:
            return list(self.edges)
        return [edge for edge in self.edges if edge.is_seen or edge.traffic is not Traffic.ENCRYPTED]


def unusable(cluster: Cluster, family: Family) -> Mapping[str, str]:
    """The nodes to which nobody can encrypt, and why: no key, no address, or a key that another claims, too."""
    return select_peers(cluster, family, Identity("", NO_KEY, NO_KEY)).refusals


def graph(cluster: Cluster, family: Family, pods: Pods, own: str, status: FamilyStatus | None) -> Graph:
    """All nodes, all pairs. ``status`` is that of the node ``own``, None if its agent says nothing."""
    refusals = unusable(cluster, family)
    ranges: dict[str, set[Prefix]] = {}
    for prefix, owner in prefix_owners(cluster, family, "").items():
        ranges.setdefault(owner, set()).add(prefix)
    peers = {peer.name: peer for peer in status.peers} if status is not None and status.is_enabled else {}
    names = sorted(cluster.nodes)
    vertices = [_vertex(cluster, family, name, ranges.get(name, set()), pods, refusals.get(name), own) for name in names]
    vertices += [Vertex(_short(peer.name), public_key=peer.public_key, ranges=peer.ranges) for peer in _external(peers)]
    edges = [_edge(one, two, refusals, peers, own) for one, two in combinations(names, 2)]
    edges += [_seen(own, _short(peer.name), peer) for peer in _external(peers)]
    return Graph(family, tuple(vertices), tuple(edges))


def _vertex(
    cluster: Cluster, family: Family, name: str, ranges: Iterable[Prefix], pods: Pods, why: str | None, own: str
) -> Vertex:
    network = cluster.nodes[name].of(family)
    return Vertex(
        name,
        str(network.address or ""),
        format_key(network.public_key) if network.public_key else None,
        tuple(map(str, sorted_prefixes(set(widest(ranges))))),
        tuple((address, pod) for address, pod in pods.get(name, ()) if (":" in address) == (family is Family.IPV6)),
        why,
        name == own,
    )


def _edge(one: str, two: str, refusals: Mapping[str, str], peers: Mapping[str, PeerStatus], own: str) -> Edge:
    other = two if one == own else one if two == own else None
    if other is not None and other in peers:
        return _seen(one, two, peers[other])
    wrong = next((name for name in (one, two) if name in refusals), None)
    return Edge(one, two, Traffic.ENCRYPTED) if wrong is None else Edge(one, two, Traffic.CLEAR, f"{wrong} {refusals[wrong]}")


def _seen(one: str, two: str, peer: PeerStatus) -> Edge:
    return Edge(one, two, peer.traffic, peer.why, peer.is_silent, is_seen=True)


def _external(peers: Mapping[str, PeerStatus]) -> Iterator[PeerStatus]:
    return (peer for peer in peers.values() if peer.is_external)


def _short(name: str) -> str:
    return f"external {name[:8]}…"


# Graphviz -----------------------------------------------------------------------------------------------------------


def dot(drawn: Graph) -> str:
    """``dot -Tsvg``, or ``circo``, makes a picture of it."""
    lines = [
        f'graph "{drawn.family} mesh" {{',
        "  layout=circo; node [shape=box, style=rounded, fontname=sans]; edge [penwidth=2];",
    ]
    for vertex in drawn.vertices:
        label, tip = ("\\n".join(map(_quoted, words)) for words in (vertex.lines, vertex.details))
        lines.append(f'  "{_quoted(vertex.name)}" [label="{label}", tooltip="{tip}"{", penwidth=3" if vertex.is_own else ""}];')
    for edge in drawn.shown:
        look = f'color="{edge.colour}", style={DASHES[edge.traffic]}, tooltip="{_quoted(edge.words)}"'
        lines.append(f'  "{_quoted(edge.one)}" -- "{_quoted(edge.two)}" [{look}];')
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


# Mermaid ------------------------------------------------------------------------------------------------------------


def mermaid(drawn: Graph) -> str:
    """What GitHub, GitLab and many others draw in Markdown."""
    numbers = {vertex.name: f"n{number}" for number, vertex in enumerate(drawn.vertices)}
    lines = ["flowchart LR"]
    for vertex in drawn.vertices:
        lines.append(f'  {numbers[vertex.name]}["{"<br/>".join(map(_entities, vertex.lines))}"]')
    for edge in drawn.shown:
        line = "---" if edge.traffic is Traffic.ENCRYPTED else "-.-"
        said = f"|{WORDS[edge.traffic]}|" if edge.traffic is not Traffic.ENCRYPTED or edge.is_silent else ""
        lines.append(f"  {numbers[edge.one]} {line}{said} {numbers[edge.two]}")
    lines += [f"  linkStyle {number} stroke:{edge.colour}" for number, edge in enumerate(drawn.shown)]
    return "\n".join([*lines, ""])


def _entities(text: str) -> str:
    return escape(text, {'"': "#quot;"})


# SVG ----------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, ROUND = 190, 76, 10
LINE = 16
MARGIN = 30
_STROKES = {"solid": "", "dashed": ' stroke-dasharray="8 5"', "dotted": ' stroke-dasharray="2 5"'}
_STYLE = (
    "text{font:13px sans-serif;fill:#1a1a1a}.name{font-weight:bold}rect{fill:#f6f8fa;stroke:#57606a}"
    "svg{background:#fff}line{stroke-width:2}"
)


def svg(drawn: Graph) -> str:
    """A picture that needs nobody else: no script, no font, no reference to another place."""
    count = len(drawn.vertices)
    radius = max(WIDTH, count * (WIDTH + MARGIN) / (2 * math.pi)) if count > 1 else 0.0
    side = 2 * radius + WIDTH + 2 * MARGIN
    places = {
        vertex.name: (
            side / 2 + radius * math.sin(2 * math.pi * number / max(count, 1)),
            side / 2 - radius * math.cos(2 * math.pi * number / max(count, 1)),
        )
        for number, vertex in enumerate(drawn.vertices)
    }
    legend = ", ".join(f"{WORDS[traffic]}: {sum(edge.traffic is traffic for edge in drawn.edges)}" for traffic in Traffic)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side:.0f} {side + LINE:.0f}" role="img">',
        f"<title>{drawn.family} mesh: {legend}</title><style>{_STYLE}</style>",
        *(_svg_edge(edge, places) for edge in drawn.shown),
        *(_svg_vertex(vertex, *places[vertex.name]) for vertex in drawn.vertices),
        f'<text x="{MARGIN}" y="{side:.0f}">{drawn.family}: {count} nodes; pairs {legend}</text>',
        "</svg>",
        "",
    ]
    return "\n".join(lines)


def _svg_edge(edge: Edge, places: Mapping[str, tuple[float, float]]) -> str:
    (x1, y1), (x2, y2) = places[edge.one], places[edge.two]
    return (
        f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="{edge.colour}"{_STROKES[DASHES[edge.traffic]]}>'
        f"<title>{escape(edge.words)}</title></line>"
    )


def _svg_vertex(vertex: Vertex, x: float, y: float) -> str:
    border = f' style="stroke:{COLOURS[Traffic.CLEAR]}"' if vertex.why else ""
    width = ' stroke-width="3"' if vertex.is_own else ""
    top = y - HEIGHT / 2
    texts = "".join(
        f'<text x="{x:.0f}" y="{top + LINE * number:.0f}" text-anchor="middle"{look}>{escape(line)}</text>'
        for number, (line, look) in enumerate(zip(vertex.lines, chain([' class="name"'], repeat(""))), start=1)
    )
    details = escape("\n".join(vertex.details))
    return (
        f'<g><title>{details}</title><rect x="{x - WIDTH / 2:.0f}" y="{top:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="{ROUND}"'
        f"{width}{border}/>{texts}</g>"
    )


FORMATS = {"svg": svg, "dot": dot, "mermaid": mermaid}
