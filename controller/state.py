"""What WireGuard is on one node, in one family, as a value: of the state wanted, and of the state found.

A :class:`State` holds only what is ours: our interface, the routes of our table, the rules that point to it, the device
behind UAPI, our nftables tables. Two states can be compared and subtracted (:mod:`controller.plan`), whatever made them.
"""

from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv4Interface, IPv6Interface

from wgpy.config import PeerConfig, Prefix

InterfaceAddress = IPv4Interface | IPv6Interface

ROUTE_PROTOCOL = 3
"""RTPROT_BOOT: who says to have made a route. Felix's default too."""

TWIN_METRIC = 0x7FFF0000
"""Behind every route that could be meant: a smaller metric is a better route."""


class RouteKind(Enum):
    """What a route of our table does with a packet."""

    DEVICE = "dev"
    """Into our interface: encrypted, or dropped."""
    THROW = "throw"
    """On to the next rule: in clear, as if our table were not there."""
    PROHIBIT = "prohibit"
    """Refused: the sender is told so (ICMP, EACCES). Where encryption is owed and cannot be given."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route of our table. ``metric`` belongs to its identity; IPv6 routes have 1024 where nobody says otherwise."""

    prefix: Prefix
    kind: RouteKind
    metric: int = 0
    protocol: int = ROUTE_PROTOCOL

    def __hash__(self) -> int:
        """Cheap, as tens of thousands of routes are put into sets in every pass, and good enough to tell most of them apart."""
        return hash((int(self.prefix.network_address), self.metric))

    @property
    def twin(self) -> "Route":
        """What stands behind a route into the interface: when the interface is down or gone, and the route with it, packets
        meet a refusal instead of the next rule, which would send them in clear."""
        return replace(self, kind=RouteKind.PROHIBIT, metric=TWIN_METRIC)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that points to our table. ``extra`` are selectors we would never write, so that such a rule differs."""

    priority: int
    fwmark: int
    fwmask: int
    is_inverted: bool = True
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """The interface. None leaves the MTU as it is."""

    is_up: bool
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """The configuration behind UAPI. None leaves a field as it is. Peers are in the order of their keys."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    peers: tuple[PeerConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class Guard:
    """What strict mode has the host's firewall refuse: plaintext with a ``protected`` address at the other end.

    Such packets pass by our own interface, by the loopback and by ``workloads`` (names of interfaces, a ``*`` at the end is any
    ending) and by nothing else. ``exempt`` are addresses inside the protected ranges that are not meant: nodes' own.
    """

    protected: frozenset[Prefix] = frozenset()
    exempt: frozenset[Prefix] = frozenset()
    workloads: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class State:
    """``link`` is None where there is no such interface, ``device`` where no data plane answers for it, ``guard`` where
    nothing is refused by the firewall.

    ``masquerades``: what this node sends into the interface from another of its addresses gets the interface's.
    ``is_underlay_strict``: the underlay's reverse path filter insists on the best path; None leaves it as it is.
    """

    link: Link | None = None
    addresses: frozenset[InterfaceAddress] = frozenset()
    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()
    device: Device | None = None
    masquerades: bool = False
    is_underlay_strict: bool | None = None
    guard: Guard | None = None

    @property
    def is_promised(self) -> bool:
        """Packets are directed by our table: what its routes send into the interface must not leave in clear."""
        return bool(self.rules)


def sorted_prefixes(prefixes: "frozenset[Prefix] | set[Prefix]") -> tuple[Prefix, ...]:
    """In the one order in which two lists of allowed IPs can be compared."""
    return tuple(sorted(prefixes, key=lambda prefix: (prefix.version, int(prefix.network_address), prefix.prefixlen)))
