"""The plan against a model of the kernel and the device, in which packets are asked for their way after every single change.

The model knows what the plan must reckon with: an allowed IP has one owner, the last one it was given to; routes into an
interface go when it goes down or loses its last IPv4 address, and cannot be added while it is down.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, ip_interface

from hypothesis import given, settings
from hypothesis import strategies as st

from controller import plan as planning
from controller.plan import AddRule, Configure, PutRoute, RemoveRoute, RemoveRule, SetGuard, SetLink, Step, plan
from controller.prefixes import widest
from controller.state import TWIN_METRIC, Device, Guard, Link, Route, RouteKind, Rule, State, sorted_prefixes
from wgpy.config import NO_KEY, Endpoint, PeerConfig, SetDevice, SetPeer

RULE = Rule(priority=99, fwmark=0x1000, fwmask=0x1000)
OLD_RULE = Rule(priority=98, fwmark=0x1000, fwmask=0x1000)
WORLD = [IPv4Address("10.0.0.0") + offset for offset in range(16)]
ALICE, BOB, CAROL = (bytes([number]) * 32 for number in (1, 2, 3))


class Way(Enum):
    CLEAR = "in clear"
    DROPPED = "dropped"


Fate = Way | bytes
"""What becomes of a packet; bytes are the key of the peer it is encrypted to."""


@dataclass
class Model:
    """Kernel and device. Doing a step yields once for each moment at which a packet could pass."""

    state: State

    def do(self, step: Step) -> Iterator[None]:
        match step:
            case SetLink(is_up, mtu):
                assert self.state.link is not None
                link = replace(self.state.link, mtu=mtu or self.state.link.mtu)
                self.state = replace(self.state, link=replace(link, is_up=link.is_up if is_up is None else is_up))
                if is_up is False:
                    self._flush()
            case planning.AddAddress(address):
                assert address not in self.state.addresses
                same = [other for other in self.state.addresses if other.ip == address.ip]
                assert address.version == 4 or not same, "IPv6 does not take an address twice"
                self.state = replace(self.state, addresses=self.state.addresses | {address})
            case planning.RemoveAddress(address):
                assert address in self.state.addresses
                self.state = replace(self.state, addresses=self.state.addresses - {address})
                if address.version == 4 and not any(other.version == 4 for other in self.state.addresses):
                    self._flush()
            case PutRoute(route):
                assert route.kind is not RouteKind.DEVICE or (self.state.link and self.state.link.is_up), "network is down"
                others = {other for other in self.state.routes if (other.prefix, other.metric) != (route.prefix, route.metric)}
                self.state = replace(self.state, routes=frozenset(others | {route}))
            case RemoveRoute(route):
                self.state = replace(self.state, routes=self.state.routes - {route})
            case AddRule(rule):
                self.state = replace(self.state, rules=self.state.rules | {rule})
            case RemoveRule(rule):
                assert rule in self.state.rules
                self.state = replace(self.state, rules=self.state.rules - {rule})
            case Configure(changes):
                for change in changes:
                    yield from self._configure(change)
            case planning.SetMasquerade(masquerades):
                self.state = replace(self.state, masquerades=masquerades)
            case planning.LoosenReversePath():
                self.state = replace(self.state, is_underlay_strict=False)
            case SetGuard(guard):
                self.state = replace(self.state, guard=guard)
        yield

    def _flush(self) -> None:
        kept = {route for route in self.state.routes if route.kind is not RouteKind.DEVICE}
        self.state = replace(self.state, routes=frozenset(kept))

    def _configure(self, change: SetDevice | SetPeer) -> Iterator[None]:
        device = self.state.device
        assert device is not None
        if isinstance(change, SetDevice):
            for name in ("private_key", "listen_port", "fwmark"):
                if getattr(change, name) is not None:
                    device = replace(device, **{name: getattr(change, name)})
            self.state = replace(self.state, device=device)
            yield
            return
        peers = {peer.public_key: peer for peer in device.peers}
        if change.remove:
            peers.pop(change.public_key, None)
        elif change.public_key in peers or not change.update_only:
            peer = peers.get(change.public_key, PeerConfig(change.public_key))
            for name in ("preshared_key", "endpoint", "persistent_keepalive"):
                if getattr(change, name) is not None:
                    peer = replace(peer, **{name: getattr(change, name)})
            peers[change.public_key] = peer
            for prefix in change.allowed_ips:
                for key, other in peers.items():
                    peers[key] = replace(other, allowed_ips=tuple(p for p in other.allowed_ips if p != prefix))
                peer = peers[change.public_key]
                peers[change.public_key] = replace(peer, allowed_ips=(*peer.allowed_ips, prefix))
                self._set_peers(peers)
                yield
            for prefix in change.removed_allowed_ips:
                peer = peers[change.public_key]
                allowed_ips = tuple(p for p in peer.allowed_ips if p != prefix)
                peers[change.public_key] = replace(peer, allowed_ips=allowed_ips)
                self._set_peers(peers)
                yield
        self._set_peers(peers)
        yield

    def _set_peers(self, peers: dict[bytes, PeerConfig]) -> None:
        assert self.state.device is not None
        ordered = (replace(peer, allowed_ips=sorted_prefixes(set(peer.allowed_ips))) for _, peer in sorted(peers.items()))
        self.state = replace(self.state, device=replace(self.state.device, peers=tuple(ordered)))


def fate(state: State, destination: IPv4Address) -> Fate:
    way = _way(state, destination)
    is_guarded = state.guard is not None and any(destination in prefix for prefix in state.guard.protected)
    return Way.DROPPED if way is Way.CLEAR and is_guarded else way


def _way(state: State, destination: IPv4Address) -> Fate:
    if not state.rules:
        return Way.CLEAR
    matching = [route for route in state.routes if destination in route.prefix]
    best = max(matching, key=lambda route: (route.prefix.prefixlen, -route.metric), default=None)
    if best is None or best.kind is RouteKind.THROW:
        return Way.CLEAR
    if best.kind is RouteKind.PROHIBIT or state.device is None:
        return Way.DROPPED
    owners = {prefix: peer.public_key for peer in state.device.peers for prefix in peer.allowed_ips if destination in prefix}
    return owners[max(owners, key=lambda prefix: prefix.prefixlen)] if owners else Way.DROPPED


def fates(state: State) -> list[Fate]:
    return [fate(state, destination) for destination in WORLD]


def without_interface(state: State) -> State:
    """As the kernel has it when the interface is gone, and every route into it."""
    model = Model(state)
    model._flush()
    return replace(model.state, link=None, device=None)


# States -------------------------------------------------------------------------------------------------------------

prefixes = st.builds(
    lambda length, offset: IPv4Network((int(WORLD[0]) + offset, length), strict=False), st.integers(28, 32), st.integers(0, 15)
)
endpoints = st.sampled_from([Endpoint("192.0.2.1", 51820), Endpoint("192.0.2.2", 51820)])
addresses = st.frozensets(
    st.sampled_from([*map(ip_interface, ("10.9.0.1/32", "10.9.0.2/32", "10.9.0.1/24"))]), max_size=2
) | st.frozensets(st.sampled_from([*map(ip_interface, ("fd00::1/128", "fd00::2/128"))]), max_size=2)


@st.composite
def devices(draw: st.DrawFn) -> Device:
    owned = draw(st.dictionaries(prefixes, st.sampled_from([ALICE, BOB, CAROL]), max_size=8))
    idle = draw(st.sets(st.sampled_from([ALICE, BOB, CAROL])))
    peers = tuple(
        PeerConfig(
            key,
            endpoint=draw(endpoints),
            persistent_keepalive=draw(st.sampled_from([0, 25])),
            allowed_ips=sorted_prefixes({prefix for prefix, owner in owned.items() if owner == key}),
        )
        for key in sorted(idle | set(owned.values()))
    )
    key = draw(st.sampled_from([NO_KEY, bytes(31) + b"\1"]))
    return Device(key, draw(st.sampled_from([0, 51820, 51821])), draw(st.sampled_from([0, 0x1000])), peers)


guards = st.none() | st.builds(Guard, st.frozensets(prefixes, max_size=3).map(widest))


@st.composite
def states(draw: st.DrawFn, wanted: bool) -> State:
    """A ``wanted`` one has a twin behind each route into the interface, as every desired state has. Anything may be found."""
    is_up = draw(st.booleans())
    kinds = [RouteKind.THROW, RouteKind.PROHIBIT] + ([RouteKind.DEVICE] if is_up else [])
    metrics = st.just(0) if wanted else st.sampled_from([0, 50, TWIN_METRIC])
    drawn = draw(st.dictionaries(st.tuples(prefixes, metrics), st.sampled_from(kinds), max_size=8))
    routes = {Route(prefix, kind, metric) for (prefix, metric), kind in drawn.items()}
    if wanted or draw(st.booleans()):
        twins = {route.twin for route in routes if route.kind is RouteKind.DEVICE}
        places = {(twin.prefix, twin.metric) for twin in twins}
        routes = twins | {route for route in routes if (route.prefix, route.metric) not in places}
    return State(
        link=Link(is_up, draw(st.sampled_from([1420, 1400]))),
        addresses=draw(addresses),
        routes=frozenset(routes),
        rules=draw(st.frozensets(st.sampled_from([RULE]) if wanted else st.sampled_from([RULE, OLD_RULE]))),
        device=draw(devices()),
        masquerades=draw(st.booleans()),
        guard=draw(guards),
    )


# Laws ---------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(states(wanted=True))
def test_nothing_is_to_be_done_where_all_is_as_it_should_be(state: State) -> None:
    assert plan(state, state) == ()


@settings(deadline=None)
@given(states(wanted=True), states(wanted=False))
def test_doing_the_plan_gives_the_desired_state(desired: State, actual: State) -> None:
    model = Model(actual)

    for step in plan(desired, actual):
        for _ in model.do(step):
            pass

    assert model.state == desired
    assert plan(desired, model.state) == ()


@settings(max_examples=200, deadline=None)
@given(states(wanted=True), states(wanted=False))
def test_at_no_time_does_a_packet_meet_a_third_fate(desired: State, actual: State) -> None:
    before, after = fates(actual), fates(desired)
    # Safe, if not welcome: while something is refused on purpose, more may be than before or after.
    is_refusing = any(_stands_alone(state) or state.guard is not None for state in (desired, actual))
    may_drop = is_refusing or _last_ipv4_address_goes(desired, actual)
    model = Model(actual)

    for step in plan(desired, actual):
        for _ in model.do(step):
            for destination, was, will_be, now in zip(WORLD, before, after, fates(model.state), strict=True):
                allowed = {was, will_be} | ({Way.DROPPED} if may_drop else set())
                assert now in allowed, f"{destination} was {was!r}, will be {will_be!r}, but is {now!r} after {step}"


@settings(max_examples=200, deadline=None)
@given(states(wanted=True), states(wanted=False))
def test_what_strict_mode_protects_never_leaves_in_clear_from_the_first_step_on(desired: State, actual: State) -> None:
    guard = desired.guard or Guard(frozenset({IPv4Network("10.0.0.0/29")}))
    desired = replace(desired, guard=guard)
    protected = [destination for destination in WORLD if any(destination in prefix for prefix in guard.protected)]
    steps = plan(desired, actual)
    model = Model(actual)
    known = actual.guard.protected if actual.guard else frozenset()

    assert isinstance(steps[0], SetGuard) if widest(known | guard.protected) != known else True
    for step in steps:
        for _ in model.do(step):
            assert Way.CLEAR not in [fate(model.state, destination) for destination in protected], f"after {step}"


@settings(max_examples=200, deadline=None)
@given(states(wanted=True), states(wanted=True))
def test_a_lost_interface_refuses_what_it_had_and_leaks_nothing(desired: State, actual: State) -> None:
    """The interface goes at any moment of a plan: what is encrypted before and after is refused then. What is not may leak: a
    route that has just begun has its twin only at the end of the same batch."""
    before, after = fates(actual), fates(desired)
    model = Model(actual)

    for step in (*plan(desired, actual), None):
        for was, will_be, now in zip(before, after, fates(without_interface(model.state)), strict=True):
            if isinstance(was, bytes) and isinstance(will_be, bytes) and model.state.rules:
                assert now is not Way.CLEAR or _has_just_begun(model.state), f"before {step}"
        for _ in model.do(step) if step else ():
            pass
    for will_be, now in zip(after, fates(without_interface(desired)), strict=True):
        assert not isinstance(will_be, bytes) or now is Way.DROPPED


def _has_just_begun(state: State) -> bool:
    """Some route into the interface is in place, and its twin comes with the next steps."""
    return any(route.kind is RouteKind.DEVICE and route.twin not in state.routes for route in state.routes)


def _stands_alone(state: State) -> bool:
    """Some refusal is more than what stands behind a route into the interface."""
    into_interface = {route.prefix for route in state.routes if route.kind is RouteKind.DEVICE and route.metric < TWIN_METRIC}
    return any(route.kind is RouteKind.PROHIBIT and route.prefix not in into_interface for route in state.routes)


@settings(max_examples=200, deadline=None)
@given(devices(), devices())
def test_a_packet_goes_to_the_peer_of_before_or_of_after_while_the_device_changes(desired: Device, actual: Device) -> None:
    everything = frozenset({Route(IPv4Network((int(WORLD[0]), 28)), RouteKind.DEVICE)})
    state = State(link=Link(True, 1420), routes=everything, rules=frozenset({RULE}))
    before, after = fates(replace(state, device=actual)), fates(replace(state, device=desired))
    model = Model(replace(state, device=actual))

    for step in plan(replace(state, device=desired), replace(state, device=actual)):
        for _ in model.do(step):
            for was, will_be, now in zip(before, after, fates(model.state), strict=True):
                assert now in (was, will_be), f"{now!r} after {step}"


def _last_ipv4_address_goes(desired: State, actual: State) -> bool:
    return any(a.version == 4 for a in actual.addresses) and not any(a.version == 4 for a in desired.addresses)


@settings(deadline=None)
@given(states(wanted=True), states(wanted=False))
def test_without_a_device_it_is_left_alone(desired: State, actual: State) -> None:
    steps = plan(desired, replace(actual, device=None))

    assert not any(isinstance(step, Configure) for step in steps)


# Examples -----------------------------------------------------------------------------------------------------------

POD_BLOCK = IPv4Network("10.0.0.0/29")
BORROWED = IPv4Network("10.0.0.3/32")
INTO_POD_BLOCK = Route(POD_BLOCK, RouteKind.DEVICE)


def running(*peers: PeerConfig, routes: dict[IPv4Network, RouteKind]) -> State:
    """With the twins of its routes into the interface."""
    table = {Route(prefix, kind) for prefix, kind in routes.items()}
    return State(
        link=Link(True, 1440),
        addresses=frozenset({ip_interface("10.9.0.1/32")}),
        routes=frozenset(table | {route.twin for route in table if route.kind is RouteKind.DEVICE}),
        rules=frozenset({RULE}),
        device=Device(bytes(31) + b"\1", 51820, 0x1000, peers),
        masquerades=True,
    )


def peer(key: bytes, *allowed_ips: IPv4Network) -> PeerConfig:
    return PeerConfig(key, endpoint=Endpoint("192.0.2.1", 51820), allowed_ips=allowed_ips)


EMPTY = State(link=Link(False, 1500), device=Device(NO_KEY, 0, 0))


def test_the_rule_comes_last_and_goes_first() -> None:
    enabled = running(peer(ALICE, POD_BLOCK), routes={POD_BLOCK: RouteKind.DEVICE})

    assert plan(enabled, EMPTY)[-1] == AddRule(RULE)
    assert plan(EMPTY, enabled)[0] == RemoveRule(RULE)
    assert plan(EMPTY, enabled)[-1] == SetLink(is_up=False)


def test_a_block_that_moves_is_moved_by_the_device_alone() -> None:
    before = running(peer(ALICE, POD_BLOCK), peer(BOB), routes={POD_BLOCK: RouteKind.DEVICE})
    after = running(peer(ALICE), peer(BOB, POD_BLOCK), routes={POD_BLOCK: RouteKind.DEVICE})

    assert plan(after, before) == (Configure((SetPeer(BOB, allowed_ips=(POD_BLOCK,)),)),)


def test_a_peer_is_ready_before_packets_are_sent_to_it() -> None:
    before = running(routes={POD_BLOCK: RouteKind.THROW})
    after = running(peer(ALICE, POD_BLOCK), routes={POD_BLOCK: RouteKind.DEVICE})

    device, route, twin = plan(after, before)

    assert isinstance(device, Configure)
    assert (route, twin) == (PutRoute(INTO_POD_BLOCK), PutRoute(INTO_POD_BLOCK.twin))


def test_a_twin_goes_before_its_route_where_both_go() -> None:
    before = running(peer(ALICE, POD_BLOCK), routes={POD_BLOCK: RouteKind.DEVICE})

    assert plan(running(peer(ALICE), routes={}), before)[:2] == (RemoveRoute(INTO_POD_BLOCK.twin), RemoveRoute(INTO_POD_BLOCK))


def test_the_guard_is_on_before_the_first_promise_and_off_after_the_last() -> None:
    enabled = replace(running(peer(ALICE, POD_BLOCK), routes={POD_BLOCK: RouteKind.DEVICE}), guard=Guard(frozenset({POD_BLOCK})))

    assert plan(enabled, EMPTY)[0] == SetGuard(enabled.guard)
    assert plan(EMPTY, enabled)[-1] == SetGuard(None)


def test_a_new_protocol_is_taken_over_in_place() -> None:
    before = running(peer(ALICE, POD_BLOCK), routes={POD_BLOCK: RouteKind.DEVICE})
    after = replace(before, routes=frozenset(replace(route, protocol=80) for route in before.routes))

    assert plan(after, before) == (
        PutRoute(replace(INTO_POD_BLOCK, protocol=80)),
        PutRoute(replace(INTO_POD_BLOCK.twin, protocol=80)),
    )


def test_a_peer_goes_only_after_its_packets_go_in_clear() -> None:
    before = running(peer(ALICE, POD_BLOCK), routes={POD_BLOCK: RouteKind.DEVICE})
    after = running(routes={POD_BLOCK: RouteKind.THROW})

    assert plan(after, before) == (
        PutRoute(Route(POD_BLOCK, RouteKind.THROW)),
        RemoveRoute(INTO_POD_BLOCK.twin),
        Configure((SetPeer(ALICE, update_only=True, removed_allowed_ips=(POD_BLOCK,)), SetPeer(ALICE, remove=True))),
    )


def test_a_borrowed_address_that_goes_clear_never_reaches_the_owner_of_the_block() -> None:
    routes = {POD_BLOCK: RouteKind.DEVICE, BORROWED: RouteKind.DEVICE}
    before = running(peer(ALICE, POD_BLOCK), peer(BOB, BORROWED), routes=routes)
    after = running(peer(ALICE, POD_BLOCK), routes={POD_BLOCK: RouteKind.DEVICE, BORROWED: RouteKind.THROW})

    assert isinstance(plan(after, before)[0], PutRoute)


def test_routes_survive_the_loss_of_the_interface_address() -> None:
    before = running(peer(ALICE, POD_BLOCK), routes={POD_BLOCK: RouteKind.DEVICE})
    after = replace(before, addresses=frozenset())

    assert plan(after, before) == (planning.RemoveAddress(ip_interface("10.9.0.1/32")), PutRoute(INTO_POD_BLOCK))

    alone = replace(before, routes=frozenset({INTO_POD_BLOCK}))
    assert plan(after, alone)[0] == PutRoute(INTO_POD_BLOCK.twin)


def test_a_changed_keepalive_reaches_a_peer_that_is_there() -> None:
    before = running(peer(ALICE, POD_BLOCK), routes={POD_BLOCK: RouteKind.DEVICE})
    after = running(replace(peer(ALICE, POD_BLOCK), persistent_keepalive=25), routes={POD_BLOCK: RouteKind.DEVICE})

    assert plan(after, before) == (Configure((SetPeer(ALICE, update_only=True, persistent_keepalive=25),)),)


def test_a_preshared_key_from_elsewhere_goes() -> None:
    before = running(replace(peer(ALICE), preshared_key=bytes([9]) * 32), routes={})

    assert plan(running(peer(ALICE), routes={}), before) == (
        Configure((SetPeer(ALICE, update_only=True, preshared_key=NO_KEY),)),
    )


def test_a_new_priority_has_both_rules_for_a_moment() -> None:
    before = replace(running(routes={}), rules=frozenset({OLD_RULE}))

    assert plan(running(routes={}), before) == (AddRule(RULE), RemoveRule(OLD_RULE))
