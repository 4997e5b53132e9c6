"""The cluster as the agent sees it: frozen values, and nothing that a node has no use for.

IPv4 and IPv6 are two instances that share nothing but the objects they are read from: own switch, interface, key, port,
MTU and annotations. Whatever exists once per family is therefore held per family.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from wgpy.config import Prefix

Address = IPv4Address | IPv6Address


class Family(Enum):
    """An IP version. The value is its number."""

    IPV4 = 4
    IPV6 = 6

    def __str__(self) -> str:
        return f"IPv{self.value}"


@dataclass(frozen=True, slots=True)
class WireguardConfiguration:
    """What Felix is configured to do for one family. ``mtu`` 0 is automatic; ``interface`` is Felix's name, not ours."""

    enabled: bool
    port: int
    mtu: int
    interface: str


@dataclass(frozen=True, slots=True)
class FelixConfiguration:
    """The fields about WireGuard, and those that bear on it, as they are in force on one node. The defaults are Felix's.

    ``keepalive``: seconds, 0 for off. ``refresh_seconds``: how often everything is compared anew, inf for never.
    ``syncs_routes``: off, there are no routes of ours. ``route_protocol``: what routes are marked with (3 is boot).
    ``table_ranges``: routing tables that are Felix's, from and to. ``mark_mask``: mark bits that are Felix's.
    ``mtu_interface_pattern``: the links that have a say in the underlay's MTU. ``has_metrics``: of WireGuard.
    ``lacks_ipv6``: WireGuard over IPv6 is asked for, and stays off as Felix has no IPv6 here (``ipv6Support``).
    ``workloads``: the names of local pods' interfaces (a ``*`` at the end is any ending).
    ``selected``: the configurations that select this node, the one that counts first.
    """

    ipv4: WireguardConfiguration = WireguardConfiguration(enabled=False, port=51820, mtu=0, interface="wireguard.cali")
    ipv6: WireguardConfiguration = WireguardConfiguration(enabled=False, port=51821, mtu=0, interface="wg-v6.cali")
    rule_priority: int = 99
    keepalive: int = 0
    host_encryption: bool = False
    refresh_seconds: float = 90.0
    syncs_routes: bool = True
    route_protocol: int = 3
    route_source: str = "CalicoIPAM"
    table_ranges: tuple[tuple[int, int], ...] = ((1, 250),)
    mark_mask: int = 0xFFFF0000
    mtu_interface_pattern: str = r"^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)"
    has_metrics: bool = True
    lacks_ipv6: bool = False
    selected: tuple[str, ...] = ()
    workloads: frozenset[str] = frozenset({"cali*"})

    def of(self, family: Family) -> WireguardConfiguration:
        return self.ipv4 if family is Family.IPV4 else self.ipv6


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """What a node says of itself in one family.

    ``address`` is where peers send; ``host_addresses`` are all of its own addresses, that one included;
    ``tunnel_addresses`` those of its tunnels, the WireGuard ``interface_address`` included. ``port`` is where it listens, in
    meshes that publish it; None: where the configuration says everybody does.
    """

    address: Address | None = None
    public_key: bytes | None = None
    interface_address: Address | None = None
    tunnel_addresses: tuple[Address, ...] = ()
    host_addresses: tuple[Address, ...] = ()
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster."""

    name: str
    ipv4: NodeNetwork = NodeNetwork()
    ipv6: NodeNetwork = NodeNetwork()

    def of(self, family: Family) -> NodeNetwork:
        return self.ipv4 if family is Family.IPV4 else self.ipv6


@dataclass(frozen=True, slots=True)
class Block:
    """A block of addresses. ``node`` is the one it is affine to; ``borrowed`` are addresses taken out of it by other nodes.

    A block without a node (its node is gone, or it serves load balancers) has only borrowed addresses.
    """

    cidr: Prefix
    node: str | None
    borrowed: tuple[tuple[Address, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """An IPPool. Routes do not depend on it; our tunnel addresses come out of it if it ``allows_tunnels``. With
    ``nat_outgoing`` its pods have their node's address wherever they speak to what is in no pool."""

    cidr: Prefix
    block_prefix_length: int
    allows_tunnels: bool
    nat_outgoing: bool = False


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything one node needs to know to take its place in the mesh."""

    felix: FelixConfiguration = FelixConfiguration()
    nodes: Mapping[str, Node] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    pools: tuple[Pool, ...] = ()
