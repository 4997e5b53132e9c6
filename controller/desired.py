"""The state a node ought to be in, from the cluster. Pure.

Three questions, in this order. *Whose is each range of addresses?* (:func:`prefix_owners`.) *Whom do we encrypt to?*
(:func:`select_peers`: whoever has an endpoint and a key nobody else claims.) *What follows?* (:func:`desired_state`: a range
of a peer becomes an allowed IP and a route into the interface, with a ``prohibit`` twin behind it; every other range a
``throw`` route, which lets the packet go on as if WireGuard were not there, or, in strict mode, a ``prohibit`` route.)

All of it is computed anew from the whole cluster each time, so what depends on others, as the claim to a key does, cannot go
stale. Sources: calico.md 3 and 4; ``felix/calc/l3_route_resolver.go``, ``felix/dataplane/linux/wireguard_mgr.go``,
``felix/wireguard/wireguard.go``.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_interface, ip_network

from controller.model import Address, Cluster, Family, Node
from controller.prefixes import LongestMatch, known, overlapping, widest
from controller.state import ROUTE_PROTOCOL, TWIN_METRIC, Device, Guard, Link, Route, RouteKind, Rule, State, sorted_prefixes
from wgpy.config import NO_KEY, Endpoint, PeerConfig, Prefix
from wgpy.wgconf import format_key

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
class Policy:
    """What the operator asks for that the cluster's objects have no word for.

    ``is_strict``: what ought to be encrypted and cannot be is refused. ``external_peers`` are no nodes of the cluster; those
    of them count in a family that have allowed IPs of that family. ``workloads`` are the names of local pods' interfaces (a
    ``*`` at the end is any ending).
    """

    is_strict: bool = False
    external_peers: tuple[PeerConfig, ...] = ()
    workloads: frozenset[str] = frozenset({"cali*"})


@dataclass(frozen=True, slots=True)
class External:
    """The external peers that can be had, with the ranges they can have, and what was left out, and why, a line for each."""

    peers: tuple[PeerConfig, ...] = ()
    refusals: tuple[str, ...] = ()


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
            owners[known(block.cidr)] = block.node
        for address, holder in block.borrowed:
            owners[_host_prefix(address)] = holder
    nodes = [cluster.nodes[name] for name in sorted(cluster.nodes, reverse=True)]  # of two claims the first name's stays
    for node in nodes:
        for address in node.of(family).tunnel_addresses:
            owners[_host_prefix(address)] = node.name
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


def admit_external(
    cluster: Cluster, family: Family, identity: Identity, owners: Mapping[Prefix, str], peers: Iterable[PeerConfig]
) -> External:
    """The external peers and ranges that do not get in the way of the cluster, which wins where both claim something.

    A range that overlaps, either way, with a pool, a node's range or a node's own address is left out: wider ones too, as a
    route to them would take what the cluster is about to assign. So is a default route: it would take the API server, name
    service and image registries. Of two external peers with the same key or range the first has it.
    """
    keys = {node.of(family).public_key for node in cluster.nodes.values()} | {identity.public_key}
    taken = {*owners, *_host_prefixes(cluster, family), *_pools(cluster, family)}
    admitted: list[PeerConfig] = []
    refusals: list[str] = []
    for peer in peers:
        ranges = [prefix for prefix in peer.allowed_ips if prefix.version == family.value]
        if ranges and peer.public_key in keys:
            refusals.append(f"{_named(peer)} is left out: its public key is that of a node or of another external peer")
            continue
        kept = []
        for prefix in ranges:
            if not prefix.prefixlen:
                refusals.append(f"{_named(peer)} does not get {prefix}: a default route would take this node off its network")
            elif (rival := overlapping(prefix, taken)) is not None:
                refusals.append(f"{_named(peer)} does not get {prefix}: {rival} is the cluster's or another external peer's")
            else:
                kept.append(prefix)
                taken.add(prefix)
        if kept:
            keys.add(peer.public_key)
            admitted.append(replace(peer, allowed_ips=sorted_prefixes(set(kept))))
    return External(tuple(admitted), tuple(refusals))


def desired_state(
    cluster: Cluster,
    family: Family,
    identity: Identity,
    numbers: Numbers,
    underlay_mtu: int | None,
    policy: Policy = Policy(),
) -> State:
    """The state of an enabled family. ``underlay_mtu`` is that of the link with the node's own address.

    Each peer may also send from its host addresses, as replies to what pods send to it do, in every mode
    (:func:`_accepted`). Nothing is routed to these.
    """
    felix = cluster.felix
    configuration = felix.of(family)
    own = cluster.nodes[identity.node].of(family)
    peers = select_peers(cluster, family, identity).peers
    owners = prefix_owners(cluster, family, identity.node)
    external = admit_external(cluster, family, identity, owners, policy.external_peers).peers
    ranges: defaultdict[str, set[Prefix]] = defaultdict(set)
    for prefix, owner in owners.items():
        ranges[owner].add(prefix)
    own_ranges = ranges[identity.node]
    into_device = {prefix for prefix, owner in owners.items() if owner in peers}
    into_device |= {prefix for peer in external for prefix in peer.allowed_ips}
    others = owners.keys() - into_device - own_ranges

    guard = _guard(cluster, family, (into_device | others) - own_ranges, policy) if policy.is_strict else None
    clear, refused = _past_device(cluster, family, others, own_ranges | into_device, guard)
    accepted = _accepted(cluster, family, owners, peers)

    address = own.interface_address
    if address is None and felix.host_encryption:
        address = own.address
    mtu = configuration.mtu or (underlay_mtu or UNKNOWN_UNDERLAY_MTU) - OVERHEAD[family]
    priority = felix.rule_priority if numbers.rule_priority is None else numbers.rule_priority
    nodes = (
        _peer(node, family, configuration.port, felix.keepalive, ranges[name] | accepted[name]) for name, node in peers.items()
    )
    return State(
        link=Link(is_up=True, mtu=mtu),
        addresses=frozenset() if address is None else frozenset({ip_interface(address)}),
        routes=_routes(family, felix.route_protocol or ROUTE_PROTOCOL, into_device, clear | widest(own_ranges), refused)
        if felix.syncs_routes
        else frozenset(),
        rules=frozenset({Rule(priority, numbers.fwmark, numbers.fwmask)}),
        device=Device(
            private_key=identity.private_key,
            listen_port=configuration.port,
            fwmark=numbers.fwmark,
            peers=_sorted_peers([*nodes, *external]),
        ),
        masquerades=True,
        # Replies to what we send a host encrypted come back encrypted, from an address whose best path is the tunnel.
        is_underlay_strict=False if felix.host_encryption and family is Family.IPV4 else None,
        guard=guard,
    )


def disabled_state() -> State:
    """Nothing of ours left but the interface itself, which is the data plane's, and its port, which is closed with it."""
    return State(link=Link(is_up=False), device=Device(private_key=NO_KEY))


def degraded_state(desired: State, found: State, keeps_interface: bool) -> State:
    """The best that can be had of ``desired`` while no data plane answers: no promise is broken, and none is made.

    What is to go in clear does so. What is to be encrypted keeps its route into the interface, where it is dropped, and the
    twin behind it, which is all there is if the interface ``keeps_interface`` not. What had no promise yet stays as it is
    found; in strict mode it is refused.
    """
    is_strict = desired.guard is not None
    if not found.is_promised and not is_strict:
        return replace(found, guard=None)
    wanted = {route.prefix for route in desired.routes if route.kind is RouteKind.DEVICE}
    routes = {
        route for route in desired.routes if route.kind is not RouteKind.DEVICE and (is_strict or route.prefix not in wanted)
    }
    for route in found.routes:
        if route.prefix in wanted and route.kind is RouteKind.DEVICE:
            routes |= {route, route.twin} if keeps_interface else {route.twin}
        elif route.prefix in wanted and not is_strict:
            routes.add(route)
    rules = desired.rules if is_strict else found.rules
    return replace(found, routes=frozenset(routes), rules=rules, guard=desired.guard)


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


def _routes(
    family: Family, protocol: int, into_device: Set[Prefix], clear: Set[Prefix], refused: Set[Prefix]
) -> frozenset[Route]:
    metric = ROUTE_METRIC[family]
    routes = {Route(prefix, RouteKind.DEVICE, metric, protocol) for prefix in into_device}
    routes |= {Route(prefix, RouteKind.PROHIBIT, TWIN_METRIC, protocol) for prefix in into_device}
    routes |= {Route(prefix, RouteKind.THROW, metric, protocol) for prefix in clear}
    routes |= {Route(prefix, RouteKind.PROHIBIT, metric, protocol) for prefix in refused}
    return frozenset(routes)


def _past_device(
    cluster: Cluster, family: Family, others: Set[Prefix], settled: Set[Prefix], guard: Guard | None
) -> tuple[Set[Prefix], Set[Prefix]]:
    """What of the ranges that we cannot encrypt to is to go in clear, and what is to be refused.

    Strict mode refuses all there is to protect, so also what no node has been given yet, and leaves out nodes' own addresses:
    without them the API server on a node without a key would be lost, and with it the way to ever get one.
    """
    if guard is None:
        return others, frozenset()
    hosts = _host_prefixes(cluster, family)
    return (others & hosts) | (guard.exempt - settled), (guard.protected | others) - hosts - settled


def _guard(cluster: Cluster, family: Family, ranges: Set[Prefix], policy: Policy) -> Guard:
    """Pools and blocks whole, whoever has what of them (our own pods are let in by their interfaces), and whatever other
    nodes have outside of these. Nodes' own addresses are no part of it: the encrypted datagrams come from them."""
    hosts = _host_prefixes(cluster, family)
    blocks = {block.cidr for block in cluster.blocks if block.cidr.version == family.value}
    protected = widest((_pools(cluster, family) | blocks | ranges) - hosts)
    inside = LongestMatch((prefix, True) for prefix in protected)
    return Guard(protected, frozenset(host for host in hosts if inside.lookup(host)), policy.workloads)


def _accepted(
    cluster: Cluster, family: Family, owners: Mapping[Prefix, str], peers: Mapping[str, Node]
) -> Mapping[str, set[Prefix]]:
    """The host addresses from which each peer may send to us without being routed to: what pods send to a host goes to it in
    clear (or by way of a service), and its replies come back by way of our pods' ranges, so encrypted (calico.md 10, #9751).

    An address that somebody else claims, as a host, for a tunnel or for a pod, or that lies in somebody else's range, is
    accepted from nobody: packets *to* it would follow.
    """
    claims: dict[Address, str | None] = {}  # None: several do

    def claim(address: Address, name: str) -> None:
        if claims.setdefault(address, name) != name:
            claims[address] = None

    for name, node in cluster.nodes.items():
        network = node.of(family)
        for address in (*network.host_addresses, *network.tunnel_addresses):
            claim(address, name)
    for block in cluster.blocks:
        for address, holder in block.borrowed:
            claim(address, holder)
    holders = LongestMatch(owners.items())
    accepted: defaultdict[str, set[Prefix]] = defaultdict(set)
    for name, node in peers.items():
        for address in node.of(family).host_addresses:
            if claims[address] == name and holders.lookup(prefix := _host_prefix(address)) in (None, name):
                accepted[name].add(prefix)
    return accepted


def _host_prefixes(cluster: Cluster, family: Family) -> Set[Prefix]:
    return {_host_prefix(address) for node in cluster.nodes.values() for address in node.of(family).host_addresses}


def _pools(cluster: Cluster, family: Family) -> Set[Prefix]:
    return {pool.cidr for pool in cluster.pools if pool.cidr.version == family.value}


def _named(peer: PeerConfig) -> str:
    return f"the external peer {format_key(peer.public_key)}"


def _peer(node: Node, family: Family, port: int, keepalive: int, ranges: set[Prefix]) -> PeerConfig:
    """A peer on the port it publishes, or else, as in Calico, which has one for the whole cluster, on our own."""
    network = node.of(family)
    assert network.public_key is not None and network.address is not None
    return PeerConfig(
        public_key=network.public_key,
        endpoint=_endpoint(network.address, network.port or port),
        persistent_keepalive=keepalive,
        allowed_ips=sorted_prefixes(ranges),
    )


def _sorted_peers(peers: Iterable[PeerConfig]) -> tuple[PeerConfig, ...]:
    return tuple(sorted(peers, key=lambda peer: peer.public_key))


_MANY = 1 << 17
"""More addresses than a large cluster has. They are the same in every pass, and slow to make."""


@lru_cache(_MANY)
def _host_prefix(address: Address) -> Prefix:
    return known(ip_network(address))


@lru_cache(_MANY)
def _endpoint(address: Address, port: int) -> Endpoint:
    return Endpoint(str(address), port)
