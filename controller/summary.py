"""A node in few words: what a dashboard shows of it, made of the agent's status. Pure.

A status names every peer, which among a thousand nodes is a million of them. A summary counts those that are well, and names
only those that are not: so all nodes can be asked for theirs every other second.
"""

from collections.abc import Iterable
from typing import Any

from controller.status import AgentStatus, FamilyStatus, LeakStatus, PeerStatus, Traffic, as_document, unready

FORMAT = 1
"""Grows when a summary no longer means what it did."""

MOST_TROUBLED = 200
"""How many peers a summary names in each family."""

MOST_LEAKS = 5
"""How many pairs it names whose packets were seen in clear, the latest ones."""

HANDSHAKE_AGES = (30, 60, 120, 180)
"""Seconds: the upper bounds by which a summary counts handshakes. One older than the last bound is over."""


def summary(status: AgentStatus) -> dict[str, Any]:
    """What a dashboard shows of a node, as plain data. Peers that are encrypted and answer are only counted."""
    return {
        "format": FORMAT,
        "at": status.at,
        "node": status.node,
        "mesh": status.mesh,
        "version": status.version,
        "is_strict": status.is_strict,
        "started_at": status.started_at,
        "is_synced": status.source.is_synced,
        "source_failure": status.source.failure,
        "unready": unready(status),
        "findings": as_document(status)["findings"] if status.findings else [],
        "leaks": _leaks(status.leaks),
        "families": [_family(family, status.at) for family in status.families],
    }


def _leaks(found: LeakStatus | None) -> dict[str, Any] | None:
    """What the leak detector has seen since the agent's start, None where none watches: then nothing is known."""
    if found is None or not found.interfaces:
        return None
    latest = sorted(found.leaks, key=lambda leak: leak.at, reverse=True)[:MOST_LEAKS]
    return {
        "packets": sum(leak.packets for leak in found.leaks),
        "why": found.why,
        "latest": [
            {
                "peer": leak.peer,
                "direction": leak.direction.value,
                "packets": leak.packets,
                "at": leak.at,
                "example": leak.example,
            }
            for leak in latest
        ],
    }


def _family(family: FamilyStatus, now: float) -> dict[str, Any]:
    troubled = [peer for peer in family.peers if peer.traffic is not Traffic.ENCRYPTED or peer.is_silent]
    troubled.sort(key=lambda peer: _WORST_FIRST.index(peer.traffic))  # where not all have room
    return {
        "family": family.family.value,
        "rest": family.rest,
        "problem": family.failure or (f"waiting for {family.waits_for}" if family.waits_for else family.contest),
        "interface": family.interface,
        "interface_address": family.interface_address,
        "mtu": family.mtu,
        "public_key": family.public_key,
        "is_published": family.is_published,
        "has_data_plane": family.has_data_plane,
        "peers": {traffic.value: sum(peer.traffic is traffic for peer in family.peers) for traffic in Traffic},
        "silent": sum(peer.is_silent for peer in family.peers),
        "handshakes": _ages(family.peers, now),
        "oldest_handshake": min((peer.last_handshake for peer in family.peers if peer.last_handshake is not None), default=None),
        "rx_bytes": sum(peer.rx_bytes for peer in family.peers),
        "tx_bytes": sum(peer.tx_bytes for peer in family.peers),
        "refused_packets": family.refused_inbound + family.refused_outbound,
        # A family that rests has no troubled peers: all that is to be said stands in ``rest``.
        "troubled": [_named(peer) for peer in troubled[:MOST_TROUBLED]] if family.is_enabled else [],
    }


_WORST_FIRST = (Traffic.CLEAR, Traffic.REFUSED, Traffic.ENCRYPTED)


def _named(peer: PeerStatus) -> dict[str, Any]:
    return {"name": peer.name, "traffic": peer.traffic.value, "why": peer.why, "is_silent": peer.is_silent}


def _ages(peers: Iterable[PeerStatus], now: float) -> list[int]:
    """How many handshakes are at most as old as each bound of HANDSHAKE_AGES, then how many are older, then how many peers have
    had none. Peers that are not encrypted do not count."""
    counts = [0] * (len(HANDSHAKE_AGES) + 2)
    for peer in peers:
        if peer.traffic is not Traffic.ENCRYPTED:
            continue
        if peer.last_handshake is None:
            counts[-1] += 1
        else:
            age = now - peer.last_handshake
            counts[next((index for index, bound in enumerate(HANDSHAKE_AGES) if age <= bound), len(HANDSHAKE_AGES))] += 1
    return counts
