"""``wgpy mesh``: this node's peers and the pods behind each, and what becomes of packets to them.

It is a view of the agent's status (:mod:`controller.status`), which the agent keeps in its state directory: so there is an answer
while the API server, or the agent itself, is away. Endpoints, handshakes and counters are those of the device at this moment,
where it answers. Which pods there are the agent does not know: whoever calls :func:`mesh` says where to ask for them.

The exit status is 0 if all is as it ought to be, 3 if something is not (some traffic in clear or refused, a peer that does not
answer, a warning, a status that nobody keeps up to date), 1 if nothing is known, 2 if the command line is wrong.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from controller.source import Manifest
from controller.status import AgentStatus, FamilyStatus, PeerStatus, Traffic, as_document, from_json, refreshed, unready
from wgpy.client import SOCKET_DIRECTORY, Client, ClientError
from wgpy.config import DeviceSnapshot

STATUS_FILE = "status.json"
IMPERFECT = 3
OLD_SECONDS = 300.0
"""An agent writes its status at least with each resync, every 90 s: one that is older than this is not kept up to date."""

PLAIN_WIDTH, WIDE_WIDTH = 160, 240  # columns where nobody can say
FEW_PODS = 3
FEW_NAMES = 5

Pods = Mapping[str, Sequence[tuple[str, str]]]
"""By node: the address of each pod, and its namespace and name (``default/web-0``)."""

STYLES = {Traffic.ENCRYPTED: "green", Traffic.CLEAR: "yellow", Traffic.REFUSED: "red"}
WORDS = {Traffic.ENCRYPTED: "encrypted", Traffic.CLEAR: "in clear", Traffic.REFUSED: "refused"}


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


def table(status: AgentStatus, pods: Pods, now: float, is_wide: bool = False) -> RenderableType:
    """The whole view: a line on the agent, a table for each family, and what is wrong."""
    strict = "strict" if status.is_strict else "not strict"
    parts: list[RenderableType] = [
        Text.from_markup(f"[bold]{escape(status.node)}[/bold]  {status.mesh}, {strict}, as of {ago(now - status.at)}")
    ]
    for family in status.families:
        parts += ["", _heading(family)]
        if family.is_enabled:
            parts.append(_peers(family, pods, now, is_wide))
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


def _peers(family: FamilyStatus, pods: Pods, now: float, is_wide: bool) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=True, show_edge=False, header_style="bold")
    for column in ("NODE", "TRAFFIC", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT", "PODS"):
        shown.add_column(column, justify="right" if column in ("HANDSHAKE", "RECEIVED", "SENT") else "left", overflow="fold")
    for column in ("KEY", "RANGES") if is_wide else ():
        shown.add_column(column, overflow="fold")
    for peer in family.peers:
        shown.add_row(*map(Text, _cells(peer, _pods_of(peer, family, pods), now, is_wide)), style=_style(peer))
    return shown


def _style(peer: PeerStatus) -> str:
    return "red" if peer.is_silent else STYLES[peer.traffic] if peer.traffic is not Traffic.ENCRYPTED else ""


def _cells(peer: PeerStatus, pods: Sequence[tuple[str, str]], now: float, is_wide: bool) -> Iterator[str]:
    yield f"external {peer.name[:8]}…" if peer.is_external else peer.name
    yield WORDS[peer.traffic] + (f": {peer.why}" if peer.why else ", does not answer" if peer.is_silent else "")
    if peer.traffic is Traffic.ENCRYPTED:
        yield (peer.endpoint or "unknown") + (" (roamed)" if peer.has_roamed and peer.endpoint and not peer.is_external else "")
        yield "never" if peer.last_handshake is None else ago(now - peer.last_handshake)
        yield size(peer.rx_bytes)
        yield size(peer.tx_bytes)
    else:
        yield from ("", "", "", "")
    lines = [f"{address} {name}" for address, name in (pods if is_wide else pods[:FEW_PODS])]
    if len(lines) < len(pods):
        lines.append(f"and {len(pods) - len(lines)} more (--output wide)")
    yield "\n".join(lines)
    if is_wide:
        yield peer.public_key or ""
        yield "\n".join(peer.ranges)


def _pods_of(peer: PeerStatus, family: FamilyStatus, pods: Pods) -> list[tuple[str, str]]:
    """Those of this family."""
    is_ipv6 = family.family.value == 6
    return [(address, name) for address, name in pods.get(peer.name, ()) if (":" in address) == is_ipv6]


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


def document(status: AgentStatus, pods: Pods, now: float) -> dict[str, Any]:
    """All of it as plain data: the status, with the ``pods`` of each peer, and the ``complaints``."""
    shown = as_document(status)
    for family, written in zip(status.families, shown["families"], strict=True):
        for peer, entry in zip(family.peers, written["peers"], strict=True):
            entry["pods"] = [{"address": address, "name": name} for address, name in _pods_of(peer, family, pods)]
    return {**shown, "complaints": complaints(status, now)}


# The command --------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        choices=("wide", "json", "yaml"),
        help="all pods, keys and ranges; or everything for a program (default: a table)",
    )


def show(directory: Path, pods: Callable[[], Pods], output: str | None) -> int:
    """Print the mesh as the agent with the state directory ``directory`` knows it; the exit status. ``pods`` may fail by giving
    nothing."""
    path = directory / STATUS_FILE
    try:
        status = from_json(path.read_text())
    except FileNotFoundError:
        return _fail(f"{path} is not there: has an agent run here (wgpy agent), with this --state?")
    except (OSError, ValueError) as error:
        return _fail(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
    now = time.time()
    status = up_to_date(status, _device, now)
    _print(status, pods(), now, output)
    return IMPERFECT if complaints(status, now) else 0


def _print(status: AgentStatus, pods: Pods, now: float, output: str | None) -> None:
    if output == "json":
        print(json.dumps(document(status, pods, now), indent=2))
    elif output == "yaml":
        print(yaml.safe_dump(document(status, pods, now), sort_keys=False), end="")
    else:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=WIDE_WIDTH if output == "wide" else PLAIN_WIDTH)
        console.print(table(status, pods, now, is_wide=output == "wide"))


def _device(interface: str) -> DeviceSnapshot | None:
    try:
        return Client(interface, SOCKET_DIRECTORY).get()
    except ClientError:
        return None


def _fail(message: str) -> int:
    print(f"wgpy mesh: {message}", file=sys.stderr)
    return 1
