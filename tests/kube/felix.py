"""Felix, as far as WireGuard goes, in two forms: on a node whose kernel has no WireGuard, and on one that has it.

*Without* (:class:`Felix`) it does nothing but clear its Node's keys shortly after each start; and it starts anew whenever a
FelixConfiguration changes (calico.md 5.4, 16).

*With* (:class:`WireguardFelix`) it takes part in the mesh and drives a device the way Felix drives the kernel's: the private key
is in the device only, table 1, rule 99, mark 0x200000, an address of its own, endpoints set back at each resync, unknown peers
removed. The device is wireguard-go's, in the network namespace in which this runs; what it does to it, it does with ``wg`` and
``ip`` (calico.md 3 to 5).

    python -m tests.kube.felix --kubeconfig FILE --node NAME [--wireguard-go PATH] [--restart-seconds S]

Without ``--wireguard-go`` the node has no WireGuard. Not imitated: firewall rules and masquerade, bootstrap with Typha, metrics.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import urllib3

from tests.kube.client import CALICO, NODES, PREFIX, Client, Object, Refused, calico_annotations, overwrite

log = logging.getLogger(__name__)

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

KEYS = {4: f"{PREFIX}WireguardPublicKey", 6: f"{PREFIX}WireguardPublicKeyV6"}
INTERFACE_ADDRESSES = {4: f"{PREFIX}IPv4WireguardInterfaceAddr", 6: f"{PREFIX}IPv6WireguardInterfaceAddr"}
NODE_ADDRESSES = {4: f"{PREFIX}IPv4Address", 6: f"{PREFIX}IPv6Address"}
TUNNEL_ADDRESSES = {
    4: [INTERFACE_ADDRESSES[4], f"{PREFIX}IPv4IPIPTunnelAddr", f"{PREFIX}IPv4VXLANTunnelAddr"],
    6: [INTERFACE_ADDRESSES[6], f"{PREFIX}IPv6VXLANTunnelAddr"],
}
HOST_LENGTHS = {4: 32, 6: 128}
OVERHEADS = {4: 60, 6: 80}
HOST_MTU = 1500

TABLE, MARK = "1", "0x200000"

CLEARS_SECONDS = 0.18
"""From a start to the first apply, which clears the keys where there is no WireGuard."""

AGAIN_SECONDS = 0.5
"""From there to the second time, with host encryption and while disabled."""

RESTART_SECONDS = 3.1
"""From a change of configuration to the start that it causes: 2.1 s until Felix ends, and a second until it is there again."""

POLL_SECONDS = 0.1
RESYNC_SECONDS = 90.0

Failure = (Refused, urllib3.exceptions.HTTPError, subprocess.CalledProcessError, OSError)


# Configuration


@dataclass(frozen=True)
class Settings:
    """What is in force on one node. Mappings are by IP version."""

    enabled: dict[int, bool]
    ports: dict[int, int]
    interfaces: dict[int, str]
    mtus: dict[int, int]
    priority: int
    keepalive: int
    host_encryption: bool


def read_settings(client: Client, node: str) -> Settings:
    """``node.NAME`` before ``default``, field by field."""
    found = {item["metadata"]["name"]: item["spec"] for item in client.list(f"{CALICO}/felixconfigurations")}
    spec = found.get("default", {}) | found.get(f"node.{node}", {})
    return Settings(
        enabled={4: spec.get("wireguardEnabled", False), 6: spec.get("wireguardEnabledV6", False)},
        ports={4: spec.get("wireguardListeningPort", 51820), 6: spec.get("wireguardListeningPortV6", 51821)},
        interfaces={
            4: spec.get("wireguardInterfaceName", "wireguard.cali"),
            6: spec.get("wireguardInterfaceNameV6", "wg-v6.cali"),
        },
        mtus={4: spec.get("wireguardMTU") or HOST_MTU - OVERHEADS[4], 6: spec.get("wireguardMTUV6") or HOST_MTU - OVERHEADS[6]},
        priority=spec.get("wireguardRoutingRulePriority", 99),
        keepalive=whole_seconds(spec.get("wireguardKeepAlive", "0s")),
        host_encryption=spec.get("wireguardHostEncryptionEnabled", False),
    )


def whole_seconds(text: str) -> int:
    """``25s``, ``1m``."""
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]] if text and text[-1] in "smh" else 0


# Without WireGuard


@dataclass
class Felix:
    """On a node without WireGuard. ``clear`` is what it does, ``run`` when it does it."""

    client: Client
    node: str
    restart_seconds: float = RESTART_SECONDS
    stop: threading.Event = field(default_factory=threading.Event)

    def clear(self, families: Sequence[int] = (4, 6)) -> None:
        """Take the keys off the Node, one after the other, with what is in memory written over the rest."""
        for family in families:
            annotations = calico_annotations(self.client.get(f"{NODES}/{self.node}"))
            if annotations.pop(KEYS[family], None) is not None:
                overwrite(self.client, self.node, annotations)
                log.info("%s: cleared %s", self.node, KEYS[family])

    def start_once(self, is_twice: bool = False) -> float:
        """One start. The time (monotonic) at which the keys were gone for the last time."""
        self.stop.wait(CLEARS_SECONDS)
        self.clear()
        if is_twice:
            self.stop.wait(AGAIN_SECONDS)
            self.clear()
        return time.monotonic()

    def run(self) -> None:
        """Start, and start again at every change of configuration, until ``stop``."""
        while not self.stop.is_set():
            settings = read_settings(self.client, self.node)
            self.start_once(is_twice=settings.host_encryption or not any(settings.enabled.values()))
            while read_settings(self.client, self.node) == settings and not self.stop.wait(POLL_SECONDS):
                pass
            self.stop.wait(self.restart_seconds)


# With WireGuard


@dataclass(frozen=True)
class Peer:
    """What a device is told of another node. ``endpoint`` as wg prints it."""

    key: str
    endpoint: str
    allowed: frozenset[Network]


@dataclass(frozen=True)
class Wanted:
    """One family's device, and its routes: into it, and thrown."""

    peers: dict[str, Peer]
    device: frozenset[Network]
    thrown: frozenset[Network]
    address: Address | None


@dataclass(frozen=True)
class View:
    """The cluster. ``cidrs``: whose they are, blocks and single addresses; local ones are among them."""

    nodes: dict[str, Object]
    cidrs: dict[Network, str]


def read_view(client: Client) -> View:
    nodes = {node["metadata"]["name"]: node for node in client.list(NODES)}
    cidrs: dict[Network, str] = {}
    for block in client.list(f"{CALICO}/ipamblocks"):
        cidrs.update(_of_block(block["spec"]))
    for name, node in nodes.items():
        for annotation in TUNNEL_ADDRESSES[4] + TUNNEL_ADDRESSES[6]:
            if annotation in _annotations(node):
                cidrs[ip_network(_annotations(node)[annotation])] = name
    return View(nodes, cidrs)


def _annotations(node: Object) -> dict[str, str]:
    return node["metadata"].get("annotations") or {}


def _of_block(spec: Object) -> Iterator[tuple[Network, str]]:
    """The block itself, and what others have borrowed from it."""
    cidr, owner = ip_network(spec["cidr"]), (spec.get("affinity") or "").removeprefix("host:")
    if owner:
        yield cidr, owner
    for ordinal, index in enumerate(spec.get("allocations") or []):
        if index is not None:
            holder = (spec["attributes"][index].get("secondary") or {}).get("node")
            if holder and holder != owner:
                yield ip_network(cidr.network_address + ordinal), holder


def host_addresses(node: Object, family: int) -> list[Address]:
    """A node's own, the one at which it is reached first."""
    found = [ip_interface(_annotations(node)[NODE_ADDRESSES[family]]).ip] if NODE_ADDRESSES[family] in _annotations(node) else []
    listed = (node.get("status") or {}).get("addresses") or []
    for kind in ("InternalIP", "ExternalIP"):
        found += [ip_address(each["address"]) for each in listed if each["type"] == kind]
    return [address for address in found if address.version == family]


def work_out(view: View, node: str, settings: Settings, family: int) -> Wanted:
    """What Felix would program on ``node`` for one family."""
    keys = {name: key for name, each in view.nodes.items() if name != node and (key := _annotations(each).get(KEYS[family]))}
    owned: dict[str, set[Network]] = {}
    for cidr, owner in view.cidrs.items():
        if cidr.version == family:
            owned.setdefault(owner, set()).add(cidr)
    if settings.host_encryption:
        for name, each in view.nodes.items():
            if name != node:
                owned.setdefault(name, set()).update(ip_network(address) for address in host_addresses(each, family))
    peers = {}
    for name, key in keys.items():
        addresses = host_addresses(view.nodes[name], family)
        if addresses and list(keys.values()).count(key) == 1:
            peers[name] = Peer(key, _endpoint(addresses[0], settings.ports[family]), frozenset(owned.get(name, ())))
    local = owned.pop(node, set())
    blocks = {cidr for cidr in local if cidr.prefixlen < HOST_LENGTHS[family]}
    uncovered = {cidr for cidr in local - blocks if not any(cidr.network_address in block for block in blocks)}
    into = {cidr for name, cidrs in owned.items() if name in peers for cidr in cidrs}
    thrown = {cidr for name, cidrs in owned.items() if name not in peers for cidr in cidrs}
    own = view.nodes[node]
    address = ip_address(text) if (text := _annotations(own).get(INTERFACE_ADDRESSES[family])) else None
    if address is None and settings.host_encryption:
        address = next(iter(host_addresses(own, family)), None)
    return Wanted(peers, frozenset(into), frozenset(thrown | blocks | uncovered), address)


def _endpoint(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def run(*words: str, text: str | None = None) -> str:
    """Run a command. Raises CalledProcessError with what it said."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, words[:4], done.stdout, done.stderr)
    return done.stdout


def ip_json(*words: str) -> Any:
    """What ``ip -j`` prints. A table that does not exist yet is empty."""
    try:
        return json.loads(run("ip", "-j", *words) or "[]")
    except subprocess.CalledProcessError as error:
        if "does not exist" in error.stderr:
            return []
        raise


@dataclass
class Device:
    """One family's device and what lies around it."""

    family: int
    wireguard_go: Path
    process: "subprocess.Popen[bytes] | None" = None

    def program(self, settings: Settings, wanted: Wanted, is_resync: bool) -> str:
        """Bring it to what is wanted: link, address, keys and peers, routes, rule last. The public key."""
        name = settings.interfaces[self.family]
        self._make_link(name, settings.mtus[self.family])
        self._give_address(name, wanted.address)
        self._configure(name, settings, wanted, is_resync)
        self._route(name, wanted)
        self._rule(settings.priority)
        return run("wg", "show", name, "public-key").strip()

    def remove(self, settings: Settings) -> None:
        """Delete the device whatever its kind, the routes that have no other device, the rules to the table."""
        name = settings.interfaces[self.family]
        if name in _links():
            run("ip", "link", "del", name)
        self.close()
        self._route(name, Wanted({}, frozenset(), frozenset(), None))
        for rule in self._rules():
            run("ip", f"-{self.family}", "rule", "del", "priority", str(rule["priority"]), "table", TABLE)

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10.0)
        self.process = None

    def _make_link(self, name: str, mtu: int) -> None:
        if name not in _links():
            self.close()
            self.process = subprocess.Popen([self.wireguard_go, "-f", name], env=os.environ | {"LOG_LEVEL": "error"})
            deadline = time.monotonic() + 5.0
            while name not in run("wg", "show", "interfaces").split():
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise OSError(f"wireguard-go made no {name}")
                time.sleep(0.02)
        link = ip_json("link", "show", name)[0]
        if link["mtu"] != mtu or "UP" not in link["flags"]:
            run("ip", "link", "set", name, "mtu", str(mtu), "up")

    def _give_address(self, name: str, address: Address | None) -> None:
        wanted = set() if address is None else {f"{address}/{HOST_LENGTHS[self.family]}"}
        shown = ip_json(f"-{self.family}", "addr", "show", "dev", name)
        found = {
            f"{each['local']}/{each['prefixlen']}"
            for link in shown
            for each in link.get("addr_info", [])
            if each["scope"] != "link"
        }
        for each in found - wanted:
            run("ip", "addr", "del", each, "dev", name)
        for each in wanted - found:
            run("ip", "addr", "add", each, "dev", name)

    def _configure(self, name: str, settings: Settings, wanted: Wanted, is_resync: bool) -> None:
        own, *lines = run("wg", "show", name, "dump").splitlines()
        private, _, port, mark = own.split("\t")
        words: list[str] = []
        if private == "(none)":
            key = run("wg", "genkey")
            run("wg", "set", name, "private-key", "/dev/stdin", text=key)  # nowhere else
        if (int(port), mark) != (settings.ports[self.family], MARK):
            words += ["listen-port", str(settings.ports[self.family]), "fwmark", MARK]
        found = {line.split("\t")[0]: line.split("\t") for line in lines}
        known = {peer.key for peer in wanted.peers.values()}
        for key in found.keys() - known:
            words += ["peer", key, "remove"]
        for peer in wanted.peers.values():
            words += self._peer_words(peer, found.get(peer.key), settings.keepalive, is_resync)
        if words:
            run("wg", "set", name, *words)

    def _peer_words(self, peer: Peer, found: list[str] | None, keepalive: int, is_resync: bool) -> list[str]:
        """As Felix, it neither compares the keepalive of a peer that is there, nor minds a roamed endpoint until the resync."""
        allowed = frozenset(ip_network(each) for each in found[3].split(",") if each != "(none)") if found else None
        words = []
        if allowed != peer.allowed:
            words += ["allowed-ips", ",".join(sorted(map(str, peer.allowed)))]
        if found is None:
            words += ["persistent-keepalive", str(keepalive)]
        if found is None or (is_resync and found[2] != peer.endpoint):
            words += ["endpoint", peer.endpoint]
        return ["peer", peer.key, *words] if words else []

    def _route(self, name: str, wanted: Wanted) -> None:
        target = dict.fromkeys(wanted.device, "unicast") | dict.fromkeys(wanted.thrown, "throw")
        found = {}
        for each in ip_json(f"-{self.family}", "route", "show", "table", TABLE):
            kind = each.get("type", "unicast")
            if kind == "throw" or each.get("dev") == name:
                found[ip_network(each["dst"])] = kind
        script = [f"route del {_typed(kind)} {cidr} table {TABLE}" for cidr, kind in found.items() if target.get(cidr) != kind]
        for cidr, kind in target.items():
            if found.get(cidr) != kind:
                via = f" dev {name} scope link" if kind == "unicast" else ""
                script.append(f"route add {_typed(kind)} {cidr}{via} table {TABLE} proto boot")
        if script:
            run("ip", f"-{self.family}", "-batch", "-", text="\n".join(script))

    def _rule(self, priority: int) -> None:
        rules = self._rules()
        if [(rule["priority"], "not" in rule, rule.get("fwmark"), rule.get("fwmask")) for rule in rules] == [
            (priority, True, MARK, MARK)
        ]:
            return
        for rule in rules:
            run("ip", f"-{self.family}", "rule", "del", "priority", str(rule["priority"]), "table", TABLE)
        words = ("not", "from", "all", "fwmark", f"{MARK}/{MARK}", "lookup", TABLE)
        run("ip", f"-{self.family}", "rule", "add", "priority", str(priority), *words)

    def _rules(self) -> list[Any]:
        return [rule for rule in ip_json(f"-{self.family}", "rule", "show") if rule.get("table") == TABLE]


def _typed(kind: str) -> str:
    return "" if kind == "unicast" else kind


def _links() -> set[str]:
    return {link["ifname"] for link in ip_json("link")}


@dataclass
class WireguardFelix:
    """On a node with WireGuard; in its network namespace."""

    client: Client
    node: str
    wireguard_go: Path
    restart_seconds: float = RESTART_SECONDS
    resync_seconds: float = RESYNC_SECONDS
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._devices = {family: Device(family, self.wireguard_go) for family in KEYS}

    def run(self) -> None:
        """Start, and start again at every change of configuration, until ``stop``. The devices stay in between."""
        try:
            while not self.stop.is_set():
                try:
                    self._live()
                except Failure as error:
                    detail = getattr(error, "stderr", None) or ""
                    log.warning("%s: %s %s", self.node, error, detail)
                    self.stop.wait(0.5)
        finally:
            for device in self._devices.values():
                device.close()

    def _live(self) -> None:
        """From one start to the next."""
        settings = read_settings(self.client, self.node)
        log.info("%s: %s", self.node, settings)
        before: tuple[Wanted | None, ...] | None = None
        resync_at = 0.0
        while not self.stop.is_set():
            if read_settings(self.client, self.node) != settings:
                self.stop.wait(self.restart_seconds)
                return
            view = read_view(self.client)
            wanted = tuple(work_out(view, self.node, settings, family) if settings.enabled[family] else None for family in KEYS)
            is_resync = time.monotonic() >= resync_at
            if wanted != before or is_resync:
                keys = [
                    self._program(device, settings, each, is_resync)
                    for device, each in zip(self._devices.values(), wanted, strict=True)
                ]
                before = wanted
                resync_at = time.monotonic() + self.resync_seconds if is_resync else resync_at
            self._publish(view, dict(zip(KEYS, keys, strict=True)))
            self.stop.wait(POLL_SECONDS)

    def _program(self, device: Device, settings: Settings, wanted: Wanted | None, is_resync: bool) -> str | None:
        if wanted is None:
            device.remove(settings)
            return None
        return device.program(settings, wanted, is_resync)

    def _publish(self, view: View, keys: dict[int, str | None]) -> None:
        """Make the Node say what the devices are; whoever else has written there."""
        for family, key in keys.items():
            if _annotations(view.nodes[self.node]).get(KEYS[family]) == key:
                continue
            annotations = calico_annotations(self.client.get(f"{NODES}/{self.node}"))
            annotations.pop(KEYS[family], None)
            overwrite(self.client, self.node, annotations | ({KEYS[family]: key} if key else {}))
            log.info("%s: published %s", self.node, key)


def main(arguments: Sequence[str] | None = None) -> int:
    """Be Felix until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.kube.felix", description=__doc__.partition("\n")[0])
    parser.add_argument("--kubeconfig", type=Path, required=True, metavar="FILE")
    parser.add_argument("--node", required=True, metavar="NAME")
    parser.add_argument("--wireguard-go", type=Path, metavar="PATH", help="the node has WireGuard, and this is it")
    parser.add_argument("--restart-seconds", type=float, default=RESTART_SECONDS, metavar="S", help="from a change to the start")
    parser.add_argument("--resync-seconds", type=float, default=RESYNC_SECONDS, metavar="S", help="routeRefreshInterval")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    client = Client(options.kubeconfig)
    felix: Felix | WireguardFelix
    if options.wireguard_go is None:
        felix = Felix(client, options.node, options.restart_seconds)
    else:
        felix = WireguardFelix(client, options.node, options.wireguard_go, options.restart_seconds, options.resync_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: felix.stop.set())
    felix.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
