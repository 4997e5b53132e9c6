"""What was seen on this node, as values for :mod:`controller.doctor.checks` to judge. Pure.

None stands for what could not be found out, unless a field says something else; then no check may make a finding of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from controller.findings import Finding
from controller.model import Address, Family
from controller.plan import Step
from controller.state import Link, Rule
from controller.status import HAS_LEFT, AgentStatus, FamilyStatus


class Moment(NamedTuple):
    """Something that happened ``at`` seconds since 1970, by the clock of whoever wrote it down."""

    what: str
    at: float


class Way(NamedTuple):
    """Where the kernel sends a packet to ``destination``, which belongs to ``peer``: to an interface, or nowhere (None)."""

    peer: str
    destination: Address
    interface: str | None


class Mark(NamedTuple):
    """Somebody else's rule that sets packet marks: where it is, and the bits it may set."""

    where: str
    bits: int


class Drop(NamedTuple):
    """A chain that certainly refuses our datagrams: ``nft``'s words for it, the rule, which of the two ways it is about, and our
    own port."""

    family: str
    table: str
    chain: str
    rule: str
    is_inbound: bool
    port: int


class KeyFile(Enum):
    """The file with the private key."""

    GOOD = "good"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    OPEN = "open to others"


@dataclass(frozen=True, slots=True)
class FamilyFacts:
    """One family that WireGuard is enabled for.

    ``interface``, ``port``, ``table``, ``fwmark`` and ``fwmask`` are what they ought to be. ``listen_port`` is the device's, 0
    if it has none; ``device_error`` is why nobody answers for the interface. ``port_is_taken``: a socket that is not the
    device's may have it, since the device has not. ``steps`` are what an agent would do now. ``announced`` and ``public_key``
    are the key the cluster shows for this node, and ours. ``knocks``: what came back from each peer's port, an errno, 0 for
    nothing. ``largest``: the largest packet that got through the tunnel to each peer that answered at all, in bytes.
    """

    family: Family
    interface: str
    port: int
    table: int
    fwmark: int
    fwmask: int
    rest: str | None = None
    key_path: str = ""
    key_file: KeyFile = KeyFile.GOOD
    public_key: str | None = None
    announced: str | None = None
    address: Address | None = None
    underlay: str | None = None
    link: Link | None = None
    device_error: str | None = None
    listen_port: int = 0
    port_is_taken: bool = False
    steps: tuple[Step, ...] = ()
    status: FamilyStatus | None = None
    ways: tuple[Way, ...] = ()
    foreign_rules: tuple[Rule, ...] = ()
    knocks: Mapping[str, int] = field(default_factory=dict)
    largest: Mapping[str, int] = field(default_factory=dict)
    forwards: bool | None = None

    @property
    def overhead(self) -> int:
        """Bytes that WireGuard adds to a packet."""
        return 60 if self.family is Family.IPV4 else 80


@dataclass(frozen=True, slots=True)
class Facts:
    """This node at one moment, ``now`` seconds since 1970.

    ``tun_error`` and ``state_error`` are what is wrong with /dev/net/tun and the state directory, None if nothing is.
    ``source_error``: why the cluster cannot be read; the one remembered on disk is looked at then, if there is one.
    ``is_known``: there is a cluster to go by, and this node is in it. ``denied`` are the rights that the agent lacks at the API
    server. ``server_lead`` is how many seconds its clock is ahead of ours.
    """

    node: str
    now: float
    state: str = "/var/lib/wgpy"
    tun_error: str | None = None
    has_net_admin: bool = True
    state_error: str | None = None
    source: str = ""
    source_error: str | None = None
    denied: tuple[str, ...] = ()
    is_known: bool = True
    agent: AgentStatus | None = None
    agent_runs: bool | None = None
    moments: tuple[Moment, ...] = ()
    server_lead: float | None = None
    findings: tuple[Finding, ...] = ()
    families: tuple[FamilyFacts, ...] = ()
    drops: tuple[Drop, ...] | None = ()
    marks: tuple[Mark, ...] | None = ()

    @property
    def has_left(self) -> bool:
        """This node was taken out of the mesh, and no agent has run since."""
        families = self.agent.families if self.agent is not None and self.agent_runs is False else ()
        return bool(families) and all(family.rest == HAS_LEFT for family in families)
