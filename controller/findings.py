"""What is wrong in this cluster, as far as this node can tell, and what to do about it. Pure.

A finding stops nothing: it is what an operator is told, in the log, as a metric and as an Event on the Node. Who looks at
a cluster while it changes finds what is over in a moment, such as an address that Calico is about to release; so a finding
is worth telling once it has stood for :data:`SETTLE_SECONDS`. Sources: calico.md 1, 4, 5, 10, 11, 13, 16.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from controller.desired import OVERHEAD
from controller.model import Address, Cluster, Family, FelixConfiguration, Node, WireguardConfiguration

SETTLE_SECONDS = 5.0

KUBE_PROXY_MARKS = 0xC000
"""kube-proxy's own two bits: to masquerade, and to drop."""

WORKLOAD_PREFIX = "cali"
"""Felix takes an interface whose name begins like this for a pod's."""

FELIX_LINK_KIND = "wireguard"
MOST_NAMES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to be told. ``reason`` is one CamelCase word, and with ``subject`` says which finding it is; ``message`` is one
    line that goes on from the subject, and says what to do."""

    reason: str
    subject: str
    message: str
    is_warning: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """What this host knows of one family. None: not known.

    ``underlay_mtu`` is that of the link with the node's own address, ``interface_mtu`` that of our ``interface``, ``pod_mtu``
    what the CNI plugin gives pods (``/var/lib/calico/mtu``). ``felix_link_kind`` is the kind of the link that has the name
    of Felix's own interface, None if there is none. ``table`` and ``fwmask`` are ours.
    """

    table: int
    fwmask: int
    interface: str
    public_key: bytes | None = None
    underlay_mtu: int | None = None
    interface_mtu: int | None = None
    pod_mtu: int | None = None
    felix_link_kind: str | None = None


def findings(cluster: Cluster, node_name: str, facts: Mapping[Family, Facts]) -> tuple[Finding, ...]:
    """All there is to find by the node ``node_name``, of the families it has facts about."""
    found = list(_of_configuration(cluster.felix))
    own = cluster.nodes.get(node_name, Node(node_name))
    for family, known in facts.items():
        configuration = cluster.felix.of(family)
        if configuration.enabled:
            found += _of_pools(cluster, own, family)
            found += _of_nodes(cluster, own, family, known)
            found += _of_links(configuration, family, known)
            found += _of_numbers(cluster.felix, family, known)
        else:
            found += _left_behind(own, family, known)
    unique: dict[tuple[str, str], Finding] = {}
    for finding in found:
        unique.setdefault((finding.reason, finding.subject), finding)
    return tuple(unique.values())


def _of_configuration(felix: FelixConfiguration) -> Iterator[Finding]:
    subject = "FelixConfiguration"
    if len(felix.selected) > 1:
        first, *others = felix.selected
        yield Finding(
            "SeveralConfigurations",
            subject,
            f"{first} and {_names(others)} select this node, and only {first}, the oldest, counts: let one nodeSelector match",
        )
    if felix.lacks_ipv6:
        yield Finding(
            "NoIPv6Support",
            subject,
            "wireguardEnabledV6 is on but ipv6Support is off, so IPv6 stays off: turn on ipv6Support, or wireguardEnabledV6 off",
        )
    if not (felix.ipv4.enabled or felix.ipv6.enabled):
        return
    if felix.route_source != "CalicoIPAM":
        yield Finding(
            "UnsupportedRouteSource",
            subject,
            f"routeSource {felix.route_source} is not supported here, and routes follow Calico's IPAM: pods that have their "
            "addresses from elsewhere go in clear. Set routeSource: CalicoIPAM",
        )
    if not felix.syncs_routes:
        yield Finding(
            "RoutesNotSynced",
            subject,
            "routeSyncDisabled is on, so no route leads into WireGuard and all pods go in clear: turn it off to encrypt",
        )


def _of_pools(cluster: Cluster, own: Node, family: Family) -> Iterator[Finding]:
    pools = [pool for pool in cluster.pools if pool.cidr.version == family.value]
    if cluster.felix.host_encryption:
        return  # then replies of hosts to pods are encrypted and accepted, and Felix does without an interface address
    for pool in pools:
        if not pool.nat_outgoing:
            yield Finding(
                "NatOutgoingOff",
                f"IPPool {pool.cidr}",
                "natOutgoing is off while WireGuard is on: where Felix runs, pods of this pool get no answer from other nodes "
                "themselves (host network, NodePorts). Set natOutgoing: true, or wireguardHostEncryptionEnabled: true",
            )
    network = own.of(family)
    if network.public_key is not None and network.interface_address is None and not any(pool.allows_tunnels for pool in pools):
        yield Finding(
            "NoTunnelPool",
            f"{family}",
            f"there is no {family} IPPool that gives this node a tunnel address, so what the node itself sends to pods is "
            "dropped by others: add one, or allow Tunnel in its allowedUses and this node in its nodeSelector",
        )


def _of_nodes(cluster: Cluster, own: Node, family: Family, known: Facts) -> Iterator[Finding]:
    claimants: defaultdict[bytes, list[str]] = defaultdict(list)
    places: defaultdict[Address, list[str]] = defaultdict(list)
    for name, node in cluster.nodes.items():
        network = node.of(family)
        if network.address is not None:
            places[network.address].append(name)
        if network.public_key is None or name == own.name:
            continue
        claimants[network.public_key].append(name)
        if network.address is None:
            yield Finding(
                "NoNodeAddress",
                f"node {name}",
                f"has an {family} public key but no {family} address, so nothing to it is encrypted: see that calico-node there "
                f"finds its address (IP_AUTODETECTION_METHOD), or that its Node has an InternalIP",
            )
    for key, names in claimants.items():
        subject = f"{'nodes' if len(names) > 1 else 'node'} {_names(names)} ({family})"
        if key == known.public_key:
            yield Finding(
                "OwnKeyClaimed",
                subject,
                "this node's own public key is published there, too, so nothing is encrypted between us: was a state directory "
                "or the image of a disk copied? Delete the private key there, and restart what made it",
            )
        elif len(names) > 1:
            yield Finding(
                "DuplicateKey",
                subject,
                "publish the same public key, so nothing to any of them is encrypted: delete the private key on all but one, and "
                "restart what made it",
            )
    for address, names in places.items():
        if len(names) > 1:
            yield Finding(
                "DuplicateAddress",
                f"nodes {_names(names)} ({family})",
                f"have the same address, {address}: only one of them can be reached there. Correct it on the others",
            )


def _of_links(configuration: WireguardConfiguration, family: Family, known: Facts) -> Iterator[Finding]:
    felix = configuration.interface
    if known.felix_link_kind == FELIX_LINK_KIND:
        yield Finding(
            "FelixHasWireguard",
            f"{family}",
            f"this kernel has WireGuard now, and Felix its own interface {felix}: this agent has made way. Take it off this node",
        )
    elif known.felix_link_kind is not None:
        yield Finding(
            "InterfaceNameTaken",
            f"interface {felix}",
            f"is a {known.felix_link_kind} interface with the name of Felix's own, at which Felix fails ten times a second: "
            f"rename it, or delete it (ip link delete {felix})",
        )
    if known.underlay_mtu is not None and configuration.mtu > known.underlay_mtu - OVERHEAD[family]:
        field = "wireguardMTU" if family is Family.IPV4 else "wireguardMTUV6"
        yield Finding(
            "MtuTooLarge",
            f"{family}",
            f"{field} {configuration.mtu} does not fit this node's link with MTU {known.underlay_mtu}, and large packets get "
            f"lost: set it to {known.underlay_mtu - OVERHEAD[family]} at most, or to 0 for automatic",
        )
    if known.pod_mtu is not None and known.interface_mtu is not None and known.pod_mtu > known.interface_mtu:
        yield Finding(
            "PodMtuTooLarge",
            f"{family}",
            f"pods have MTU {known.pod_mtu} but the tunnel {known.interface_mtu}, and large packets get lost where ICMP is "
            f"filtered: set FelixConfiguration's MTU, or veth_mtu, to {known.interface_mtu} and restart the pods",
        )


def _of_numbers(felix: FelixConfiguration, family: Family, known: Facts) -> Iterator[Finding]:
    for low, high in felix.table_ranges:
        if low <= known.table <= high:
            yield Finding(
                "TableTaken",
                f"{family}",
                f"our routing table {known.table} is one of Felix's, {low}-{high}, where Felix deletes what is not its own: give "
                "the agent another table, or change routeTableRanges",
            )
    for mask, owner in ((felix.mark_mask, "Felix"), (KUBE_PROXY_MARKS, "kube-proxy")):
        if known.fwmask & mask:
            yield Finding(
                "MarkTaken",
                f"{family} and {owner}",
                f"our packet mark {known.fwmask:#x} shares bits with those of {owner}, {mask:#x}: give the agent another mark",
            )
    if known.interface.startswith(WORKLOAD_PREFIX):
        yield Finding(
            "InterfaceNameMisleads",
            f"interface {known.interface}",
            f"begins with {WORKLOAD_PREFIX}, so Felix takes it for a pod's and drops what comes out of it: choose another name",
        )
    elif _matches(felix.mtu_interface_pattern, known.interface):
        yield Finding(
            "InterfaceNameMisleads",
            f"interface {known.interface}",
            "matches mtuIfacePattern, so Felix takes it for a link of the underlay and lowers all MTUs: choose another name",
        )


def _left_behind(own: Node, family: Family, known: Facts) -> Iterator[Finding]:
    network = own.of(family)
    if network.public_key not in (None, known.public_key):
        yield Finding(
            "StaleKey",
            f"{family}",
            "WireGuard is off, but a public key that is not ours is published for this node, and others encrypt to it: remove "
            "the annotation from the Node",
        )
    elif network.public_key is None and network.interface_address is not None:
        yield Finding(
            "StaleInterfaceAddress",
            f"{family}",
            f"WireGuard is off, but the Node still has the interface address {network.interface_address}, because of which BIRD "
            "may leave out plain routes: restart calico-node on this node, which releases it",
        )


def _matches(pattern: str, name: str) -> bool:
    return re.search(pattern, name) is not None


def _names(names: Iterable[str]) -> str:
    """Names in order, not too many."""
    ordered = sorted(names)
    more = f" and {len(ordered) - MOST_NAMES} more" if len(ordered) > MOST_NAMES else ""
    return ", ".join(ordered[:MOST_NAMES]) + more
