"""One family on this node: looks at everything, plans, applies, once for each call.

IPv4 and IPv6 are two instances that know nothing of each other. All of it is blocking; :mod:`controller.agent` calls it from one
thread and does what has to wait for others: waking, publishing, backing off.
"""

import errno
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from controller import guard as firewall
from controller.apply import Place, apply_steps, read_state, summary
from controller.dataplane import Spawner
from controller.desired import (
    Identity,
    Numbers,
    Policy,
    admit_external,
    degraded_state,
    desired_state,
    disabled_state,
    keep_roamed,
    prefix_owners,
)
from controller.external import ExternalPeers
from controller.findings import FELIX_LINK_KIND, Facts
from controller.guard import refused, ruleset
from controller.masquerade import MasqueradeUnavailable
from controller.model import Cluster, Family
from controller.netlink import Kernel
from controller.plan import plan, union
from controller.state import Device, Guard, Link, RouteKind, State
from controller.statefiles import Assigned, StateFiles, public_key
from controller.status import NOT_ENABLED, YIELDS, Seen
from wgpy.client import Client, ClientError, clear_abandoned
from wgpy.config import NO_KEY, DeviceSnapshot, Endpoint, Prefix

log = logging.getLogger(__name__)

POD_MTU_FILE = Path("/var/lib/calico/mtu")
"""Where Felix tells Calico's CNI plugin what MTU pods are to have (calico.md 4.3)."""


class InstanceError(Exception):
    """A family could not be brought to where it ought to be. The message is one line."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Why a family takes no part in the mesh. ``is_felix``: Felix has it, so that the published key is not ours to withdraw.
    ``is_expected``: nobody has to be told."""

    reason: str
    is_expected: bool = False
    is_felix: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a reconciliation. ``can_receive``: the data plane is configured, so that the key may be published;
    ``waits_for`` is what is missing, if something is."""

    public_key: bytes
    interface: str
    mtu: int | None = None
    can_receive: bool = False
    waits_for: str | None = None


class Instance:
    """One family of the mesh, on the node ``node``. ``spawner`` is None where others start the data plane."""

    def __init__(
        self,
        family: Family,
        node: str,
        numbers: Numbers,
        kernel: Kernel,
        files: StateFiles,
        spawner: Spawner | None = None,
        *,
        is_strict: bool = False,
        yields_to_kernel: bool = False,
        external_peers: ExternalPeers = ExternalPeers(None),
        pod_mtu_file: Path = POD_MTU_FILE,
    ) -> None:
        self.family = family
        self.links: frozenset[str] = frozenset()
        """Names of links whose changes matter to us."""
        self.guard = ""
        """The ruleset of strict mode that is in force, for the next boot; empty without one."""
        self.external_refusals: tuple[str, ...] = ()
        """What external peers do not get, and why, a line each."""
        self._node = node
        self._numbers = numbers
        self._kernel = kernel
        self._files = files
        self._spawner = spawner
        self._is_strict = is_strict
        self._yields_to_kernel = yields_to_kernel
        self._external_peers = external_peers
        self._pod_mtu_file = pod_mtu_file
        self._can_masquerade = True
        self._undo: Callable[[], None] | None = None
        self._said: dict[str, str] = {}

    def interface(self, cluster: Cluster) -> str:
        """The name our interface is to have."""
        return self._numbers.interface_name(cluster.felix.of(self.family).interface)

    def rest(self, cluster: Cluster) -> Rest | None:
        """Why this family is not to be part of the mesh now, None if it is to be."""
        configuration = cluster.felix.of(self.family)
        self.links = frozenset({configuration.interface, self.interface(cluster)})
        if self._yields_to_kernel:
            return Rest(YIELDS, is_expected=True, is_felix=True)
        if not configuration.enabled:
            return Rest(NOT_ENABLED, is_expected=True)
        felix = self._kernel.find_link(configuration.interface)
        if felix is not None and felix.kind == FELIX_LINK_KIND:
            return Rest(f"Felix has WireGuard itself here, on {configuration.interface}", is_felix=True)
        if cluster.nodes[self._node].of(self.family).address is None:
            return Rest(f"this node has no {self.family} address")
        return None

    def reconcile(self, cluster: Cluster) -> Report:
        """Bring everything to where it ought to be. Raises InstanceError, and whatever its parts raise."""
        identity = self._identity()
        assigned = self._files.assigned(self.family)
        wanted = self.interface(cluster)
        if wanted == cluster.felix.of(self.family).interface:
            raise InstanceError(f"{wanted} is the name of Felix's own interface, which Felix deletes: choose another")
        place = self._place(cluster, wanted)
        desired = self._desired(cluster, identity, place)
        old_name = assigned.interface if assigned.interface != wanted else None
        if desired.guard is not None:
            # Before the data plane is asked, which may not answer. An interface of another name still has its packets.
            self._refuse(old_name or wanted, desired.guard)
        found = read_state(self._kernel, place)
        if found.device is None:
            clear_abandoned()  # one dead socket hides the metrics of all others from Felix (calico.md 16)
        if found.device is None and self._spawner is not None:
            if old_name is None:
                self._degrade(place, desired, found)  # first: starting may take a while
            found = self._start_data_plane(self._spawner, place, found)
        missing = self._missing(place, found)
        if missing and old_name is not None:
            # The interface is to have another name, but there is nothing behind that yet: the old one goes on.
            place = replace(place, interface=old_name)
            found = read_state(self._kernel, place)
        self._say("wait", f"waiting for {missing}" if missing else "")
        report = Report(identity.public_key, place.interface, desired.link.mtu if desired.link else None, waits_for=missing)
        if found.device is None or found.link is None:
            self._degrade(place, desired, found)
            return report
        if not missing and old_name is not None:
            self._leave_interface(replace(place, interface=old_name), desired)
            found = read_state(self._kernel, place)
        self._undo = self._undo or self._undoing(place, found)
        self._apply(place, keep_roamed(desired, found, assigned.endpoints), found)
        self._save(assigned, place.interface, desired)
        return replace(report, can_receive=True)

    def refuse(self, cluster: Cluster) -> None:
        """In strict mode, refuse what is to be refused, on top of what is refused already. It takes no key, data plane or
        interface. Raises NftablesRefusal."""
        wanted = self._kept_guard(cluster)
        if wanted is not None:
            self._refuse(self._current_place(cluster).interface, wanted)

    def disable(self, cluster: Cluster) -> None:
        """Take everything back but the interface itself, which is left down."""
        names = {self.interface(cluster), self._current_place(cluster).interface}
        for name in sorted(names):
            self._disable(Place(self.family, name, self._numbers.table), self._kept_guard(cluster))

    def stop_sending(self, cluster: Cluster) -> None:
        """Send in clear from now on (in strict mode: nothing that is to be encrypted), but go on receiving: the first half of
        leaving, and what is left to do where a key cannot be withdrawn."""
        place = self._current_place(cluster)
        found = read_state(self._kernel, place)
        self._apply(place, replace(found, rules=frozenset(), guard=self._kept_guard(cluster)), found)

    def snapshot(self, cluster: Cluster) -> DeviceSnapshot | None:
        """The device as it is now, None if nobody answers for it."""
        try:
            return Client(self._current_place(cluster).interface).get()
        except ClientError:
            return None

    def seen(self, cluster: Cluster) -> Seen:
        """What there is of this family on this host, apart from what a pass has come to."""
        if not cluster.felix.of(self.family).enabled:
            return Seen(at=time.time())
        place = self._current_place(cluster)
        link = self._kernel.find_link(place.interface)
        counts = refused(self.family)
        inbound, outbound = counts or (0, 0)
        snapshot = self.snapshot(cluster)
        return Seen(
            at=time.time(),
            public_key=self._identity().public_key,
            interface=place.interface,
            mtu=link.link.mtu if link else None,
            snapshot=snapshot,
            is_refusing=counts is not None,
            refused_inbound=inbound,
            refused_outbound=outbound,
            promised=None if _has_all(cluster, self.family, self._node, snapshot) else self._promised(place),
        )

    def _promised(self, place: Place) -> frozenset[Prefix] | None:
        """What our table sends nowhere but into the interface, if a rule asks it at all."""
        if not self._kernel.rules(place.table, place.family):
            return None
        link = self._kernel.find_link(place.interface)
        routes = self._kernel.routes(place.table, place.family, link.index if link else None)
        return frozenset(route.prefix for route in routes if route.kind is not RouteKind.THROW)

    def facts(self, cluster: Cluster) -> Facts:
        """What may be wrong here."""
        interface = self._current_place(cluster).interface
        facts = Facts(self._numbers.table, self._numbers.fwmask, interface)
        if self._yields_to_kernel or not cluster.felix.of(self.family).enabled:
            return facts
        link = self._kernel.find_link(interface)
        felix = self._kernel.find_link(cluster.felix.of(self.family).interface)
        own = cluster.nodes.get(self._node)
        address = own.of(self.family).address if own is not None else None
        underlay = self._kernel.underlay(address, interface) if address is not None else None
        return replace(
            facts,
            public_key=self._identity().public_key,
            underlay_mtu=underlay.mtu if underlay else None,
            interface_mtu=link.link.mtu if link and link.link.is_up else None,
            pod_mtu=_pod_mtu(self._pod_mtu_file),
            felix_link_kind=felix.kind if felix else None,
        )

    def received_bytes(self, cluster: Cluster) -> int:
        """What peers have sent so far; 0 if nobody answers."""
        snapshot = self.snapshot(cluster)
        return sum(peer.rx_bytes for peer in snapshot.peers) if snapshot else 0

    def settle(self) -> None:
        """What has been done so far is to stay: it will not be undone."""
        self._undo = None

    def undo(self) -> None:
        """Put back what was there before the first :meth:`reconcile`, as far as that was nothing."""
        if self._undo is not None:
            self._undo()
        self._undo = None

    # The parts of reconcile

    def _refuse(self, interface: str, wanted: Guard) -> None:
        found = firewall.found(self.family, interface)
        both = union(wanted, found)
        if both is None:
            return
        if found is None or both != replace(found, workloads=both.workloads, exempt=both.exempt):
            firewall.put(self.family, interface, both)
        self.guard = ruleset(self.family, interface, both)

    def _identity(self) -> Identity:
        private_key = self._files.private_key(self.family)
        return Identity(self._node, private_key, public_key(private_key))

    def _place(self, cluster: Cluster, interface: str) -> Place:
        address = cluster.nodes[self._node].of(self.family).address
        underlay = self._kernel.underlay(address, interface) if address is not None else None
        if underlay is None:
            self._say("underlay", f"the node's address {address} is on no link here: taking an underlay MTU of 1500")
        self.links = frozenset({interface, cluster.felix.of(self.family).interface} | ({underlay.name} if underlay else set()))
        return Place(self.family, interface, self._numbers.table, underlay)

    def _current_place(self, cluster: Cluster) -> Place:
        interface = self._files.assigned(self.family).interface or self.interface(cluster)
        return Place(self.family, interface, self._numbers.table)

    def _desired(self, cluster: Cluster, identity: Identity, place: Place) -> State:
        mtu = place.underlay.mtu if place.underlay else None
        policy = self._policy(cluster)
        self.external_refusals = ()
        if policy.external_peers:
            owners = prefix_owners(cluster, self.family, self._node)
            self.external_refusals = admit_external(cluster, self.family, identity, owners, policy.external_peers).refusals
        return desired_state(cluster, self.family, identity, self._numbers, mtu, policy)

    def _policy(self, cluster: Cluster) -> Policy:
        felix = cluster.felix.of(self.family).interface
        return Policy(self._is_strict, self._external_peers.current(), cluster.felix.workloads | {felix})

    def _start_data_plane(self, spawner: Spawner, place: Place, found: State) -> State:
        """The state found once it answers."""
        self._undo = self._undo or self._undoing(place, found)
        spawner.start(place.interface, self._kernel)
        return read_state(self._kernel, place)

    def _degrade(self, place: Place, desired: State, found: State) -> None:
        self._apply(place, degraded_state(desired, found, keeps_interface=found.link is not None), found)

    def _missing(self, place: Place, found: State) -> str | None:
        if found.device is None:
            command = f"wgpy run {place.interface} --persist"
            return f"a data plane for {place.interface}: start one ({command}), or use --spawn"
        if found.link is None:
            return f"interface {place.interface} in this network namespace, though a data plane answers for it"
        return None

    def _leave_interface(self, place: Place, desired: State) -> None:
        """Take our interface of another name down, without a moment at which its packets would go in clear."""
        found = read_state(self._kernel, place)
        held = degraded_state(desired, found, keeps_interface=False)
        target = replace(
            held,
            link=Link(is_up=False) if found.link else None,
            addresses=frozenset(),
            device=Device(private_key=NO_KEY, listen_port=0) if found.device else None,  # the port is wanted at once
        )
        self._apply(place, target, found)
        if self._spawner is not None:
            self._spawner.discard(place.interface, self._kernel)

    def _apply(self, place: Place, desired: State, found: State) -> None:
        if not self._can_masquerade:
            desired = replace(desired, masquerades=found.masquerades)
        self.guard = ruleset(self.family, place.interface, desired.guard) if desired.guard else ""
        steps = plan(desired, found)
        if not steps:
            return
        try:
            apply_steps(self._kernel, place, steps)
        except MasqueradeUnavailable as error:
            log.warning(
                "%s: no masquerading of what this host itself sends (host processes may not reach services): %s",
                place.interface,
                error,
            )
            self._can_masquerade = False
            self._apply(place, desired, read_state(self._kernel, place))
            return
        except ClientError as error:
            if error.errno == errno.EADDRINUSE and desired.device is not None:
                port = desired.device.listen_port
                raise InstanceError(
                    f"{place.interface}: UDP port {port} is in use by another process: stop that, "
                    "or set another wireguardListeningPort for the whole cluster"
                ) from None
            raise
        log.info("%s: applied %s", place.interface, summary(steps))

    def _save(self, assigned: Assigned, interface: str, desired: State) -> None:
        peers = desired.device.peers if desired.device else ()
        endpoints: Mapping[bytes, Endpoint] = {peer.public_key: peer.endpoint for peer in peers if peer.endpoint}
        if (now := Assigned(interface, endpoints)) != assigned:
            self._files.save_assigned(self.family, now)

    # Undoing

    def _undoing(self, place: Place, found: State) -> Callable[[], None]:
        """What takes back all that is done from here on. If something was promised before, nothing is taken back, and nothing is
        in strict mode, where to begin and fail is to refuse."""

        def undo() -> None:
            if not found.is_promised and not self._is_strict:
                self._disable(place)
                if self._spawner is not None:
                    self._spawner.undo(place.interface, self._kernel)

        return undo

    def _disable(self, place: Place, guard: Guard | None = None) -> None:
        found = read_state(self._kernel, place)
        self._apply(place, replace(disabled_state(), guard=guard), found)

    def _kept_guard(self, cluster: Cluster) -> Guard | None:
        """What is still refused where the family rests: in strict mode everything, unless nothing is to be encrypted at all.
        Felix's own interface may pass it: it encrypts, too."""
        if not (self._is_strict and cluster.felix.of(self.family).enabled):
            return None
        nobody = Identity(self._node, NO_KEY, NO_KEY)  # what is refused does not depend on keys, which may be lost
        return desired_state(cluster, self.family, nobody, self._numbers, None, self._policy(cluster)).guard

    def _say(self, topic: str, message: str) -> None:
        """Log a message when it is new on its topic; an empty one ends the topic."""
        if message and self._said.get(topic) != message:
            log.warning("%s: %s", self.family, message)
        self._said[topic] = message


def _has_all(cluster: Cluster, family: Family, node: str, snapshot: DeviceSnapshot | None) -> bool:
    """Whether every other node that has a key is on the device."""
    if snapshot is None:
        return False
    device = {peer.config.public_key for peer in snapshot.peers}
    keys = (each.of(family).public_key for name, each in cluster.nodes.items() if name != node)
    return all(key in device for key in keys if key is not None)


def _pod_mtu(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
