"""Sightings of made-up nodes, for the tests of what is made of them."""

from typing import Any

from controller.dashboard.view import Sighting
from controller.findings import Finding
from controller.model import Family
from controller.status import AgentStatus, FamilyStatus, LeakStatus, PeerStatus, SourceStatus, Traffic
from controller.summary import summary

NOW = 1_700_000_000.0


def peer(name: str, traffic: Traffic = Traffic.ENCRYPTED, why: str = "", **fields: Any) -> PeerStatus:
    return PeerStatus(name, traffic, why, last_handshake=NOW - 10 if traffic is Traffic.ENCRYPTED else None, **fields)


def silent(name: str) -> PeerStatus:
    return PeerStatus(name, Traffic.ENCRYPTED, last_handshake=None, is_silent=True)


def status(
    name: str,
    *peers: PeerStatus,
    rest: str | None = None,
    findings: tuple[Finding, ...] = (),
    leaks: LeakStatus | None = None,
    **fields: Any,
) -> AgentStatus:
    """A node with IPv4 (and ``fields`` of that family) and without IPv6."""
    family = FamilyStatus(
        **{
            "family": Family.IPV4,
            "rest": rest,
            "public_key": "K",
            "announced": "K",
            "interface": "wireguard.caliu",
            "mtu": 1440,
            "has_data_plane": True,
            "peers": peers,
        }
        | fields
    )
    return AgentStatus(
        at=NOW,
        node=name,
        mesh="calico",
        version="1.2",
        source=SourceStatus("directory", is_synced=True),
        passes=1,
        passed_at=NOW,
        families=(family, FamilyStatus(Family.IPV6, rest="not enabled")),
        findings=findings,
        leaks=leaks,
    )


def seen(name: str, *peers: PeerStatus, failure: str | None = None, **fields: Any) -> Sighting:
    """A node whose agent has said this."""
    return Sighting(name, "192.0.2.1", summary(status(name, *peers, **fields)), NOW, failure, rx_rate=125.0, tx_rate=250.0)
