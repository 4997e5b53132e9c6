"""The cluster on top of the topology: its objects, its processes, and what it has promised.

A :class:`Member` is a node with its pods, its data plane and its agent; a :class:`Cluster` is all of them together with the
directory of manifests that every agent follows. The cluster is changed as an operator and Calico would change it: objects
are written, routes of the clear path are laid (BIRD's part), pods come and go (the CNI plugin's). Nobody tells an agent.

What the mesh *promises* follows from that alone (:meth:`Cluster.promised`): between two nodes that have a data plane, pods'
packets are encrypted while the FelixConfiguration says so, and else they go in clear; on one node they stay there.
The mesh is *settled* when what the agents have brought about says the same: :meth:`Cluster.difference` asks the data planes
for their peers and the kernel for its routes. Neither proves encryption. The capture does.
"""

import base64
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import yaml

import wgpy
from controller.demo import manifests
from controller.demo.capture import Verdict
from controller.demo.topology import Address, Interface, Namespace, Network, Node, Pod, Topology
from controller.directory import Directory
from controller.meshes.calico import ANNOTATIONS
from controller.model import Family
from controller.source import Ref
from wgpy.client import Client, ClientError
from wgpy.config import DeviceSnapshot, PeerSnapshot

UNDERLAY_NETWORK = {4: ip_network("10.77.0.0/24"), 6: ip_network("fd77::/64")}
POOL = {4: ip_network("10.42.0.0/16"), 6: ip_network("fd42::/112")}
POD_MTU = 1420  # the smallest of what is enabled, as Calico has it: 1500 less 80 for WireGuard over IPv6
PODS_PER_NODE = 2
MAX_NODES = 20  # with more, two cores do not get through every pair of them in three minutes

INTERFACE = {4: "wireguard.caliu", 6: "wg-v6.caliu"}

AGENT_STATE = "agent"  # in the directory of the node

COMMAND = """\
#!/bin/sh
# wgpy on a node of this run: what asks about the mesh is told where its cluster and its agent are.
export PYTHONPATH={packages}${{PYTHONPATH:+:$PYTHONPATH}}
verb=${{1-}} graph=
case $verb in
leave|mesh|top|doctor|verify)
    shift
    [ "$verb ${{1-}}" != "mesh graph" ] || {{ shift; graph=graph; }}
    exec {python} -P -m wgpy "$verb" $graph --directory {cluster} --node "$NODENAME" --state {agent} "$@" ;;
esac
exec {python} -P -m wgpy "$@"
"""

SETTLE_SECONDS = 30.0
SETTLE_SECONDS_PER_MEMBER = 2.0
POLL_SECONDS = 0.05
STOP_SECONDS = 3.0


class ClusterError(Exception):
    """The cluster does not do what it should. The message is one line."""


class DataPlane(StrEnum):
    WGPY = "wgpy"
    WIREGUARD_GO = "wireguard-go"
    NONE = "no WireGuard"


@dataclass(eq=False)
class Member:
    """A node of the cluster. ``number`` fixes its addresses; ``processes`` are its agent's and data plane's, by log name."""

    name: str
    number: int
    data_plane: DataPlane
    node: Node
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def encrypts(self) -> bool:
        return self.data_plane is not DataPlane.NONE

    @property
    def pods(self) -> list[Pod]:
        return list(self.node.pods.values())


@dataclass(frozen=True, slots=True)
class Published:
    """What a node says of itself in one family: its agent the key, the allocator the address."""

    key: bytes
    tunnel_address: Address | None


@dataclass(frozen=True, slots=True)
class MeshPeer:
    """One line of the mesh: what a node's data plane says of a peer, in the cluster's names."""

    node: str
    interface: str
    peer: str
    snapshot: PeerSnapshot
    pods: tuple[str, ...]


class Cluster:
    """All members, and the objects in ``topology.directory / "cluster"``. ``wireguard_go`` is its binary."""

    def __init__(self, topology: Topology, versions: Sequence[int], wireguard_go: Path | None) -> None:
        self.topology = topology
        self.versions = tuple(versions)
        self.members: list[Member] = []
        self.encryption = True
        self.directory = topology.directory / "cluster"
        self.directory.mkdir()
        self._objects = Directory(self.directory)
        self._wireguard_go = wireguard_go
        self._numbers = itertools.count(1)
        self._create(manifests.felix_configuration(self.versions))
        for version in self.versions:
            self._create(manifests.ip_pool(POOL[version]))
        # Calico's allocator runs on each node. Its stand-in runs once, in a namespace of the run like everything else.
        self._allocator = _start(
            topology.underlay, [*ALLOCATOR, "--directory", str(self.directory)], topology.directory / "allocator.log"
        )

    def keep(self) -> str:
        """:meth:`Topology.keep`, and a ``wgpy`` for who enters a node that asks about this cluster and the node's own agent."""
        script = self.topology.directory / "bin" / "wgpy"
        script.parent.mkdir()
        script.write_text(
            COMMAND.format(
                packages=shlex.quote(str(PACKAGES)),
                python=shlex.quote(sys.executable),
                cluster=self.directory,
                agent=f"{self.topology.directory}/$NODENAME/{AGENT_STATE}",
            )
        )
        script.chmod(0o755)
        return self.topology.keep()

    # Changes ---------------------------------------------------------------------------------------------------------

    def join(self, data_plane: DataPlane) -> Member:
        """A new node with its block, its pods, its objects; its data plane and agent are started but not waited for."""
        number = next(self._numbers)
        name = f"n{number}"
        member = Member(name, number, data_plane, self.topology.add_node(name, self._node_addresses(number)))
        self.members.append(member)
        self._create(manifests.node(name, member.node.addresses))
        self.add_blocks(member, [f"{name}-{letter}" for letter in "abcdefgh"[:PODS_PER_NODE]])
        self._start(member)
        return member

    def add_blocks(self, member: Member, pods: Sequence[str], *, extra: int = 0) -> None:
        """Give the node its next block of each family (the ``extra``-th beyond its first), with these pods in it."""
        blocks = [_block(POOL[version], 4 * member.number + extra) for version in self.versions]
        for host, name in enumerate(pods, start=1):
            self._add_pod(member, name, [block[host] for block in blocks])
        for block in blocks:
            inside = {address: pod.key for pod in member.pods for address in pod.addresses if address in block}
            self._create(manifests.ipam_block(block, member.name, inside))
            self.topology.announce(block, member.node)

    def move_blocks(self, pod: Pod, target: Member) -> Pod:
        """Move a pod, and with it the blocks of its addresses, to another node. Gives the pod as it is there."""
        blocks = [block for block in self.topology.blocks if any(address in block for address in pod.addresses)]
        self._remove_pod(pod)
        for block in blocks:
            self._give_block(block, target)
            self.topology.announce(block, target.node)
        return self._add_pod(target, pod.key, pod.addresses)

    def leave(self, member: Member) -> None:
        """The node is switched off and its objects are deleted, as ``kubectl delete node`` and Calico's clean-up do."""
        self._stop(member.processes)
        for pod in member.pods:
            self._remove_pod(pod)
        for block in [block for block, owner in self.topology.blocks.items() if owner is member.node]:
            self._objects.delete(Ref("IPAMBlock", manifests.block_name(block)))
            self.topology.withdraw(block)
        self._objects.delete(Ref("Node", member.name))
        self.members.remove(member)
        member.node.remove()

    def encrypt(self, enabled: bool) -> None:
        """Switch WireGuard on or off for the whole cluster: one change of one object."""
        self.encryption = enabled
        spec = manifests.felix_configuration(self.versions, enabled=enabled)["spec"]
        self._objects.update(Ref("FelixConfiguration", "default"), lambda manifest: manifest["spec"].update(spec))

    # What is promised, and what has come about -----------------------------------------------------------------------

    def pairs(self) -> list[tuple[Member, Member]]:
        return list(itertools.combinations(self.members, 2))

    def promised(self, one: Member, two: Member) -> Verdict:
        """What a capture has to show of packets between pods of two members, or of one."""
        if one is two:
            return Verdict.NOTHING
        return Verdict.ENCRYPTED if self.encryption and one.encrypts and two.encrypts else Verdict.CLEAR

    def settle(self, seconds: float | None = None) -> float:
        """Wait until the mesh is as promised; gives how long that took. :class:`ClusterError` says what is missing."""
        begun = time.monotonic()
        if seconds is None:
            seconds = SETTLE_SECONDS + SETTLE_SECONDS_PER_MEMBER * len(self.members)
        while difference := self.difference():
            self._raise_if_ended()
            if time.monotonic() > begun + seconds:
                raise ClusterError(f"not settled after {seconds:.0f} s: {difference}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - begun

    def difference(self) -> str | None:
        """The first thing found that is not as promised, or ``None``: keys, tunnel addresses, peers, allowed IPs, routes."""
        for version in self.versions:
            published = self._published(version)
            for member in self.members:
                if (member.encrypts and self.encryption) != (member.name in published):
                    what = "still publishes" if member.name in published else "has not published"
                    return f"{member.name} {what} an IPv{version} key"
                if member.name in published and published[member.name].tunnel_address is None:
                    return f"{member.name} has no IPv{version} tunnel address"
            for member in self.members:
                if found := self._peers_difference(member, version, published) or self._routes_difference(member, version):
                    return found
        return None

    def mesh(self) -> list[MeshPeer]:
        """Every data plane's peers, asked now. Raises ClientError if one does not answer."""
        published = {version: self._published(version) for version in self.versions}
        order = [member.name for member in self.members]
        rows = []
        for member, version in itertools.product(self.members, self.versions):
            names = {node.key: name for name, node in published[version].items()}
            for peer in _snapshot(member, version).peers if member.encrypts else ():
                pods = [pod.key for pod in self._pods() if _takes(peer, pod.address(version))]
                rows.append(MeshPeer(member.name, INTERFACE[version], names.get(peer.config.public_key, "?"), peer, tuple(pods)))
        return sorted(rows, key=lambda row: (order.index(row.node), row.interface, len(row.peer), row.peer))

    def logs(self) -> Iterator[Path]:
        """The log of every process there is or was."""
        yield from sorted(self.topology.directory.glob("**/*.log"))

    def _peers_difference(self, member: Member, version: int, published: Mapping[str, Published]) -> str | None:
        if member.name not in published:
            return None
        try:
            peers = {peer.config.public_key: peer for peer in _snapshot(member, version).peers}
        except ClientError as error:
            return f"{member.name}: {error}"
        others = [other for other in self.members if other is not member and other.name in published]
        for other in others:
            peer = peers.get(published[other.name].key)
            if peer is None:
                return f"{member.name} has no IPv{version} peer {other.name}"
            for address in (*(pod.address(version) for pod in other.pods), published[other.name].tunnel_address):
                if address is not None and not _takes(peer, address):
                    return f"{member.name} does not allow {address} from its peer {other.name}"
        return f"{member.name} has an IPv{version} peer that is no node's" if len(peers) > len(others) else None

    def _routes_difference(self, member: Member, version: int) -> str | None:
        others = [(other, pod) for other in self.members if other is not member for pod in other.pods]
        ways = member.node.egress([pod.address(version) for _, pod in others], source=member.pods[0])
        for (other, pod), way in zip(others, ways, strict=True):
            wanted = INTERFACE[version] if self.promised(member, other) is Verdict.ENCRYPTED else "eth0"
            if way != wanted:
                return f"{member.name} sends to {pod.key} by {way} over IPv{version}, and not by {wanted}"
        return None

    def _raise_if_ended(self) -> None:
        processes = {_log(member, name): process for member in self.members for name, process in member.processes.items()}
        for log, process in {**processes, self.topology.directory / "allocator.log": self._allocator}.items():
            if (status := process.poll()) is not None:
                where = log.relative_to(self.topology.directory).with_suffix("")
                raise ClusterError(f"{where} has ended with status {status}: {_last_line(log)}")

    def _pods(self) -> list[Pod]:
        return [pod for member in self.members for pod in member.pods]

    # Processes -------------------------------------------------------------------------------------------------------

    def _start(self, member: Member) -> None:
        if not member.encrypts:
            return
        commands = {**self._data_plane_commands(member), "agent": self._agent_command(member)}
        for name, command in commands.items():
            member.processes[name] = _start(member.node, command, _log(member, name))

    def _data_plane_commands(self, member: Member) -> dict[str, list[str]]:
        interfaces = [INTERFACE[version] for version in self.versions]
        if member.data_plane is DataPlane.WIREGUARD_GO:
            return {f"wireguard-go-{name}": [str(self._wireguard_go), name] for name in interfaces}
        state = member.node.directory / "state"
        return {"wgpy": [*WGPY, "run", "--persist", "--state", str(state), *interfaces]}

    def _agent_command(self, member: Member) -> list[str]:
        state = member.node.directory / AGENT_STATE
        return [*AGENT, "--directory", str(self.directory), "--node", member.name, "--state", str(state)]

    @staticmethod
    def _stop(processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
        for process in processes.values():
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # Objects ---------------------------------------------------------------------------------------------------------

    def _published(self, version: int) -> dict[str, Published]:
        """What is on the Nodes of those that have a key."""
        self._objects.refresh(time.monotonic())
        names = ANNOTATIONS[Family(version)]
        published = {}
        for member in self.members:
            node = self._objects.objects.get(Ref("Node", member.name), {"metadata": {}})
            annotations = node["metadata"].get("annotations") or {}
            if key := annotations.get(names.public_key):
                address = annotations.get(names.interface_address)
                published[member.name] = Published(base64.b64decode(key), ip_address(address) if address else None)
        return published

    def _give_block(self, block: Network, target: Member) -> None:
        """Change the block's affinity, and the node of each pod in it. A tunnel address in it stays who it is."""

        def change(manifest: dict[str, Any]) -> None:
            manifest["spec"]["affinity"] = f"host:{target.name}"
            for owner in manifest["spec"]["attributes"]:
                if "pod" in owner["secondary"]:
                    owner["secondary"]["node"] = target.name

        self._objects.update(Ref("IPAMBlock", manifests.block_name(block)), change)

    def _create(self, manifest: manifests.Manifest) -> None:
        """Add an object. Its file's name is one nobody else writes, so it needs no lock, only to be whole at once."""
        target = self._file(manifest["kind"], manifest["metadata"]["name"])
        aside = target.with_suffix(".tmp")
        aside.write_text(
            yaml.safe_dump({**manifest, "metadata": {**manifest["metadata"], "resourceVersion": "1"}}, sort_keys=False)
        )
        aside.rename(target)

    def _file(self, kind: str, name: str) -> Path:
        return self.directory / f"{kind}-{name}.yaml".lower()

    def _remove_pod(self, pod: Pod) -> None:
        pod.remove()
        # Nobody but us writes or reads Pods: blocks say where addresses are.
        self._file("Pod", pod.key).unlink()

    def _node_addresses(self, number: int) -> list[Interface]:
        return [ip_interface(f"{UNDERLAY_NETWORK[v][number]}/{UNDERLAY_NETWORK[v].prefixlen}") for v in self.versions]

    def _add_pod(self, member: Member, name: str, addresses: Sequence[Address]) -> Pod:
        pod = member.node.add_pod(f"{manifests.NAMESPACE}/{name}", addresses, mtu=POD_MTU)
        self._create(manifests.pod(name, member.name, addresses))
        return pod


PACKAGES = Path(wgpy.__file__).parents[1]  # the directory that has our packages
# As modules, not as commands: so they are found in a checkout where nothing is installed.
WGPY = [sys.executable, "-m", "wgpy"]
ALLOCATOR = [sys.executable, "-m", "controller.allocator"]
AGENT = [sys.executable, "-m", "controller", "agent"]


def find_wireguard_go() -> Path | None:
    """wireguard-go by either of its names (``go install golang.zx2c4.com/wireguard`` calls it ``wireguard``).

    It is looked for where ``make setup`` puts it in a checkout, and in PATH.
    """
    path = os.pathsep.join([str(PACKAGES / ".cache" / "bin"), os.environ.get("PATH", os.defpath)])
    found = shutil.which("wireguard-go", path=path) or shutil.which("wireguard", path=path)
    return Path(found) if found else None


def _environment() -> dict[str, str]:
    """Ours, with the packages found wherever the child starts."""
    # WG_PROCESS_FOREGROUND keeps wireguard-go in the foreground, as -f does, and spares its log a banner about kernels.
    return {
        "WG_PROCESS_FOREGROUND": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")])),
    }


def _start(where: Namespace, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return where.start(command, output, env=_environment())


def _log(member: Member, name: str) -> Path:
    return member.node.directory / f"{name}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


def _block(pool: Network, position: int) -> Network:
    """The ``position``-th block of a pool."""
    length = manifests.BLOCK_PREFIX_LENGTH[pool.version]
    base = int(pool.network_address) + (position << (pool.max_prefixlen - length))
    return ip_network((base, length))


def _snapshot(member: Member, version: int) -> DeviceSnapshot:
    return Client(INTERFACE[version], member.node.wireguard_directory, timeout=2.0).get()


def _takes(peer: PeerSnapshot, address: Address) -> bool:
    return any(address in allowed for allowed in peer.config.allowed_ips)
