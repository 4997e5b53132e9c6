"""A stand-in for Calico's tunnel-address allocator, for demo and tests. In a cluster Calico does this, never the agent.

For each Node with a public key and no interface address it takes a free address out of one of the node's blocks, or out of a
new block of an IPPool, records it there as Calico does (attribute ``type`` and ``node``), and then annotates the Node. When
the key goes, so do annotation and allocation. Level-triggered: what an interrupted pass has left is found and used, or
freed, by the next. Source: calico.md 2.4; ``node/pkg/allocateip/allocateip.go``.

    python -m controller.allocator --directory DIR
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from controller.directory import POLL_SECONDS, Directory
from controller.meshes.calico import ANNOTATIONS, API_VERSIONS, HOST_AFFINITY_PREFIX, IPAM_BLOCK, observe
from controller.meshes.nodes import NODE
from controller.model import Address, Cluster, Family, Node, Pool
from controller.source import Manifest, Objects, Ref, SourceError
from wgpy.config import Prefix

log = logging.getLogger(__name__)

TYPES = {Family.IPV4: "wireguardTunnelAddress", Family.IPV6: "wireguardV6TunnelAddress"}
HANDLES = {Family.IPV4: "wireguard-tunnel-addr-", Family.IPV6: "wireguard-v6-tunnel-addr-"}


def allocate(directory: Directory) -> int:
    """Bring the directory, as it is on disk now, to where it ought to be; the number of changes. Raises SourceError."""
    changes = 0
    directory.refresh(time.monotonic())
    while any(_change_one(directory, family) for family in Family):
        changes += 1
        directory.refresh(time.monotonic())
    return changes


def _change_one(directory: Directory, family: Family) -> bool:
    """Make one change, if one is to be made. The next is then worked out from what has come of it."""
    cluster = observe(directory.objects, node_name="").cluster
    name = ANNOTATIONS[family].interface_address
    held = dict(_held(directory.objects, family))
    for node in cluster.nodes.values():
        network = node.of(family)
        if network.public_key is None:
            if network.interface_address is not None:
                return _annotate(directory, node, name, None)
            continue
        mine = [address for address, (_, holder) in held.items() if holder == node.name]
        if network.interface_address in mine:
            continue
        address = mine[0] if mine else _take(directory, cluster, node, family)
        if address is not None:
            return _annotate(directory, node, name, str(address))
        log.warning("no free %s address for node %s: no pool has room", family, node.name)
    for address, (ref, holder) in held.items():
        if holder not in cluster.nodes or cluster.nodes[holder].of(family).public_key is None:
            log.info("taking back %s of node %s", address, holder)
            return directory.update(ref, partial(_free, address=address))
    return False


def _annotate(directory: Directory, node: Node, name: str, value: str | None) -> bool:
    def change(manifest: dict[str, Any]) -> None:
        annotations = manifest["metadata"].setdefault("annotations", {})
        if value is None:
            annotations.pop(name, None)
        else:
            annotations[name] = value

    log.info("node %s: %s is now %s", node.name, name, value)
    return directory.update(Ref(NODE, node.name), change)


def _held(objects: Objects, family: Family) -> Iterator[tuple[Address, tuple[Ref, str]]]:
    """Every tunnel address that is allocated: its block, and the node that holds it."""
    for ref, manifest in objects.items():
        if ref.kind == IPAM_BLOCK:
            for ordinal, attribute in _allocations(manifest):
                secondary = attribute.get("secondary") or {}
                if secondary.get("type") == TYPES[family]:
                    yield _base(manifest) + ordinal, (ref, str(secondary.get("node")))


def _allocations(manifest: Manifest) -> Iterator[tuple[int, dict[str, Any]]]:
    attributes = manifest["spec"].get("attributes") or []
    for ordinal, index in enumerate(manifest["spec"].get("allocations") or []):
        if isinstance(index, int) and index < len(attributes):
            yield ordinal, attributes[index]


def _take(directory: Directory, cluster: Cluster, node: Node, family: Family) -> Address | None:
    """Allocate an address for the node; None if there is none."""
    pools = [pool for pool in cluster.pools if pool.allows_tunnels and pool.cidr.version == family.value]
    own = [
        Ref(IPAM_BLOCK, ref.name)
        for ref, manifest in directory.objects.items()
        if ref.kind == IPAM_BLOCK
        and manifest["spec"].get("affinity") == HOST_AFFINITY_PREFIX + node.name
        and any(_lies_in(ip_network(manifest["spec"]["cidr"]), pool) for pool in pools)
    ]
    for ref in own:
        if (address := _take_from(directory, ref, node, family)) is not None:
            return address
    for pool in pools:
        if (block := _new_block(directory, cluster, node, pool)) is not None:
            return _take_from(directory, block, node, family)
    return None


def _take_from(directory: Directory, ref: Ref, node: Node, family: Family) -> Address | None:
    taken: list[Address] = []

    def change(block: dict[str, Any]) -> None:
        taken.clear()
        spec = block["spec"]
        size = ip_network(spec["cidr"]).num_addresses
        allocations = spec.setdefault("allocations", [None] * size)
        free = [ordinal for ordinal, index in enumerate(allocations) if index is None]
        if not free:
            return
        attributes = spec.setdefault("attributes", [])
        secondary = {"node": node.name, "type": TYPES[family]}
        attributes.append({"handle_id": HANDLES[family] + node.name, "secondary": secondary})
        allocations[free[0]] = len(attributes) - 1
        spec["unallocated"] = free[1:]
        taken.append(_base(block) + free[0])

    directory.update(ref, change)
    return taken[0] if taken else None


def _free(block: dict[str, Any], address: Address) -> None:
    """Forget one allocation, and its attribute if nothing else points to it."""
    spec = block["spec"]
    ordinal = int(address) - int(_base(block))
    index = spec["allocations"][ordinal]
    if index is None:
        return
    spec["allocations"][ordinal] = None
    if index not in spec["allocations"]:
        del spec["attributes"][index]
        spec["allocations"] = [other - 1 if other is not None and other > index else other for other in spec["allocations"]]
    spec["unallocated"] = [*(spec.get("unallocated") or []), ordinal]


def _new_block(directory: Directory, cluster: Cluster, node: Node, pool: Pool) -> Ref | None:
    """A block of the pool that nobody has, made affine to the node."""
    taken = [block.cidr for block in cluster.blocks]
    for cidr in pool.cidr.subnets(new_prefix=pool.block_prefix_length):
        if not any(cidr.version == other.version and cidr.overlaps(other) for other in taken):
            name = str(cidr).translate(str.maketrans(".:/", "---"))
            size = cidr.num_addresses
            directory.create(
                {
                    "apiVersion": API_VERSIONS[0],
                    "kind": IPAM_BLOCK,
                    "metadata": {"name": name},
                    "spec": {
                        "cidr": str(cidr),
                        "affinity": HOST_AFFINITY_PREFIX + node.name,
                        "strictAffinity": False,
                        "deleted": False,
                        "allocations": [None] * size,
                        "unallocated": list(range(size)),
                        "attributes": [],
                    },
                }
            )
            return Ref(IPAM_BLOCK, name)
    return None


def _lies_in(cidr: Prefix, pool: Pool) -> bool:
    return cidr.version == pool.cidr.version and cidr.network_address in pool.cidr


def _base(manifest: Manifest) -> Address:
    return ip_network(manifest["spec"]["cidr"], strict=False).network_address


def main(arguments: Sequence[str] | None = None) -> int:
    """Allocate until killed."""
    parser = argparse.ArgumentParser(prog="python -m controller.allocator", description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    directory = Directory(options.directory)
    try:
        directory.load()
        again = True
        while True:
            try:
                if again or directory.refresh(time.monotonic()):
                    again = allocate(directory) > 0
            except SourceError as error:
                log.warning("%s", error)  # an object went away between looking and writing: look again
            time.sleep(POLL_SECONDS)
    except SourceError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
