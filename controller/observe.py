"""Kubernetes objects -> :class:`Cluster`. Pure, and it never raises: whatever cannot be read is a :class:`Problem`.

What is wrong with an object costs that field and nothing else: a Node with a garbled key is a node without a key.
FelixConfiguration is different. A default in the place of what somebody meant may switch encryption off, so its problems
are marked, and the agent does not act on a configuration that has any: it does not start, or keeps the last good one.

Sources: calico.md 1 to 3; libcalico-go ``lib/backend/k8s/resources/node.go`` and ``lib/backend/model/block.go``,
``felix/config/config_params.go``, ``felix/calc/dataplane_passthru.go``.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, TypeVar

from controller.calico import (
    ANNOTATIONS,
    DEFAULT_CONFIGURATION,
    FELIX_CONFIGURATION,
    HOST_AFFINITY_PREFIX,
    IP_POOL,
    IPAM_BLOCK,
    NODE,
    NODE_CONFIGURATION_PREFIX,
    PARAMETER_ANNOTATION_PREFIX,
)
from controller.model import Address, Block, Cluster, Family, FelixConfiguration, Node, NodeNetwork, Pool
from controller.source import Manifest, Objects, Ref
from wgpy.config import NO_KEY, Prefix
from wgpy.wgconf import parse_key

Path = tuple[str | int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in an object that cannot be read. ``is_configuration``: it is in a FelixConfiguration that concerns us."""

    ref: Ref
    path: Path
    message: str
    is_configuration: bool = False

    def __str__(self) -> str:
        return f"{self.ref}: {'.'.join(map(str, self.path))}: {self.message}"


@dataclass(frozen=True, slots=True)
class Observation:
    """A cluster, and what could not be read of it."""

    cluster: Cluster
    problems: tuple[Problem, ...]

    @property
    def configuration_problems(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.is_configuration)


def observe(objects: Objects, node_name: str) -> Observation:
    """The cluster as ``node_name`` has to see it: a FelixConfiguration can be for one node only."""
    problems: list[Problem] = []
    readers: dict[str, list[_Reader]] = {kind: [] for kind in (NODE, IPAM_BLOCK, IP_POOL, FELIX_CONFIGURATION)}
    for ref in sorted(objects):
        readers[ref.kind].append(_Reader(ref, objects[ref], problems))
    nodes = {reader.ref.name: _node(reader) for reader in readers[NODE]}
    if readers[IPAM_BLOCK]:
        blocks = [block for reader in readers[IPAM_BLOCK] for block in _block(reader)]
    else:
        # Not Calico's IPAM: each node has a fixed range (host-local), and Felix makes a block of it.
        pod_cidrs = {reader.ref.name: _pod_cidrs(reader) for reader in readers[NODE]}
        blocks = [Block(cidr, name) for name, cidrs in pod_cidrs.items() for cidr in cidrs]
        nodes = {name: _with_static_address(node, pod_cidrs[name]) for name, node in nodes.items()}
    cluster = Cluster(
        felix=_felix_configuration(readers[FELIX_CONFIGURATION], node_name),
        nodes=nodes,
        blocks=tuple(blocks),
        pools=tuple(pool for reader in readers[IP_POOL] for pool in _pool(reader)),
    )
    return Observation(cluster, tuple(problems))


def keep_addresses(cluster: Cluster, before: Cluster) -> Cluster:
    """``cluster``, where a node that has lost its address keeps the one it had before.

    As in Felix only the end of the Node ends its address. Otherwise a slip in an annotation would make packets go in clear.
    """
    kept = {name: _keep_address(node, before.nodes[name]) for name, node in cluster.nodes.items() if name in before.nodes}
    return replace(cluster, nodes={**cluster.nodes, **kept})


def _keep_address(node: Node, before: Node) -> Node:
    if node.ipv4.address is None and before.ipv4.address is not None:
        node = replace(node, ipv4=replace(node.ipv4, address=before.ipv4.address))
    if node.ipv6.address is None and before.ipv6.address is not None:
        node = replace(node, ipv6=replace(node.ipv6, address=before.ipv6.address))
    return node


class _Reader:
    """One object, and how to take fields out of it: what is bad is noted as a problem and then counts as absent."""

    def __init__(self, ref: Ref, manifest: Manifest, problems: list[Problem]) -> None:
        self.ref = ref
        self.manifest = manifest
        self._problems = problems

    def problem(self, path: Path, message: str) -> None:
        problem = Problem(self.ref, path, message, is_configuration=self.ref.kind == FELIX_CONFIGURATION)
        if problem not in self._problems[-8:]:  # a bad parent is met once for each of its fields
            self._problems.append(problem)

    def value(self, *path: str) -> Any:
        value: Any = self.manifest
        for depth, name in enumerate(path):
            if value is None:
                return None
            if not isinstance(value, Mapping):
                self.problem(path[:depth], "not a mapping")
                return None
            value = value.get(name)
        return value

    def list(self, *path: str) -> list[Any]:
        value = self.value(*path)
        if isinstance(value, list):
            return value
        if value is not None:
            self.problem(path, "not a list")
        return []

    def annotation(self, name: str) -> Any:
        return self.value("metadata", "annotations", name)

    def parse(self, path: Path, value: Any, parser: Callable[[Any], T]) -> T | None:
        """What ``parser`` makes of the value, which lies at ``path``. An empty one is none."""
        if value is None or value == "":
            return None
        try:
            return parser(value)
        except ValueError as error:
            self.problem(path, str(error))
            return None

    def parse_annotation(self, name: str, parser: Callable[[Any], T]) -> T | None:
        return self.parse(("metadata", "annotations", name), self.annotation(name), parser)


# Nodes --------------------------------------------------------------------------------------------------------------


def _node(reader: _Reader) -> Node:
    # Within each family Calico takes the first InternalIP, and an ExternalIP only where there is none.
    found = sorted(_status_addresses(reader), key=lambda typed: typed[0] != "InternalIP")
    addresses = [address for _, address in found]
    return Node(
        name=reader.ref.name,
        ipv4=_node_network(reader, Family.IPV4, addresses),
        ipv6=_node_network(reader, Family.IPV6, addresses),
    )


def _status_addresses(reader: _Reader) -> Iterator[tuple[str, Address]]:
    for index, entry in enumerate(reader.list("status", "addresses")):
        path = ("status", "addresses", index)
        if not isinstance(entry, Mapping):
            reader.problem(path, "not a mapping")
        elif (kind := entry.get("type")) in ("InternalIP", "ExternalIP"):
            address = reader.parse((*path, "address"), entry.get("address"), _parse_address)
            if address is not None:
                yield kind, address


def _node_network(reader: _Reader, family: Family, status_addresses: list[Address]) -> NodeNetwork:
    names = ANNOTATIONS[family]
    own = reader.parse_annotation(names.node_address, _of_family(family, _parse_interface))
    addresses = [address for address in status_addresses if address.version == family.value]
    if own is not None:
        addresses.insert(0, own)
    tunnels = {name: reader.parse_annotation(name, _of_family(family, _parse_address)) for name in names.tunnel_addresses}
    return NodeNetwork(
        address=addresses[0] if addresses else None,
        public_key=reader.parse_annotation(names.public_key, _parse_public_key),
        interface_address=tunnels[names.interface_address],
        tunnel_addresses=tuple(dict.fromkeys(address for address in tunnels.values() if address is not None)),
        host_addresses=tuple(dict.fromkeys(addresses)),
    )


def _pod_cidrs(reader: _Reader) -> list[Prefix]:
    listed = reader.list("spec", "podCIDRs")
    values: list[tuple[Path, Any]] = [(("spec", "podCIDRs", index), value) for index, value in enumerate(listed)]
    if not values:
        values = [(("spec", "podCIDR"), reader.value("spec", "podCIDR"))]
    parsed = (reader.parse(path, value, _parse_prefix) for path, value in values)
    return [cidr for cidr in parsed if cidr is not None]


def _with_static_address(node: Node, pod_cidrs: list[Prefix]) -> Node:
    """With host-local IPAM there is no allocator. While a node has a key, the first address after its IPv4 range's base
    belongs to its tunnels; for IPv6 there is none (``node.go``, getStaticTunnelAddress)."""
    network = node.ipv4
    if network.public_key is None or network.interface_address is not None:
        return node
    for cidr in pod_cidrs:
        if cidr.version == 4:
            address = cidr.network_address + 1
            tunnels = tuple(dict.fromkeys((*network.tunnel_addresses, address)))
            return replace(node, ipv4=replace(network, interface_address=address, tunnel_addresses=tunnels))
    return node


# Blocks and pools ---------------------------------------------------------------------------------------------------


def _block(reader: _Reader) -> Iterator[Block]:
    if reader.value("spec", "deleted") is True:
        return  # about to go: IPAM itself no longer finds it
    cidr = reader.parse(("spec", "cidr"), reader.value("spec", "cidr") or "missing", _parse_prefix)
    if cidr is None:
        return
    affinity = reader.value("spec", "affinity")
    legacy = reader.value("spec", "hostAffinity")
    node = None
    if isinstance(affinity, str) and affinity.startswith(HOST_AFFINITY_PREFIX):
        node = affinity.removeprefix(HOST_AFFINITY_PREFIX) or None
    elif affinity is None and isinstance(legacy, str):
        node = legacy or None
    is_for_nodes = affinity is None or node is not None  # not, for one, "virtual:load-balancer"
    yield Block(cidr, node, tuple(_borrowed(reader, cidr, node)) if is_for_nodes else ())


def _borrowed(reader: _Reader, cidr: Prefix, node: str | None) -> Iterator[tuple[Address, str]]:
    """The addresses that belong to another node than the block does."""
    holders = [_holder(attribute) for attribute in reader.list("spec", "attributes")]
    size = cidr.num_addresses
    for ordinal, index in enumerate(reader.list("spec", "allocations")):
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(holders):
            reader.problem(("spec", "allocations", ordinal), f"points to no attribute: {_shown(index)}")
        elif ordinal >= size:
            reader.problem(("spec", "allocations", ordinal), f"lies outside {cidr}")
        elif (holder := holders[index]) is not None and holder != node:  # None: what Calico has reserved
            yield cidr.network_address + ordinal, holder


def _holder(attribute: Any) -> str | None:
    secondary = attribute.get("secondary") if isinstance(attribute, Mapping) else None
    holder = secondary.get("node") if isinstance(secondary, Mapping) else None
    return holder if isinstance(holder, str) and holder else None


def _pool(reader: _Reader) -> Iterator[Pool]:
    cidr = reader.parse(("spec", "cidr"), reader.value("spec", "cidr") or "missing", _parse_prefix)
    if cidr is None:
        return
    longest = cidr.max_prefixlen
    default = 26 if cidr.version == 4 else 122
    size = reader.parse(("spec", "blockSize"), reader.value("spec", "blockSize"), _integer(cidr.prefixlen, longest))
    uses = reader.list("spec", "allowedUses")
    selector = reader.value("spec", "nodeSelector")
    if selector not in (None, "", "all()"):
        reader.problem(("spec", "nodeSelector"), "only all() is understood here: no tunnel address is taken from this pool")
        uses = ["Workload"]
    is_usable = reader.value("spec", "disabled") is not True and reader.value("metadata", "deletionTimestamp") is None
    yield Pool(cidr, max(size or default, cidr.prefixlen), is_usable and (not uses or "Tunnel" in uses))


# FelixConfiguration -------------------------------------------------------------------------------------------------


def _felix_configuration(readers: list["_Reader"], node_name: str) -> FelixConfiguration:
    """The fields in force: the node's own object wins over ``default``, field by field."""
    by_name = {reader.ref.name: reader for reader in readers}
    values: dict[str, Any] = {}
    for name in (DEFAULT_CONFIGURATION, NODE_CONFIGURATION_PREFIX + node_name):
        if reader := by_name.get(name):
            values |= _felix_fields(reader)
    base = FelixConfiguration()
    felix = replace(base, **{ours: values[theirs] for ours, theirs in _SHARED_FIELDS.items() if theirs in values})
    for attribute, suffix in (("ipv4", ""), ("ipv6", "V6")):
        fields = {ours: values[theirs + suffix] for ours, theirs in _FAMILY_FIELDS.items() if theirs + suffix in values}
        felix = replace(felix, **{attribute: replace(getattr(base, attribute), **fields)})
    return felix


def _felix_fields(reader: _Reader) -> dict[str, Any]:
    """The fields one object sets. An annotation named after the parameter wins over the field."""
    values = {}
    for name, parser in _FELIX_PARSERS.items():
        annotation = PARAMETER_ANNOTATION_PREFIX + _PARAMETER_NAMES.get(name, name[0].upper() + name[1:])
        value = reader.parse_annotation(annotation, parser)
        if value is None:
            value = reader.parse(("spec", name), reader.value("spec", name), parser)
        if value is not None:
            values[name] = value
    return values


def _parse_bool(value: Any) -> bool:
    text = str(value).lower()
    if isinstance(value, bool | str) and text in ("true", "1", "yes", "y", "t"):
        return True
    if isinstance(value, bool | str) and text in ("false", "0", "no", "n", "f"):
        return False
    raise ValueError(f"neither true nor false: {_shown(value)}")


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"not a number from {low} to {high}: {_shown(value)}")
        return value

    return parse


_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


def _parse_keepalive(value: Any) -> int:
    """A Go duration, or a number of seconds. WireGuard knows whole seconds only, and Felix cuts the rest off too."""
    text = str(value)
    if re.fullmatch(r"[0-9]{1,9}", text):
        seconds = float(text)
    elif re.fullmatch(r"([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+", text):
        parts = re.findall(r"([0-9.]+)(ms|s|m|h)", text)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        raise ValueError(f"not a duration such as 25s: {_shown(value)}")
    if seconds >= 1 << 16:
        raise ValueError(f"longer than 65535s: {_shown(value)}")
    return int(seconds)


def _parse_interface_name(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[a-zA-Z0-9_.-]{1,15}", value) and value not in (".", ".."):
        return value
    raise ValueError(f"not the name of an interface (1 to 15 of A-Z a-z 0-9 _ . -): {_shown(value)}")


def _parse_mtu(value: Any) -> int:
    if value in (0, "0") and not isinstance(value, bool):
        return 0  # automatic
    return _integer(68, 65535)(value)


_SHARED_FIELDS = {
    "rule_priority": "wireguardRoutingRulePriority",
    "keepalive": "wireguardKeepAlive",
    "host_encryption": "wireguardHostEncryptionEnabled",
}
_FAMILY_FIELDS = {
    "enabled": "wireguardEnabled",
    "port": "wireguardListeningPort",
    "mtu": "wireguardMTU",
    "interface": "wireguardInterfaceName",
}
_FELIX_PARSERS: dict[str, Callable[[Any], Any]] = {
    "wireguardEnabled": _parse_bool,
    "wireguardEnabledV6": _parse_bool,
    "wireguardListeningPort": _integer(1, 65535),
    "wireguardListeningPortV6": _integer(1, 65535),
    "wireguardRoutingRulePriority": _integer(1, 32765),
    "wireguardInterfaceName": _parse_interface_name,
    "wireguardInterfaceNameV6": _parse_interface_name,
    "wireguardMTU": _parse_mtu,
    "wireguardMTUV6": _parse_mtu,
    "wireguardHostEncryptionEnabled": _parse_bool,
    "wireguardKeepAlive": _parse_keepalive,
}
_PARAMETER_NAMES = {"wireguardKeepAlive": "WireguardPersistentKeepAlive"}
"""Where a parameter is not called as its field is."""


# Values -------------------------------------------------------------------------------------------------------------


def _parse_public_key(value: Any) -> bytes | None:
    """The zero key stands for none."""
    key = parse_key(value if isinstance(value, str) else "")
    return key if key != NO_KEY else None


def _parse_address(value: Any) -> Address:
    if isinstance(value, str) and "%" not in value:
        try:
            return ip_address(value)
        except ValueError:
            pass
    raise ValueError(f"not an IP address: {_shown(value)}")


def _parse_interface(value: Any) -> Address:
    if isinstance(value, str) and "/" in value and "%" not in value:
        try:
            return ip_interface(value).ip
        except ValueError:
            pass
    raise ValueError(f"not an address with its prefix length, such as 192.0.2.1/24: {_shown(value)}")


def _parse_prefix(value: Any) -> Prefix:
    if isinstance(value, str) and "/" in value and "%" not in value:
        try:
            return ip_network(value, strict=False)
        except ValueError:
            pass
    raise ValueError(f"not a range such as 192.0.2.0/26: {_shown(value)}")


def _of_family(family: Family, parser: Callable[[Any], Address]) -> Callable[[Any], Address]:
    def parse(value: Any) -> Address:
        address = parser(value)
        if address.version != family.value:
            raise ValueError(f"not an {family} address: {address}")
        return address

    return parse


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
