"""Reads the state of one family on this host, and does the steps of a plan to it."""

import errno
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from controller import guard
from controller.masquerade import masquerade, masqueraded_interface, stop_masquerading
from controller.model import Family
from controller.netlink import Kernel, Underlay
from controller.plan import (
    AddAddress,
    AddRule,
    Configure,
    LoosenReversePath,
    PutRoute,
    RemoveAddress,
    RemoveRoute,
    RemoveRule,
    SetGuard,
    SetLink,
    SetMasquerade,
    Step,
)
from controller.prefixes import known
from controller.state import Device, Route, State, sorted_prefixes
from wgpy.client import Client, ClientError, NoSuchInterface
from wgpy.config import Change, DeviceConfig, Prefix, SetPeer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where on this host a family's state is."""

    family: Family
    interface: str
    table: int
    underlay: Underlay | None = None


def read_state(kernel: Kernel, place: Place) -> State:
    """What is there now. Raises NetlinkRefusal, and ClientError where a data plane listens but does not answer."""
    found = kernel.find_link(place.interface)
    try:
        device = _device(Client(place.interface).get().config)
    except NoSuchInterface:
        device = None
    return State(
        link=found.link if found else None,
        addresses=kernel.addresses(found.index, place.family) if found else frozenset(),
        routes=kernel.routes(place.table, place.family, found.index if found else None),
        rules=kernel.rules(place.table, place.family),
        device=device,
        masquerades=masqueraded_interface(place.family) == place.interface,
        is_underlay_strict=place.underlay.is_strict if place.underlay else None,
        guard=guard.found(place.family, place.interface),
    )


def apply_steps(kernel: Kernel, place: Place, steps: Sequence[Step]) -> None:
    """Do the steps in order, up to the first that fails: it raises NetlinkRefusal, ClientError or NftablesRefusal (with
    MasqueradeUnavailable where only that is missing).

    Every state on the way is fit to live in, so where it stopped things can stay until the next attempt. Neighbouring routes
    of one kind are done at one go, in their order; there it is of no harm that the kernel goes on past one it refuses. The
    packets of the route that is missing fall through to one of the same kind, and then meet a device that knows both.
    """
    for _, group in itertools.groupby(steps, key=_batch):
        batch = list(group)
        log.debug("%s: %s", place.interface, batch[0] if len(batch) == 1 else f"{len(batch)} times {batch[0]} and so on")
        match batch[0]:
            case PutRoute():
                kernel.put_routes(place.interface, place.table, _routes(batch))
            case RemoveRoute():
                kernel.remove_routes(place.table, _routes(batch))
            case _:
                for step in batch:
                    _apply(kernel, place, step)


def _batch(step: Step) -> object:
    return (type(step), step.route.kind) if isinstance(step, PutRoute | RemoveRoute) else type(step)


def _routes(steps: Iterable[Step]) -> list[Route]:
    return [step.route for step in steps if isinstance(step, PutRoute | RemoveRoute)]


def _apply(kernel: Kernel, place: Place, step: Step) -> None:
    match step:
        case SetLink(is_up, mtu):
            kernel.set_link(place.interface, is_up, mtu)
        case AddAddress(address):
            kernel.add_address(place.interface, address)
        case RemoveAddress(address):
            kernel.remove_address(place.interface, address)
        case AddRule(rule):
            kernel.add_rule(place.table, place.family, rule)
        case RemoveRule(rule):
            kernel.remove_rule(place.table, place.family, rule)
        case Configure(changes):
            configure(Client(place.interface), changes)
        case SetMasquerade(masquerades):
            if masquerades:
                masquerade(place.family, place.interface)
            else:
                stop_masquerading(place.family)
        case SetGuard(wanted):
            if wanted is None:
                guard.remove(place.family)
            else:
                guard.put(place.family, place.interface, wanted)
        case LoosenReversePath():
            if place.underlay is not None:
                kernel.loosen_reverse_path(place.underlay.name)


def summary(steps: Sequence[Step]) -> str:
    """A plan in a line: ``3 peers, 5 allowed IPs, rule; removal of 2 routes``. It holds no key."""
    names = {PutRoute: "route", RemoveRoute: "route", AddRule: "rule", RemoveRule: "rule", SetLink: "link"}
    names |= {AddAddress: "address", RemoveAddress: "address", SetMasquerade: "masquerade", SetGuard: "guard"}
    names[LoosenReversePath] = "rp_filter"
    put: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    for step in steps:
        if isinstance(step, Configure):
            peers = [change for change in step.changes if isinstance(change, SetPeer)]
            gone = {peer.public_key for peer in peers if peer.remove}
            put["device"] += len(step.changes) - len(peers)
            put["peer"] += len({peer.public_key for peer in peers} - gone)
            put["allowed IP"] += sum(len(peer.allowed_ips) + len(peer.removed_allowed_ips) for peer in peers)
            removed["peer"] += len(gone)
        else:
            is_removal = isinstance(step, RemoveRoute | RemoveRule | RemoveAddress) or step in (
                SetMasquerade(False),
                SetGuard(None),
            )
            (removed if is_removal else put)[names[type(step)]] += 1
    said = [_counted(put), f"removal of {_counted(removed)}" if removed.total() else ""]
    return "; ".join(filter(None, said))


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}s" if number > 1 else name for name, number in counts.items() if number)


def configure(client: Client, changes: tuple[Change, ...]) -> None:
    """One UAPI set. Data planes older than May 2025 cannot take a single allowed IP from a peer (``-`` in front): there the
    peer is told the ones it keeps."""
    try:
        client.set(changes)
    except ClientError as error:
        takes = any(isinstance(change, SetPeer) and change.removed_allowed_ips for change in changes)
        if error.errno != errno.EINVAL or not takes:
            raise
        client.set(tuple(_spelled_out(changes, _device(client.get().config))))


def _spelled_out(changes: tuple[Change, ...], device: Device) -> Iterator[Change]:
    owned = {peer.public_key: set(peer.allowed_ips) for peer in device.peers}
    for change in changes:
        if isinstance(change, SetPeer):
            for prefixes in owned.values():
                prefixes -= set(change.allowed_ips)
            kept = owned.setdefault(change.public_key, set())
            kept |= set(change.allowed_ips)
            if change.removed_allowed_ips:
                kept -= set(change.removed_allowed_ips)
                change = replace(change, removed_allowed_ips=(), replace_allowed_ips=True, allowed_ips=sorted_prefixes(kept))
        yield change


def _device(config: DeviceConfig) -> Device:
    """In the order in which two of them can be compared."""
    peers = (replace(peer, allowed_ips=_ordered(peer.allowed_ips)) for peer in config.peers)
    return Device(
        private_key=config.private_key,
        listen_port=config.listen_port,
        fwmark=config.fwmark,
        peers=tuple(sorted(peers, key=lambda peer: peer.public_key)),
    )


@lru_cache(1 << 15)
def _ordered(prefixes: tuple[Prefix, ...]) -> tuple[Prefix, ...]:
    """The same in every pass, for nearly all peers."""
    return sorted_prefixes({known(prefix) for prefix in prefixes})
