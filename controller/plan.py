"""The steps from the actual state to the desired one. Pure: ``plan(x, x)`` is empty, and doing the steps gives the desired.

The order is what this module is about. Between two steps packets flow, so *every state on the way* must be fit to live in:

* **Nothing leaks.** A packet that is encrypted before and after is never sent in clear in between.
* **Nothing goes astray.** A packet is encrypted to nobody but the peer it goes to before or the peer it goes to after.
* **Nothing is dropped needlessly.** What goes to the same peer before and after goes there all the time (one exception, below).

A packet's way has two lookups by longest prefix: our table (into the interface, or on in clear), then the device's allowed
IPs (which peer). So, from the outside in:

1. *Withdrawing everything*: the rule goes first, and with it all promises. *Promising*: the rule comes last, its
   replacement before the one it replaces.
2. *Routes that send packets into the interface* stop before the device changes: a packet that is to go in clear must not
   meet the new owner of a wider prefix. Routes that are to begin wait until it has changed and their peers are ready; and all
   else waits with them, as a route that matters to nobody yet may be the one a packet falls through to.
3. *The device* first learns its own key, port and mark, then new peers, then allowed IPs, last removals. Allowed IPs are
   given from the longest prefix to the shortest, and taken from the shortest to the longest: then every packet's longest
   match is at any time the one of before or the one of after, never a third. Moving one from peer to peer is a single
   step of the device's. Within each half of rule 2 routes keep to the same order, for the same reason.
4. *The kernel's own surprises.* Taking the last IPv4 address off an interface, or the interface down, removes all routes
   into it from all tables (measured on 6.18; ``fib_disable_ip``). So the interface goes down only when no route needs it,
   and while the last address goes, the twins hold: the exception to the third promise. Routes into an interface can only be
   added while it is up.
5. *Twins* (:attr:`controller.state.Route.twin`) come after all the routes they stand behind, since before them they would
   be in force, and go before those; the rule, which makes it all count, comes after both.
6. *The guard* of strict mode comes first of all and goes last of all, and so does each of its ranges. What it refuses is
   dropped from its coming on, until the tunnel has it: the other exception to the third promise, and the point of strict mode.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TypeVar

from controller.prefixes import LongestMatch, widest
from controller.state import TWIN_METRIC, Device, Guard, InterfaceAddress, Link, Route, RouteKind, Rule, State
from wgpy.config import NO_KEY, Change, PeerConfig, Prefix, SetDevice, SetPeer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SetLink:
    """None leaves it as it is."""

    is_up: bool | None = None
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class AddAddress:
    address: InterfaceAddress


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    address: InterfaceAddress


@dataclass(frozen=True, slots=True)
class PutRoute:
    """Add the route, in the place of the one with the same prefix and metric if there is one."""

    route: Route


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    route: Route


@dataclass(frozen=True, slots=True)
class AddRule:
    rule: Rule


@dataclass(frozen=True, slots=True)
class RemoveRule:
    rule: Rule


@dataclass(frozen=True, slots=True)
class Configure:
    """One UAPI set."""

    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class SetMasquerade:
    masquerades: bool


@dataclass(frozen=True, slots=True)
class LoosenReversePath:
    """Let the underlay accept packets whose way back is another than the one they came."""


@dataclass(frozen=True, slots=True)
class SetGuard:
    """None takes it away."""

    guard: Guard | None


Step = (
    SetLink
    | AddAddress
    | RemoveAddress
    | PutRoute
    | RemoveRoute
    | AddRule
    | RemoveRule
    | Configure
    | SetMasquerade
    | LoosenReversePath
    | SetGuard
)


def plan(desired: State, actual: State) -> tuple[Step, ...]:
    """The steps that lead from ``actual`` to ``desired``, in order. Without a link or device in ``actual``, none for it."""
    return tuple(_steps(desired, actual))


def _steps(desired: State, actual: State) -> Iterator[Step]:
    missing_rules = sorted(desired.rules - actual.rules, key=_rule_order)
    wrong_rules = sorted(actual.rules - desired.rules, key=_rule_order)
    guard = union(desired.guard, actual.guard)
    if desired.guard is not None and guard != actual.guard:
        yield SetGuard(guard)
    if not desired.is_promised:
        yield from map(RemoveRule, wrong_rules)
    if desired.is_underlay_strict is False and actual.is_underlay_strict:
        yield LoosenReversePath()
    yield from _raise_link(desired.link, actual.link)

    sends_on = any(route.kind is RouteKind.DEVICE for route in desired.routes)
    if sends_on:
        if _loses_last_ipv4_address(desired, actual):
            held = _held(actual.routes)
            yield from map(PutRoute, sorted(held - actual.routes, key=_put_order))
            actual = replace(actual, routes=held)
        yield from _address_steps(desired, actual)
    withdrawn, given = _route_steps(desired.routes, actual.routes)
    yield from withdrawn
    if desired.device is not None and actual.device is not None:
        goes_up = bool(desired.link and actual.link and desired.link.is_up and not actual.link.is_up)
        yield from _device_steps(desired.device, actual.device, goes_up)
    yield from given
    if not sends_on:
        yield from _address_steps(desired, actual)

    if desired.masquerades != actual.masquerades:
        yield SetMasquerade(desired.masquerades)
    if desired.is_promised:
        yield from map(AddRule, missing_rules)
        yield from map(RemoveRule, wrong_rules)
    if desired.link and actual.link and actual.link.is_up and not desired.link.is_up:
        yield SetLink(is_up=False)
    if desired.guard != guard:
        yield SetGuard(desired.guard)


def union(desired: Guard | None, actual: Guard | None) -> Guard | None:
    """The guard while things change: as ``desired``, but what is protected stays so."""
    if desired is None or actual is None:
        return desired or actual
    return replace(desired, protected=widest(desired.protected | actual.protected))


def _rule_order(rule: Rule) -> tuple[int, int, int, bool, str]:
    return (rule.priority, rule.fwmark, rule.fwmask, rule.is_inverted, rule.extra)


# Link and addresses -------------------------------------------------------------------------------------------------


def _raise_link(desired: Link | None, actual: Link | None) -> Iterator[Step]:
    if desired is None or actual is None:
        return
    mtu = desired.mtu if desired.mtu != actual.mtu else None
    is_up = True if desired.is_up and not actual.is_up else None
    if mtu is not None or is_up is not None:
        yield SetLink(is_up, mtu)


def _loses_last_ipv4_address(desired: State, actual: State) -> bool:
    return any(a.version == 4 for a in actual.addresses) and not any(a.version == 4 for a in desired.addresses)


def _held(routes: frozenset[Route]) -> frozenset[Route]:
    """What is left when the kernel has removed the routes into the interface, if each has its twin."""
    into_interface = {route for route in routes if route.kind is RouteKind.DEVICE}
    twins = {route.twin for route in into_interface}
    replaced = {(twin.prefix, twin.metric) for twin in twins}
    return frozenset(twins | {route for route in routes - into_interface if (route.prefix, route.metric) not in replaced})


def _address_steps(desired: State, actual: State) -> Iterator[Step]:
    """The new IPv4 address before the old one goes, so that it is not the last. For IPv6 the old one first: the kernel does
    not take one address with two prefix lengths."""
    leaving = sorted(actual.addresses - desired.addresses, key=str)
    arriving = sorted(desired.addresses - actual.addresses, key=str)
    yield from (RemoveAddress(address) for address in leaving if address.version == 6)
    yield from map(AddAddress, arriving)
    yield from (RemoveAddress(address) for address in leaving if address.version == 4)


# Routes -------------------------------------------------------------------------------------------------------------

RouteSteps = list[PutRoute | RemoveRoute]


def _route_steps(desired: frozenset[Route], actual: frozenset[Route]) -> tuple[RouteSteps, RouteSteps]:
    """The changes of routes to make before the device changes, and those to make after it."""
    arriving, leaving = desired - actual, actual - desired
    if not arriving and not leaving:
        return [], []
    before, after = LongestMatch(_kinds(actual)), LongestMatch(_kinds(desired))
    replaced = {(route.prefix, route.metric) for route in arriving}
    removed = [route for route in leaving if (route.prefix, route.metric) not in replaced]
    changes: RouteSteps = [PutRoute(route) for route in sorted(arriving, key=_put_order)]
    changes += [RemoveRoute(route) for route in sorted(removed, key=_remove_order)]

    def waits(change: PutRoute | RemoveRoute) -> bool:
        was, will_be = before.lookup(change.route.prefix), after.lookup(change.route.prefix)
        if will_be is RouteKind.PROHIBIT:
            return False  # refusing is safe at any time
        # Packets of a route that goes may be about to fall through to a wider route that is yet to come.
        return was is not RouteKind.DEVICE or (isinstance(change, RemoveRoute) and will_be is RouteKind.DEVICE)

    early: RouteSteps = []
    late: RouteSteps = []
    for change in changes:
        (late if waits(change) else early).append(change)
    return early, late


def _kinds(routes: Iterable[Route]) -> Iterator[tuple[Prefix, RouteKind]]:
    """In such an order that of several routes with one prefix the one with the lowest metric comes last: it counts."""
    return ((route.prefix, route.kind) for route in sorted(routes, key=attrgetter("metric"), reverse=True))


def _put_order(route: Route) -> tuple[bool, int, str, int, int]:
    """Twins last, the rest from the longest prefix to the shortest. Those of one length are disjoint, so in any order: the
    same kinds together, which can then be done at one go."""
    prefix = route.prefix
    return (route.metric == TWIN_METRIC, -prefix.prefixlen, route.kind.value, int(prefix.network_address), route.metric)


def _remove_order(route: Route) -> tuple[int, int, str, int]:
    """From the shortest prefix to the longest; of two routes with one prefix first the one that is not in force."""
    return (route.prefix.prefixlen, -route.metric, route.kind.value, int(route.prefix.network_address))


# The device ---------------------------------------------------------------------------------------------------------


def _device_steps(desired: Device, actual: Device, goes_up: bool) -> Iterator[Step]:
    """``goes_up``: the link was down until now. Only one that is up takes its port, and only who asks for it is told that
    somebody else has it."""
    device = SetDevice(
        private_key=_changed(desired.private_key, actual.private_key),
        listen_port=desired.listen_port if goes_up else _changed(desired.listen_port, actual.listen_port),
        fwmark=_changed(desired.fwmark, actual.fwmark),
    )
    if device != SetDevice():
        yield Configure((device,))  # alone: a port in use is then known before any peer is touched
    wanted = {peer.public_key: peer for peer in desired.peers}
    found = {peer.public_key: peer for peer in actual.peers}
    # A peer that stays as it is neither gives an allowed IP nor gets one, as each has one owner.
    arriving = [peer for peer in desired.peers if found.get(peer.public_key) != peer]
    staying = wanted.keys() - {peer.public_key for peer in arriving}
    owners_after = _owners(arriving)
    owners_before = _owners(peer for peer in actual.peers if peer.public_key not in staying)
    moved = [(prefix, key) for prefix, key in owners_after.items() if owners_before.get(prefix) != key]
    taken = [(prefix, key) for prefix, key in owners_before.items() if prefix not in owners_after]

    changes: list[Change] = [change for peer in arriving for change in _peer_changes(peer, found.get(peer.public_key))]
    changes += [SetPeer(key, allowed_ips=prefixes) for key, prefixes in _by_peer(sorted(moved, key=_longest_prefix_first))]
    changes += [
        SetPeer(key, update_only=True, removed_allowed_ips=prefixes)
        for key, prefixes in _by_peer(sorted(taken, key=_shortest_prefix_first))
    ]
    changes += [SetPeer(key, remove=True) for key in found if key not in wanted]
    if changes:
        yield Configure(tuple(changes))


def _peer_changes(desired: PeerConfig, actual: PeerConfig | None) -> Iterator[SetPeer]:
    """Everything but the allowed IPs. There are no preshared keys in the mesh, so one that is there goes."""
    change = SetPeer(
        desired.public_key,
        update_only=actual is not None,
        preshared_key=_changed(desired.preshared_key, actual.preshared_key if actual else NO_KEY),
        endpoint=_changed(desired.endpoint, actual.endpoint if actual else None),
        persistent_keepalive=_changed(desired.persistent_keepalive, actual.persistent_keepalive if actual else 0),
    )
    if actual is None or change != SetPeer(desired.public_key, update_only=True):
        yield change


def _changed(desired: T | None, actual: T | None) -> T | None:
    return desired if desired != actual else None


def _owners(peers: Iterable[PeerConfig]) -> dict[Prefix, bytes]:
    return {prefix: peer.public_key for peer in peers for prefix in peer.allowed_ips}


def _by_peer(prefixes: Iterable[tuple[Prefix, bytes]]) -> Iterator[tuple[bytes, tuple[Prefix, ...]]]:
    """Neighbours of one peer together, without changing the order."""
    for key, group in itertools.groupby(prefixes, key=lambda item: item[1]):
        yield key, tuple(prefix for prefix, _ in group)


# Prefixes -----------------------------------------------------------------------------------------------------------


def _longest_prefix_first(item: tuple[Prefix, bytes]) -> tuple[int, bytes, int]:
    prefix, key = item
    return (-prefix.prefixlen, key, int(prefix.network_address))


def _shortest_prefix_first(item: tuple[Prefix, bytes]) -> tuple[int, bytes, int]:
    prefix, key = item
    return (prefix.prefixlen, key, int(prefix.network_address))
