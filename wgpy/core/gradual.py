"""A large change as many small ones that come to the same, between which packets go on.

How to think about it: one change may concern thousands of peers, or tens of thousands of allowed IPs, and a device carries it
out in one go. What is here puts it as a sequence. An address on its way from the old state to the new one finds
one of the two at any time, and nothing else: prefixes that a peer keeps are never missing, so those that it is to lose go last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from wgpy.config import Change, Prefix, SetDevice, SetPeer
from wgpy.core.device import Device

STEP_PREFIXES = 64
"""Allowed IPs that one step adds or removes at most: about a third of a millisecond's work."""


def steps(device: Device, changes: Iterable[Change]) -> Iterator[Change]:
    """``changes`` in steps for ``device``. Each is to be applied before the next is asked for, and nothing else in between."""
    for change in changes:
        if isinstance(change, SetDevice):
            if change.replace_peers:
                for public_key in list(device.peers):
                    yield from _removal(device, public_key)
            yield change
        elif change.remove:
            yield from _removal(device, change.public_key)
        else:
            yield from _peer_steps(device, change)


def _removal(device: Device, public_key: bytes) -> Iterator[SetPeer]:
    prefixes = _prefixes(device, public_key)
    if len(prefixes) > STEP_PREFIXES:
        for part in _parts(prefixes):
            yield SetPeer(public_key, update_only=True, removed_allowed_ips=part)
    yield SetPeer(public_key, remove=True)


def _peer_steps(device: Device, change: SetPeer) -> Iterator[SetPeer]:
    public_key = change.public_key
    had = _prefixes(device, public_key) if change.replace_allowed_ips else ()
    if len(had) + len(change.allowed_ips) + len(change.removed_allowed_ips) <= STEP_PREFIXES:
        yield change
        return
    yield replace(change, replace_allowed_ips=False, allowed_ips=(), removed_allowed_ips=())
    kept: set[Prefix] = set()
    for part in _parts(change.allowed_ips):
        kept.update(part)
        yield SetPeer(public_key, update_only=True, allowed_ips=part)
    for part in _parts(had):
        gone = tuple(prefix for prefix in part if prefix not in kept)
        yield SetPeer(public_key, update_only=True, removed_allowed_ips=gone)
    for part in _parts(change.removed_allowed_ips):
        yield SetPeer(public_key, update_only=True, removed_allowed_ips=part)


def _prefixes(device: Device, public_key: bytes) -> tuple[Prefix, ...]:
    """Those that the peer has; none if there is no such peer."""
    peer = device.peers.get(public_key)
    return () if peer is None else tuple(device.allowed_ips.prefixes(peer))


def _parts(prefixes: tuple[Prefix, ...]) -> Iterator[tuple[Prefix, ...]]:
    for start in range(0, len(prefixes), STEP_PREFIXES):
        yield prefixes[start : start + STEP_PREFIXES]
