"""Steps against a data plane that is older than ours. What they do to kernels is in test_agent."""

import errno
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface, ip_network

import pytest

from controller.apply import Place, apply_steps, configure, summary
from controller.model import Family
from controller.netlink import Kernel, NetlinkRefusal
from controller.plan import AddAddress, AddRule, Configure, PutRoute, RemoveRoute, SetGuard, SetLink, Step
from controller.state import Guard, Route, RouteKind, Rule
from wgpy.client import Client, ClientError
from wgpy.config import Change, DeviceSnapshot, PeerConfig, PeerSnapshot, SetDevice, SetPeer

ALICE, BOB = bytes([1]) * 32, bytes([2]) * 32
WIDE, NARROW, OTHER = ip_network("10.9.0.0/24"), ip_network("10.9.0.7/32"), ip_network("10.9.9.0/24")


@dataclass
class OldDataPlane(Client):
    """Like wireguard-go before May 2025: line by line, and without ``allowed_ip=-``."""

    peers: dict[bytes, PeerConfig] = field(default_factory=dict)
    refusal: int = errno.EINVAL

    def get(self) -> DeviceSnapshot:
        return DeviceSnapshot(peers=tuple(PeerSnapshot(peer) for peer in self.peers.values()))

    def set(self, changes: object) -> None:
        for change in changes:  # type: ignore[attr-defined]
            if isinstance(change, SetDevice):
                continue
            if change.remove:
                self.peers.pop(change.public_key, None)
                continue
            peer = self.peers.get(change.public_key, PeerConfig(change.public_key))
            kept = set() if change.replace_allowed_ips else set(peer.allowed_ips)
            for key, other in self.peers.items():
                self.peers[key] = replace(other, allowed_ips=tuple(p for p in other.allowed_ips if p not in change.allowed_ips))
            kept |= set(change.allowed_ips)
            self.peers[change.public_key] = replace(peer, allowed_ips=tuple(sorted(kept)))
            if change.removed_allowed_ips:
                raise ClientError(self.refusal, "refused")


def old_data_plane(**peers: tuple[object, ...]) -> OldDataPlane:
    keys = {"alice": ALICE, "bob": BOB}
    return OldDataPlane(peers={keys[name]: PeerConfig(keys[name], allowed_ips=prefixes) for name, prefixes in peers.items()})  # type: ignore[arg-type]


def owned(device: OldDataPlane) -> dict[bytes, set[object]]:
    return {key: set(peer.allowed_ips) for key, peer in device.peers.items()}


def test_an_old_data_plane_is_told_what_a_peer_keeps() -> None:
    device = old_data_plane(alice=(WIDE, NARROW), bob=(OTHER,))
    changes: tuple[Change, ...] = (
        SetPeer(BOB, allowed_ips=(NARROW,)),
        SetPeer(BOB, update_only=True, removed_allowed_ips=(OTHER,)),
        SetPeer(ALICE, update_only=True, removed_allowed_ips=(WIDE,)),
    )

    configure(device, changes)

    assert owned(device) == {ALICE: set(), BOB: {NARROW}}


def test_a_peer_that_goes_is_gone_there_too() -> None:
    device = old_data_plane(alice=(WIDE,), bob=(OTHER,))

    configure(device, (SetPeer(ALICE, update_only=True, removed_allowed_ips=(WIDE,)), SetPeer(ALICE, remove=True)))

    assert owned(device) == {BOB: {OTHER}}


def test_any_other_refusal_goes_on() -> None:
    device = old_data_plane(alice=(WIDE,))
    device.refusal = errno.EADDRINUSE

    with pytest.raises(ClientError):
        configure(device, (SetPeer(ALICE, update_only=True, removed_allowed_ips=(WIDE,)),))


def test_a_plan_in_a_line_holds_no_key() -> None:
    route = Route(WIDE, RouteKind.DEVICE)
    steps: tuple[Step, ...] = (
        SetLink(is_up=True),
        AddAddress(ip_interface("10.9.0.0/32")),
        Configure((SetDevice(private_key=BOB),)),
        Configure((SetPeer(ALICE), SetPeer(ALICE, allowed_ips=(WIDE, NARROW)))),
        PutRoute(route),
        *[RemoveRoute(route)] * 2,
        Configure((SetPeer(BOB, remove=True),)),
        AddRule(Rule(99, 1, 1)),
        SetGuard(Guard()),
    )

    assert summary(steps) == "link, address, device, peer, 2 allowed IPs, route, rule, guard; removal of peer, 2 routes"


# Batches


@dataclass
class Recorder(Kernel):
    """What is asked of the kernel. It refuses routes to ``refuses``."""

    refuses: object = None
    calls: list[tuple[object, ...]] = field(default_factory=list)

    def put_routes(self, name: str, table: int, routes: object) -> None:
        self._note("put", routes)

    def remove_routes(self, table: int, routes: object) -> None:
        self._note("remove", routes)

    def add_rule(self, table: int, family: Family, rule: Rule) -> None:
        self.calls.append(("rule", rule))

    def _note(self, verb: str, routes: object) -> None:
        self.calls.append((verb, *routes))  # type: ignore[misc]
        if any(route.prefix == self.refuses for route in routes):  # type: ignore[attr-defined]
            raise NetlinkRefusal(errno.ENETDOWN, "put the route")


INTO, PAST = (Route(WIDE, kind) for kind in (RouteKind.DEVICE, RouteKind.THROW))
NARROW_INTO, OTHER_INTO = (Route(prefix, RouteKind.DEVICE) for prefix in (NARROW, OTHER))
RULE = Rule(99, 1, 1)
PLACE = Place(Family.IPV4, "wgtest", 5182)


def test_neighbouring_routes_of_one_kind_are_done_at_one_go_and_in_their_order() -> None:
    kernel = Recorder()
    steps: tuple[Step, ...] = (
        PutRoute(NARROW_INTO),
        PutRoute(OTHER_INTO),
        PutRoute(PAST),
        PutRoute(INTO),
        PutRoute(INTO.twin),
        RemoveRoute(NARROW_INTO.twin),
        RemoveRoute(NARROW_INTO),
        AddRule(RULE),
    )

    apply_steps(kernel, PLACE, steps)

    assert kernel.calls == [
        ("put", NARROW_INTO, OTHER_INTO),
        ("put", PAST),
        ("put", INTO),
        ("put", INTO.twin),
        ("remove", NARROW_INTO.twin),
        ("remove", NARROW_INTO),
        ("rule", RULE),
    ]


def test_after_a_refusal_nothing_else_is_done() -> None:
    kernel = Recorder(refuses=NARROW)

    with pytest.raises(NetlinkRefusal):
        apply_steps(kernel, PLACE, (PutRoute(OTHER_INTO), PutRoute(NARROW_INTO), PutRoute(PAST), AddRule(RULE)))
    assert kernel.calls == [("put", OTHER_INTO, NARROW_INTO)]
