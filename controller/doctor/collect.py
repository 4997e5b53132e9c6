"""Looks at this node, and changes nothing. What it sees is a :class:`~controller.doctor.facts.Facts`.

It goes by what the agent goes by: the same source, state directory, names and numbers, and the same pure functions. What an
agent would do now is the plan from what is found to what ought to be; while the cluster changes there is always such a thing, so
a plan counts only if it is still there when it is looked at again.

It sends three kinds of datagrams, unless told not to: to each peer's port, to see whether somebody listens; through the tunnel
to each peer's tunnel address, which makes for a handshake; and large ones there, to see what gets through.
"""

import asyncio
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from controller.apply import Place, read_state
from controller.desired import DEFAULT_NUMBERS, Identity, Numbers, Policy, desired_state, keep_roamed
from controller.doctor import firewall, probe
from controller.doctor.facts import Drop, Facts, FamilyFacts, KeyFile, Mark, Moment, Way
from controller.findings import Finding, findings
from controller.instance import Instance
from controller.mesh import Mesh
from controller.model import Address, Cluster, Family
from controller.netlink import Kernel, NetlinkRefusal
from controller.plan import Step, plan
from controller.source import Objects, Source, SourceError
from controller.state import Rule
from controller.statefiles import StateError, StateFiles, clamp, public_key
from controller.status import STALE_SECONDS, YIELDS, AgentStatus, FamilyStatus, Seen, Traffic, family_status, from_json
from wgpy.client import Client, ClientError
from wgpy.config import DeviceSnapshot, PeerConfig, parse_endpoint, parse_prefix
from wgpy.wgconf import format_key, parse_key

TUN = Path("/dev/net/tun")
TUNGETFEATURES = 0x800454CF  # linux/if_tun.h
CAP_NET_ADMIN = 12

SECOND_LOOK_SECONDS = 1.5
LOOKS = 4
LIST_SECONDS = 10.0
KNOCK_SECONDS = 0.5
ANSWER_SECONDS = 1.0
HANDSHAKE_SECONDS = 6.5
"""An initiation that gets lost is sent again after five seconds and a bit."""

MOST_PEERS = 64
"""To how many peers datagrams are sent: first those that do not answer, so that in a large mesh no peer in need is left out."""

MOST_RANGES = 4
WITNESS_FILES = ("status.json", "history.jsonl", "objects.json")
NETLINK_ERRORS = (NetlinkError, OSError)

Server = Callable[[], "tuple[float | None, tuple[str, ...]]"]
"""Asks the API server: how far its clock is ahead of ours, and what it does not allow us."""


@dataclass(frozen=True, slots=True)
class Options:
    """Where to look. ``sends``: datagrams may be sent. ``numbers`` are the agent's, by family."""

    node: str
    state: Path
    numbers: Mapping[Family, Numbers]
    sends: bool = True
    external_peers: tuple[PeerConfig, ...] | None = None


class LookingKernel(Kernel):
    """A kernel that is only looked at, and that is asked more than the agent does."""

    def way(self, destination: Address) -> str | None:
        """The interface by which a packet of this host to ``destination`` would leave; None if it would not."""
        try:
            found = list(self._netlink.route("get", dst=str(destination)))
            index = found[0].get_attr("RTA_OIF")
            return None if index is None else str(self._netlink.get_links(index)[0].get_attr("IFLA_IFNAME"))
        except NETLINK_ERRORS:
            return None

    def wires(self, here: Address, there: Address, tunnel: str | None) -> Iterator[str]:
        """The links by which encrypted packets from ``here``, an address of this node, leave for the node ``there``. With host
        encryption the way to that node is the ``tunnel`` itself, and the link is the one that has our address. Raises
        NetlinkRefusal."""
        way = self.way(there)
        if way is not None and way != tunnel:
            yield way
        elif (underlay := self.underlay(here, tunnel)) is not None:
            yield underlay.name

    def rules_by_mark(self, family: Family, mask: int, table: int) -> Iterator[Rule]:
        """Rules of others that look at any bit of ``mask``. Those to ``table`` are ours."""
        number = 2 if family is Family.IPV4 else 10  # AF_INET, AF_INET6
        try:
            found = list(self._netlink.get_rules(family=number))
        except NETLINK_ERRORS:
            return
        for message in found:
            mark, bits = message.get_attr("FRA_FWMARK") or 0, message.get_attr("FRA_FWMASK") or 0
            if mark & bits & mask and message.get_attr("FRA_TABLE") != table:
                yield Rule(message.get_attr("FRA_PRIORITY") or 0, mark, bits)


class LookingFiles(StateFiles):
    """A state directory that is only looked at: there has to be one, and no key is made."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise StateError(f"there is no state directory {path}: no agent has run here, or with another --state")
        super().__init__(path)

    def private_key(self, family: Family) -> bytes:
        try:
            return clamp(parse_key(self._file(family, "key").read_text("ascii", errors="replace").strip()))
        except (OSError, ValueError):
            raise StateError(f"{self._file(family, 'key')} holds no private key that can be read") from None

    def key_file(self, family: Family) -> tuple[Path, KeyFile]:
        """Where the key is, and in what condition."""
        path = self._file(family, "key")
        if not path.exists():
            return path, KeyFile.MISSING
        try:
            self.private_key(family)
        except StateError:
            return path, KeyFile.UNREADABLE
        return path, KeyFile.OPEN if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) else KeyFile.GOOD


class Collector:
    """One look at a node. ``source`` is None where there is no cluster to read, for the reason ``source_error``."""

    def __init__(self, options: Options, mesh: Mesh, kernel: LookingKernel, server: Server | None = None) -> None:
        self._options = options
        self._mesh = mesh
        self._kernel = kernel
        self._server = server
        self._files: LookingFiles | None = None
        self._agent: AgentStatus | None = None

    def collect(self, source: Source | None, source_error: str | None = None) -> Facts:
        """Blocking: some seconds where all is well, half a minute where peers do not answer."""
        options = self._options
        facts = Facts(options.node, time.time(), str(options.state), tun_error=tun_error(), has_net_admin=has_net_admin())
        try:
            self._files = LookingFiles(options.state)
            self._agent = _status(self._files)
        except StateError as error:
            facts = replace(facts, state_error=str(error))
        objects: Objects | None = None
        if source is not None:
            facts = replace(facts, source=source.name)
            try:
                objects = asyncio.run(_listed(source))
            except (SourceError, TimeoutError) as error:
                source_error = str(error) or f"no answer within {LIST_SECONDS:.0f} s"
        if objects is None and self._files is not None:
            objects = self._files.objects()
        lead, denied = self._server() if self._server is not None and source_error is None else (None, ())
        facts = replace(facts, source_error=source_error, server_lead=lead, denied=denied)
        facts = replace(facts, agent=self._agent, agent_runs=_is_locked(options.state / "agent.lock") if self._files else None)
        observation = self._mesh.observe(objects or {}, options.node)
        if options.node not in observation.cluster.nodes:
            return replace(facts, is_known=False, moments=tuple(self._moments(())))
        malformed = [Finding("MalformedObject", str(problem.ref), str(problem)) for problem in observation.problems]
        return self._with_cluster(facts, observation.cluster, malformed)

    def _with_cluster(self, facts: Facts, cluster: Cluster, malformed: Sequence[Finding]) -> Facts:
        if self._files is None:
            return facts
        enabled = [family for family in Family if cluster.felix.of(family).enabled]
        instances = {
            family: Instance(
                family,
                self._options.node,
                self._options.numbers.get(family, DEFAULT_NUMBERS[family]),
                self._kernel,
                self._files,
                yields_to_kernel=self._yields(family),
            )
            for family in enabled
        }
        families = [self._family(facts.now, cluster, instance) for instance in instances.values()]
        ruleset, saved = _ruleset(), _saved()
        told = self._agent.findings if self._agent is not None and facts.agent_runs else ()
        return replace(
            facts,
            moments=tuple(self._moments(families)),
            findings=_unique([*malformed, *self._findings(cluster, instances, families), *told]),
            families=tuple(families),
            drops=None if ruleset is None else tuple(self._drops(ruleset, families)),
            marks=None if ruleset is None else tuple(firewall.marks(ruleset, saved)),
        )

    def _yields(self, family: Family) -> bool:
        """Whether the agent was told to make way for the kernel's WireGuard, and does: its own options are not ours to know."""
        status = self._agent.of(family) if self._agent is not None else None
        return status is not None and status.rest == YIELDS

    def _findings(
        self, cluster: Cluster, instances: Mapping[Family, Instance], families: Sequence[FamilyFacts]
    ) -> Iterator[Finding]:
        """What the agent would find. It needs a key, which a family may lack."""
        known = {one.family: instances[one.family].facts(cluster) for one in families if one.public_key is not None}
        yield from findings(cluster, self._options.node, known)

    # One family

    def _family(self, now: float, cluster: Cluster, instance: Instance) -> FamilyFacts:
        assert self._files is not None
        family = instance.family
        numbers = self._options.numbers.get(family, DEFAULT_NUMBERS[family])
        network = cluster.nodes[self._options.node].of(family)
        rest = instance.rest(cluster)
        path, key_file = self._files.key_file(family)
        key = self._files.private_key(family) if key_file in (KeyFile.GOOD, KeyFile.OPEN) else None
        interface = self._files.assigned(family).interface or instance.interface(cluster)
        port = cluster.felix.of(family).port
        facts = FamilyFacts(
            family,
            interface,
            port,
            numbers.table,
            numbers.fwmark,
            numbers.fwmask,
            rest=rest.reason if rest is not None else None,
            key_path=str(path),
            key_file=key_file,
            public_key=format_key(public_key(key)) if key is not None else None,
            announced=format_key(network.public_key) if network.public_key is not None else None,
            address=network.address,
            foreign_rules=tuple(self._kernel.rules_by_mark(family, numbers.fwmask, numbers.table)),
            forwards=_forwards(family),
        )
        if rest is not None or key is None:
            return facts
        identity = Identity(self._options.node, key, public_key(key))
        return self._device(now, cluster, facts, identity, numbers)

    def _device(self, now: float, cluster: Cluster, facts: FamilyFacts, identity: Identity, numbers: Numbers) -> FamilyFacts:
        link = self._kernel.find_link(facts.interface)
        facts = replace(facts, link=link.link if link is not None else None)
        underlay = self._kernel.underlay(facts.address, facts.interface) if facts.address is not None else None
        facts = replace(facts, underlay=underlay.name if underlay is not None else None)
        try:
            snapshot = Client(facts.interface).get()
        except ClientError as error:
            return replace(facts, device_error=str(error))
        facts = replace(
            facts,
            listen_port=snapshot.listen_port,
            port_is_taken=snapshot.listen_port != facts.port and facts.port in _open_ports(facts.family),
            steps=self._steps(cluster, Place(facts.family, facts.interface, facts.table, underlay), identity, numbers, snapshot),
            status=self._status(cluster, facts),
        )
        return self._asked(cluster, facts)

    def _steps(
        self, cluster: Cluster, place: Place, identity: Identity, numbers: Numbers, snapshot: DeviceSnapshot
    ) -> tuple[Step, ...]:
        """What an agent would do now, and still would a moment later."""
        assert self._files is not None
        is_strict = self._agent.is_strict if self._agent is not None else False
        external = self._options.external_peers
        if external is None:
            external = _external_peers(self._agent.of(place.family) if self._agent is not None else None, snapshot)
        felix = cluster.felix.of(place.family).interface
        policy = Policy(is_strict, external, cluster.felix.workloads | {felix})
        mtu = place.underlay.mtu if place.underlay is not None else None
        desired = desired_state(cluster, place.family, identity, numbers, mtu, policy)
        standing: tuple[Step, ...] | None = None
        for _ in range(LOOKS):
            try:
                found = read_state(self._kernel, place)
            except (NetlinkRefusal, ClientError):
                return ()
            steps = plan(keep_roamed(desired, found, self._files.assigned(place.family).endpoints), found)
            if not steps or steps == standing:
                return steps
            standing = steps
            time.sleep(SECOND_LOOK_SECONDS)
        return standing or ()

    def _status(self, cluster: Cluster, facts: FamilyFacts) -> FamilyStatus | None:
        before = self._agent.of(facts.family) if self._agent is not None else None
        try:
            snapshot = Client(facts.interface).get()
        except ClientError:
            return before
        seen = Seen(
            time.time(),
            public_key=parse_key(facts.public_key) if facts.public_key else None,
            interface=facts.interface,
            snapshot=snapshot,
            is_refusing=before.is_refusing if before is not None else False,
        )
        return family_status(cluster, facts.family, self._options.node, seen, before)

    # Asking the others

    def _asked(self, cluster: Cluster, facts: FamilyFacts) -> FamilyFacts:
        peers = [
            one
            for one in (facts.status.peers if facts.status else ())
            if one.traffic is Traffic.ENCRYPTED and not one.is_external
        ]
        ranges = [(peer.name, text) for peer in peers for text in peer.ranges[:MOST_RANGES]]
        ways = [(name, parse_prefix(text).network_address) for name, text in ranges[: 4 * MOST_PEERS]]
        facts = replace(facts, ways=tuple(Way(name, address, self._kernel.way(address)) for name, address in dict.fromkeys(ways)))
        mtu = facts.link.mtu if facts.link is not None and facts.link.is_up else None
        if not self._options.sends or mtu is None:
            return facts
        peers = sorted(peers, key=lambda peer: (not peer.is_silent, peer.last_handshake or 0.0))[:MOST_PEERS]
        endpoints = [(peer.name, parse_endpoint(peer.endpoint)) for peer in peers if peer.endpoint is not None]
        knocks = probe.ask(
            [probe.Target(ip_address(place.host), place.port, mark=facts.fwmark) for _, place in endpoints], KNOCK_SECONDS
        )
        facts = replace(facts, knocks=dict(zip((name for name, _ in endpoints), knocks, strict=True)))
        inside = {peer.name: address for peer in peers if (address := self._inside(cluster, facts, peer.name)) is not None}
        sizes = probe.largest(list(inside.values()), mtu, ANSWER_SECONDS)
        facts = replace(facts, largest={name: size for name, size in zip(inside, sizes, strict=True) if size is not None})
        return replace(facts, status=self._greeted(cluster, facts, inside))

    def _inside(self, cluster: Cluster, facts: FamilyFacts, name: str) -> Address | None:
        """An address of a node that is reached through the tunnel, if there is one."""
        address = cluster.nodes[name].of(facts.family).interface_address if name in cluster.nodes else None
        return address if address is not None and self._kernel.way(address) == facts.interface else None

    def _greeted(self, cluster: Cluster, facts: FamilyFacts, inside: Mapping[str, Address]) -> FamilyStatus | None:
        """The status once everybody, who has just been sent something, has had the time to shake hands. Who has not is silent."""
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        while True:
            status = self._status(cluster, facts)
            if status is None:
                return None
            now = time.time()
            missing = {
                peer.name
                for peer in status.peers
                if peer.name in inside and (peer.last_handshake is None or now - peer.last_handshake > STALE_SECONDS)
            }
            if not missing or time.monotonic() > deadline:
                peers = tuple(replace(peer, is_silent=peer.is_silent or peer.name in missing) for peer in status.peers)
                return replace(status, peers=peers)
            time.sleep(0.1)

    # The rest of the host

    def _drops(self, ruleset: firewall.Ruleset, families: Sequence[FamilyFacts]) -> Iterator[Drop]:
        seen: set[Drop] = set()
        for family in families:
            if family.address is None or family.underlay is None or family.status is None:
                continue
            endpoint = next((parse_endpoint(one.endpoint) for one in family.status.peers if one.endpoint), None)
            if endpoint is None:
                continue
            here, there = (str(family.address), family.port), (endpoint.host, endpoint.port)
            for is_inbound, (source, destination) in ((True, (there, here)), (False, (here, there))):
                datagram = firewall.Datagram(source[0], destination[0], source[1], destination[1], family.underlay, is_inbound)
                for drop in firewall.refusals(ruleset, datagram):
                    if drop not in seen:
                        seen.add(drop)
                        yield drop

    def _moments(self, families: Sequence[FamilyFacts]) -> Iterator[Moment]:
        """What bears witness of the time."""
        for family in families:
            for peer in family.status.peers if family.status is not None else ():
                if peer.last_handshake is not None:
                    yield Moment(f"the last handshake with {peer.name}", peer.last_handshake)
        if self._agent is not None:
            yield Moment("the agent's last pass", self._agent.at)
        for name in WITNESS_FILES:
            with suppress(OSError):
                yield Moment(f"the last change of {self._options.state / name}", (self._options.state / name).stat().st_mtime)


def tun_error(path: Path = TUN) -> str | None:
    """What keeps a TUN from being made there, None if nothing does. Nothing is made."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return error.strerror or str(error)
    try:
        fcntl.ioctl(descriptor, TUNGETFEATURES, bytes(4))
    except OSError as error:
        return "it is another device" if error.errno in (errno.ENOTTY, errno.EINVAL) else error.strerror or str(error)
    finally:
        os.close(descriptor)
    return None


def has_net_admin() -> bool:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return found is None or bool(int(found[1], 16) >> CAP_NET_ADMIN & 1)


async def _listed(source: Source) -> Objects:
    try:
        async with asyncio.timeout(LIST_SECONDS):
            return await source.list()
    finally:
        await source.close()


def _status(files: StateFiles) -> AgentStatus | None:
    try:
        return from_json(files.status())
    except (StateError, ValueError):
        return None


def _is_locked(path: Path) -> bool | None:
    """Whether some process holds a lock on the file. Asked of the kernel's list: to try would be in the way of an agent that
    starts in this moment."""
    try:
        inode = path.stat().st_ino
        locks = Path("/proc/locks").read_text()
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return any(re.search(rf" FLOCK .*:{inode} ", line) and "->" not in line for line in locks.splitlines())


def _open_ports(family: Family) -> Collection[int]:
    """UDP ports on which somebody listens in this network namespace."""
    names = ("udp", "udp6") if family is Family.IPV4 else ("udp6",)
    found = set()
    for name in names:
        with suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                found.add(int(line.split()[1].rpartition(":")[2], 16))
    return found


def _forwards(family: Family) -> bool | None:
    path = "/proc/sys/net/ipv4/ip_forward" if family is Family.IPV4 else "/proc/sys/net/ipv6/conf/all/forwarding"
    try:
        return Path(path).read_text().strip() != "0"
    except OSError:
        return None


def _external_peers(status: FamilyStatus | None, snapshot: DeviceSnapshot) -> tuple[PeerConfig, ...]:
    """Those the agent has told of: what nobody else knows. What it does not tell, such as a preshared key, is as the device has
    it."""
    peers = [peer for peer in status.peers if peer.is_external and peer.public_key is not None] if status is not None else []
    known = {peer.config.public_key: peer.config for peer in snapshot.peers}
    keys = [parse_key(peer.public_key or "") for peer in peers]
    return tuple(
        replace(
            known.get(key, PeerConfig(key)),
            endpoint=parse_endpoint(peer.endpoint) if peer.endpoint else None,
            allowed_ips=tuple(map(parse_prefix, peer.ranges)),
        )
        for peer, key in zip(peers, keys, strict=True)
    )


def _ruleset() -> firewall.Ruleset | None:
    printed = _printed("nft", "-j", "list", "ruleset")
    try:
        found: Any = json.loads(printed) if printed else None
    except ValueError:
        return None
    return found["nftables"] if isinstance(found, dict) and isinstance(found.get("nftables"), list) else None


def _saved() -> str:
    """All tables that there are: to ask for one by its name would have the kernel make it."""
    return "".join(_printed(f"{name}-save") or "" for name in ("iptables", "ip6tables"))


def _printed(*words: str) -> str | None:
    """What a program prints, None if there is none or it fails."""
    path = shutil.which(words[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        return None
    try:
        done = subprocess.run([path, *words[1:]], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _unique(found: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple({(finding.reason, finding.subject): finding for finding in reversed(found)}.values())[::-1]


__all__ = ["Collector", "LookingKernel", "Mark", "Options", "has_net_admin", "tun_error"]
