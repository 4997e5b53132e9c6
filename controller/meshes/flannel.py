"""Flannel with its ``wireguard`` backend, where the agent takes flanneld's place on one node.

Flannel keeps everything on the Node: whose object says ``kube-subnet-manager: "true"`` and ``backend-type: wireguard`` is
part of the mesh, with its key and port in ``backend-data`` (IPv6: ``backend-v6-data``), at ``public-ip``, for the range of its
``spec.podCIDRs``. What is the same on all nodes (networks, ports, keepalive) stands in the net-conf.json that every flanneld
is given, and that the agent is given too: :func:`parse_net_conf`.

There is no clear path beside this mesh. Flannel's only route to the cluster network goes into the interface, so what has no
peer there is lost, and a node without the agent is a node without a pod network.

flanneld does more on a node than WireGuard, and who takes its place has to do it: write the file its CNI plugin reads
(:func:`subnet_env`), masquerade what leaves the cluster network (:func:`masquerade_ruleset`), and say that the node has a
network (:func:`network_available`).

Sources: meshes.md 1.3 and 1.4; flannel ``pkg/subnet/kube/{annotations,kube}.go``, ``pkg/backend/wireguard/*.go``,
``pkg/subnet/config.go``, and the flannel CNI plugin.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

from controller.mesh import Kind
from controller.meshes.nodes import NODE, PATHS, pod_cidrs, status_addresses
from controller.model import (
    Address,
    Block,
    Cluster,
    Family,
    FelixConfiguration,
    Node,
    NodeNetwork,
    Pool,
    WireguardConfiguration,
)
from controller.observe import (
    Observation,
    Problem,
    Reader,
    of_family,
    parse_address,
    parse_integer,
    parse_prefix,
    parse_public_key,
    pick,
    shown,
)
from controller.source import Manifest, Objects, Ref
from wgpy.config import Prefix
from wgpy.wgconf import format_key

V = TypeVar("V")

PREFIX = "flannel.alpha.coreos.com/"
BACKEND = "wireguard"
OVERHEAD = 80
"""Bytes that Flannel takes off the underlay's MTU, for either family."""

KINDS: Mapping[str, Kind] = MappingProxyType({NODE: Kind(NODE, "nodes", ("v1",))})

_BRIDGE = "cni0"
"""The bridge that Flannel's CNI plugin puts pods on, unless its own configuration says otherwise."""

_INTERFACES = {Family.IPV4: "flannel-wg", Family.IPV6: "flannel-wg-v6"}
_MULTICAST = {Family.IPV4: "224.0.0.0/4", Family.IPV6: "ff00::/8"}
_ADDRESS_PARSERS = {family: of_family(family, parse_address) for family in Family}


# Flannel's own configuration ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FamilyConf:
    """What net-conf.json says of one family. ``mtu`` is that of the interface, 0 for automatic."""

    network: Prefix
    port: int
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class NetConf:
    """What a flanneld is configured to do. A family that is not in ``families`` is off. ``keepalive``: seconds, 0 for off."""

    families: Mapping[Family, FamilyConf]
    subnet_length: int = 24
    keepalive: int = 0


def parse_net_conf(text: str) -> NetConf:
    """Read Flannel's net-conf.json. Raises ValueError: what cannot be read, and what the agent cannot do, are not guessed."""
    found = _parse_json(text)
    if not isinstance(found, dict) or not isinstance(backend := found.get("Backend", {}), dict):
        raise ValueError("not Flannel's net-conf.json: no mapping")
    if backend.get("Type") != BACKEND:
        raise ValueError(f"the backend is {shown(backend.get('Type'))}, and not {BACKEND!r}: there is nothing to encrypt")
    if backend.get("PSK"):
        raise ValueError("a preshared key for all nodes (PSK) is not supported: take it out, on all nodes")
    enabled = [
        family
        for family, name, default in ((Family.IPV4, "EnableIPv4", True), (Family.IPV6, "EnableIPv6", False))
        if _field(found, name, _parse_switch, default)
    ]
    mode = backend.get("Mode") or "separate"
    fitting = {"separate", "auto", *(f"ipv{family.value}" for family in enabled)} if len(enabled) == 1 else {"separate"}
    if not isinstance(mode, str) or mode not in fitting:
        raise ValueError(f"mode {shown(mode)} is not supported, only 'separate': an interface for each family")
    mtu = _field(backend, "MTU", parse_integer(0, 65535), 0)
    families = {}
    for family in enabled:
        network = _field(found, _of(family, "Network", "IPv6Network"), parse_prefix, None)
        if network is None or network.version != family.value:
            raise ValueError(f"{_of(family, 'Network', 'IPv6Network')} is missing, or not an {family} range")
        port = _field(backend, _of(family, "ListenPort", "ListenPortV6"), parse_integer(1, 65535), _of(family, 51820, 51821))
        families[family] = FamilyConf(network, port, max(mtu - OVERHEAD, 0))
    return NetConf(
        families,
        subnet_length=_field(found, "SubnetLen", parse_integer(8, 30), 24),
        keepalive=_field(backend, "PersistentKeepaliveInterval", parse_integer(0, 65535), 0),
    )


def _of(family: Family, ipv4: V, ipv6: V) -> V:
    return ipv4 if family is Family.IPV4 else ipv6


def _field(mapping: Mapping[str, Any], name: str, parser: Callable[[Any], V], default: V) -> V:
    if mapping.get(name) in (None, ""):
        return default
    try:
        return parser(mapping[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _parse_switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"neither true nor false: {shown(value)}")


def _parse_json(text: Any) -> Any:
    """Raises ValueError with one line."""
    if not isinstance(text, str):
        raise ValueError(f"not a string: {shown(text)}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None  # the text stays unsaid: there may be a preshared key in it


# The mesh -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BackendData:
    """What a node says of itself in one family. Writers of old leave the port out: it is then the reader's own."""

    public_key: bytes | None
    port: int | None


def parse_backend_data(value: Any) -> BackendData | None:
    """Read ``{"PublicKey": "...", "Port": 51820}``; ``null`` is none. Raises ValueError."""
    found = _parse_json(value)
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"not a mapping: {shown(found)}")
    return BackendData(
        _field(found, "PublicKey", parse_public_key, None),
        _field(found, "Port", parse_integer(1, 65535), None),
    )


@dataclass(frozen=True, slots=True)
class _Names:
    """The annotations of one family."""

    backend_data: str
    public_ip: str
    overwrite: str


class Flannel:
    """Flannel's mesh. ``prefix`` is that of the annotations, as ``-kube-annotation-prefix`` gives it to flanneld.

    Raises ValueError for a prefix that flanneld would refuse.
    """

    name = "flannel"
    kinds = KINDS
    announcing_kind = NODE

    def __init__(self, net_conf: NetConf, prefix: str = PREFIX) -> None:
        prefix = _full_prefix(prefix)
        self.net_conf = net_conf
        self._managed = f"{prefix}kube-subnet-manager"
        self._backend_type = f"{prefix}backend-type"
        self._names = {
            Family.IPV4: _Names(f"{prefix}backend-data", f"{prefix}public-ip", f"{prefix}public-ip-overwrite"),
            Family.IPV6: _Names(f"{prefix}backend-v6-data", f"{prefix}public-ipv6", f"{prefix}public-ipv6-overwrite"),
        }
        annotations = [self._managed, self._backend_type]
        for names in self._names.values():
            annotations += [names.backend_data, names.public_ip, names.overwrite]
        self._paths = (*PATHS, *(("metadata", "annotations", annotation) for annotation in annotations))
        self._known: dict[Ref, _Known] = {}

    def trim(self, manifest: Manifest) -> Manifest:
        return pick(manifest, *(self._paths if manifest.get("kind") == NODE else ()))

    def observe(self, objects: Objects, node_name: str) -> Observation:
        """The cluster as ``node_name`` has to see it. What was read of a Node is kept for as long as it is the same object."""
        known: dict[Ref, _Known] = {}
        for ref in sorted(ref for ref in objects if ref.kind == NODE):
            manifest, before, is_own = objects[ref], self._known.get(ref), ref.name == node_name
            if before is None or before.manifest is not manifest or before.is_own is not is_own:
                before = self._read(ref, manifest, is_own)
            known[ref] = before
        self._known = known
        own = known.get(Ref(NODE, node_name))
        cluster = Cluster(
            felix=self._configuration(own.blocks if own else ()),
            nodes={ref.name: one.node for ref, one in known.items()},
            blocks=tuple(block for one in known.values() for block in one.blocks),
            pools=tuple(
                Pool(conf.network, self.net_conf.subnet_length, allows_tunnels=False, nat_outgoing=True)
                for conf in self.net_conf.families.values()
            ),
        )
        return Observation(cluster, tuple(problem for one in known.values() for problem in one.problems))

    def announcement(self, family: Family, public_key: bytes, objects: Objects, node_name: str) -> Mapping[str, str | None]:
        reader = _reader(objects, node_name)
        address = self._address(reader, family, status_addresses(reader), is_own=True)
        data = {"PublicKey": format_key(public_key), "Port": self.net_conf.families[family].port}
        names = self._names[family]
        return {
            self._managed: "true",
            self._backend_type: BACKEND,
            names.backend_data: json.dumps(data, separators=(",", ":")),
            names.public_ip: None if address is None else str(address),
        }

    def withdrawal(self, family: Family, objects: Objects, node_name: str) -> Mapping[str, str | None]:
        """What both families share goes with the second of them."""
        reader = _reader(objects, node_name)
        names = self._names[family]
        other = self._names[_of(family, Family.IPV6, Family.IPV4)]
        gone = [names.backend_data, names.public_ip]
        if reader.annotation(other.backend_data) is None:
            gone += [self._managed, self._backend_type]
        if reader.annotation(names.backend_data) is None:
            return {}
        return {name: None for name in gone if reader.annotation(name) is not None}

    def _configuration(self, own_blocks: tuple[Block, ...]) -> FelixConfiguration:
        """Flannel's, in the words of Felix's. A family without a range of ours has nothing to carry."""
        versions = {block.cidr.version for block in own_blocks}
        felix = FelixConfiguration()
        ipv4, ipv6 = (self._wireguard(family, felix.of(family), family.value in versions) for family in Family)
        return replace(felix, ipv4=ipv4, ipv6=ipv6, keepalive=self.net_conf.keepalive, workloads=frozenset({_BRIDGE}))

    def _wireguard(self, family: Family, base: WireguardConfiguration, has_range: bool) -> WireguardConfiguration:
        conf = self.net_conf.families.get(family)
        if conf is None:
            return replace(base, enabled=False, interface=_INTERFACES[family])
        return replace(base, enabled=has_range, port=conf.port, mtu=conf.mtu, interface=_INTERFACES[family])

    def _read(self, ref: Ref, manifest: Manifest, is_own: bool) -> "_Known":
        problems: list[Problem] = []
        reader = Reader(ref, manifest, problems)
        cidrs = pod_cidrs(reader)
        status = status_addresses(reader)
        is_member = self._is_member(reader)
        networks = {family: self._network(reader, family, status, cidrs, is_member, is_own) for family in Family}
        node = Node(ref.name, networks[Family.IPV4], networks[Family.IPV6])
        if is_own:
            self._check_ranges(reader, cidrs)
        blocks = tuple(Block(cidr, ref.name) for cidr in cidrs)
        return _Known(manifest, is_own, tuple(problems), node, blocks)

    def _is_member(self, reader: Reader) -> bool:
        if reader.annotation(self._managed) != "true":
            return False
        backend = reader.annotation(self._backend_type)
        if backend not in (None, "", BACKEND):
            reader.problem(("metadata", "annotations", self._backend_type), f"not {BACKEND!r}: {shown(backend)}")
        return bool(backend == BACKEND)

    def _network(
        self, reader: Reader, family: Family, status: list[Address], cidrs: list[Prefix], is_member: bool, is_own: bool
    ) -> NodeNetwork:
        names = self._names[family]
        address = self._address(reader, family, status, is_own)
        data = reader.parse_annotation(names.backend_data, parse_backend_data) if is_member else None
        if data is not None and is_own and not self._is_announced(reader, family, data, address):
            data = None
        addresses = [address, *(each for each in status if each.version == family.value)]
        return NodeNetwork(
            address=address,
            public_key=data.public_key if data else None,
            interface_address=next((cidr.network_address for cidr in cidrs if cidr.version == family.value), None),
            host_addresses=tuple(dict.fromkeys(each for each in addresses if each is not None)),
            port=data.port if data else None,
        )

    def _address(self, reader: Reader, family: Family, status: list[Address], is_own: bool) -> Address | None:
        """Where a node is reached. What an administrator has written wins. Then others are where they say they are, and we
        are where the Node's status has us: a ``public-ip`` of our own may be of yesterday."""
        names, parser = self._names[family], _ADDRESS_PARSERS[family]
        overwritten = reader.parse_annotation(names.overwrite, parser)
        said = reader.parse_annotation(names.public_ip, parser)
        own = next((each for each in status if each.version == family.value), None)
        return next((each for each in (overwritten, *((own, said) if is_own else (said, own))) if each is not None), None)

    def _is_announced(self, reader: Reader, family: Family, data: BackendData, address: Address | None) -> bool:
        """Whether others find us by what we have published. A key at the wrong endpoint counts as none, and is
        published anew."""
        conf = self.net_conf.families.get(family)
        says = reader.annotation(self._names[family].public_ip)
        return conf is not None and data.port == conf.port and address is not None and says == str(address)

    def _check_ranges(self, reader: Reader, cidrs: list[Prefix]) -> None:
        for family, conf in self.net_conf.families.items():
            own = [cidr for cidr in cidrs if cidr.version == family.value]
            if not own:
                reader.problem(("spec", "podCIDRs"), f"no {family} range: kube-controller-manager needs --allocate-node-cidrs")
            for cidr in own:
                if not _contains(conf.network, cidr):
                    reader.problem(("spec", "podCIDRs"), f"{cidr} is not part of Flannel's network, {conf.network}")


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of a Node."""

    manifest: Manifest
    is_own: bool
    problems: tuple[Problem, ...]
    node: Node
    blocks: tuple[Block, ...] = field(default=())


def _reader(objects: Objects, node_name: str) -> Reader:
    ref = Ref(NODE, node_name)
    return Reader(ref, objects.get(ref, {}), [])


def _full_prefix(prefix: str) -> str:
    """flanneld's rule: a domain, a slash, and perhaps the beginning of the name, which a hyphen ends."""
    if "/" not in prefix:
        prefix += "/"
    if not prefix.endswith(("/", "-")):
        prefix += "-"
    if not re.fullmatch(r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?", prefix):
        raise ValueError(f"not a prefix of annotations, such as {PREFIX} or example.com/flannel-: {shown(prefix)}")
    return prefix


def _contains(network: Prefix, cidr: Prefix) -> bool:
    return cidr.prefixlen >= network.prefixlen and cidr.network_address in network


# What else flanneld does on a node --------------------------------------------------------------------------------------


SUBNET_FILE = "/run/flannel/subnet.env"
"""Where the flannel CNI plugin looks, unless its own configuration says otherwise."""


def subnet_env(net_conf: NetConf, cluster: Cluster, node_name: str, mtu: int, masquerades: bool = True) -> str:
    """The text of SUBNET_FILE. ``mtu`` is what pods get: the underlay's less OVERHEAD. Empty while the node has no range.

    ``masquerades`` says that :func:`masquerade_ruleset` is in force. Otherwise the plugin has each bridge masquerade, also
    towards pods of other nodes, which then see no pod's address.
    """
    lines = []
    for family, conf in sorted(net_conf.families.items(), key=lambda item: item[0].value):
        own = [block.cidr for block in cluster.blocks if block.node == node_name and block.cidr.version == family.value]
        if not own:
            return ""
        infix = _of(family, "", "IPV6_")
        lines += [
            f"FLANNEL_{infix}NETWORK={conf.network}",
            f"FLANNEL_{infix}SUBNET={own[0].network_address + 1}/{own[0].prefixlen}",
        ]
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={'true' if masquerades else 'false'}"]
    return "\n".join(lines) + "\n"


def masquerade_ruleset(net_conf: NetConf) -> str:
    """For ``nft -f -``: what pods send out of the cluster network, and what comes into it from outside, has the node's address.

    It replaces its own tables each time, and touches no others.
    """
    rules = []
    for family, conf in sorted(net_conf.families.items(), key=lambda item: item[0].value):
        ip = _of(family, "ip", "ip6")
        table = f"table {ip} wgpy-flannel"
        rules += [
            table,
            f"delete {table}",
            f"{table} {{",
            "    chain postrouting {",
            "        type nat hook postrouting priority srcnat",
            f"        {ip} saddr {conf.network} {ip} daddr {conf.network} return",
            f"        {ip} saddr {conf.network} {ip} daddr != {_MULTICAST[family]} masquerade fully-random",
            f"        {ip} saddr != {conf.network} {ip} daddr {conf.network} masquerade fully-random",
            "    }",
            "}",
        ]
    return "\n".join(rules) + "\n"


def network_available(now: str) -> Mapping[str, Any]:
    """A strategic merge patch of ``nodes/status`` which says that the node has a network; ``now`` as in ``2026-01-02T03:04:05Z``.

    Where a cloud provider says first that it has none, no pod is scheduled until somebody does.
    """
    condition = {
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "WgpyIsUp",
        "message": "wgpy runs Flannel's network on this node",
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    }
    return {"status": {"conditions": [condition]}}
