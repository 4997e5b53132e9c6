"""The state a node ought to be in, from the cluster. Pure.

Three questions, in this order. *Whose is each range of addresses?* (:func:`prefix_owners`.) *Whom do we encrypt to?*
(:func:`select_peers`: whoever has an endpoint and a key nobody else claims.) *What follows?* (:func:`desired_state`: a range
of a peer becomes an allowed IP and a route into the interface; every other range a ``throw`` route, which lets the packet
go on as if WireGuard were not there.)

All of it is computed anew from the whole cluster each time, so what depends on others, as the claim to a key does, cannot go
stale. Sources: calico.md 3 and 4; ``felix/calc/l3_route_resolver.go``, ``felix/dataplane/linux/wireguard_mgr.go``,
``felix/wireguard/wireguard.go``.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface, ip_network

from controller.model import Address, Cluster, Family, Node
from controller.state import Device, Link, Route, RouteKind, Rule, State, sorted_prefixes
from wgpy.config import NO_KEY, Endpoint, PeerConfig, Prefix

OVERHEAD = {Family.IPV4: 60, Family.IPV6: 80}
"""Bytes that WireGuard adds: outer IP header, UDP header, transport data and its padding."""

UNKNOWN_UNDERLAY_MTU = 1500
ROUTE_METRIC = {Family.IPV4: 0, Family.IPV6: 1024}
"""What a route gets that names none. The kernel reads 0 as 1024 for IPv6."""

_LONGEST_INTERFACE_NAME = 15


@dataclass(frozen=True, slots=True)
class Numbers:
    """The names and numbers of one family that the agent brings itself. None: what Felix is configured to use decides.

    They keep out of Felix's way: it takes tables from 1 to 250 and marks from 0xffff0000, and deletes what has the name of
    its own interface (calico.md 11).
    """

    table: int
    fwmark: int = 0x1000
    fwmask: int = 0x1000
    interface: str | None = None
    rule_priority: int | None = None

    def interface_name(self, felix_name: str) -> str:
        """Felix's name with a ``u`` for userspace, cut so that 15 characters hold it; never Felix's name itself."""
        base = felix_name[: _LONGEST_INTERFACE_NAME - 1]
        return self.interface or (base + "u" if base + "u" != felix_name else base + "v")


DEFAULT_NUMBERS = {Family.IPV4: Numbers(table=5182), Family.IPV6: Numbers(table=5183)}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are to the mesh, in one family."""

    node: str
    private_key: bytes = field(repr=False)
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Selection:
    """The nodes we encrypt to, and why not to the others, both by name."""

    peers: Mapping[str, Node]
    refusals: Mapping[str, str]


def prefix_owners(cluster: Cluster, family: Family, own_name: str) -> dict[Prefix, str]:
    """The node that each range belongs to. A single address may lie in a range of another's: the longest prefix decides.

    As in Felix a tunnel's address outranks IPAM's word on it, and the address of a remote host is a range only with host
    encryption, whatever else it may be.
    """
    owners: dict[Prefix, str] = {}
    for block in cluster.blocks:
        if block.cidr.version != family.value:
            continue
        if block.node is not None:
            owners[block.cidr] = block.node
        owners |= {_host_prefix(address): holder for address, holder in block.borrowed}
    nodes = [cluster.nodes[name] for name in sorted(cluster.nodes, reverse=True)]  # of two claims the first name's stays
    for node in nodes:
        owners |= {_host_prefix(address): node.name for address in node.of(family).tunnel_addresses}
    for node in nodes:
        if node.name != own_name:
            for address in node.of(family).host_addresses:
                if cluster.felix.host_encryption:
                    owners[_host_prefix(address)] = node.name
                else:
                    owners.pop(_host_prefix(address), None)
    return owners


def select_peers(cluster: Cluster, family: Family, identity: Identity) -> Selection:
    """Everybody with an endpoint, and with a key that is nobody else's and not ours."""
    others = {name: node for name, node in cluster.nodes.items() if name != identity.node}
    claimants: defaultdict[bytes | None, list[str]] = defaultdict(list)
    for name, node in others.items():
        claimants[node.of(family).public_key].append(name)
    refusals: dict[str, str] = {}
    for name, node in others.items():
        network = node.of(family)
        rivals = [claimant for claimant in claimants[network.public_key] if claimant != name]
        if network.public_key is None:
            refusals[name] = "has no public key"
        elif network.address is None:
            refusals[name] = f"has a public key but no {family} address"
        elif network.public_key == identity.public_key:
            refusals[name] = "claims our own public key"
        elif rivals:
            refusals[name] = f"claims the same public key as {', '.join(sorted(rivals))}"
    return Selection({name: node for name, node in others.items() if name not in refusals}, refusals)


def desired_state(cluster: Cluster, family: Family, identity: Identity, numbers: Numbers, underlay_mtu: int | None) -> State:
    """The state of an enabled family. ``underlay_mtu`` is that of the link with the node's own address."""
    felix = cluster.felix
    configuration = felix.of(family)
    own = cluster.nodes[identity.node].of(family)
    peers = select_peers(cluster, family, identity).peers
    owners = prefix_owners(cluster, family, identity.node)
    ranges: defaultdict[str, set[Prefix]] = defaultdict(set)
    for prefix, owner in owners.items():
        ranges[owner].add(prefix)

    metric = ROUTE_METRIC[family]
    into_device = {prefix for name in peers for prefix in ranges[name]}
    past_device = (owners.keys() - into_device - ranges[identity.node]) | _uncovered(ranges[identity.node])
    routes = {Route(prefix, RouteKind.DEVICE, metric) for prefix in into_device}
    routes |= {Route(prefix, RouteKind.THROW, metric) for prefix in past_device}

    address = own.interface_address
    if address is None and felix.host_encryption:
        address = own.address
    mtu = configuration.mtu or (underlay_mtu or UNKNOWN_UNDERLAY_MTU) - OVERHEAD[family]
    priority = felix.rule_priority if numbers.rule_priority is None else numbers.rule_priority
    return State(
        link=Link(is_up=True, mtu=mtu),
        addresses=frozenset() if address is None else frozenset({ip_interface(address)}),
        routes=frozenset(routes),
        rules=frozenset({Rule(priority, numbers.fwmark, numbers.fwmask)}),
        device=Device(
            private_key=identity.private_key,
            listen_port=configuration.port,
            fwmark=numbers.fwmark,
            peers=_sorted_peers(
                _peer(node, family, configuration.port, felix.keepalive, ranges[name]) for name, node in peers.items()
            ),
        ),
        masquerades=True,
        # Replies to what we send a host encrypted come back encrypted, from an address whose best path is the tunnel.
        is_underlay_strict=False if felix.host_encryption and family is Family.IPV4 else None,
    )


def disabled_state() -> State:
    """Nothing of ours left but the interface itself, which is the data plane's, and its port, which is closed with it."""
    return State(link=Link(is_up=False), device=Device(private_key=NO_KEY))


def degraded_state(desired: State, found: State, keeps_interface: bool) -> State:
    """The best that can be had of ``desired`` while no data plane answers: no promise is broken, and none is made.

    What is to go in clear does so. What is to be encrypted keeps its route into the interface, where it is dropped, and is
    dropped by the table itself where the interface ``keeps_interface`` not: its routes go with it, and pods would speak in
    clear. What had no promise yet stays as it is found.
    """
    if not found.is_promised:
        return found
    kinds = {(route.prefix, route.metric): route.kind for route in found.routes}
    routes = set()
    for route in desired.routes:
        kind = kinds.get((route.prefix, route.metric), None if keeps_interface else RouteKind.BLACKHOLE)
        if route.kind is RouteKind.THROW:
            kind = RouteKind.THROW
        elif kind is RouteKind.DEVICE and not keeps_interface:
            kind = RouteKind.BLACKHOLE
        if kind is not None:
            routes.add(replace(route, kind=kind))
    return replace(found, routes=frozenset(routes))


def keep_roamed(desired: State, actual: State, assigned: Mapping[bytes, Endpoint]) -> State:
    """``desired``, but with the endpoints to which peers have roamed.

    The endpoint we ask for is the node's address. Once it is ``assigned``, a different one on the device has been learnt from
    the peer's own authenticated datagrams and is better than ours, until the node's address itself changes.
    """
    if desired.device is None or actual.device is None:
        return desired
    learnt = {peer.public_key: peer.endpoint for peer in actual.device.peers}
    peers = (
        replace(peer, endpoint=learnt.get(peer.public_key) or peer.endpoint)
        if peer.endpoint == assigned.get(peer.public_key)
        else peer
        for peer in desired.device.peers
    )
    return replace(desired, device=replace(desired.device, peers=tuple(peers)))


def _peer(node: Node, family: Family, port: int, keepalive: int, ranges: set[Prefix]) -> PeerConfig:
    """A peer on our own port: the port is never published, and one for the whole cluster."""
    network = node.of(family)
    assert network.public_key is not None
    return PeerConfig(
        public_key=network.public_key,
        endpoint=Endpoint(str(network.address), port),
        persistent_keepalive=keepalive,
        allowed_ips=sorted_prefixes(ranges),
    )


def _sorted_peers(peers: Iterable[PeerConfig]) -> tuple[PeerConfig, ...]:
    return tuple(sorted(peers, key=lambda peer: peer.public_key))


def _uncovered(prefixes: set[Prefix]) -> set[Prefix]:
    """The prefixes that do not lie in another of them."""
    wide = [prefix for prefix in prefixes if prefix.prefixlen < prefix.max_prefixlen]
    return {prefix for prefix in prefixes if not any(prefix != other and _lies_in(prefix, other) for other in wide)}


def _lies_in(prefix: Prefix, other: Prefix) -> bool:
    return prefix.network_address in other and prefix.prefixlen >= other.prefixlen


def _host_prefix(address: Address) -> Prefix:
    return ip_network(address)
