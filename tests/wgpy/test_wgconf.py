"""The file of wg(8): what it says, what is refused, and what syncconf makes of it."""

import contextlib
from ipaddress import ip_network
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wgpy.strategies import device_configs, keys, peer_configs
from wgpy import wgconf
from wgpy.config import (
    NO_KEY,
    Change,
    DeviceConfig,
    Endpoint,
    PeerConfig,
    Prefix,
    SetDevice,
    SetPeer,
    changes_to,
)
from wgpy.wgconf import WgConfError, changes_between, parse, parse_changes

KEY = bytes(range(32))
OTHER = bytes(range(100, 132))
KEY64 = wgconf.format_key(KEY)
OTHER64 = wgconf.format_key(OTHER)
PEER = f"[Peer]\nPublicKey = {KEY64}\n"


class Book:
    """A resolver that knows a few names, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Endpoint:
        self.asked.append(host)
        if host == "vpn.example.org":
            return Endpoint("192.0.2.7", port)
        if host == "fe80::1%eth0":
            return Endpoint("fe80::1", port, 3)
        raise ValueError(f"no address for {host!r}")


# --- reading -----------------------------------------------------------------------------------------------------------


def test_a_file_as_the_manual_page_shows_it() -> None:
    text = f"""
        # a comment
        [Interface]
        PrivateKey = {OTHER64}
        ListenPort = 51820   # another
        FwMark = 0x20

        [peer]
        publickey={KEY64}
        Endpoint = [2607:5300:60:6b0::c05f:543]:2468
        AllowedIPs = 10.192.122.3/32, 10.192.124.1/24
        AllowedIPs = fd00::1
        PersistentKeepalive = 25
    """

    assert parse(text) == DeviceConfig(
        OTHER,
        51820,
        0x20,
        (
            PeerConfig(
                KEY,
                endpoint=Endpoint("2607:5300:60:6b0::c05f:543", 2468),
                persistent_keepalive=25,
                allowed_ips=(ip_network("10.192.122.3/32"), ip_network("10.192.124.0/24"), ip_network("fd00::1/128")),
            ),
        ),
    )


def test_what_a_file_does_not_say_addconf_leaves_alone() -> None:
    assert parse_changes("") == parse_changes("[Interface]\n") == []
    assert parse_changes(f"[Interface]\nFwMark = off\n{PEER}") == [
        SetDevice(fwmark=0),
        SetPeer(KEY, replace_allowed_ips=True),
    ]


def test_what_a_file_does_not_say_setconf_clears() -> None:
    assert parse("") == DeviceConfig()
    assert next(iter(changes_to(parse(PEER)))) == SetDevice(NO_KEY, 0, 0, replace_peers=True)


def test_the_later_of_two_sections_of_one_peer_wins() -> None:
    text = f"{PEER}PresharedKey = {OTHER64}\nAllowedIPs = 10.0.0.1\n{PEER}AllowedIPs = 10.0.0.2\nPersistentKeepalive = 5\n"

    assert parse(text).peers == (PeerConfig(KEY, OTHER, None, 5, (ip_network("10.0.0.2/32"),)),)


@pytest.mark.parametrize(
    ("text", "mark"), [("0", 0), ("off", 0), ("OFF", 0), ("32", 32), ("0x20", 32), ("0XfFfFfFfF", 2**32 - 1)]
)
def test_a_mark_is_decimal_hexadecimal_or_off(text: str, mark: int) -> None:
    assert wgconf.parse_mark(text) == mark


@pytest.mark.parametrize("text", ["", "0x", "0x100000000", "4294967296", "-1", "0x-1", "0x1_0", "0x0x1", "x20", "on"])
def test_what_is_not_a_mark_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        wgconf.parse_mark(text)


@given(keys)
def test_a_key_is_read_back_from_its_base64(key: bytes) -> None:
    assert wgconf.parse_key(wgconf.format_key(key)) == key


@pytest.mark.parametrize(
    "text", ["", "AAAA", KEY64[:-1], KEY64 + "=", f" {KEY64}", KEY64[:-2] + "9=", KEY64.replace("A", "\u0410")]
)
def test_what_is_not_a_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="32 bytes in base64") as refusal:
        wgconf.parse_key(text)

    assert not text or text not in str(refusal.value)


def test_names_and_zones_are_for_the_resolver() -> None:
    book = Book()

    text = (
        f"{PEER}Endpoint = vpn.example.org:5\n"
        f"[Peer]\nPublicKey = {OTHER64}\nEndpoint = [fe80::1%eth0]:6\n"
        f"[Peer]\nPublicKey = {wgconf.format_key(NO_KEY)}\nEndpoint = 192.0.2.1:7\n"
    )
    endpoints = [peer.endpoint for peer in parse(text, book).peers]

    assert endpoints == [Endpoint("192.0.2.7", 5), Endpoint("fe80::1", 6, 3), Endpoint("192.0.2.1", 7)]
    assert book.asked == ["vpn.example.org", "fe80::1%eth0"]


# --- refusing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("ListenPort = 1", 1, "before any section"),
        ("\n[Nonsense]", 2, "neither [Interface], [Peer] nor KEY = VALUE"),
        ("[Interface]\nListenPort", 2, "neither [Interface], [Peer] nor KEY = VALUE"),
        ("[Interface]\nPort = 1", 2, "no such key in [Interface]: 'Port'"),
        ("[Interface]\nPublicKey = x", 2, "no such key in [Interface]"),
        ("[Interface]\nListenPort = 65536", 2, "ListenPort: not a number from 0 to 65535"),
        ("[Interface]\nListenPort =", 2, "has no value: leave the line out"),
        ("[Interface]\nFwMark = 0x1g", 2, "FwMark: not a mark"),
        ("[Interface]\nPrivateKey = AAAA", 2, "PrivateKey: not a key"),
        (f"{PEER}ListenPort = 1", 3, "no such key in [Peer]"),
        (f"{PEER}AllowedIPs =", 3, "has no value"),
        (f"{PEER}AllowedIPs = 10.0.0.0/33", 3, "AllowedIPs"),
        (f"{PEER}AllowedIPs = 10.0.0.0/8,", 3, "AllowedIPs"),
        (f"{PEER}AllowedIPs = (none)", 3, "AllowedIPs"),
        (f"{PEER}AllowedIPs = -10.0.0.0/8", 3, "AllowedIPs"),
        (f"{PEER}PersistentKeepalive = 65536", 3, "PersistentKeepalive: not a number from 0 to 65535"),
        (f"{PEER}PersistentKeepalive = 0x19", 3, "PersistentKeepalive"),
        (f"{PEER}Endpoint = 192.0.2.1", 3, "Endpoint: not HOST:PORT"),
        (f"{PEER}Endpoint = [2001:db8::1]", 3, "Endpoint: not HOST:PORT"),
        (f"{PEER}Endpoint = :5", 3, "Endpoint: not HOST:PORT"),
        (f"{PEER}Endpoint = vpn.example.org:http", 3, "Endpoint: not a number from 0 to 65535"),
        (f"{PEER}Endpoint = nowhere.example.org:5", 3, "Endpoint: not a numeric address"),
        (f"{PEER}\n[Peer]\nAllowedIPs = 10.0.0.1", 4, "this [Peer] has no PublicKey"),
    ],
)
def test_a_bad_line_is_named_with_its_number(text: str, line: int, reason: str) -> None:
    with pytest.raises(WgConfError) as refusal:
        parse(text)

    assert refusal.value.line == line
    assert str(refusal.value).startswith(f"line {line}: ")
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["Address", "dns", "MTU", "Table", "PreUp", "PostUp", "PreDown", "PostDown", "SaveConfig"])
def test_a_key_of_wg_quick_is_refused_by_name(key: str) -> None:
    with pytest.raises(WgConfError, match="wg-quick strip") as refusal:
        parse(f"[Interface]\n{key} = 10.0.0.1/24\n")

    assert refusal.value.line == 2
    assert key in str(refusal.value)


@pytest.mark.parametrize("text", ["[Interface]\nPrivateKey = {}", "[Peer]\nPresharedKey = {}", "[Interface]\nPrivateKe = {}"])
def test_a_mistyped_secret_is_not_in_the_error(text: str) -> None:
    secret = KEY64[:-2]

    with pytest.raises(WgConfError) as refusal:
        parse(text.format(secret))

    assert secret not in str(refusal.value)


@given(st.text(max_size=80), st.sampled_from(["", "[Interface]\n", PEER]))
def test_any_text_gives_a_configuration_or_an_error(text: str, before: str) -> None:
    with contextlib.suppress(WgConfError):
        parse(before + text, Book())


# --- writing -----------------------------------------------------------------------------------------------------------


@given(device_configs)
def test_a_configuration_is_read_back_as_it_was_written(config: DeviceConfig) -> None:
    def zones(host: str, port: int) -> Endpoint:
        address, _, zone = host.partition("%")
        return Endpoint(address, port, int(zone))

    assert parse(wgconf.format(config), zones) == config


def test_a_file_is_laid_out_as_wg_showconf_does() -> None:
    config = DeviceConfig(
        KEY,
        5555,
        0x20,
        (
            PeerConfig(OTHER, KEY, Endpoint("10.9.9.9", 1234), 25, (ip_network("10.0.0.0/8"), ip_network("fd00::/64"))),
            PeerConfig(KEY),
        ),
    )

    assert wgconf.format(config) == (
        f"[Interface]\nListenPort = 5555\nFwMark = 0x20\nPrivateKey = {KEY64}\n\n"
        f"[Peer]\nPublicKey = {OTHER64}\nPresharedKey = {KEY64}\nAllowedIPs = 10.0.0.0/8, fd00::/64\n"
        "Endpoint = 10.9.9.9:1234\nPersistentKeepalive = 25\n\n"
        f"[Peer]\nPublicKey = {KEY64}\n"
    )
    assert wgconf.format(DeviceConfig(listen_port=7)) == "[Interface]\nListenPort = 7\n\n"


# --- syncconf ----------------------------------------------------------------------------------------------------------


def applied(config: DeviceConfig, changes: list[Change]) -> DeviceConfig:
    """A device in the fewest words: what it is configured as after some changes."""
    device = config
    peers = {peer.public_key: peer for peer in config.peers}
    for change in changes:
        if isinstance(change, SetDevice):
            device = DeviceConfig(
                device.private_key if change.private_key is None else change.private_key,
                device.listen_port if change.listen_port is None else change.listen_port,
                device.fwmark if change.fwmark is None else change.fwmark,
            )
            peers = {} if change.replace_peers else peers
        elif change.remove:
            peers.pop(change.public_key, None)
        else:
            peer = peers.pop(change.public_key, PeerConfig(change.public_key))
            kept = () if change.replace_allowed_ips else tuple(p for p in peer.allowed_ips if p not in change.allowed_ips)
            peers = {key: without(other, change.allowed_ips) for key, other in peers.items()}
            peers[change.public_key] = PeerConfig(
                change.public_key,
                peer.preshared_key if change.preshared_key is None else change.preshared_key,
                change.endpoint or peer.endpoint,
                peer.persistent_keepalive if change.persistent_keepalive is None else change.persistent_keepalive,
                kept + change.allowed_ips,
            )
    return DeviceConfig(device.private_key, device.listen_port, device.fwmark, tuple(peers.values()))


def without(peer: PeerConfig, prefixes: tuple[Prefix, ...]) -> PeerConfig:
    kept = tuple(prefix for prefix in peer.allowed_ips if prefix not in prefixes)
    return PeerConfig(peer.public_key, peer.preshared_key, peer.endpoint, peer.persistent_keepalive, kept)


def comparable(config: DeviceConfig) -> object:
    """A configuration without the order of its peers and prefixes."""
    peers = {p.public_key: (p.preshared_key, p.endpoint, p.persistent_keepalive, frozenset(p.allowed_ips)) for p in config.peers}
    return (config.private_key, config.listen_port, config.fwmark, peers)


# Few keys and prefixes, so that two configurations have something in common.
some_peers = st.lists(
    st.builds(
        PeerConfig,
        public_key=st.sampled_from([KEY, OTHER, NO_KEY]),
        preshared_key=st.sampled_from([NO_KEY, KEY]),
        endpoint=st.sampled_from([Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 2)]),
        persistent_keepalive=st.sampled_from([0, 25]),
        allowed_ips=st.lists(st.sampled_from([ip_network(f"10.0.{i}.0/24") for i in range(4)]), unique=True).map(tuple),
    ),
    max_size=3,
    unique_by=lambda peer: peer.public_key,
).map(tuple)
some_devices = st.builds(
    DeviceConfig,
    private_key=st.sampled_from([NO_KEY, KEY]),
    listen_port=st.integers(1, 2),
    fwmark=st.integers(0, 1),
    peers=some_peers,
)


@given(some_devices, some_devices)
def test_syncconf_ends_where_setconf_does(actual: DeviceConfig, desired: DeviceConfig) -> None:
    actual = applied(DeviceConfig(), list(changes_to(actual)))  # so that each allowed IP has one owner

    synced = applied(actual, changes_between(actual, desired))

    assert comparable(synced) == comparable(applied(actual, list(changes_to(desired))))


@given(some_devices)
def test_syncconf_changes_nothing_that_is_right(config: DeviceConfig) -> None:
    config = applied(DeviceConfig(), list(changes_to(config)))

    assert changes_between(config, config) == []


@given(st.lists(peer_configs, max_size=4, unique_by=lambda peer: peer.public_key), peer_configs)
def test_syncconf_does_not_name_a_peer_that_is_right(peers: list[PeerConfig], new: PeerConfig) -> None:
    owner = {prefix: peer.public_key for peer in chain(peers, [new]) for prefix in peer.allowed_ips}
    peers = [without(peer, tuple(p for p in peer.allowed_ips if owner[p] != peer.public_key)) for peer in peers]
    actual = DeviceConfig(peers=tuple(peer for peer in peers if peer.public_key != new.public_key))

    changes = changes_between(actual, DeviceConfig(peers=(*actual.peers, new)))

    assert [change.public_key for change in changes if isinstance(change, SetPeer)] == [new.public_key]


def test_syncconf_leaves_a_port_and_an_endpoint_that_the_file_does_not_give() -> None:
    actual = DeviceConfig(KEY, 40_000, peers=(PeerConfig(OTHER, endpoint=Endpoint("192.0.2.1", 5)),))

    assert changes_between(actual, DeviceConfig(KEY, peers=(PeerConfig(OTHER),))) == []


def test_syncconf_removes_first() -> None:
    changes = changes_between(DeviceConfig(peers=(PeerConfig(KEY),)), DeviceConfig(peers=(PeerConfig(OTHER),)))

    assert changes == [SetPeer(KEY, remove=True), SetPeer(OTHER)]
