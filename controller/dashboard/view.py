"""What the dashboard shows, as values worked out of what was seen of each node. Pure.

A :class:`Sighting` is what is known of a node: that the cluster has it, and what its agent said last (a summary,
:mod:`controller.summary`), if there is an agent. :func:`mesh_view` makes of all of them what a page shows.

Of each node, and of each pair of nodes, there is one :class:`State`. Both ends of a pair have a say in it, and the worse one
counts: traffic that goes in clear one way is in clear. An end without an agent (Felix's, with WireGuard in its kernel) says
nothing, and the other end is believed. Nothing is guessed where neither end speaks.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations, zip_longest
from typing import Any

from controller.summary import HANDSHAKE_AGES

MOST_LINKED = 40
"""Up to so many nodes every link is shown; beyond, those that are not as they ought to be, and those of the node looked at."""

MOST_LINKS = 1500
"""How many links are shown at most, the worst ones first."""

FEW_NAMES = 5


class State(Enum):
    """How a node or a link is. From the best to the worst; the value is what people read."""

    ENCRYPTED = "encrypted"
    NO_AGENT = "no agent"
    RESTS = "not in the mesh"
    WAITING = "not ready"
    SILENT = "no answer"
    LOST = "agent lost"
    REFUSED = "refused"
    CLEAR = "in clear"

    @property
    def severity(self) -> int:
        return _SEVERITIES[self]


_SEVERITIES = {state: severity for severity, state in enumerate(State)}


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known of a node. ``summary`` is the last its agent has said, at ``heard_at`` (seconds since 1970), None if it never
    has; ``failure`` why it does not answer now. Rates are in bytes per second."""

    name: str
    address: str | None = None
    summary: Mapping[str, Any] | None = None
    heard_at: float | None = None
    failure: str | None = None
    rx_rate: float = 0.0
    tx_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node, and what it counts: its peers by what becomes of packets to them. ``leaks`` None: no detector runs there."""

    name: str
    state: State
    why: str = ""
    address: str = ""
    version: str = ""
    is_strict: bool = False
    encrypted: int = 0
    clear: int = 0
    refused: int = 0
    silent: int = 0
    rx_rate: float = 0.0
    tx_rate: float = 0.0
    oldest_handshake: float | None = None
    leaks: int | None = None
    warnings: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A pair of nodes, in the order of their names."""

    one: str
    other: str
    state: State
    why: str = ""


@dataclass(frozen=True, slots=True)
class Warning:
    """What is found to be wrong, and by which nodes."""

    reason: str
    subject: str
    message: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the whole mesh. Peers are counted at each end: a link that is fine counts twice. ``leaks`` None: nobody looks for any.
    ``ages`` are the handshakes by age, as in a summary."""

    nodes: int = 0
    answering: int = 0
    encrypted: int = 0
    clear: int = 0
    refused: int = 0
    silent: int = 0
    leaks: int | None = None
    detectors: int = 0
    rx_rate: float = 0.0
    tx_rate: float = 0.0
    ages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class MeshView:
    """All of it. ``left_out`` is how many links that are not as they ought to be had no room."""

    mesh: str = ""
    nodes: tuple[NodeView, ...] = ()
    links: tuple[Link, ...] = ()
    left_out: int = 0
    warnings: tuple[Warning, ...] = ()
    totals: Totals = Totals()


def mesh_view(sightings: Sequence[Sighting], mesh: str, selected: str | None = None) -> MeshView:
    """What a page shows while it looks at the node ``selected``, None for at no one."""
    nodes = tuple(sorted(map(node_view, sightings), key=lambda node: natural(node.name)))
    found, left_out = links(sightings, selected)
    return MeshView(mesh, nodes, found, left_out, tuple(warnings(sightings)), totals(nodes, sightings))


def natural(name: str) -> list[tuple[str, int]]:
    """A key by which ``n2`` comes before ``n10``."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn, text first
    return [(text, int(digits or -1)) for text, digits in zip_longest(parts[::2], parts[1::2])]


# Nodes --------------------------------------------------------------------------------------------------------------


def node_view(sighting: Sighting) -> NodeView:
    summary = sighting.summary
    if summary is None:
        return NodeView(sighting.name, State.NO_AGENT, sighting.failure or "not asked yet", sighting.address or "")
    families = _enabled(summary)
    peers = [family["peers"] for family in families]
    counts = {traffic: sum(counted[traffic] for counted in peers) for traffic in ("encrypted", "clear", "refused")}
    silent = sum(family["silent"] for family in families)
    state, why = _state(sighting, families, counts, silent)
    return NodeView(
        name=sighting.name,
        state=state,
        why=why,
        address=sighting.address or "",
        version=summary["version"],
        is_strict=summary["is_strict"],
        silent=silent,
        rx_rate=sighting.rx_rate,
        tx_rate=sighting.tx_rate,
        oldest_handshake=min(
            (family["oldest_handshake"] for family in families if family["oldest_handshake"] is not None), default=None
        ),
        leaks=summary["leaks"]["packets"] if summary["leaks"] is not None else None,
        warnings=sum(finding["is_warning"] for finding in summary["findings"]),
        **counts,
    )


def _state(
    sighting: Sighting, families: Sequence[Mapping[str, Any]], counts: Mapping[str, int], silent: int
) -> tuple[State, str]:
    """How the node is, and why."""
    assert sighting.summary is not None
    if sighting.failure is not None:
        return State.LOST, sighting.failure
    if not families:
        return State.RESTS, "; ".join(sorted({family["rest"] for family in sighting.summary["families"]}))
    problem = next((f"IPv{family['family']}: {family['problem']}" for family in families if family["problem"]), "")
    if counts["clear"]:
        return State.CLEAR, problem or _reasons(families, "clear")
    if counts["refused"]:
        return State.REFUSED, problem or _reasons(families, "refused")
    if problem or sighting.summary["unready"]:
        return State.WAITING, problem or sighting.summary["unready"]
    if silent:
        return State.SILENT, f"{silent} of {counts['encrypted']} peers do not answer"
    return State.ENCRYPTED, ""


def _reasons(families: Iterable[Mapping[str, Any]], traffic: str) -> str:
    found = (f"{peer['name']}: {peer['why']}" for family in families for peer in family["troubled"] if peer["traffic"] == traffic)
    return next(found, "")


def _enabled(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [family for family in summary["families"] if family["rest"] is None]


# Links --------------------------------------------------------------------------------------------------------------


def links(sightings: Sequence[Sighting], selected: str | None) -> tuple[tuple[Link, ...], int]:
    """The links to be shown, the worst ones last, so that they are drawn over the others; and how many there was no room for."""
    names = {sighting.name for sighting in sightings}
    troubles = {sighting.name: _troubles(sighting.summary) for sighting in sightings if sighting.summary is not None}
    found = [link for one, other in _pairs(names, troubles, selected) if (link := _link(one, other, troubles)) is not None]
    found.sort(key=lambda link: (link.state.severity, link.one, link.other))
    return tuple(found[-MOST_LINKS:]), max(len(found) - MOST_LINKS, 0)


@dataclass(frozen=True, slots=True)
class _Troubles:
    """What is not as it ought to be with each peer that it is so with. ``is_whole``: with all others everything is well; a
    summary that has no room for all of them says nothing of those it leaves out."""

    peers: Mapping[str, tuple[State, str]]
    is_whole: bool

    def of(self, peer: str) -> tuple[State, str] | None:
        return self.peers.get(peer, (State.ENCRYPTED, "") if self.is_whole else None)


def _troubles(summary: Mapping[str, Any]) -> _Troubles | None:
    """None if the node says nothing of its peers."""
    families = _enabled(summary)
    found: dict[str, tuple[State, str]] = {}
    for family in families:
        for peer in family["troubled"]:
            state = State.SILENT if peer["is_silent"] else _TRAFFIC[peer["traffic"]]
            if (known := found.get(peer["name"])) is None or known[0].severity < state.severity:
                found[peer["name"]] = state, peer["why"]
    return _Troubles(found, all(_has_room(family) for family in families)) if families else None


def _has_room(family: Mapping[str, Any]) -> bool:
    troubled: int = family["peers"]["clear"] + family["peers"]["refused"] + family["silent"]
    return len(family["troubled"]) >= troubled


_TRAFFIC = {"encrypted": State.ENCRYPTED, "clear": State.CLEAR, "refused": State.REFUSED}


def _pairs(names: set[str], troubles: Mapping[str, _Troubles | None], selected: str | None) -> Iterator[tuple[str, str]]:
    """The pairs to be looked at, each in the order of its names."""
    if len(names) <= MOST_LINKED:
        yield from combinations(sorted(names), 2)
        return
    pairs = {_ordered(name, peer) for name, found in troubles.items() for peer in (found.peers if found else ()) if peer in names}
    if selected in names:
        pairs |= {_ordered(selected, name) for name in names - {selected}}
    yield from pairs


def _ordered(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)


def _link(one: str, other: str, troubles: Mapping[str, _Troubles | None]) -> Link | None:
    """None where neither end says anything."""
    ends = [found.of(peer) for name, peer in ((one, other), (other, one)) if (found := troubles.get(name)) is not None]
    said = [each for each in ends if each is not None]
    if not said:
        return None
    state, why = max(said, key=lambda each: each[0].severity)
    return Link(one, other, state, why)


# The whole mesh -----------------------------------------------------------------------------------------------------


def totals(nodes: Sequence[NodeView], sightings: Iterable[Sighting]) -> Totals:
    answering = [sighting for sighting in sightings if sighting.summary is not None and sighting.failure is None]
    counted = [node for node in nodes if node.leaks is not None]
    ages = [0] * (len(HANDSHAKE_AGES) + 2)
    for sighting in answering:
        for family in _enabled(sighting.summary or {}):
            ages = [count + more for count, more in zip(ages, family["handshakes"], strict=True)]
    return Totals(
        nodes=len(nodes),
        answering=len(answering),
        encrypted=sum(node.encrypted for node in nodes),
        clear=sum(node.clear for node in nodes),
        refused=sum(node.refused for node in nodes),
        silent=sum(node.silent for node in nodes),
        leaks=sum(node.leaks or 0 for node in counted) if counted else None,
        detectors=len(counted),
        rx_rate=sum(node.rx_rate for node in nodes),
        tx_rate=sum(node.tx_rate for node in nodes),
        ages=tuple(ages),
    )


def warnings(sightings: Sequence[Sighting]) -> Iterator[Warning]:
    """Leaks, then each finding once, with the nodes that have it, those of most nodes first."""
    for sighting in sightings:
        for leak in ((sighting.summary or {}).get("leaks") or {}).get("latest", ()):
            message = f"{leak['packets']} packets in clear, {leak['direction']}: {leak['example']}"
            yield Warning("Leak", f"with {leak['peer']}", message, (sighting.name,))
    found: dict[tuple[str, str, str], list[str]] = {}
    for sighting in sightings:
        for finding in (sighting.summary or {}).get("findings", ()):
            if finding["is_warning"]:
                found.setdefault((finding["reason"], finding["subject"], finding["message"]), []).append(sighting.name)
    for key in sorted(found, key=lambda key: (-len(found[key]), key)):
        yield Warning(*key, tuple(sorted(found[key], key=natural)))


# As text ------------------------------------------------------------------------------------------------------------


def names(all_names: Sequence[str]) -> str:
    """Names, not too many."""
    more = f" and {len(all_names) - FEW_NAMES} more" if len(all_names) > FEW_NAMES else ""
    return ", ".join(all_names[:FEW_NAMES]) + more


def rate(bytes_per_second: float) -> str:
    """``0 b/s``, ``1.2 Mb/s``: bits, in decimal units, as links are measured."""
    value = bytes_per_second * 8
    for unit in ("b/s", "kb/s", "Mb/s", "Gb/s"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "b/s" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} Tb/s"


def spoken(view: MeshView) -> str:
    """The picture in words, for who does not see it."""
    counts = {state: sum(node.state is state for node in view.nodes) for state in State}
    parts = [f"{count} {state.value}" for state, count in counts.items() if count]
    links = {state: sum(link.state is state for link in view.links) for state in State if state is not State.ENCRYPTED}
    wrong = [f"{count} links {state.value}" for state, count in links.items() if count]
    return (
        f"Picture of the mesh: {len(view.nodes)} nodes: {', '.join(parts) or 'none'}. {', '.join(wrong) or 'No link is wrong'}."
    )
