"""A node on which all is well, as facts, and what a test changes about it."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from controller.doctor.checks import examine
from controller.doctor.diagnosis import Diagnosis, Unseen
from controller.doctor.facts import Facts, FamilyFacts, Moment, Way
from controller.model import Family
from controller.state import Link
from controller.status import AgentStatus, FamilyStatus, LeakStatus, PeerStatus, SourceStatus, Traffic

NOW = 1_700_000_000.0
WG = "wireguard.caliu"
N2 = PeerStatus("n2", Traffic.ENCRYPTED, public_key="K2", endpoint="192.0.2.2:51820", last_handshake=NOW - 9)
FAMILY = FamilyFacts(
    Family.IPV4,
    WG,
    51820,
    5182,
    0x1000,
    0x1000,
    key_path="/state/ipv4.key",
    public_key="K1",
    announced="K1",
    underlay="eth0",
    link=Link(True, 1440),
    listen_port=51820,
    status=FamilyStatus(Family.IPV4, peers=(N2,)),
    ways=(Way("n2", ip_address("10.0.2.0"), WG),),
    largest={"n2": 1440},
    forwards=True,
)
AGENT = AgentStatus(
    NOW, "n1", "calico", "1", SourceStatus("x"), families=(FamilyStatus(Family.IPV4),), leaks=LeakStatus(("eth0",))
)
WELL = Facts("n1", NOW, "/state", agent=AGENT, agent_runs=True, families=(FAMILY,), moments=(Moment("a handshake", NOW - 9),))


def family(**fields: Any) -> Facts:
    return replace(WELL, families=(replace(FAMILY, **fields),))


def peers(*found: PeerStatus, **fields: Any) -> Facts:
    return family(status=FamilyStatus(Family.IPV4, peers=found), **fields)


def diagnoses(facts: Facts) -> list[Diagnosis]:
    return [one for results in examine(facts).values() for one in results if isinstance(one, Diagnosis)]


def unseen(facts: Facts) -> list[str]:
    return [one.why for results in examine(facts).values() for one in results if isinstance(one, Unseen)]


def is_well_said(found: Diagnosis) -> bool:
    """Each of its parts is there, and a line."""
    parts = (found.what, found.why, *found.remedies)
    return bool(found.remedies) and all(part and "\n" not in part for part in parts)
