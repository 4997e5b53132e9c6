"""What leaves by the tunnel (1.9): packets that wait for a session, and packets that nobody may have."""

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network

from controller.demo.topology import Address
from tests.conformance.behaviour import behaviour, expect
from tests.conformance.boxes import PORT
from tests.conformance.peer import INITIATION, TRANSPORT, Peer, Session
from tests.conformance.trial import INNER_PORT, Sniffer, Trial, udp_packet, udp_payload
from tests.e2e.lab import inside
from tests.tun.packets import checksum
from wgpy.config import Endpoint, SetPeer

STAGED = 128
SENT = 200
PACE = 0.002

ICMP, UDP, ICMPV6 = 1, 17, 58
UNREACHABLE = {4: (3, 1), 6: (1, 3)}
"""Type and code of "host unreachable" (RFC 792) and "address unreachable" (RFC 4443)."""


# Packets that wait ----------------------------------------------------------------------------------------------------


def packets_that_waited(peer: Peer, session: Session, seconds: float = 1.0) -> list[bytes]:
    """The payloads of what comes under a session in so many seconds."""
    opened = (session.open(each) for each in peer.collect(seconds, [TRANSPORT]))
    return [udp_payload(packet) for packet in opened if packet]


@behaviour("1.9", "of the packets that wait for a session the last 128 are kept, and leave in order", seconds=3)
def staged_packets(trial: Trial) -> None:
    peer = trial.peer()
    for number in range(SENT):
        trial.outward(number.to_bytes(2))
        time.sleep(PACE)
    session = peer.respond(peer.expect(INITIATION))
    came = [int.from_bytes(payload) for payload in packets_that_waited(peer, session)]
    expect(came, "nothing of what had to wait came")
    expect(came == sorted(came), "what had to wait came in another order")
    expect(came[-1] == SENT - 1, f"the last that came is number {came[-1]} of {SENT}: not the oldest was dropped")
    # The kernel makes room before it adds one: there may be one more.
    expect(came == list(range(came[0], SENT)) and len(came) in (STAGED, STAGED + 1), f"{len(came)} of {SENT} came, not {STAGED}")


@behaviour("1.9", "packets that wait are dropped when the handshake is given up", seconds=112)
def staged_packets_given_up(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward(b"waiting")
    came = peer.collect(109, [INITIATION])
    expect(came and time.time() - came[-1].time > 6, "it has not given up after 109 s")
    session = peer.initiate()
    expect(not packets_that_waited(peer, session), "a packet that had waited for a handshake that was given up")
    trial.expect_outward(session, "a packet after that")


@behaviour("1.9", "packets that wait are dropped when the interface goes down", seconds=3)
def staged_packets_down(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward(b"waiting")
    peer.expect(INITIATION)
    trial.box.down()
    time.sleep(0.1)
    trial.box.up()
    session = peer.initiate()
    expect(not packets_that_waited(peer, session), "a packet from before the interface went down")
    trial.expect_outward(session, "a packet after that")


@behaviour("1.9", "packets that wait for a peer are dropped with it", seconds=3)
def staged_packets_removed(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward(b"waiting")
    peer.expect(INITIATION)
    trial.change(peer, remove=True)
    trial.change(peer, endpoint=Endpoint(*peer.address), allowed_ips=(trial.plan.network(4, 88),))
    session = peer.initiate()
    expect(not packets_that_waited(peer, session), "a packet from before the peer was removed")
    trial.expect_outward(session, "a packet after that")


# Packets that nobody may have -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Error:
    """An ICMP error that reached the tester's inner leg."""

    source: Address
    kind: tuple[int, int]
    quote: bytes
    is_sound: bool
    """Its checksum is right."""


def errors(sniffer: Sniffer, seconds: float = 1.0) -> Iterator[Error]:
    """Those that came until nothing comes for so many seconds."""
    for packet in sniffer.packets(seconds):
        if packet[0] >> 4 == 4 and packet[9] == ICMP:
            message = packet[20 : int.from_bytes(packet[2:4])]
            if message[0] in (3, 11, 12):
                yield Error(ip_address(packet[12:16]), (message[0], message[1]), message[8:], checksum(message) == 0)
        elif packet[0] >> 4 == 6 and packet[6] == ICMPV6 and packet[40] < 128:
            message = packet[40 : 40 + int.from_bytes(packet[4:6])]
            pseudo = packet[8:40] + struct.pack(">II", len(message), ICMPV6)
            yield Error(ip_address(packet[8:24]), (message[0], message[1]), message[8:], checksum(pseudo + message) == 0)


def expect_unreachable(trial: Trial, version: int, to: Address, why: str) -> None:
    """Send a packet and raise Broken unless it is said to be unreachable, rightly and once."""
    sniffer = trial.sniffer("inner")
    trial.outward(b"to nobody", version=version, to=to)
    came = list(errors(sniffer))
    expect(came, f"silence for an IPv{version} packet {why}, instead of an ICMP error")
    expect(len(came) == 1, f"{len(came)} ICMP errors for one packet")
    (error,) = came
    expect(error.kind == UNREACHABLE[version], f"ICMP type {error.kind[0]} code {error.kind[1]} for a packet {why}")
    start, length = (12, 4) if version == 4 else (8, 16)
    addresses = trial.plan.inner(version).packed + to.packed
    expect(error.quote[start : start + 2 * length] == addresses, "the ICMP error quotes another packet's addresses")
    ports = error.quote[start + 2 * length :][:4]
    expect(ports == struct.pack(">HH", INNER_PORT, INNER_PORT), "the ICMP error does not quote the packet's ports")
    expect(error.is_sound, "the ICMP error has a wrong checksum")
    own = (
        trial.plan.inner(version, 11),
        trial.plan.interface(version),
        trial.plan.outer(version, 11),
        trial.plan.outer(version, 12),
    )
    expect(error.source in own, f"the ICMP error comes from {error.source}, which is no address of the box")


@behaviour("1.9", "a packet that is in nobody's allowed IPs is said to be unreachable: ICMP 3/1, ICMPv6 1/3", seconds=3)
def unreachable_without_peer(trial: Trial) -> None:
    trial.peer(allowed_ips=[ip_network(trial.plan.remote(version, 1)) for version in (4, 6)])
    for version in (4, 6):
        expect_unreachable(trial, version, trial.plan.remote(version, 77), "that is in nobody's allowed IPs")


@behaviour("1.9", "a packet for a peer without an endpoint is said to be unreachable", seconds=3)
def unreachable_without_endpoint(trial: Trial) -> None:
    trial.peer(with_endpoint=False)
    for version in (4, 6):
        expect_unreachable(trial, version, trial.plan.remote(version, 77), "for a peer without an endpoint")


@behaviour("1.9", "there are few ICMP errors for many packets", seconds=3)
def unreachable_is_limited(trial: Trial) -> None:
    trial.peer(allowed_ips=[])
    sniffer = trial.sniffer("inner")
    for number in range(400):
        trial.outward(to=trial.plan.remote(4, 1 + number % 200))
        if number % 20 == 0:
            time.sleep(0.001)
    came = list(errors(sniffer))
    expect(came, "no ICMP error for any of 400 packets")
    expect(len(came) <= 100, f"{len(came)} ICMP errors for 400 packets in an instant")


@behaviour("1.9", "there is no ICMP error about an ICMP error, or about a fragment that is not the first", seconds=3)
def unreachable_is_not_for_all(trial: Trial) -> None:
    trial.peer(allowed_ips=[])
    plan = trial.plan
    sniffer = trial.sniffer("inner")
    to = plan.remote(4, 77)
    for body in (bytes([3, 1]), bytes([11, 0])):
        message = body + bytes(6) + udp_packet(to, plan.inner(4), b"of which there was")[:28]
        raw(trial, ipv4_packet(plan.inner(4), to, ICMP, message[:2] + struct.pack(">H", checksum(message)) + message[4:]))
    raw(trial, ipv4_packet(plan.inner(4), to, UDP, b"the rest of something", fragment=64))
    for error in errors(sniffer):
        about = "an ICMP error" if error.quote[9] == ICMP else "a fragment that is not the first"
        expect(False, f"ICMP type {error.kind[0]} code {error.kind[1]} about {about}")
    expect_unreachable(trial, 4, to, "that is in nobody's allowed IPs")


def ipv4_packet(
    source: IPv4Address | Address, destination: Address, protocol: int, payload: bytes, *, fragment: int = 0
) -> bytes:
    """An IPv4 packet; ``fragment`` is its offset in units of 8 bytes. The kernel fills in checksum and identification."""
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0)
    return header + source.packed + destination.packed + payload


def raw(trial: Trial, packet: bytes) -> None:
    """Send an IPv4 packet from the tester as it is."""
    with inside(trial.tester, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as opened:
        opened.sendto(packet, (str(ip_address(packet[16:20])), 0))


# Loops ----------------------------------------------------------------------------------------------------------------


@behaviour("1.9", "an endpoint that lies in the peer's own tunnel leads nowhere, and no packet goes round for ever", seconds=4)
def endpoint_in_its_own_tunnel(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    trial.change(peer, endpoint=Endpoint(str(trial.plan.remote(4, 5)), PORT))
    for _ in range(10):
        trial.outward(bytes(100))
    time.sleep(2)
    sent = trial.known(peer).tx_bytes
    # The kernel lets each go round until it is too long, which are 23 times: 11 KB.
    expect(sent < 200_000, f"{sent} bytes were sent for ten packets of 128")
    time.sleep(0.5)
    expect(trial.known(peer).tx_bytes == sent, "packets still go round after 2 s")
    peer.initiate()  # which is an endpoint again
    trial.expect_inward(session, "a packet under the session after that")


@behaviour("1.9", "an endpoint that lies in the tunnel of another peer is reached through it", seconds=4)
def tunnel_in_tunnel(trial: Trial) -> None:
    plan = trial.plan
    carrier = trial.peer(allowed_ips=[plan.network(4, 88)])
    session = carrier.initiate()
    nested = trial.peer(host=2, allowed_ips=[plan.network(6, 88)])
    trial.box.set([SetPeer(nested.public, endpoint=Endpoint(str(plan.remote(4, 5)), 7777))])
    trial.outward(version=6)
    packet = session.receive("what is for the peer inside the other's tunnel")
    expect(packet[16:20] == plan.remote(4, 5).packed and packet[22:24] == struct.pack(">H", 7777), "it goes somewhere else")
    expect(udp_payload(packet)[:4] == b"\x01\x00\x00\x00", "it is no initiation")
