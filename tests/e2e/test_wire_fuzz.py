"""A peer that attacks with all it has (tests/fuzz/wire.py), an honest one beside it, and the process between them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network

from tests.conformance.peer import Peer
from tests.e2e.lab import PATIENCE, PORT, End, Tunnel, inside, ping
from tests.fuzz import wire
from wgpy.config import SetPeer

SECONDS = 10.0
SOURCES = (ip_network("10.66.0.0/16"),)
INSIDE = "10.66.0.5"
MEMORY_MB = 32
"""Megabytes by which the process may grow."""
ETH_P_ALL = 3


@contextmanager
def watched(end: End) -> Iterator[list[bytes]]:
    """The packets that the data plane writes to its interface, those of the honest end left out."""
    delivered: list[bytes] = []
    sniffer = inside(end.node, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)))
    sniffer.bind((end.plane.name, ETH_P_ALL))
    sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sniffer.settimeout(0.2)
    ended = threading.Event()

    def read() -> None:
        while True:
            try:
                packet, (_, _, kind, _, _) = sniffer.recvfrom(1 << 16)
            except TimeoutError:  # nothing waits to be read: only then may it end
                if ended.is_set():
                    return
                continue
            if kind != socket.PACKET_OUTGOING and not is_honest(packet):
                delivered.append(packet)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield delivered
    finally:
        ended.set()
        thread.join()
        sniffer.close()


def is_honest(packet: bytes) -> bool:
    """Whether it is of the tunnel's own addresses, both ends."""
    own = packet[12:14], packet[16:18]
    return own == (b"\x0a\x2a", b"\x0a\x2a") or (packet[0] >> 4 == 6 and packet[8:10] == packet[24:26] == b"\xfd\x42")


def memory(end: End) -> float:
    """What the data plane's process holds, in megabytes."""
    with open(f"/proc/{end.plane.process.pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1]) / 1024  # type: ignore[index]


def test_a_peer_that_attacks_harms_nobody() -> None:
    private = os.urandom(32)
    with Tunnel.lay(("wgpy", "wgpy")) as tunnel:
        honest, attacked = tunnel.ends
        host, outer = honest.node.address(4), attacked.node.address(4)
        peer = Peer(honest.node, host, outer, PORT, attacked.public_key, private=private)
        bystander = Peer(honest.node, host, host, PORT, honest.public_key, private=private)
        attacked.client.set([SetPeer(peer.public, allowed_ips=SOURCES)])
        attacked.node.configure(links=[f"route add {SOURCES[0]} dev wg0"])
        assert ping(honest.pod, attacked.pod.addresses[0]) == 3
        with watched(attacked) as delivered, watched(honest) as elsewhere, pinging(honest, attacked) as pings:
            addresses = INSIDE, str(attacked.tunnel_address(4))
            before = memory(attacked)
            report = wire.attack(peer, SOURCES, addresses, seconds=SECONDS, seed=1, others=[bystander])
            grown = memory(attacked) - before
        print(dict(report.sent), f"{len(delivered)} delivered", f"{grown:.1f} MB more", pings)
        assert report.wrong == []
        assert report.judge(delivered) == []
        assert len(delivered) > 0.9 * report.may_be_delivered > 50
        assert elsewhere == []
        assert grown < MEMORY_MB
        assert pings["received"] >= 0.9 * pings["sent"] > 10, tunnel.losses()
        assert ping(honest.pod, attacked.pod.addresses[0]) == 3
        peer.close()
        bystander.close()


@contextmanager
def pinging(one: End, other: End) -> Iterator[dict[str, int]]:
    """Five honest pings a second meanwhile; how many were sent and answered is there in the end."""
    counts: dict[str, int] = {}
    command = ["ping", "-n", "-q", "-i", "0.2", "-W", "10", str(other.pod.addresses[0])]
    process = subprocess.Popen(one.pod.command(command), stdout=subprocess.PIPE, text=True)
    try:
        yield counts
    finally:
        process.send_signal(2)
        said, _ = process.communicate(timeout=PATIENCE)
    found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert found, said
    counts.update(sent=int(found[1]), received=int(found[2]))
