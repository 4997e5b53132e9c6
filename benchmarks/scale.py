"""What peers and prefixes cost: configuring them, the memory they take, and what a packet pays for there being so many.

    python -m benchmarks scale [--planes wgpy,wireguard-go] [--sizes 1,10,100,1000,5000] [--rounds 5]

Each peer has ten prefixes of three lengths in two families, as the nodes of a large cluster would. For every size and
every data plane a tunnel is laid, and then:

* *Configuration*: the time of one ``wg setconf`` that makes the first end know all peers, the other end among them. It is the
  real ``wg``; what starting it costs is in the figure, and can be seen at one peer.
* *Memory*: what the process has resident after that and a handshake.
* *Ping*: CPU time of the data plane for one packet out and its answer in, pinging slowly, so that each is alone.
  Always the same two addresses: a data plane may remember them, and wgpy does.
* *A look-up* (wgpy's, in this process): a device gets one packet at a time to seal, each to an address it has not seen
  before, so nothing is remembered and all prefix lengths are tried. And the search alone, among all prefixes.

Pings and look-ups go over all sizes in turn, round by round. The best round of a look-up counts, the median of pings.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import os
import random
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

from benchmarks import micro
from benchmarks import report as show
from benchmarks.handshakes import cpu_seconds
from benchmarks.lab import End, LabError, Shape, Tunnel, lay
from benchmarks.planes import PORT, Plane
from benchmarks.results import OURS, REFERENCE, Report, Row
from benchmarks.suite import UsageError, chosen_planes, look_at_machine, machine_facts
from controller.demo.topology import Topology, TopologyError
from tun.offload import ZERO_HEADER
from wgpy.config import Prefix, SetPeer

SIZES = (1, 10, 100, 1000, 5000)
FEW, MANY = 10, 5000
"""Peers: a look-up among many must cost what it costs among few."""
PREFIXES_PER_PEER = 10

SETCONF_LIMIT = 8.0  # seconds, for MANY
MEMORY_LIMIT = 250.0  # MB, likewise
LOOKUP_LIMIT = 1.5  # times the cost with FEW

SETCONF_SECONDS = 120.0
"""After which ``wg setconf`` is given up."""
PINGS = 250
PING_INTERVAL = 0.002
NEW_ADDRESSES = 8192
"""So many addresses take turns: by the time one comes again, none is remembered."""
PACKETS = 250
SEARCHES = 1000
NEVER_SEEN = ip_network("172.16.0.0/16")
"""What the peer with a session owns besides, for addresses to send to."""


def rows(size: int) -> dict[str, Row]:
    """The rows of a size, by what they are of."""
    said = f"{size:,} {'peer' if size == 1 else 'peers'}"
    kinds = {
        "setconf": (f"wg setconf, {said}", "Configuration", "s"),
        "memory": (f"resident with {said}", "Memory by peers", "MB"),
        "ping": (f"CPU of a ping, {said}", "Packets by peers", "µs"),
        "packet": (f"a packet to a new address, {said}", "Look-ups by peers, in one process", "µs"),
        "search": (f"the search for its peer alone, {said}", "Look-ups by peers, in one process", "µs"),
    }
    return {kind: Row(f"scale-{kind}-{size}", title, group, unit, "lower") for kind, (title, group, unit) in kinds.items()}


def prefixes(peer: int) -> tuple[Prefix, ...]:
    """The ten prefixes of a peer: three /24 of 100.64.0.0/10, three /32 of 198.18.0.0/15, four /122 of fd00:64::/32."""
    blocks, hosts, blocks6 = (
        int(start) for start in (IPv4Address("100.64.0.0"), IPv4Address("198.18.0.0"), IPv6Address("fd00:64::"))
    )
    return (
        *(IPv4Network((blocks + (peer * 3 + index << 8), 24)) for index in range(3)),
        *(IPv4Network((hosts + peer * 3 + index, 32)) for index in range(3)),
        *(IPv6Network((blocks6 + (peer * 4 + index << 6), 122)) for index in range(4)),
    )


# --- Look-ups, in this process ---


class Crowd:
    """A ``device`` of ours with ``size`` peers, of which one has a session."""

    def __init__(self, size: int) -> None:
        (self.device, _), (other, _) = micro.connected()
        assert other.local is not None
        generator = random.Random(size)
        peers = [other.local.public, *(generator.randbytes(32) for _ in range(size - 1))]
        self.device.apply([SetPeer(key, allowed_ips=prefixes(peer)) for peer, key in enumerate(peers)], micro.NOW)
        self.device.apply([SetPeer(peers[0], allowed_ips=(NEVER_SEEN,))], micro.NOW)
        new = generator.sample(range(NEVER_SEEN.num_addresses), NEW_ADDRESSES)
        self._reads = itertools.cycle([_read_to(NEVER_SEEN[number].packed) for number in new])
        self._searched = itertools.cycle(_some_addresses(size, generator))

    def packet(self) -> float:
        """CPU microseconds to seal a packet to a new address."""
        device, reads = self.device, list(itertools.islice(self._reads, PACKETS))
        sealing, loading = iter(reads), iter(reads)
        cost = micro.timed(lambda: micro.read(device, next(sealing)), PACKETS)
        if any(device.drops.values()):
            raise AssertionError(f"packets were dropped, not sealed: {device.drops}")
        return cost - micro.timed(lambda: micro.load(device, next(loading)), PACKETS)

    def search(self) -> float:
        """CPU microseconds to find the owner of an address."""
        addresses = list(itertools.islice(self._searched, SEARCHES))
        lookup = self.device.allowed_ips.lookup
        return micro.timed(lambda: deque(map(lookup, addresses), maxlen=0), 1) / SEARCHES


def _read_to(address: bytes) -> bytes:
    """What a read of the TUN brings: a UDP packet of 92 bytes to ``address``."""
    packet = micro.udp(64)
    return ZERO_HEADER + packet[:16] + address + packet[20:]


def _some_addresses(size: int, generator: random.Random) -> list[bytes]:
    """Addresses of all prefixes, none twice, without any order."""
    found: set[bytes] = set()
    for _ in range(2 * NEW_ADDRESSES):
        prefix = generator.choice(prefixes(generator.randrange(size)))
        found.add(prefix[generator.randrange(prefix.num_addresses)].packed)
    addresses = sorted(found)
    generator.shuffle(addresses)
    return addresses[:NEW_ADDRESSES]


def measure_lookups(report: Report, sizes: Sequence[int], rounds: int) -> Iterator[str]:
    """The look-up rows, into ``report``. A round is short, so that there are many; the best of each ten is a value."""
    crowds = {size: Crowd(size) for size in sizes}
    for number in range(rounds):
        best: dict[tuple[int, str], float] = {}
        for _ in range(10):
            for size, crowd in crowds.items():
                for kind, cost in (("packet", crowd.packet()), ("search", crowd.search())):
                    best[size, kind] = min(cost, best.get((size, kind), cost))
        for (size, kind), cost in best.items():
            report.at(rows(size)[kind], OURS).values.append(cost)
        yield f"round {number + 1} of {rounds}: look-ups"


# --- At a tunnel ---


@dataclass
class Crowded:
    """A tunnel whose first end knows ``size`` peers."""

    size: int
    tunnel: Tunnel

    def setconf(self) -> float:
        """Seconds that ``wg setconf`` takes. The other end is one of the peers, and is reached again when this returns."""
        end, other = self.tunnel.ends
        path = end.directory / "crowd.conf"
        path.write_text(configuration(end, other, self.size))
        start = time.perf_counter()
        end.node.run(["wg", "setconf", end.plane.interface, str(path)], timeout=SETCONF_SECONDS)
        taken = time.perf_counter() - start
        lines = end.node.run(["wg", "show", end.plane.interface, "allowed-ips"]).stdout.splitlines()
        known = len(lines), sum(line.partition("\t")[2].count("/") for line in lines)
        if known != (self.size, PREFIXES_PER_PEER * self.size + len(other.blocks)):
            raise LabError(f"{end.plane.name} knows {known[0]} peers and {known[1]} prefixes after wg setconf, not all of them")
        ping = ["ping", "-n", "-q", "-c1", "-W1", str(other.pod.address(4))]
        end.wait_for(lambda: end.pod.run(ping, check=False).returncode == 0, "the other pod answers")
        return taken

    def ping(self) -> float:
        """CPU microseconds of the first end for a ping and its answer."""
        end, other = self.tunnel.ends
        command = ["ping", "-n", "-q", "-i", f"{PING_INTERVAL:g}", "-c", str(PINGS), "-W", "1", str(other.pod.address(4))]
        before = cpu_seconds(end)
        output = end.pod.run(command, check=False).stdout
        used = cpu_seconds(end) - before
        answers = re.search(r"(\d+) received", output)
        if answers is None or int(answers[1]) < 0.98 * PINGS:
            raise LabError(f"{end.plane.name}: {answers[1] if answers else 0} of {PINGS} pings were answered")
        return used / int(answers[1]) * 1e6


def configuration(end: End, other: End, size: int) -> str:
    """What ``wg setconf`` reads: the other end, and as many peers besides that nobody ever hears of."""
    private = (end.directory / "private-key").read_text()
    lines = ["[Interface]", f"PrivateKey = {private}", f"ListenPort = {PORT}"]
    generator = random.Random(size)
    for peer in range(size):
        key = other.public if peer == 0 else base64.b64encode(generator.randbytes(32)).decode()
        allowed = [*(other.blocks if peer == 0 else ()), *prefixes(peer)]
        lines += ["[Peer]", f"PublicKey = {key}", f"AllowedIPs = {', '.join(map(str, allowed))}"]
        if peer == 0:
            lines.append(f"Endpoint = {other.outer_address}:{PORT}")
    return "\n".join(lines) + "\n"


def measure_tunnels(report: Report, chosen: Sequence[Plane], sizes: Sequence[int], rounds: int) -> Iterator[str]:
    """Configuration, memory and pings of each plane in each size, into ``report``. A line for each thing done."""
    with ExitStack() as stack:
        topology = stack.enter_context(Topology.create())
        crowds: list[tuple[Plane, Crowded]] = []
        for size in sizes:
            for plane in chosen:
                try:
                    crowd = Crowded(size, lay(topology, len(crowds), plane, plane, Shape()))
                    crowds.append((plane, crowd))
                    taken = crowd.setconf()
                except (LabError, TopologyError) as error:
                    report.at(rows(size)["setconf"], plane.name).failures.append(str(error))
                    yield f"{plane.name}, {size:,} peers: {error}"
                    continue
                report.at(rows(size)["setconf"], plane.name).values.append(taken)
                if resident := crowd.tunnel.ends[0].resident_bytes():
                    report.at(rows(size)["memory"], plane.name).values.append(resident / 1e6)
                yield f"{plane.name}, {size:,} peers: configured in {taken:.2f} s, {resident / 1e6:.0f} MB"
        for number in range(rounds):
            for plane, crowd in crowds:
                _ping_round(report, plane, crowd, number)
            yield f"round {number + 1} of {rounds}: pings"


def _ping_round(report: Report, plane: Plane, crowd: Crowded, number: int) -> None:
    row = rows(crowd.size)["ping"]
    try:
        if cost := crowd.ping():  # a plane without processes has no CPU of its own
            report.at(row, plane.name).values.append(cost)
    except (LabError, TopologyError) as error:
        report.at(row, plane.name).failures.append(f"round {number + 1}: {error}")


# --- The verdict ---


@dataclass(frozen=True)
class Verdict:
    """A limit, and what was measured; None where it was not."""

    said: str
    measured: float | None
    limit: float
    unit: str

    @property
    def holds(self) -> bool:
        return self.measured is not None and self.measured < self.limit

    def __str__(self) -> str:
        measured = "not measured" if self.measured is None else f"{self.measured:.3g} {self.unit}"
        return (
            f"{'holds' if self.holds else 'DOES NOT HOLD'}: {self.said}: {measured}, to be less than {self.limit:g} {self.unit}"
        )


def judge(report: Report) -> list[Verdict]:
    """What is asked of wgpy with MANY peers."""
    said = f"{MANY:,} peers and {MANY * PREFIXES_PER_PEER:,} prefixes"

    def median(kind: str, size: int) -> float | None:
        found = report.find(rows(size)[kind].name, OURS)
        return found.median if found else None

    many, few = (_best(report, "packet", size) for size in (MANY, FEW))
    lookup = many / few if many and few else None
    return [
        Verdict(f"{said}: wg setconf", median("setconf", MANY), SETCONF_LIMIT, "s"),
        Verdict(f"{said}: a packet to a new address, against {FEW} peers", lookup, LOOKUP_LIMIT, "times"),
        Verdict(f"{said}: resident memory", median("memory", MANY), MEMORY_LIMIT, "MB"),
    ]


def _best(report: Report, kind: str, size: int) -> float | None:
    found = report.find(rows(size)[kind].name, OURS)
    return min(found.values) if found and found.values else None


def measure(report: Report, chosen: Sequence[Plane], sizes: Sequence[int], rounds: int) -> Iterator[str]:
    """All of it, into ``report``."""
    yield from measure_lookups(report, sizes, rounds)
    yield from measure_tunnels(report, chosen, sizes, rounds)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--planes", metavar="A,B", help=f"which (default {OURS},{REFERENCE})")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of peers (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of pings and look-ups (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    arguments = parser.parse_args()
    try:
        if os.geteuid() != 0:
            raise UsageError("network namespaces need root")
        chosen = chosen_planes(arguments.planes, (OURS, REFERENCE))
        sizes = [int(size) for size in arguments.sizes.split(",")]
    except (UsageError, ValueError) as error:
        print(f"benchmarks scale: {error}", file=sys.stderr)
        return 2
    report = Report(
        machine=machine_facts(),
        planes={plane.name: plane.version() for plane in chosen},
        options={"rounds": arguments.rounds},
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        rounds=[look_at_machine()],
    )
    for line in measure(report, chosen, sizes, arguments.rounds):
        print(line, file=sys.stderr)
    show.tables(show.console(), report)
    if arguments.json is not None:
        arguments.json.write_text(report.to_json())
    verdicts = judge(report) if {FEW, MANY} <= set(sizes) else []
    for verdict in verdicts:
        print(verdict)
    return 0 if all(verdict.holds for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
