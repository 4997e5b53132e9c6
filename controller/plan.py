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
   and while the last address goes, the routes into the interface are blackholes: the exception to the third promise. Routes
   into an interface can only be added while it is up.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from controller.state import Device, InterfaceAddress, Link, Route, RouteKind, Rule, State
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
)


def plan(desired: State, actual: State) -> tuple[Step, ...]:
    """The steps that lead from ``actual`` to ``desired``, in order. Without a link or device in ``actual``, none for it."""
    return tuple(_steps(desired, actual))


def _steps(desired: State, actual: State) -> Iterator[Step]:
    missing_rules = sorted(desired.rules - actual.rules, key=_rule_order)
    wrong_rules = sorted(actual.rules - desired.rules, key=_rule_order)
    if not desired.is_promised:
        yield from map(RemoveRule, wrong_rules)
    if desired.is_underlay_strict is False and actual.is_underlay_strict:
        yield LoosenReversePath()
    yield from _raise_link(desired.link, actual.link)

    sends_on = any(route.kind is RouteKind.DEVICE for route in desired.routes)
    if sends_on:
        holds = list(_hold(desired, actual))
        yield from holds
        actual = replace(actual, routes=_after(actual.routes, holds))
        yield from _address_steps(desired, actual)
    withdrawn, given = _route_steps(desired.routes, actual.routes)
    yield from withdrawn
    if desired.device is not None and actual.device is not None:
        yield from _device_steps(desired.device, actual.device)
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


def _hold(desired: State, actual: State) -> Iterator[PutRoute]:
    """Blackholes for the routes that the kernel would remove together with the last IPv4 address."""
    before = {address for address in actual.addresses if address.version == 4}
    after = {address for address in desired.addresses if address.version == 4}
    if before and not after:
        for route in sorted(actual.routes, key=_longest_first):
            if route.kind is RouteKind.DEVICE:
                yield PutRoute(replace(route, kind=RouteKind.BLACKHOLE))


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
    before, after = _LongestMatch(_kinds(actual)), _LongestMatch(_kinds(desired))
    replaced = {(route.prefix, route.metric) for route in desired}
    removed = [route for route in actual - desired if (route.prefix, route.metric) not in replaced]
    changes: RouteSteps = [PutRoute(route) for route in sorted(desired - actual, key=_longest_first)]
    changes += [RemoveRoute(route) for route in sorted(removed, key=_shortest_first)]

    def waits(change: PutRoute | RemoveRoute) -> bool:
        was, will_be = before.lookup(change.route.prefix), after.lookup(change.route.prefix)
        if will_be is RouteKind.BLACKHOLE:
            return False  # dropping is safe at any time
        # Packets of a route that goes may be about to fall through to a wider route that is yet to come.
        return was is not RouteKind.DEVICE or (isinstance(change, RemoveRoute) and will_be is RouteKind.DEVICE)

    return [change for change in changes if not waits(change)], [change for change in changes if waits(change)]


def _kinds(routes: Iterable[Route]) -> dict[Prefix, RouteKind]:
    """Of several routes with one prefix the lowest metric counts."""
    return {route.prefix: route.kind for route in sorted(routes, key=lambda route: -route.metric)}


def _after(routes: frozenset[Route], puts: Iterable[PutRoute]) -> frozenset[Route]:
    by_key = {(route.prefix, route.metric): route for route in routes}
    by_key |= {(put.route.prefix, put.route.metric): put.route for put in puts}
    return frozenset(by_key.values())


# The device ---------------------------------------------------------------------------------------------------------


def _device_steps(desired: Device, actual: Device) -> Iterator[Step]:
    device = SetDevice(
        private_key=_changed(desired.private_key, actual.private_key),
        listen_port=_changed(desired.listen_port, actual.listen_port),
        fwmark=_changed(desired.fwmark, actual.fwmark),
    )
    if device != SetDevice():
        yield Configure((device,))  # alone: a port in use is then known before any peer is touched
    wanted = {peer.public_key: peer for peer in desired.peers}
    found = {peer.public_key: peer for peer in actual.peers}
    owners_after, owners_before = _owners(desired.peers), _owners(actual.peers)
    moved = [(prefix, key) for prefix, key in owners_after.items() if owners_before.get(prefix) != key]
    taken = [(prefix, key) for prefix, key in owners_before.items() if prefix not in owners_after]

    changes: list[Change] = [change for key, peer in wanted.items() for change in _peer_changes(peer, found.get(key))]
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


def _longest_first(route: Route) -> tuple[int, str]:
    return (-route.prefix.prefixlen, str(route.prefix))


def _shortest_first(route: Route) -> tuple[int, str, int]:
    return (route.prefix.prefixlen, str(route.prefix), -route.metric)  # of two routes the one that is not in force


def _longest_prefix_first(item: tuple[Prefix, bytes]) -> tuple[int, bytes, str]:
    prefix, key = item
    return (-prefix.prefixlen, key, str(prefix))


def _shortest_prefix_first(item: tuple[Prefix, bytes]) -> tuple[int, bytes, str]:
    prefix, key = item
    return (prefix.prefixlen, key, str(prefix))


class _LongestMatch:
    """Which route kind a packet to (all of) a prefix meets. For the few prefixes of a plan, not for packets."""

    def __init__(self, kinds: Mapping[Prefix, RouteKind]) -> None:
        self._kinds = kinds
        self._lengths = sorted({prefix.prefixlen for prefix in kinds}, reverse=True)

    def lookup(self, prefix: Prefix) -> RouteKind | None:
        for length in self._lengths:
            if length <= prefix.prefixlen:
                kind = self._kinds.get(prefix.supernet(new_prefix=length))
                if kind is not None:
                    return kind
        return None
