"""Cilium with WireGuard, as far as somebody beside its agent can take part.

Each node has a CiliumNode: addresses, ranges of pods (``spec.ipam.podCIDRs``), the public key in an annotation, and
``spec.encryption.key``, which is 255 where the node encrypts with WireGuard. All nodes listen on UDP port 51871, which is fixed.

What is here reads that mesh and publishes a key in it. What cannot be had from outside:

* cilium-agent owns the CiliumNode and ``spec.encryption.key``. It alone can set this to 255, and until it does, others send
  to our pods in clear. :meth:`Cilium.observe` says so as a problem.
* Other nodes accept from us, and encrypt to us, only addresses that cilium-agent has made known as endpoints of this node.
  So this is for a node on which cilium-agent runs, and has no WireGuard itself.
* Packets of pods are steered by Cilium's BPF programs, past rules and routes. Only what the host's stack routes meets
  ours: native routing, with host routing left to the kernel (``bpf.hostLegacyRouting``).
* Cilium has one interface and one key for both families. Here a key belongs to one family: the node's first one, IPv4 if it
  has it. The other goes in clear.

None of this has been tried against a cluster of Cilium's. Sources: meshes.md 1.2 and 5; cilium ``pkg/wireguard/agent``,
``pkg/k8s/apis/cilium.io/v2``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from controller.mesh import Kind
from controller.meshes.nodes import NODE, prefixes, typed_addresses
from controller.model import Address, Block, Cluster, Family, FelixConfiguration, Node, NodeNetwork
from controller.observe import Observation, Problem, Reader, parse_integer, parse_public_key, pick
from controller.source import Manifest, Objects, Ref
from wgpy.wgconf import format_key

CILIUM_NODE = "CiliumNode"
PUBLIC_KEY = "network.cilium.io/wg-pub-key"
OLD_PUBLIC_KEY = "io.cilium.network.wg-pub-key"
WIREGUARD = 255
"""What ``spec.encryption.key`` is for WireGuard. IPsec has numbers from 1 to 15."""
PORT = 51871
INTERFACE = "cilium_wg0"

KINDS: Mapping[str, Kind] = MappingProxyType(
    {kind.name: kind for kind in (Kind(NODE, "nodes", ("v1",)), Kind(CILIUM_NODE, "ciliumnodes", ("cilium.io/v2",)))}
)

_PATHS = (
    ("metadata", "annotations", PUBLIC_KEY),
    ("metadata", "annotations", OLD_PUBLIC_KEY),
    ("spec", "addresses"),
    ("spec", "encryption", "key"),
    ("spec", "ipam", "podCIDRs"),
)
_KEY_PATH = ("spec", "encryption", "key")


class Cilium:
    """Cilium's mesh."""

    name = "cilium"
    kinds = KINDS
    announcing_kind = CILIUM_NODE

    def __init__(self) -> None:
        self._known: dict[Ref, _Known] = {}

    def trim(self, manifest: Manifest) -> Manifest:
        return pick(manifest, *(_PATHS if manifest.get("kind") == CILIUM_NODE else ()))

    def observe(self, objects: Objects, node_name: str) -> Observation:
        """The cluster as ``node_name`` has to see it: its nodes are the CiliumNodes. What was read of one is kept for as long
        as it is the same object."""
        known: dict[Ref, _Known] = {}
        for ref in sorted(ref for ref in objects if ref.kind == CILIUM_NODE):
            manifest, before = objects[ref], self._known.get(ref)
            known[ref] = before if before is not None and before.manifest is manifest else _read(ref, manifest)
        self._known = known
        problems = [problem for one in known.values() for problem in one.problems]
        own = known.get(Ref(CILIUM_NODE, node_name))
        family = _family(own.node) if own else None
        has_mesh = any(one.encrypts and one is not own for one in known.values())
        if own is not None and has_mesh and not own.encrypts:
            message = f"not {WIREGUARD}: others send to this node in clear until cilium-agent sets it"
            problems.append(Problem(own.ref, _KEY_PATH, message))
        cluster = Cluster(
            felix=_configuration(family if has_mesh else None),
            nodes={ref.name: _in_family(one, family, is_own=one is own) for ref, one in known.items()},
            blocks=tuple(block for one in known.values() for block in one.blocks),
        )
        return Observation(cluster, tuple(problems))

    def announcement(self, family: Family, public_key: bytes, objects: Objects, node_name: str) -> Mapping[str, str | None]:
        return {PUBLIC_KEY: format_key(public_key)}

    def withdrawal(self, family: Family, objects: Objects, node_name: str) -> Mapping[str, str | None]:
        """Nothing for a family whose key it is not: there is one annotation, and one family has it."""
        ref = Ref(CILIUM_NODE, node_name)
        manifest = objects.get(ref, {})
        reader = Reader(ref, manifest, [])
        if family is not _family(_read(ref, manifest).node):
            return {}
        return {name: None for name in (PUBLIC_KEY, OLD_PUBLIC_KEY) if reader.annotation(name) is not None}


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of a CiliumNode. ``node`` has its key in both families."""

    ref: Ref
    manifest: Manifest
    problems: tuple[Problem, ...]
    node: Node
    blocks: tuple[Block, ...]
    encrypts: bool


def _read(ref: Ref, manifest: Manifest) -> _Known:
    problems: list[Problem] = []
    reader = Reader(ref, manifest, problems)
    name = PUBLIC_KEY if reader.annotation(PUBLIC_KEY) else OLD_PUBLIC_KEY
    key = reader.parse_annotation(name, parse_public_key)
    hosts = typed_addresses(reader, ("spec", "addresses"), "ip", ("InternalIP", "ExternalIP"))
    routers = typed_addresses(reader, ("spec", "addresses"), "ip", ("CiliumInternalIP",))
    node = Node(ref.name, *(_network(family, key, hosts, routers) for family in Family))
    blocks = tuple(Block(cidr, ref.name) for cidr in prefixes(reader, ("spec", "ipam", "podCIDRs")))
    number = reader.parse(_KEY_PATH, reader.value(*_KEY_PATH), parse_integer(0, WIREGUARD))
    return _Known(ref, manifest, tuple(problems), node, blocks, encrypts=number == WIREGUARD)


def _network(family: Family, key: bytes | None, hosts: list[Address], routers: list[Address]) -> NodeNetwork:
    """``CiliumInternalIP`` is the address of cilium_host, from which the node itself speaks to pods."""
    own = tuple(dict.fromkeys(address for address in hosts if address.version == family.value))
    inner = tuple(dict.fromkeys(address for address in routers if address.version == family.value))
    return NodeNetwork(
        address=own[0] if own else None,
        public_key=key,
        interface_address=inner[0] if inner else None,
        tunnel_addresses=inner,
        host_addresses=own,
    )


def _family(node: Node) -> Family | None:
    """The family whose mesh a node can join."""
    return next((family for family in Family if node.of(family).address is not None), None)


def _in_family(known: _Known, family: Family | None, is_own: bool) -> Node:
    """A node with its key in ``family`` only, and without one where it does not encrypt; what we have published ourselves
    counts."""
    counts = known.encrypts or is_own
    node = known.node
    return replace(
        node,
        ipv4=node.ipv4 if counts and family is Family.IPV4 else replace(node.ipv4, public_key=None),
        ipv6=node.ipv6 if counts and family is Family.IPV6 else replace(node.ipv6, public_key=None),
    )


def _configuration(family: Family | None) -> FelixConfiguration:
    """Cilium's, in the words of Felix's: it is on in ``family``."""
    felix = FelixConfiguration()
    return replace(
        felix,
        workloads=frozenset({"lxc*", "cilium_*"}),
        ipv4=replace(felix.ipv4, enabled=family is Family.IPV4, port=PORT, interface=INTERFACE),
        ipv6=replace(felix.ipv6, enabled=family is Family.IPV6, port=PORT, interface=INTERFACE),
    )
