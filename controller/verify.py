"""``wgpy verify``: is it encrypted, now? Packets with a mark that nobody else's have, and a look at the wire while they pass.

**How it speaks as a pod.** The packets have the address of a pod of this node as their source and that of a pod of the other node
as their destination, and are sent through a raw socket (CAP_NET_RAW). They meet the same rules, the same routes and the same
tunnel as the pod's own, and the other pod answers them. What they do not meet are the chains of the firewall for *forwarded*
packets, as this host sends them itself. To send from inside the pod would take CAP_SYS_ADMIN, which nobody should
have to give away for a test.

**What it looks at.** An AF_PACKET socket on the links by which the other nodes are reached sees every frame as it is on the wire,
and one on the tunnel's interface sees what goes in and comes out. The judge (:mod:`controller.demo.capture`) trusts no name, port
or table: the mark, or the two pods' addresses side by side, anywhere in a frame on the wire, are plaintext, in whatever
encapsulation. It is *encrypted* if none of that was seen, every packet that the kernel took was seen going into the tunnel (one
that was not may have gone by a link that nobody looks at), and WireGuard's transport messages left for the other node. Only short
frames are looked at (:data:`LONGEST_FRAME`), so that a busy node can keep up; where the kernel lost some all the same, their
absence proves nothing, and it is said.

:func:`pairs`, :func:`echo` and :func:`verdicts` are pure.
"""

import argparse
import errno
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Group, RenderableType
from rich.text import Text

from controller import look
from controller.demo.capture import Conversation, Frame, Sighting, judge
from controller.graph import Pods
from controller.look import Fitting, Look
from controller.model import Address, Cluster, Family
from controller.status import AgentStatus, FamilyStatus, PeerStatus
from wgpy.config import parse_endpoint, parse_prefix

PROVEN, UNPROVEN, BLIND = 0, 1, 2

PACKETS = 5
PAUSE_SECONDS = 0.02
WATCH_SECONDS = 10.0
PATIENCE_SECONDS = 2.5
"""How long to wait for answers: a handshake, and then some."""

SETTLE_SECONDS = 0.2
LONGEST_FRAME = 400
MARK_START = b"wgpy"

ETH_P_ALL = 0x0003
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE, SO_ATTACH_FILTER = 263, 6, 33, 26
RECEIVE_BUFFER = 16 << 20
FRAME_MAX = 1 << 16
POLL_SECONDS = 0.05

METHOD = (
    "packets with a pod's source address, sent by this node through a raw socket: the pod's rules, routes and tunnel, "
    "but not the firewall's chains for forwarded packets"
)


class VerifyError(Exception):
    """It cannot be looked at. The message is one line: what is wrong, and what to do."""


class Verdict(StrEnum):
    """What became of the packets between this node and another."""

    ENCRYPTED = "encrypted"
    CLEAR = "in clear"
    REFUSED = "refused"
    NOTHING = "nothing seen"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class Pair:
    """Who talks: a pod of this node and one of ``peer``. ``expected`` is what the agent says becomes of it."""

    family: Family
    peer: str
    conversation: Conversation
    expected: str = ""


class Sent(NamedTuple):
    """How many packets of a pair the kernel took, and the errno of the first that it would not take, 0 if there was none."""

    taken: int
    error: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen of a pair. ``inside`` are marked packets seen going into the tunnel, ``answers`` those that came out of it;
    ``sighting`` is the wire's. ``lost`` are frames that the kernel had no room for."""

    pair: Pair
    sighting: Sighting
    inside: int
    answers: int
    sent: Sent
    lost: int

    @property
    def verdict(self) -> Verdict:
        if self.sighting.clear:
            return Verdict.CLEAR
        if self.sent.error in (errno.EACCES, errno.EPERM) and not self.sent.taken:
            return Verdict.REFUSED
        if self.lost or 0 < self.inside < self.sent.taken:
            return Verdict.UNCERTAIN
        is_encrypted = self.inside and self.sighting.encrypted[0]
        return Verdict.ENCRYPTED if is_encrypted else Verdict.NOTHING

    @property
    def why(self) -> str:
        """What the verdict does not say, in a few words."""
        if self.verdict is Verdict.UNCERTAIN and not self.lost:
            return f"only {self.inside} of {self.sent.taken} packets were seen going into the tunnel: see wgpy doctor"
        if self.verdict is Verdict.UNCERTAIN:
            return f"{self.lost} frames were lost: try again when there is less traffic"
        if self.verdict is Verdict.NOTHING and self.sent.error:
            return os.strerror(self.sent.error)
        if self.verdict is Verdict.ENCRYPTED:
            return "and answered" if self.answers else "not answered"
        return self.pair.expected


# Who talks to whom --------------------------------------------------------------------------------------------------


def pairs(cluster: Cluster, status: AgentStatus, pods: Pods, mark: Callable[[], bytes]) -> Iterator[Pair]:
    """This node with each other node, in each family that is enabled. Pods talk where there are any; else addresses of the nodes'
    own ranges, from which nobody may answer. Pure but for ``mark``, which gives each pair a mark of its own."""
    own = cluster.nodes.get(status.node)
    for family in status.families:
        if not family.is_enabled or own is None or (here := own.of(family.family).address) is None:
            continue
        source = _address(family.family, pods.get(status.node, ()), own.of(family.family).interface_address, family.ranges)
        for peer in family.peers:
            pair = _pair(cluster, family, peer, pods, (source, here), mark)
            if pair is not None:
                yield pair


def _pair(
    cluster: Cluster,
    family: FamilyStatus,
    peer: PeerStatus,
    pods: Pods,
    own: tuple[Address | None, Address],
    mark: Callable[[], bytes],
) -> Pair | None:
    if peer.name not in cluster.nodes:
        return None  # an external peer has no pods
    node = cluster.nodes[peer.name].of(family.family)
    there = _host(peer.endpoint, family.family) or node.address
    destination = _address(family.family, pods.get(peer.name, ()), node.interface_address, peer.ranges)
    source, here = own
    if source is None or destination is None or there is None:
        return None
    expected = peer.traffic.value + (f": {peer.why}" if peer.why else "")
    return Pair(family.family, peer.name, Conversation((source, destination), (here, there), mark()), expected)


def _address(family: Family, pods: Iterable[tuple[str, str]], tunnel: Address | None, ranges: Iterable[str]) -> Address | None:
    """A pod's, the tunnel's, or any of the node's ranges."""
    found: list[Address] = [one for one in (ip_address(address) for address, _ in pods) if one.version == family.value]
    found += [tunnel] if tunnel is not None else []
    found += [network.network_address + min(1, network.num_addresses - 1) for network in map(parse_prefix, ranges)]
    return found[0] if found else None


def _host(endpoint: str | None, family: Family) -> Address | None:
    if endpoint is None:
        return None
    host = ip_address(parse_endpoint(endpoint).host)
    return host if host.version == family.value else None


# The packets --------------------------------------------------------------------------------------------------------


def echo(conversation: Conversation, sequence: int) -> bytes:
    """An IP packet: an ICMP echo request from the first pod to the second, with the mark twice in it. Pure."""
    source, destination = conversation.pods
    data = conversation.marker * 2
    identifier = int.from_bytes(conversation.marker[-2:])
    if source.version == 4:
        body = _with_checksum(struct.pack(">BBHHH", 8, 0, 0, identifier, sequence) + data, 2)
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, socket.IPPROTO_ICMP, 0)
        return header + source.packed + destination.packed + body  # the kernel fills in the header's checksum
    body = struct.pack(">BBHHH", 128, 0, 0, identifier, sequence) + data
    pseudo = source.packed + destination.packed + struct.pack(">II", len(body), socket.IPPROTO_ICMPV6)
    checksum = _checksum(pseudo + body)
    body = body[:2] + struct.pack(">H", checksum) + body[4:]
    return struct.pack(">IHBB", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 64) + source.packed + destination.packed + body


def _with_checksum(body: bytes, at: int) -> bytes:
    return body[:at] + struct.pack(">H", _checksum(body)) + body[at + 2 :]


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def verdicts(
    found: Sequence[Pair], wire: Sequence[Frame], inside: Sequence[Frame], sent: Sequence[Sent], lost: int
) -> list[Result]:
    """What frames of the wire and of the tunnel's interface say of each pair. Pure."""
    sightings = judge(wire, [pair.conversation for pair in found])
    results = []
    for pair, sighting, one in zip(found, sightings, sent, strict=True):
        there, back = (
            b"".join(address.packed for address in pods) for pods in (pair.conversation.pods, pair.conversation.pods[::-1])
        )
        marked = [frame.data for frame in inside if pair.conversation.marker in frame.data]
        results.append(
            Result(pair, sighting, sum(there in data for data in marked), sum(back in data for data in marked), one, lost)
        )
    return results


# Looking ------------------------------------------------------------------------------------------------------------


class Wires:
    """A context manager that sees every short frame of the interfaces it is given, sent and received. ``frames`` are by the
    interface's name; ``lost`` counts those the kernel had no room for. Raises VerifyError where it may not look."""

    def __init__(self, interfaces: Iterable[str]) -> None:
        self.frames: dict[str, list[Frame]] = {name: [] for name in interfaces}
        self.lost = 0
        self._stopped = threading.Event()
        self._sockets = {name: _packet_socket(name) for name in self.frames}
        self._threads = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in self.frames]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        time.sleep(SETTLE_SECONDS if error is None else 0.0)
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        for reader in self._sockets.values():
            _, lost = struct.unpack("II", reader.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            self.lost += lost
            reader.close()

    def _read(self, name: str) -> None:
        while True:
            try:
                data, (_, protocol, _, hardware, *_) = self._sockets[name].recvfrom(FRAME_MAX)
            except TimeoutError:
                if self._stopped.is_set():
                    return
                continue
            if hardware not in (ARPHRD_ETHER, ARPHRD_LOOPBACK):
                data = bytes(12) + struct.pack(">H", protocol) + data  # no Ethernet here: as if there were
            self.frames[name].append(Frame(time.time(), name, data))


def _packet_socket(interface: str) -> socket.socket:
    try:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # deaf until it is bound
    except PermissionError:
        raise VerifyError("needs CAP_NET_RAW to look at the wire and to speak as a pod: run it as root, or grant it") from None
    try:
        _attach_filter(made)
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        made.settimeout(POLL_SECONDS)
        made.bind((interface, ETH_P_ALL))
    except OSError as error:
        made.close()
        raise VerifyError(f"cannot look at {interface}: {error.strerror or error}") from None
    return made


def _attach_filter(made: socket.socket) -> None:
    """``ld len; jgt #LONGEST_FRAME, drop; ret all; drop: ret 0`` (classic BPF, linux/filter.h)."""
    import ctypes

    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in ((0x80, 0, 0, 0), (0x25, 1, 0, LONGEST_FRAME), (0x06, 0, 0, FRAME_MAX), (0x06, 0, 0, 0))
    )
    instructions = ctypes.create_string_buffer(program)
    made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(instructions)))


def send(found: Sequence[Pair], packets: int = PACKETS) -> list[Sent]:
    """Send each pair's packets, a few at a time. Raises VerifyError."""
    sent = [Sent(0)] * len(found)
    with _raw(Family.IPV4) as four, _raw(Family.IPV6) as six:
        for sequence in range(packets):
            for position, pair in enumerate(found):
                try:
                    raw = four if pair.family is Family.IPV4 else six
                    raw.sendto(echo(pair.conversation, sequence), (str(pair.conversation.pods[1]), 0))
                    sent[position] = Sent(sent[position].taken + 1, sent[position].error)
                except OSError as error:
                    sent[position] = Sent(sent[position].taken, sent[position].error or error.errno or errno.EIO)
            time.sleep(PAUSE_SECONDS)
    return sent


def _raw(family: Family) -> socket.socket:
    """A socket that is given whole IP packets."""
    try:
        made = socket.socket(socket.AF_INET if family is Family.IPV4 else socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except PermissionError:
        raise VerifyError("needs CAP_NET_RAW to speak as a pod: run it as root, or grant it") from None
    made.setblocking(False)
    return made


def verify(found: Sequence[Pair], wires: Iterable[str], tunnels: Iterable[str]) -> list[Result]:
    """Send, look, judge. Takes a moment where everybody answers, and some seconds where not. Raises VerifyError."""
    watched, inner = sorted(set(wires)), sorted(set(tunnels))
    if not watched:
        raise VerifyError("there is no link by which other nodes are reached: name it with --wire INTERFACE")
    with Wires([*watched, *inner]) as seen:
        sent = send(found)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            frames = [frame for name in inner for frame in list(seen.frames[name])]
            results = verdicts(found, (), frames, sent, 0)
            if all(result.answers or result.sent.error for result in results):
                break
            time.sleep(POLL_SECONDS)
    wire = [frame for name in watched for frame in seen.frames[name]]
    frames = [frame for name in inner for frame in seen.frames[name]]
    return verdicts(found, wire, frames, sent, seen.lost)


def mark() -> bytes:
    """Twelve bytes that are nobody else's."""
    return MARK_START + secrets.token_bytes(8)


# Saying it ----------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peers", nargs="*", metavar="NODE", help="the nodes to speak to (default: all)")
    parser.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="for whom (default: a table)")
    parser.add_argument(
        "--wire",
        action="append",
        default=[],
        metavar="INTERFACE",
        help="look at this link, too (default: those towards the nodes)",
    )
    look.add_arguments(parser, WATCH_SECONDS)


def look_of(node: str, results: Sequence[Result], wires: Iterable[str]) -> Look:
    """What was found; the exit status is 0 if nothing was seen in clear and all else is encrypted or refused, 1 if not."""
    wires = sorted(set(wires))
    return Look(
        lambda _: _picture(node, results, wires),
        lambda: document(node, results, wires),
        PROVEN if is_proven(results) else UNPROVEN,
    )


def look_in_vain(node: str, why: str) -> Look:
    """Why it could not look this time."""
    return Look(lambda _: Text(f"{node}: {why}"), lambda: {"node": node, "at": time.time(), "proven": False, "error": why}, BLIND)


def _picture(node: str, results: Sequence[Result], wires: Sequence[str]) -> RenderableType:
    columns = ("NODE", "FROM", "TO", "VERDICT", "IN CLEAR", "INTO TUNNEL", "WIREGUARD", "ANSWERS", "WHY")
    shown = Fitting(columns, spare=("INTO TUNNEL", "ANSWERS", "WIREGUARD"))
    for result in results:
        shown.add_row(_cells(result), {Verdict.ENCRYPTED: "green", Verdict.REFUSED: ""}.get(result.verdict, "red"))
    head = Text(f"{node}: {PACKETS} marked packets for each of {len(results)} pairs of pods, looked for on {', '.join(wires)}")
    return Group(head, Text(f"method: {METHOD}"), shown)


def is_proven(results: Sequence[Result]) -> bool:
    return bool(results) and all(result.verdict in (Verdict.ENCRYPTED, Verdict.REFUSED) for result in results)


def _cells(result: Result) -> Iterator[str]:
    source, destination = result.pair.conversation.pods
    yield from (result.pair.peer, str(source), str(destination), result.verdict.value)
    there, back = result.sighting.encrypted
    yield from (str(result.sighting.clear), str(result.inside), f"{there} there, {back} back", str(result.answers), result.why)


def document(node: str, results: Sequence[Result], wires: Sequence[str]) -> dict[str, Any]:
    """All of it as plain data."""
    return {
        "node": node,
        "at": time.time(),
        "method": METHOD,
        "wires": list(wires),
        "packets": PACKETS,
        "proven": is_proven(results),
        "pairs": [_plain(result) for result in results],
    }


def _plain(result: Result) -> Mapping[str, Any]:
    source, destination = result.pair.conversation.pods
    return {
        "peer": result.pair.peer,
        "family": result.pair.family.value,
        "from": str(source),
        "to": str(destination),
        "verdict": result.verdict.value,
        "why": result.why,
        "frames_in_clear": result.sighting.clear,
        "packets_into_tunnel": result.inside,
        "transport_messages": list(result.sighting.encrypted),
        "answers": result.answers,
    }


def fail(message: str) -> int:
    print(f"wgpy verify: {message}", file=sys.stderr)
    return BLIND
