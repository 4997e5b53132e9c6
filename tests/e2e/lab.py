"""A tunnel to try: two nodes on an underlay, a pod behind a veth on each, and a data plane on either end.

The nodes, their pods and their routes are those of ``controller.demo.topology``; a :class:`Tunnel` adds what the agent
would add: keys, peers, addresses of the interface, routes into it. Either end is wgpy or a foreign WireGuard, configured
through the same UAPI socket by the same client.

Nothing here sleeps to wait for something: :func:`wait_for` polls a condition, for as long as a bound says.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import TypeVar

import pytest

from controller.demo.capture import Capture
from controller.demo.topology import NAMESPACES, Address, Interface, Namespace, Node, Pod, Topology, has_ipv6
from noise.crypto import clamp, public_key
from tests.peers import wireguard_go
from wgpy.client import Client, ClientError
from wgpy.config import NO_KEY, Endpoint, PeerSnapshot, Prefix, SetDevice, SetPeer

WGPY = [sys.executable, "-m", "wgpy"]
PORT = 51820
MTU = 1420
FAMILIES = (4, 6) if has_ipv6() else (4,)
PATIENCE = 20.0
"""Seconds that something may take on a busy machine: a handshake whose first message is lost takes 5."""
AT_ONCE = 4.0
"""Seconds. What is answered within them did not wait for a second try of anything, which takes 5."""
ROOMY_MTU = 9000
"""The MTU of underlay and pods where neither is to be in the way."""
CLONE_NEWNET = 0x40000000

Found = TypeVar("Found")


def wait_for(condition: Callable[[], Found], what: str, seconds: float = PATIENCE) -> Found:
    """Poll until ``condition`` gives something true, and give that; otherwise the test fails, naming ``what``."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not after {seconds:g} s")
        time.sleep(0.01)
    return found


def inside(where: Namespace, make: Callable[[], Found]) -> Found:
    """Call ``make`` in a namespace. A socket it opens stays there. A thread enters it, so that nobody else ever does."""
    results: list[Found] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with (NAMESPACES / where.name).open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter {where.name}")
            results.append(make())
        except BaseException as error:  # raised again where it belongs
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def ping(source: Namespace, destination: Address | str, *options: str, count: int = 3, patience: float = 10) -> int:
    """Ping, one at a time, and give the number of replies. ``patience`` is in seconds, for each.

    ``ping -c3`` would not do: once it has seen a reply it waits for the others only twice as long as that one took, which on
    a busy machine is not long enough, and then calls them lost.
    """
    each = ["ping", "-n", "-q", "-c1", "-W", str(patience), *options, str(destination)]
    script = f'for i in $(seq {count}); do "$@"; done'
    output = source.run(["sh", "-c", script, "sh", *each], check=False, timeout=count * patience + PATIENCE).stdout
    return output.count(" 1 received")


def flood(source: Namespace, destination: Address, *options: str, count: int) -> int:
    """``ping -f``, and how many replies came in the end: by the kernel's count, for ping does not wait for the last ones."""
    before = _echo_replies(source, destination.version)
    source.run(["ping", "-n", "-q", "-f", "-c", str(count), *options, str(destination)], check=False, timeout=60)
    deadline = time.monotonic() + PATIENCE
    while (came := _echo_replies(source, destination.version) - before) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return came


def _echo_replies(where: Namespace, version: int) -> int:
    """How many a namespace has received so far."""
    if version == 6:
        lines = (line.split() for line in where.run(["cat", "/proc/net/snmp6"]).stdout.splitlines())
        return next(int(value) for name, value in lines if name == "Icmp6InEchoReplies")
    names, values = (
        line.split() for line in where.run(["cat", "/proc/net/snmp"]).stdout.splitlines() if line.startswith("Icmp:")
    )
    return int(values[names.index("InEchoReps")])


# The data plane ----------------------------------------------------------------------------------------------------


def command_of(kind: str) -> list[str]:
    return WGPY if kind == "wgpy" else [wireguard_go()]


class DataPlane:
    """A process that serves one interface of a node, in the foreground. Its log is kept."""

    def __init__(
        self, node: Node, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, *, keep_log: bool = True
    ) -> None:
        """``keep_log``: what others of this name have logged before it stays."""
        self.node = node
        self.name = name
        self.log = node.directory / f"{name}.log"
        with self.log.open("ab" if keep_log else "wb") as output:
            self.process = node.start(argv, output, {"LOG_LEVEL": "error", **(env or {})})

    @classmethod
    def start(cls, kind: str, node: Node, name: str = "wg0") -> DataPlane:
        """wgpy or wireguard-go as a drop-in; does not wait."""
        return cls(node, name, [*command_of(kind), "-f", name])

    @classmethod
    def run(cls, node: Node, *options: str, name: str = "wg0") -> DataPlane:
        """wgpy as a service; does not wait."""
        return cls(node, name, [*WGPY, "run", name, *options])

    @property
    def client(self) -> Client:
        return Client(self.name, directory=self.node.wireguard_directory)

    def wait_until_ready(self) -> None:
        wait_for(self._answers, f"{self.name} answers on its UAPI socket")

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"{self.name} ended with status {self.process.returncode}: {self.log.read_text()[-1000:]}")
        try:
            self.client.get()
        except ClientError:
            return False
        return True

    def stop(self) -> int:
        """SIGTERM, and the exit status. What it logged must not be an unexpected exception."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            said = self.log.read_text(errors="replace")
            assert "Traceback" not in said, said
        return status


# Tunnels -----------------------------------------------------------------------------------------------------------


def node_addresses(number: int) -> list[Interface]:
    """Those of node ``number`` on the underlay."""
    return [ip_interface(f"10.77.0.{number}/24")] + [ip_interface(f"fd77::{number}/64")] * (6 in FAMILIES)


def block(number: int, version: int) -> Prefix:
    """The addresses of node ``number``'s pods."""
    return ip_network(f"10.42.{number}.0/24" if version == 4 else f"fd42:0:0:{number}::/64")


@dataclass
class End:
    """One end of a tunnel. ``addresses`` are those of its interface, by IP version."""

    number: int
    kind: str
    node: Node
    pod: Pod
    plane: DataPlane
    private_key: bytes = field(default=NO_KEY, repr=False)

    @property
    def client(self) -> Client:
        return self.plane.client

    @property
    def public_key(self) -> bytes:
        return public_key(self.private_key)

    @property
    def blocks(self) -> tuple[Prefix, ...]:
        return tuple(block(self.number, version) for version in FAMILIES)

    def tunnel_address(self, version: int) -> Address:
        """The address of the interface: what the node itself is called inside the tunnel."""
        return block(self.number, version)[254]

    @property
    def peer(self) -> PeerSnapshot:
        """The other end as this one sees it."""
        (peer,) = self.client.get().peers
        return peer

    @property
    def endpoint(self) -> str:
        return str(self.peer.config.endpoint)


@dataclass
class Tunnel:
    """Two ends. The first one is meant to speak first, and so to be the initiator."""

    topology: Topology
    ends: tuple[End, End]
    outer: int

    @classmethod
    @contextmanager
    def lay(
        cls, kinds: tuple[str, str], *, outer: int = 4, mtu: int = MTU, roomy: bool = False, metrics: str | None = None
    ) -> Iterator[Tunnel]:
        """Lay nodes and pods, start the data planes, configure them, and take everything down in the end.

        ``outer`` is the IP version between the nodes. ``roomy``: underlay and pods have an MTU of 9000; otherwise the underlay
        has 1500, and pods that of the tunnel, as Calico gives it to them. wgpy serves its ``metrics`` at that address.
        """
        with Topology.create() as topology:
            planes: list[DataPlane] = []
            try:
                ends = []
                for number, kind in enumerate(kinds, start=1):
                    node = topology.add_node(f"n{number}", node_addresses(number))
                    with_metrics = metrics is not None and kind == "wgpy"
                    planes.append(DataPlane.run(node, "--metrics", str(metrics)) if with_metrics else DataPlane.start(kind, node))
                    addresses = [block(number, version)[1] for version in FAMILIES]
                    pod = node.add_pod(f"pod{number}", addresses, mtu=ROOMY_MTU if roomy else mtu)
                    ends.append(End(number, kind, node, pod, planes[-1]))
                if roomy:
                    _widen(topology)
                tunnel = cls(topology, (ends[0], ends[1]), outer)
                for plane in planes:
                    plane.wait_until_ready()
                tunnel.configure()
                for end, other in tunnel.directions():
                    _route(end, other, mtu)
                yield tunnel
            finally:
                statuses = [plane.stop() for plane in planes]
            assert statuses == [0, 0]

    def configure(self, *, preshared: bool = False) -> None:
        """Give both ends new keys, and each other as their only peer: everything begins anew."""
        preshared_key = os.urandom(32) if preshared else NO_KEY
        for end in self.ends:
            end.private_key = clamp(os.urandom(32))
        for end, other in self.directions():
            peer = SetPeer(
                other.public_key,
                preshared_key=preshared_key,
                endpoint=Endpoint(str(other.node.address(self.outer)), PORT),
                allowed_ips=other.blocks,
            )
            end.client.set([SetDevice(end.private_key, PORT, replace_peers=True), peer])

    def turned(self) -> Tunnel:
        """The same tunnel, with the ends in the other order."""
        return Tunnel(self.topology, self.ends[::-1], self.outer)

    def directions(self) -> tuple[tuple[End, End], tuple[End, End]]:
        """(first, second) and (second, first)."""
        one, two = self.ends
        return (one, two), (two, one)

    def nodes(self, end: End, other: End) -> tuple[Address, Address]:
        """The outer addresses, as frames from ``end`` to ``other`` have them."""
        return end.node.address(self.outer), other.node.address(self.outer)

    def capture(self) -> Capture:
        """A context manager that reads all frames on the underlay."""
        return Capture(self.topology.underlay.name)

    def losses(self) -> dict[str, str]:
        """Where the kernel lost packets, for the message of a test that failed for a lost one."""
        return {end.node.key: _losses(end) for end in self.ends}

    def __str__(self) -> str:
        return f"{self.ends[0].kind}:{self.ends[1].kind}"


def _route(end: End, other: End, mtu: int) -> None:
    end.node.configure(
        links=[
            f"link set wg0 mtu {mtu} up",
            *(f"addr add {end.tunnel_address(version)} dev wg0{' nodad' * (version == 6)}" for version in FAMILIES),
            *(f"route add {prefix} dev wg0 src {end.tunnel_address(prefix.version)}" for prefix in other.blocks),
        ]
    )


def _losses(end: End) -> str:
    said = end.node.run(["sh", "-c", "cat /proc/net/dev /proc/net/snmp"]).stdout.splitlines()
    dropped = {
        line.split(":")[0].strip(): line.split(":")[1].split() for line in said if re.match(r" *(wg0|eth0|cali\w+):", line)
    }
    links = [f"{name}: received {fields[3]} dropped, sent {fields[11]} dropped" for name, fields in dropped.items()]
    names, values = (line.split() for line in said if line.startswith("Udp:"))
    errors = [f"{name} {value}" for name, value in zip(names, values, strict=True) if "Errors" in name and value != "0"]
    return f"{end.kind}: " + "; ".join(links + errors)


def _widen(topology: Topology) -> None:
    ports = [f"link set {node.key} mtu {ROOMY_MTU}" for node in topology.nodes.values()]
    topology.underlay.configure(links=[*ports, f"link set br0 mtu {ROOMY_MTU}"])
    for node in topology.nodes.values():
        node.configure(links=[f"link set eth0 mtu {ROOMY_MTU}"])


def spare_address(number: int, version: int) -> Address:
    """An address on the underlay that no node has."""
    return ip_address(f"10.77.0.{100 + number}" if version == 4 else f"fd77::1:{number}")


def has_interface(where: Namespace, name: str) -> bool:
    return where.run(["ip", "link", "show", "dev", name], check=False).returncode == 0


def processes_in(where: Namespace) -> dict[int, str]:
    """The processes of a namespace, and their command lines."""
    inode = os.stat(NAMESPACES / where.name).st_ino
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.stat(path / "ns" / "net").st_ino == inode:
                found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
    return found
