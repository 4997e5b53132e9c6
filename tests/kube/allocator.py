"""Calico's tunnel-address allocator, with its manners: what calico-node's ``tunnel-ip-allocator`` was read and measured to do.

It watches its own Node's public keys and the pools, and any change begins a pass. A change that comes during a pass is *lost*.
A pass reads the Node, takes its time with allocations, and then, if an address has changed, writes the Node it has read: a key
that was published meanwhile is deleted again. An address is released with its key, and the next is another (calico.md 2.4, 16).

    python -m tests.kube.allocator --kubeconfig FILE --node NAME [--polite]

``--polite`` is for tests about something else: passes are quick, and no change is lost.
"""

import argparse
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from tests.kube.client import CALICO, NODES, PREFIX, Client, Object, Refused, calico_annotations, overwrite, own_node

log = logging.getLogger(__name__)

Network = IPv4Network | IPv6Network

BLOCKS, POOLS = f"{CALICO}/ipamblocks", f"{CALICO}/ippools"
PASS_SECONDS = (0.05, 0.4)
KEYS = {4: f"{PREFIX}WireguardPublicKey", 6: f"{PREFIX}WireguardPublicKeyV6"}
ADDRESSES = {4: f"{PREFIX}IPv4WireguardInterfaceAddr", 6: f"{PREFIX}IPv6WireguardInterfaceAddr"}
TYPES = {4: "wireguardTunnelAddress", 6: "wireguardV6TunnelAddress"}
HANDLES = {4: "wireguard-tunnel-addr-", 6: "wireguard-v6-tunnel-addr-"}
BLOCK_LENGTHS = {4: 26, 6: 122}


@dataclass
class Allocator:
    """The allocator of one node, in threads of its own from ``start`` to ``stop``. ``seed`` decides how long passes take."""

    client: Client
    node: str
    seed: int = 0
    is_polite: bool = False
    passes: int = 0
    lost: int = 0
    """Changes that came during a pass."""
    overwritten: int = 0
    """Passes that wrote a Node that had changed since it was read."""
    _last: dict[int, int] = field(default_factory=dict)
    _known: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(f"{self.node} {self.seed}")
        self._stop = threading.Event()
        self._is_listening = threading.Event()
        self._told = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, daemon=True),
            threading.Thread(target=self._follow, args=(own_node(self.node),), daemon=True),
            threading.Thread(target=self._follow, args=(POOLS,), daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._told.set()
        self._threads[0].join(10.0)

    # What begins a pass

    def _follow(self, path: str) -> None:
        for manifest in self.client.watch(path, self._stop):
            self._see(manifest)

    def _see(self, manifest: Object) -> None:
        name = manifest["metadata"]["name"]
        annotations = manifest["metadata"].get("annotations") or {}
        data: object = manifest["spec"] if "cidr" in manifest["spec"] else [annotations.get(key) for key in KEYS.values()]
        with self._lock:
            is_new = self._known.get(name, self) != data
            self._known[name] = data
            if is_new and (self._is_listening.is_set() or self.is_polite):
                self._is_listening.clear()
                self._told.set()
            elif is_new:
                self.lost += 1

    def _run(self) -> None:
        self._told.set()  # the first pass is nobody's doing
        while not self._stop.is_set():
            self._told.wait()
            self._told.clear()
            try:
                self._pass()
            except Exception as error:  # calico-node would end and be started again
                log.warning("%s: %s", self.node, error)
                if self._stop.wait(1.0):
                    return
                self._told.set()
            with self._lock:
                self._is_listening.set()

    # A pass

    def _pass(self) -> None:
        read = self.client.get(f"{NODES}/{self.node}")
        ends = time.monotonic() + (0.0 if self.is_polite else self._random.uniform(*PASS_SECONDS))
        before = calico_annotations(read)
        after = dict(before)
        for family in KEYS:
            self._put_right(family, after)
        self._stop.wait(max(0.0, ends - time.monotonic()))
        if after != before:
            self.overwritten += calico_annotations(self.client.get(f"{NODES}/{self.node}")) != before
            if self.is_polite:
                self._annotate(before, after)
            else:
                overwrite(self.client, self.node, after)
        self.passes += 1

    def _annotate(self, before: dict[str, str], after: dict[str, str]) -> None:
        def change(node: Object) -> None:
            annotations = node["metadata"].setdefault("annotations", {})
            for name in ADDRESSES.values():
                if before.get(name) != after.get(name):
                    annotations.pop(name, None)
                    annotations.update({name: after[name]} if name in after else {})

        self.client.change(f"{NODES}/{self.node}/status", change)

    def _put_right(self, family: int, annotations: dict[str, str]) -> None:
        pools = [cidr for cidr in self._pools() if cidr.version == family]
        held = annotations.get(ADDRESSES[family])
        if not annotations.get(KEYS[family]) or not pools:
            annotations.pop(ADDRESSES[family], None)
            self._release(family)
        elif held is None or held not in self._allocated(family):
            self._release(family)
            address = self._assign(family, pools)
            if address is not None:
                annotations[ADDRESSES[family]] = address
                log.info("%s: %s", self.node, address)

    # Allocations

    def _pools(self) -> Iterator[Network]:
        for pool in self.client.list(POOLS):
            spec = pool["spec"]
            if not spec.get("disabled") and "Tunnel" in (spec.get("allowedUses") or ["Tunnel"]):
                yield ip_network(spec["cidr"])

    def _own_blocks(self, family: int) -> list[Object]:
        affinity = f"host:{self.node}"
        blocks = [block for block in self.client.list(BLOCKS) if block["spec"].get("affinity") == affinity]
        return [block for block in blocks if ip_network(block["spec"]["cidr"]).version == family]

    def _allocated(self, family: int) -> set[str]:
        return {str(address) for block in self.client.list(BLOCKS) for address in self._mine(block, family)}

    def _mine(self, block: Object, family: int) -> Iterator[object]:
        """Addresses in a block that are this node's tunnel address."""
        spec = block["spec"]
        base = ip_network(spec["cidr"]).network_address
        for ordinal, index in enumerate(spec.get("allocations") or []):
            if index is not None and self._is_ours(spec["attributes"][index], family):
                yield base + ordinal

    def _is_ours(self, attribute: Object, family: int) -> bool:
        secondary = attribute.get("secondary") or {}
        return secondary.get("type") == TYPES[family] and secondary.get("node") == self.node

    def _release(self, family: int) -> None:
        def change(block: Object) -> None:
            spec = block["spec"]
            for ordinal, index in enumerate(spec["allocations"]):
                if index is not None and self._is_ours(spec["attributes"][index], family):
                    spec["allocations"][ordinal] = None
                    spec["unallocated"] = [*(spec.get("unallocated") or []), ordinal]
            _drop_unused_attributes(spec)

        for block in self.client.list(BLOCKS):
            if any(True for _ in self._mine(block, family)):
                self.client.change(f"{BLOCKS}/{block['metadata']['name']}", change)

    def _assign(self, family: int, pools: Sequence[Network]) -> str | None:
        """The first address after the last one that is free in a block of ours, or of a new block."""
        for block in self._own_blocks(family) or [self._new_block(family, pools)]:
            taken: list[int] = []
            self.client.change(f"{BLOCKS}/{block['metadata']['name']}", lambda block: self._take(block, family, taken))  # noqa: B023
            if taken:
                return str(ip_network(block["spec"]["cidr"]).network_address + taken[-1])
        return None

    def _take(self, block: Object, family: int, taken: list[int]) -> None:
        taken.clear()
        spec = block["spec"]
        free = [ordinal for ordinal, index in enumerate(spec["allocations"]) if index is None]
        if not free:
            return
        ordinal = next((each for each in free if each > self._last.get(family, -1)), free[0])
        secondary = {"node": self.node, "type": TYPES[family]}
        spec["attributes"] = [*(spec.get("attributes") or []), {"handle_id": HANDLES[family] + self.node, "secondary": secondary}]
        spec["allocations"][ordinal] = len(spec["attributes"]) - 1
        spec["unallocated"] = [each for each in free if each != ordinal]
        self._last[family] = ordinal
        taken.append(ordinal)

    def _new_block(self, family: int, pools: Sequence[Network]) -> Object:
        for attempt in range(20):
            taken = [ip_network(block["spec"]["cidr"]) for block in self.client.list(BLOCKS)]
            for pool in pools:
                # From a place of its own, so that nodes that start together seldom want the same one.
                for cidr in _subnets(pool, BLOCK_LENGTHS[family], f"{self.node} {attempt}"):
                    if not any(cidr.overlaps(other) for other in taken if other.version == cidr.version):
                        try:
                            return self._create_block(cidr)
                        except Refused as error:
                            if error.status != 409:
                                raise
        raise Refused(409, "no pool has room")

    def _create_block(self, cidr: Network) -> Object:
        size = cidr.num_addresses
        created: Object = self.client.request(
            "POST",
            BLOCKS,
            {
                "apiVersion": "crd.projectcalico.org/v1",
                "kind": "IPAMBlock",
                "metadata": {"name": str(cidr).translate(str.maketrans(".:/", "---"))},
                "spec": {
                    "cidr": str(cidr),
                    "affinity": f"host:{self.node}",
                    "strictAffinity": False,
                    "deleted": False,
                    "allocations": [None] * size,
                    "unallocated": list(range(size)),
                    "attributes": [],
                },
            },
        )
        return created


def _subnets(pool: Network, length: int, seed: str) -> Iterator[Network]:
    """A hundred blocks of a pool, one after the other from some place on."""
    count, size = 1 << (length - pool.prefixlen), 1 << (pool.max_prefixlen - length)
    first = random.Random(seed).randrange(count)
    for number in range(min(count, 100)):
        base = int(pool.network_address) + (first + number) % count * size
        yield ip_network((base.to_bytes(pool.max_prefixlen // 8, "big"), length))


def _drop_unused_attributes(spec: Object) -> None:
    used = sorted({index for index in spec["allocations"] if index is not None})
    spec["attributes"] = [spec["attributes"][index] for index in used]
    spec["allocations"] = [None if index is None else used.index(index) for index in spec["allocations"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Allocate until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.kube.allocator", description=__doc__.partition("\n")[0])
    parser.add_argument("--kubeconfig", type=Path, required=True, metavar="FILE")
    parser.add_argument("--node", required=True, metavar="NAME", action="append", help="may be said several times")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides how long passes take")
    parser.add_argument("--polite", action="store_true", help="quick passes, and nothing is lost")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    client = Client(options.kubeconfig)
    allocators = [Allocator(client, node, options.seed, options.polite) for node in options.node]
    for allocator in allocators:
        allocator.start()
    signal.sigwait(ending)
    for allocator in allocators:
        allocator.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
