"""Hypothesis strategies for the values of :mod:`wgpy.config`."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st

from wgpy.config import (
    NO_KEY,
    DeviceConfig,
    DeviceSnapshot,
    Endpoint,
    PeerConfig,
    PeerSnapshot,
    Prefix,
    SetDevice,
    SetPeer,
)

keys = st.binary(min_size=32, max_size=32)
ports = st.integers(0, 65535)
marks = st.integers(0, 2**32 - 1)
counters = st.integers(0, 2**63 - 1)


def _prefix4(address: int, length: int) -> Prefix:
    return IPv4Network((address >> (32 - length) << (32 - length), length))


def _prefix6(address: int, length: int) -> Prefix:
    return IPv6Network((address >> (128 - length) << (128 - length), length))


prefixes: st.SearchStrategy[Prefix] = st.one_of(
    st.builds(_prefix4, st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(_prefix6, st.integers(0, 2**128 - 1), st.integers(0, 128)),
)
endpoints = st.one_of(
    st.builds(lambda host, port: Endpoint(str(IPv4Address(host)), port), st.integers(0, 2**32 - 1), ports),
    st.builds(
        lambda host, port, scope_id: Endpoint(str(IPv6Address(host)), port, scope_id),
        st.integers(0, 2**128 - 1),
        ports,
        st.one_of(st.just(0), st.integers(1, 2**31 - 1)),
    ),
)
allowed_ips = st.lists(prefixes, max_size=5, unique=True).map(tuple)


def clamped(key: bytes) -> bytes:
    """A private key that setting leaves as it is."""
    return key if key == NO_KEY else bytes([key[0] & 248, *key[1:31], key[31] & 127 | 64])


private_keys = st.one_of(st.just(NO_KEY), keys.map(clamped))
peer_configs = st.builds(
    PeerConfig,
    public_key=keys,
    preshared_key=st.one_of(st.just(NO_KEY), keys),
    endpoint=st.none() | endpoints,
    persistent_keepalive=ports,
    allowed_ips=allowed_ips,
)
device_configs = st.builds(
    DeviceConfig,
    private_key=private_keys,
    listen_port=ports,
    fwmark=marks,
    peers=st.lists(peer_configs, max_size=4, unique_by=lambda peer: peer.public_key).map(tuple),
)
peer_snapshots = st.builds(PeerSnapshot, peer_configs, counters, counters, counters)
device_snapshots = st.builds(
    DeviceSnapshot,
    private_key=private_keys,
    listen_port=ports,
    fwmark=marks,
    peers=st.lists(peer_snapshots, max_size=4).map(tuple),
)
set_devices = st.builds(
    SetDevice,
    private_key=st.none() | private_keys,
    listen_port=st.none() | ports,
    fwmark=st.none() | marks,
    replace_peers=st.booleans(),
)


def _set_peer(peer: SetPeer) -> SetPeer:
    """Only what a set can say: nothing else of a peer that is removed."""
    if peer.remove:
        return SetPeer(peer.public_key, remove=True, update_only=peer.update_only)
    return peer


set_peers = st.builds(
    SetPeer,
    public_key=keys,
    remove=st.booleans(),
    update_only=st.booleans(),
    preshared_key=st.none() | keys,
    endpoint=st.none() | endpoints,
    persistent_keepalive=st.none() | ports,
    replace_allowed_ips=st.booleans(),
    allowed_ips=allowed_ips,
    removed_allowed_ips=allowed_ips,
).map(_set_peer)
