"""Calico: what it calls things, and how its objects are read and written (libcalico-go).

A node's own view is made of four kinds. *Nodes* say who there is: addresses, keys, tunnel addresses, all in annotations.
*IPAMBlocks* say whose each range of pod addresses is. *FelixConfiguration* (:mod:`controller.meshes.felix`) switches
WireGuard on. *IPPools* only say where tunnel addresses come from. In a cluster without blocks each Node has fixed ranges
(host-local IPAM), and Felix makes blocks of them.

Nodes and blocks are many and change one at a time, so what was read of an object is kept for as long as the source hands
over the very same object. Sources: calico.md 1 to 3; ``lib/backend/k8s/resources/node.go``,
``lib/backend/model/block.go``, ``felix/calc/dataplane_passthru.go``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from controller.mesh import Kind
from controller.meshes import felix
from controller.meshes.nodes import NODE, PATHS, pod_cidrs, status_addresses
from controller.meshes.selector import parse_selector
from controller.model import Address, Block, Cluster, Family, Node, NodeNetwork, Pool
from controller.observe import (
    Observation,
    Problem,
    Reader,
    of_family,
    parse_address,
    parse_integer,
    parse_interface,
    parse_prefix,
    parse_public_key,
    pick,
    shown,
)
from controller.source import Manifest, Objects, Ref
from wgpy.config import Prefix
from wgpy.wgconf import format_key

API_VERSIONS = ("crd.projectcalico.org/v1", "projectcalico.org/v3")
"""Those of Calico's own objects: the classic CRDs, and the native ones or the aggregated API server's."""

FELIX_CONFIGURATION = "FelixConfiguration"
IPAM_BLOCK = "IPAMBlock"
IP_POOL = "IPPool"

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(NODE, "nodes", ("v1",)),
            Kind(FELIX_CONFIGURATION, "felixconfigurations", API_VERSIONS),
            Kind(IPAM_BLOCK, "ipamblocks", API_VERSIONS, required=(("spec", "cidr"),)),
            Kind(IP_POOL, "ippools", API_VERSIONS, required=(("spec", "cidr"),)),
        )
    }
)

HOST_AFFINITY_PREFIX = "host:"


@dataclass(frozen=True, slots=True)
class Annotations:
    """The names of one family's annotations on a Node.

    ``node_address`` is in CIDR form. ``public_key`` is base64 and the node's own to write. ``interface_address`` is bare;
    Calico's allocator writes it once there is a key. ``tunnel_addresses`` has every kind of tunnel.
    """

    node_address: str
    public_key: str
    interface_address: str
    tunnel_addresses: tuple[str, ...]


ANNOTATIONS = {
    Family.IPV4: Annotations(
        node_address="projectcalico.org/IPv4Address",
        public_key="projectcalico.org/WireguardPublicKey",
        interface_address="projectcalico.org/IPv4WireguardInterfaceAddr",
        tunnel_addresses=(
            "projectcalico.org/IPv4IPIPTunnelAddr",
            "projectcalico.org/IPv4VXLANTunnelAddr",
            "projectcalico.org/IPv4WireguardInterfaceAddr",
        ),
    ),
    Family.IPV6: Annotations(
        node_address="projectcalico.org/IPv6Address",
        public_key="projectcalico.org/WireguardPublicKeyV6",
        interface_address="projectcalico.org/IPv6WireguardInterfaceAddr",
        tunnel_addresses=(
            "projectcalico.org/IPv6VXLANTunnelAddr",
            "projectcalico.org/IPv6WireguardInterfaceAddr",
        ),
    ),
}

_NODE_PATHS = (
    *(
        ("metadata", "annotations", name)
        for names in ANNOTATIONS.values()
        for name in (names.node_address, names.public_key, *names.tunnel_addresses)
    ),
    *PATHS,
)
_LABELS = ("metadata", "labels")
_BLOCK_PATHS = tuple(("spec", name) for name in ("cidr", "affinity", "hostAffinity", "deleted", "allocations", "attributes"))
_POOL_PATHS = (
    *(("spec", name) for name in ("cidr", "blockSize", "allowedUses", "nodeSelector", "disabled", "natOutgoing")),
    ("metadata", "deletionTimestamp"),
)


class Calico:
    """Calico's mesh, for the agent of ``node_name``.

    Selectors are matched against the labels of the agent's own Node, so :meth:`trim` keeps only those; everybody's if
    ``node_name`` is None. ``environment`` may hold Felix's ``FELIX_`` variables, which win over every FelixConfiguration.
    """

    name = "calico"
    kinds = KINDS
    announcing_kind = NODE

    def __init__(self, node_name: str | None = None, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._node_name = node_name
        self._environment = environment
        self._known: dict[Ref, _Known] = {}

    def trim(self, manifest: Manifest) -> Manifest:
        kind = manifest.get("kind")
        if kind == NODE:
            metadata = manifest.get("metadata")
            name = metadata.get("name") if isinstance(metadata, Mapping) else None
            return pick(manifest, *_NODE_PATHS, *([_LABELS] if self._node_name in (None, name) else []))
        if kind == IPAM_BLOCK:
            return _without_own_allocations(pick(manifest, *_BLOCK_PATHS))
        if kind == IP_POOL:
            return pick(manifest, *_POOL_PATHS)
        return pick(manifest, *(felix.PATHS if kind == FELIX_CONFIGURATION else ()))

    def observe(self, objects: Objects, node_name: str) -> Observation:
        """The cluster as ``node_name`` has to see it: configuration and pools can be for some nodes only."""
        refs: dict[str, list[Ref]] = {kind: [] for kind in KINDS}
        for ref in sorted(objects):
            if ref.kind in refs:
                refs[ref.kind].append(ref)
        known: dict[Ref, _Known] = {}
        for kind, read in ((NODE, _read_node), (IPAM_BLOCK, _read_block)):
            for ref in refs[kind]:
                manifest, before = objects[ref], self._known.get(ref)
                known[ref] = before if before is not None and before.manifest is manifest else read(ref, manifest)
        self._known = known

        problems: list[Problem] = []
        for one in known.values():
            problems += one.problems
        nodes_known = [known[ref] for ref in refs[NODE]]
        if refs[IPAM_BLOCK]:
            nodes = {one.node.name: one.node for one in nodes_known if one.node is not None}
            blocks = [block for ref in refs[IPAM_BLOCK] for block in known[ref].blocks]
        else:
            # Not Calico's IPAM: each node has a fixed range (host-local), and Felix makes a block of it.
            nodes = {one.static_node.name: one.static_node for one in nodes_known if one.static_node is not None}
            blocks = [block for one in nodes_known for block in one.blocks]
            for one in nodes_known:
                problems += one.static_problems
        labels = _labels(Ref(NODE, node_name), objects, problems)
        configurations = [(ref, objects[ref]) for ref in refs[FELIX_CONFIGURATION]]
        cluster = Cluster(
            felix=felix.read(configurations, node_name, labels, self._environment, problems),
            nodes=nodes,
            blocks=tuple(blocks),
            pools=tuple(pool for ref in refs[IP_POOL] for pool in _pool(Reader(ref, objects[ref], problems), labels)),
        )
        return Observation(cluster, tuple(problems))

    def announcement(self, family: Family, public_key: bytes, objects: Objects, node_name: str) -> Mapping[str, str | None]:
        return {ANNOTATIONS[family].public_key: format_key(public_key)}

    def withdrawal(self, family: Family, objects: Objects, node_name: str) -> Mapping[str, str | None]:
        name = ANNOTATIONS[family].public_key
        reader = Reader(Ref(NODE, node_name), objects.get(Ref(NODE, node_name), {}), [])
        return {} if reader.annotation(name) is None else {name: None}  # even if it holds no key that can be read


def observe(objects: Objects, node_name: str) -> Observation:
    """The cluster as ``node_name`` has to see it, once and without an environment."""
    return Calico().observe(objects, node_name)


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of a Node or an IPAMBlock. A Node's ``static_`` fields and blocks count in clusters without IPAMBlocks."""

    manifest: Manifest
    problems: tuple[Problem, ...]
    blocks: tuple[Block, ...]
    node: Node | None = None
    static_node: Node | None = None
    static_problems: tuple[Problem, ...] = ()


def _labels(ref: Ref, objects: Objects, problems: list[Problem]) -> Mapping[str, str]:
    labels = Reader(ref, objects.get(ref, {}), problems).mapping("metadata", "labels")
    return {name: value for name, value in labels.items() if isinstance(value, str)}


# Nodes --------------------------------------------------------------------------------------------------------------


def _read_node(ref: Ref, manifest: Manifest) -> _Known:
    problems: list[Problem] = []
    static_problems: list[Problem] = []
    node = _node(Reader(ref, manifest, problems))
    cidrs = pod_cidrs(Reader(ref, manifest, static_problems))
    blocks = tuple(Block(cidr, ref.name) for cidr in cidrs)
    return _Known(manifest, tuple(problems), blocks, node, _with_static_address(node, cidrs), tuple(static_problems))


def _node(reader: Reader) -> Node:
    # Within each family Calico takes the first InternalIP, and an ExternalIP only where there is none.
    addresses = status_addresses(reader)
    return Node(
        name=reader.ref.name,
        ipv4=_node_network(reader, Family.IPV4, addresses),
        ipv6=_node_network(reader, Family.IPV6, addresses),
    )


_INTERFACE_PARSERS = {family: of_family(family, parse_interface) for family in Family}
_ADDRESS_PARSERS = {family: of_family(family, parse_address) for family in Family}
_NO_NETWORK = NodeNetwork()


def _node_network(reader: Reader, family: Family, status_addresses: list[Address]) -> NodeNetwork:
    names = ANNOTATIONS[family]
    own = reader.parse_annotation(names.node_address, _INTERFACE_PARSERS[family])
    addresses = [address for address in status_addresses if address.version == family.value]
    if own is not None:
        addresses.insert(0, own)
    tunnels = {name: reader.parse_annotation(name, _ADDRESS_PARSERS[family]) for name in names.tunnel_addresses}
    network = NodeNetwork(
        address=addresses[0] if addresses else None,
        public_key=reader.parse_annotation(names.public_key, parse_public_key),
        interface_address=tunnels[names.interface_address],
        tunnel_addresses=tuple(dict.fromkeys(address for address in tunnels.values() if address is not None)),
        host_addresses=tuple(dict.fromkeys(addresses)),
    )
    return _NO_NETWORK if network == _NO_NETWORK else network


def _with_static_address(node: Node, cidrs: list[Prefix]) -> Node:
    """With host-local IPAM there is no allocator. While a node has a key, the first address after its IPv4 range's base
    belongs to its tunnels; for IPv6 there is none (``node.go``, getStaticTunnelAddress)."""
    network = node.ipv4
    if network.interface_address is not None or network.public_key is None:
        return node
    for cidr in cidrs:
        if cidr.version == 4:
            address = cidr.network_address + 1
            tunnels = tuple(dict.fromkeys((*network.tunnel_addresses, address)))
            return replace(node, ipv4=replace(network, interface_address=address, tunnel_addresses=tunnels))
    return node


# Blocks -------------------------------------------------------------------------------------------------------------


def _read_block(ref: Ref, manifest: Manifest) -> _Known:
    problems: list[Problem] = []
    blocks = tuple(_block(Reader(ref, manifest, problems)))
    return _Known(manifest, tuple(problems), blocks)


def _block(reader: Reader) -> Iterator[Block]:
    if reader.value("spec", "deleted") is True:
        return  # about to go: IPAM itself no longer finds it
    cidr = reader.parse(("spec", "cidr"), reader.value("spec", "cidr") or "missing", parse_prefix)
    if cidr is None:
        return
    node, is_for_nodes = _affinity(reader.value("spec", "affinity"), reader.value("spec", "hostAffinity"))
    yield Block(cidr, node, tuple(_borrowed(reader, cidr, node)) if is_for_nodes else ())


def _affinity(affinity: Any, legacy: Any) -> tuple[str | None, bool]:
    """The node that a block is affine to, and whether its addresses are for nodes at all (not "virtual:load-balancer")."""
    if affinity is None:
        return (legacy or None if isinstance(legacy, str) else None), True
    if isinstance(affinity, str) and affinity.startswith(HOST_AFFINITY_PREFIX):
        node = affinity.removeprefix(HOST_AFFINITY_PREFIX) or None
        return node, node is not None
    return None, False


def _borrowed(reader: Reader, cidr: Prefix, node: str | None) -> Iterator[tuple[Address, str]]:
    """The addresses that belong to another node than the block does."""
    attributes = reader.list("spec", "attributes")
    foreign = _foreign(attributes, node)
    for ordinal, index in enumerate(reader.list("spec", "allocations")):
        if index is None:
            continue
        if type(index) is not int or not 0 <= index < len(attributes):
            reader.problem(("spec", "allocations", ordinal), f"points to no attribute: {shown(index)}")
        elif index not in foreign:
            continue
        elif ordinal >= cidr.num_addresses:
            reader.problem(("spec", "allocations", ordinal), f"lies outside {cidr}")
        else:
            yield cidr.network_address + ordinal, foreign[index]


def _foreign(attributes: list[Any], node: str | None) -> dict[int, str]:
    """Who else than the block's node holds addresses of it, by the index of the attribute. What Calico reserves has no holder."""
    holders = ((index, _holder(attribute)) for index, attribute in enumerate(attributes))
    return {index: holder for index, holder in holders if holder is not None and holder != node}


def _holder(attribute: Any) -> str | None:
    secondary = attribute.get("secondary") if isinstance(attribute, Mapping) else None
    holder = secondary.get("node") if isinstance(secondary, Mapping) else None
    return holder if isinstance(holder, str) and holder else None


def _without_own_allocations(block: dict[str, Any]) -> dict[str, Any]:
    """A block, trimmed already, without what its own node has allocated: pods come and go there all the time."""
    spec = block.get("spec")
    if not isinstance(spec, dict):
        return block
    node, is_for_nodes = _affinity(spec.get("affinity"), spec.get("hostAffinity"))
    if not is_for_nodes or spec.get("deleted") is True:
        spec.pop("allocations", None)
        spec.pop("attributes", None)
        return block
    allocations, attributes = spec.get("allocations"), spec.get("attributes")
    if not isinstance(allocations, list) or not isinstance(attributes, list | None):
        return block
    attributes = attributes or []
    foreign = _foreign(attributes, node)
    own = {None, *(index for index in range(len(attributes)) if index not in foreign)}
    kept = [None if type(index) in (int, type(None)) and index in own else index for index in allocations]
    while kept and kept[-1] is None:
        kept.pop()
    if kept:
        spec["allocations"] = kept
        spec["attributes"] = [
            {"secondary": {"node": foreign[index]}} if index in foreign else {} for index in range(len(attributes))
        ]
    else:
        del spec["allocations"]
        spec.pop("attributes", None)
    return block


# Pools --------------------------------------------------------------------------------------------------------------


def _pool(reader: Reader, labels: Mapping[str, str]) -> Iterator[Pool]:
    cidr = reader.parse(("spec", "cidr"), reader.value("spec", "cidr") or "missing", parse_prefix)
    if cidr is None:
        return
    default = 26 if cidr.version == 4 else 122
    size = reader.parse(
        ("spec", "blockSize"), reader.value("spec", "blockSize"), parse_integer(cidr.prefixlen, cidr.max_prefixlen)
    )
    uses = reader.list("spec", "allowedUses")
    text = reader.value("spec", "nodeSelector")
    selector = reader.parse(("spec", "nodeSelector"), text, parse_selector)
    is_ours = not text or (selector is not None and selector(labels))
    is_usable = reader.value("spec", "disabled") is not True and reader.value("metadata", "deletionTimestamp") is None
    yield Pool(
        cidr=cidr,
        block_prefix_length=max(size or default, cidr.prefixlen),
        allows_tunnels=is_usable and is_ours and (not uses or "Tunnel" in uses),
        nat_outgoing=reader.value("spec", "natOutgoing") is True,
    )
