"""The lab: two nodes with a pod each on the underlay, and between them one data plane at either end.

    pod eth0 ── cali… node wg0 ══ eth0 ── br0 ── eth0 ══ wg0 node cali… ── eth0 pod

Think of a :class:`Tunnel` as a pipe between two pods whose make can be chosen: nodes, pods, addresses, MTUs and routes
are the same for every data plane, so that what differs in a measurement is the data plane. It is laid as the agent
would lay it: pods behind veths, an address of each node's own on the tunnel's interface, a route to the other node's
block of pod addresses into it, and behind that route a blackhole, so that nothing ever goes in clear. How the data
planes are started and told of each other is theirs (``benchmarks.planes``); :func:`lay` believes none of them, and pings.

    with Topology.create() as topology:
        tunnel = lay(topology, 0, planes()["wgpy"], planes()["wgpy"], Shape())
        first, second = tunnel.ends
        first.pod.run(["ping", "-c1", str(second.pod.address(4))])

Several tunnels stand side by side in one topology, each with a ``number`` of its own; the topology removes them all.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from controller.demo.topology import UNDERLAY_MTU, Address, Interface, Network, Node, Pod, Topology, TopologyError, has_ipv6

if TYPE_CHECKING:
    from benchmarks.planes import Plane

VERSIONS = (4, 6) if has_ipv6() else (4,)
"""The IP versions inside, and on the underlay."""
OVERHEAD = 80
"""Bytes that a tunnel may add to a packet: WireGuard adds 80 over IPv6 (60 over IPv4), OpenVPN and ESP in UDP less or as much."""
ROOMY_MTU = 9000
"""The underlay's MTU for tunnels that do not fit into 1500."""
START_SECONDS = 15.0
"""How long a data plane may take from its start to the first ping on a busy machine."""
PING_HEADERS = {4: 28, 6: 48}
"""Bytes of the IP header and the ICMP echo header, by IP version."""
LAST_NUMBER = 99
"""Greatest ``number`` of a tunnel: its two nodes must find addresses in one /24."""

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class LabError(Exception):
    """A tunnel could not be laid, or its data plane died. The message is one line."""


@dataclass(frozen=True)
class Shape:
    """What is laid. ``mtu`` is that of the tunnel and of the pods' veths, ``outer`` the IP version between the nodes.

    A data plane that cannot carry ``mtu`` gets what it can where it hardly matters (IPsec 1400 for 1420), but never the
    underlay's 1500 for a tunnel that is to be wide.
    """

    mtu: int = 1420
    outer: int = 4


@dataclass
class End:
    """One end of a tunnel. ``side`` is 0 or 1: of two ends that must play different parts, 1 begins.

    ``blocks`` are the pods' addresses at this end, one network for each of VERSIONS; ``public`` is what the data plane at
    the other end is told of this one (a public key, the path of a certificate).
    """

    plane: Plane
    side: int
    node: Node
    pod: Pod
    blocks: tuple[Network, ...]
    shape: Shape
    public: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def mtu(self) -> int:
        """Of the tunnel and the pod: the shape's, or a little less where the data plane cannot carry that."""
        return min(self.shape.mtu, self.plane.greatest_mtu)

    @property
    def outer_address(self) -> Address:
        """Where the other end finds this one on the underlay."""
        return self.node.address(self.shape.outer)

    def tunnel_address(self, version: int) -> Address:
        """What the node itself is called inside the tunnel: number 254 of its block."""
        return next(block[254] for block in self.blocks if block.version == version)

    @property
    def directory(self) -> Path:
        """For the data plane's files; the node's own, and gone with it."""
        return self.node.directory

    @property
    def log(self) -> Path:
        """All that the data plane says."""
        return self.directory / "data-plane.log"

    def start(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start a process of the data plane in the node. It must stay in the foreground, and must not fork."""
        with self.log.open("ab") as output:
            self.processes.append(self.node.start(argv, output, env or {}))

    def cpu_seconds(self) -> float:
        """User and system time of the data plane so far, in steps of 10 ms; 0.0 where the kernel does the work."""
        ticks = (_fields(self, process.pid, "stat") for process in self.processes)
        return sum(int(fields[11]) + int(fields[12]) for fields in ticks) / CLOCK_TICKS

    def resident_bytes(self) -> int:
        """Memory of the data plane, shared libraries included; 0 where the kernel does the work."""
        return sum(int(_fields(self, process.pid, "statm")[1]) for process in self.processes) * PAGE_BYTES

    def check(self) -> None:
        """Raise LabError if a process of the data plane has ended."""
        for process in self.processes:
            if (status := process.poll()) is not None:
                raise LabError(f"{self.plane.name} on {self.node.key} ended with status {status}: {self._last_words()}")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Poll until ``condition`` holds. Raises LabError, naming ``what``, when it does not in time or a process ends."""
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                reason = f"{what}: not after {START_SECONDS:.0f} s: {self._last_words()}"
                raise LabError(f"{self.plane.name} on {self.node.key}: {reason}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


@dataclass
class Tunnel:
    """Two ends that reach each other. ``name`` is that of the data plane, or both with a colon between."""

    name: str
    ends: tuple[End, End]

    def directions(self) -> tuple[tuple[End, End], tuple[End, End]]:
        """(first, second) and (second, first)."""
        first, second = self.ends
        return (first, second), (second, first)

    def check(self) -> None:
        """Raise LabError, with the last line of its log, if a data plane died."""
        for end in self.ends:
            end.check()


def lay(topology: Topology, number: int, first: Plane, second: Plane, shape: Shape) -> Tunnel:
    """Lay a tunnel, its nodes and its pods. ``number`` (0 to LAST_NUMBER) is its own in the topology.

    Both ends have been reached from the other over each IP version, with packets of the full MTU that must not be
    fragmented, when this returns. Otherwise raises LabError, and what was laid of it is removed.
    """
    if first.protocol != second.protocol:
        raise LabError(f"{first.name} and {second.name} do not speak the same protocol")
    if not 0 <= number <= LAST_NUMBER:
        raise LabError(f"a tunnel's number is between 0 and {LAST_NUMBER}, not {number}")
    try:
        tunnel = Tunnel(
            first.name if first.name == second.name else f"{first.name}:{second.name}",
            (_place(topology, number, 0, first, shape), _place(topology, number, 1, second, shape)),
        )
        _connect(tunnel)
    except (LabError, TopologyError) as error:
        for side in (0, 1):
            if node := topology.nodes.get(_node_name(number, side)):
                node.remove()
        raise LabError(str(error)) from error
    return tunnel


def _connect(tunnel: Tunnel) -> None:
    """Start the data planes, tell each of the other, lead the routes into them, and see that packets pass."""
    for end in tunnel.ends:
        end.public = end.plane.enrol(end)
    for end, other in tunnel.directions():
        end.plane.start(end, other)
    for end, other in tunnel.directions():
        end.wait_for(partial(end.plane.is_ready, end), "it is ready")
        _route(end, other)
    for end, other in tunnel.directions():
        end.plane.connect(end, other)
    for end, other in tunnel.directions():
        _verify(end, other)


def _place(topology: Topology, number: int, side: int, plane: Plane, shape: Shape) -> End:
    """A node and its pod, of the right MTUs, without a data plane."""
    index = 2 * number + side
    node = topology.add_node(_node_name(number, side), _node_addresses(index + 1))
    if shape.mtu + OVERHEAD > UNDERLAY_MTU:
        if shape.mtu > plane.greatest_mtu:
            raise LabError(f"{plane.name} carries packets of at most {plane.greatest_mtu} bytes, not of {shape.mtu}")
        topology.underlay.configure(links=[f"link set {node.key} mtu {ROOMY_MTU}"])
        node.configure(links=[f"link set eth0 mtu {ROOMY_MTU}"])
    blocks = tuple(_block(index, version) for version in VERSIONS)
    pod = node.add_pod(f"t{number}pod{side}", [block[1] for block in blocks], mtu=min(shape.mtu, plane.greatest_mtu))
    return End(plane, side, node, pod, blocks, shape)


def _node_name(number: int, side: int) -> str:
    return f"t{number}n{side}"


def _node_addresses(index: int) -> list[Interface]:
    return [ip_interface(f"10.77.0.{index}/24" if version == 4 else f"fd77::{index:x}/64") for version in VERSIONS]


def _block(index: int, version: int) -> Network:
    return ip_network(f"10.42.{index}.0/24" if version == 4 else f"fd42:0:0:{index:x}::/64")


def _route(end: End, other: End) -> None:
    """Give the tunnel's interface its MTU and address, and lay the routes to the other end's block.

    The blackhole has the worse metric: packets meet it when the tunnel's interface is down or gone.
    """
    links = end.plane.link(end)
    for version, block in zip(VERSIONS, other.blocks, strict=True):
        source = end.tunnel_address(version)
        links += [
            f"addr add {source} dev {end.plane.home}{' nodad' if version == 6 else ''}",
            f"route add {block} {end.plane.way(other, version)} src {source}",
            f"route add blackhole {block} metric 9999",
        ]
    end.node.configure(links=links)


def _verify(end: End, other: End) -> None:
    """Raise LabError unless the pods' packets take the tunnel's interface, and arrive."""
    ways = set(end.node.egress(other.pod.addresses, source=end.pod))
    if ways != {end.plane.interface}:
        raise LabError(f"{end.plane.name} on {end.node.key}: packets to the other pod leave by {ways}, not by the tunnel")
    for address in other.pod.addresses:
        end.wait_for(partial(_reaches, end, address), f"{address} answers a ping of the full MTU")


def _reaches(end: End, address: Address) -> bool:
    """Whether a packet from the pod to ``address`` is answered that fills the MTU and must not be fragmented."""
    size = end.mtu - PING_HEADERS[address.version]
    return end.pod.run(["ping", "-n", "-q", "-c1", "-W1", "-Mdo", f"-s{size}", str(address)], check=False).returncode == 0


def _fields(end: End, process: int, name: str) -> list[str]:
    """The fields of a file in /proc/PID, without those of ``stat`` up to the command's name, which may hold anything."""
    end.check()
    return Path(f"/proc/{process}/{name}").read_text().rpartition(")")[2].split()
