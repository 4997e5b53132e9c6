"""``wgpy mesh``: every node and the pods behind it, and what becomes of packets between them.

It is a view of the agent's status (:mod:`controller.status`), which the agent keeps in its state directory: so there is an answer
while the API server, or the agent itself, is away. Endpoints, handshakes and counters are those of the device at this moment,
where it answers; rates are those since the agent wrote its status, or, with ``--watch``, since the last look. Which pods there
are, and which of the other nodes encrypt to each other, the agent does not say: whoever calls :func:`show` says where to ask
(:class:`World`).

The exit status is 0 if all is as it ought to be, 3 if something is not (some traffic in clear or refused, a peer that does not
answer, a warning, a status that nobody keeps up to date), 1 if nothing is known, 2 if the command line is wrong.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from controller import look
from controller.graph import WORDS, unusable
from controller.graph import Pods as Pods
from controller.look import PLAIN_WIDTH, Fitting, Look
from controller.model import Cluster, Family
from controller.source import Manifest
from controller.status import (
    HAS_LEFT,
    NOT_ENABLED,
    AgentStatus,
    FamilyStatus,
    PeerStatus,
    Traffic,
    as_document,
    from_json,
    refreshed,
    unready,
)
from wgpy.client import SOCKET_DIRECTORY, Client, ClientError
from wgpy.config import DeviceSnapshot

STATUS_FILE = "status.json"
IMPERFECT = 3
OLD_SECONDS = 300.0
"""An agent writes its status at least with each resync, every 90 s: one that is older than this is not kept up to date."""

WIDE_WIDTH = 240  # columns where nobody can say
FEW_PODS = 3
FEW_NAMES = 5

STYLES = {Traffic.ENCRYPTED: "green", Traffic.CLEAR: "yellow", Traffic.REFUSED: "red"}

SHORTEST_SECONDS = 0.5
"""Over less than that a rate says nothing."""

WATCH_SECONDS = 2.0
WORLD_SECONDS = 30.0
"""How often ``--watch`` looks at the device, and asks for pods and nodes anew."""

Rates = Mapping[tuple[Family, str], tuple[float, float]]
"""Bytes per second received from and sent to each peer."""


@dataclass(frozen=True, slots=True)
class World:
    """What the cluster says: the pods of each node, and of each family the names of all nodes (``nodes``) and those to which
    nobody can encrypt, and why (``unusable``). Empty where it cannot be asked."""

    pods: Pods = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    unusable: Mapping[Family, Mapping[str, str]] = field(default_factory=dict)

    def meant(self, name: str, family: Family) -> str:
        """With how many of the others a node is to speak encrypted, in a few words; empty if it is no node."""
        if name not in self.nodes or family not in self.unusable:
            return ""
        refusals, others = self.unusable[family], len(self.nodes) - 1
        if name in refusals:
            return f"none: {refusals[name]}"
        without = sorted(refusals)
        if not without:
            return f"all {others}"
        more = ", ..." if len(without) > FEW_NAMES else ""
        return f"{others - len(without)} of {others}, not {', '.join(without[:FEW_NAMES])}{more}"


def world(cluster: Cluster | None, pods: Pods) -> World:
    """What there is to know of the other nodes. ``cluster``: None where it cannot be read."""
    if cluster is None:
        return World(pods)
    return World(pods, tuple(sorted(cluster.nodes)), {family: unusable(cluster, family) for family in Family})


# What is there ------------------------------------------------------------------------------------------------------


def pods_by_node(blocks: Iterable[Manifest]) -> dict[str, list[tuple[str, str]]]:
    """The pods that IPAMBlocks tell of, as the API server has them (untrimmed). What cannot be read is left out."""
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for block in blocks:
        for address, attribute in _allocated(block):
            secondary = attribute.get("secondary") if isinstance(attribute, Mapping) else None
            if isinstance(secondary, Mapping) and (pod := secondary.get("pod")) and (node := secondary.get("node")):
                found[str(node)].append((address, f"{secondary.get('namespace', 'default')}/{pod}"))
    return dict(found)


def _allocated(block: Manifest) -> Iterator[tuple[str, Any]]:
    """Each address given out of the block, and the attribute that says to whom."""
    try:
        spec = block["spec"]
        first, attributes = ip_network(spec["cidr"]).network_address, spec["attributes"]
        for ordinal, index in enumerate(spec["allocations"]):
            if isinstance(index, int) and 0 <= index < len(attributes):
                yield str(first + ordinal), attributes[index]
    except (LookupError, TypeError, ValueError):
        return


def up_to_date(status: AgentStatus, snapshot: Callable[[str], DeviceSnapshot | None], now: float) -> AgentStatus:
    """The status with the counters of this moment. ``snapshot`` gives the device behind an interface, None if none answers."""
    families = (
        refreshed(family, snapshot(family.interface), now) if family.is_enabled and family.interface else family
        for family in status.families
    )
    return replace(status, families=tuple(families))


def rates(before: AgentStatus, after: AgentStatus, seconds: float) -> Rates:
    """Bytes per second of each encrypted peer between two looks that lie ``seconds`` apart. A peer that is new, or whose counters
    have begun anew, has none yet."""
    if seconds < SHORTEST_SECONDS:
        return {}
    old = {(one.family, peer.name): peer for one in before.families for peer in one.peers}
    found = {}
    for one in after.families:
        for peer in one.peers:
            last = old.get((one.family, peer.name))
            if peer.traffic is Traffic.ENCRYPTED and last is not None and last.public_key == peer.public_key:
                received, sent = peer.rx_bytes - last.rx_bytes, peer.tx_bytes - last.tx_bytes
                if received >= 0 and sent >= 0:
                    found[one.family, peer.name] = received / seconds, sent / seconds
    return found


def complaints(status: AgentStatus, now: float) -> list[str]:
    """Everything that is not as it ought to be, a line each."""
    found = []
    if now - status.at > OLD_SECONDS:
        found.append(f"this is from {ago(now - status.at)}, and nobody keeps it up to date: is the agent running?")
    if not status.source.is_synced:
        why = f": {status.source.failure}" if status.source.failure else ""
        found.append(f"the cluster is out of reach, and shown as it was last{why}")
    if (lack := unready(replace(status, at=now), enough=0.0)) is not None:
        found.append(lack)
    if len(rests := {family.rest for family in status.families}) == 1 and rests <= {HAS_LEFT, NOT_ENABLED}:
        found += [f"nothing is encrypted: {rest}" for rest in rests]
    for family in status.families:
        if family.is_enabled:
            for traffic in (Traffic.CLEAR, Traffic.REFUSED):
                found += _named(family, WORDS[traffic], [peer for peer in family.peers if peer.traffic is traffic])
            found += _named(family, "without an answer", [peer for peer in family.peers if peer.is_silent])
    found += [f"{finding.reason}: {finding.subject}: {finding.message}" for finding in status.findings if finding.is_warning]
    return found


def _named(family: FamilyStatus, what: str, peers: Sequence[PeerStatus]) -> Iterator[str]:
    if peers:
        names = ", ".join(peer.name for peer in peers[:FEW_NAMES]) + (" and others" if len(peers) > FEW_NAMES else "")
        yield f"{family.family}: {len(peers)} of {len(family.peers)} peers {what}: {names}"


# For people ---------------------------------------------------------------------------------------------------------


def table(status: AgentStatus, around: World, now: float, is_wide: bool = False, speed: Rates | None = None) -> RenderableType:
    """The whole view: a line on the agent, a table for each family, and what is wrong."""
    strict = "strict" if status.is_strict else "not strict"
    parts: list[RenderableType] = [
        Text.from_markup(f"[bold]{escape(status.node)}[/bold]  {status.mesh}, {strict}, as of {ago(now - status.at)}")
    ]
    for family in status.families:
        parts += ["", _heading(family)]
        if family.is_enabled:
            parts.append(_nodes(status.node, family, around, now, is_wide, speed or {}))
    wrong = complaints(status, now)
    if wrong:
        parts += ["", *(Text(f"! {line}", style="yellow") for line in wrong)]
    return Group(*parts)


def _heading(family: FamilyStatus) -> Text:
    if family.rest is not None:
        return Text.from_markup(f"[bold]{family.family}[/bold]  not part of the mesh: {escape(family.rest)}")
    facts = [
        family.interface or "no interface",
        family.interface_address or "no address",
        f"MTU {family.mtu}" if family.mtu else "",
        f"key {family.public_key}" if family.public_key else "no key",
        "published" if family.is_published else "not published",
        "" if family.has_data_plane else "no data plane",
    ]
    return Text.from_markup(f"[bold]{family.family}[/bold]  {escape('  '.join(filter(None, facts)))}")


COLUMNS = ("NODE", "TRAFFIC", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT", "RATE", "MESH", "PODS")
SPARE = ("MESH", "SENT", "RECEIVED", "RATE")
NUMBERS = ("HANDSHAKE", "RECEIVED", "SENT", "RATE")


def _nodes(own: str, family: FamilyStatus, around: World, now: float, is_wide: bool, speed: Rates) -> Fitting:
    """This node first, then its peers."""
    shown = Fitting([*COLUMNS, *(("KEY", "RANGES") if is_wide else ())], () if is_wide else SPARE, NUMBERS)
    pods = _listed(_of_family(around.pods.get(own, ()), family), is_wide)
    first = [own, "this node", *[""] * 5, around.meant(own, family.family), pods]
    shown.add_row([*first, family.public_key or "", "\n".join(family.ranges)] if is_wide else first)
    for peer in family.peers:
        shown.add_row(_cells(peer, family, around, now, is_wide, speed), _style(peer))
    return shown


def _style(peer: PeerStatus) -> str:
    return "red" if peer.is_silent else STYLES[peer.traffic] if peer.traffic is not Traffic.ENCRYPTED else ""


def _cells(peer: PeerStatus, family: FamilyStatus, around: World, now: float, is_wide: bool, speed: Rates) -> Iterator[str]:
    yield f"external {peer.name[:8]}…" if peer.is_external else peer.name
    yield WORDS[peer.traffic] + (f": {peer.why}" if peer.why else ", does not answer" if peer.is_silent else "")
    if peer.traffic is Traffic.ENCRYPTED:
        yield (peer.endpoint or "unknown") + (" (roamed)" if peer.has_roamed and peer.endpoint and not peer.is_external else "")
        yield "never" if peer.last_handshake is None else ago(now - peer.last_handshake)
        yield size(peer.rx_bytes)
        yield size(peer.tx_bytes)
        yield rate(speed.get((family.family, peer.name)))
    else:
        yield from ("", "", "", "", "")
    yield around.meant(peer.name, family.family)
    yield _listed(_pods_of(peer, family, around.pods), is_wide)
    if is_wide:
        yield peer.public_key or ""
        yield "\n".join(peer.ranges)


def _listed(pods: Sequence[tuple[str, str]], is_wide: bool) -> str:
    lines = [f"{address} {name}" for address, name in (pods if is_wide else pods[:FEW_PODS])]
    if len(lines) < len(pods):
        lines.append(f"and {len(pods) - len(lines)} more (--output wide)")
    return "\n".join(lines)


def _pods_of(peer: PeerStatus, family: FamilyStatus, pods: Pods) -> list[tuple[str, str]]:
    return _of_family(pods.get(peer.name, ()), family)


def _of_family(pods: Sequence[tuple[str, str]], family: FamilyStatus) -> list[tuple[str, str]]:
    is_ipv6 = family.family.value == 6
    return [(address, name) for address, name in pods if (":" in address) == is_ipv6]


def rate(speed: tuple[float, float] | None) -> str:
    """``1.5 MB/s in, 900 B/s out``; empty where it is not known."""
    return "" if speed is None else f"{size(round(speed[0]))}/s in, {size(round(speed[1]))}/s out"


def ago(seconds: float) -> str:
    """``now``, ``7 s ago``, ``2 min ago``, ``3 h ago`` or ``5 days ago``."""
    if seconds < 1:
        return "now"
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def size(count: int) -> str:
    """``912 B``, ``3.1 MB``: decimal units, as for network traffic."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


# For programs -------------------------------------------------------------------------------------------------------


def document(status: AgentStatus, around: World, now: float, speed: Rates | None = None) -> dict[str, Any]:
    """All of it as plain data: the status, of each peer its ``pods``, its rates in bytes per second and what it is meant to be in
    the mesh, and the ``complaints``."""
    shown = as_document(status)
    for family, written in zip(status.families, shown["families"], strict=True):
        written["pods"] = _plain_pods(_of_family(around.pods.get(status.node, ()), family))
        for peer, entry in zip(family.peers, written["peers"], strict=True):
            received, sent = (speed or {}).get((family.family, peer.name), (None, None))
            entry["pods"] = _plain_pods(_pods_of(peer, family, around.pods))
            entry |= {"rx_rate": received, "tx_rate": sent}
        written["not_encrypted_to"] = dict(around.unusable.get(family.family, {}))
    return {**shown, "nodes": list(around.nodes), "complaints": complaints(status, now)}


def _plain_pods(pods: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"address": address, "name": name} for address, name in pods]


# The command --------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        choices=("table", "wide", "json", "yaml"),
        default="table",
        help="wide: all pods, keys and ranges; json, yaml: everything, for a program (default: a table)",
    )
    look.add_arguments(parser, WATCH_SECONDS)


class NothingKnown(Exception):
    """There is no status to show. The message is one line."""


def read(directory: Path) -> AgentStatus:
    """The status that the agent with this state directory wrote last. Raises NothingKnown."""
    path = directory / STATUS_FILE
    try:
        return from_json(path.read_text())
    except FileNotFoundError:
        raise NothingKnown(f"{path} is not there: has an agent run here (wgpy agent), with this --state?") from None
    except (OSError, ValueError) as error:
        raise NothingKnown(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def looks(directory: Path) -> Iterator[tuple[AgentStatus, Rates, float]]:
    """Look after look: the status with the counters of the moment, the rates, and when that was. Raises NothingKnown."""
    before = read(directory)
    last = before.at
    while True:
        written, now = read(directory), time.time()
        after = up_to_date(written, _device, now)
        yield after, rates(before, after, now - last), now
        if now - last >= SHORTEST_SECONDS:
            before, last = after, now


def show(directory: Path, ask: Callable[[], World], output: str = "table", watch: float | None = None) -> int:
    """Print the mesh as the agent with the state directory ``directory`` knows it; the exit status. ``ask`` may fail by giving
    nothing. ``watch``: again and again, so many seconds apart, until interrupted."""
    try:
        return look.show(_looks(directory, ask, output == "wide"), output, watch, WIDE_WIDTH if output == "wide" else PLAIN_WIDTH)
    except NothingKnown as error:
        return _fail(str(error))


def _looks(directory: Path, ask: Callable[[], World], is_wide: bool) -> Iterator[Look]:
    around, asked_at = None, 0.0
    for status, speed, now in looks(directory):
        if around is None or time.monotonic() - asked_at > WORLD_SECONDS:
            around, asked_at = ask(), time.monotonic()
        yield _look(status, around, now, is_wide, speed)


def _look(status: AgentStatus, around: World, now: float, is_wide: bool, speed: Rates) -> Look:
    return Look(
        lambda _: table(status, around, now, is_wide, speed),
        lambda: document(status, around, now, speed),
        IMPERFECT if complaints(status, now) else 0,
    )


def _device(interface: str) -> DeviceSnapshot | None:
    try:
        return Client(interface, SOCKET_DIRECTORY).get()
    except ClientError:
        return None


def _fail(message: str) -> int:
    print(f"wgpy mesh: {message}", file=sys.stderr)
    return 1
