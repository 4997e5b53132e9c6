"""The values, and the reading of numbers, prefixes and endpoints."""

import copy
import ctypes
import socket
from base64 import b64encode
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import partial
from ipaddress import ip_network

import pytest
from hypothesis import given

from tests.wgpy.strategies import device_configs, endpoints, prefixes
from wgpy.config import (
    DeviceConfig,
    DeviceSnapshot,
    Endpoint,
    PeerConfig,
    Prefix,
    SetDevice,
    SetPeer,
    changes_to,
    parse_endpoint,
    parse_prefix,
    parse_unsigned,
)

KEY = bytes(range(32))


@given(endpoints)
def test_an_endpoint_is_read_back_from_its_text(endpoint: Endpoint) -> None:
    assert parse_endpoint(str(endpoint)) == endpoint


@given(endpoints)
def test_an_endpoint_is_the_same_out_of_what_the_kernel_says(endpoint: Endpoint) -> None:
    unpacked = Endpoint.unpacked(endpoint.packed)

    assert (unpacked, hash(unpacked), repr(unpacked), str(unpacked)) == (endpoint, hash(endpoint), repr(endpoint), str(endpoint))
    assert (Endpoint.unpacked(endpoint.packed).address, unpacked.sockaddr) == (endpoint.address, endpoint.sockaddr)


def test_an_endpoint_is_packed_as_the_kernel_packs_it() -> None:
    """Read back by the kernel's own reading of them: what a socket was bound to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.3", 0))
        libc = ctypes.CDLL(None)
        room, size = ctypes.create_string_buffer(28), ctypes.c_uint(28)
        assert libc.getsockname(sock.fileno(), room, ctypes.byref(size)) == 0

        assert Endpoint(*sock.getsockname()).packed == room.raw[: size.value]


def test_an_endpoint_is_frozen() -> None:
    endpoint = Endpoint("192.0.2.1", 5)
    with pytest.raises(FrozenInstanceError):
        endpoint.port = 6
    with pytest.raises(FrozenInstanceError):
        del endpoint.port

    assert endpoint.port == 5
    assert (endpoint == "192.0.2.1:5", hasattr(endpoint, "prot")) == (False, False)
    assert copy.deepcopy(endpoint) == endpoint


@given(prefixes)
def test_a_prefix_is_read_back_from_its_text(prefix: Prefix) -> None:
    assert parse_prefix(str(prefix)) == prefix


@pytest.mark.parametrize(
    ("text", "sockaddr", "address"),
    [
        ("192.0.2.1:51820", ("192.0.2.1", 51820), bytes((192, 0, 2, 1))),
        ("[2001:DB8:0::1]:1", ("2001:db8::1", 1, 0, 0), socket.inet_pton(socket.AF_INET6, "2001:db8::1")),
        ("[fe80::1%7]:1", ("fe80::1", 1, 0, 7), socket.inet_pton(socket.AF_INET6, "fe80::1")),
    ],
)
def test_an_endpoint_has_the_address_that_sockets_take(text: str, sockaddr: tuple[object, ...], address: bytes) -> None:
    endpoint = parse_endpoint(text)

    assert endpoint.sockaddr == sockaddr
    assert (endpoint.address, endpoint.address) == (address, address), "once asked for, it is kept"
    assert endpoint.is_ipv6 == (len(sockaddr) == 4)


def test_a_zone_by_name_is_looked_up_by_whoever_can() -> None:
    assert parse_endpoint("[fe80::1%eth0]:5", {"eth0": 3}.__getitem__) == Endpoint("fe80::1", 5, 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":51820",
        "192.0.2.1",
        "192.0.2.1:",
        "192.0.2.1:65536",
        "192.0.2.1:-1",
        "192.0.2.1: 1",
        "192.0.2.1:1_0",
        "192.0.2.1:\u0661",
        "192.0.2.01:1",
        "192.0.2:1",
        "[192.0.2.1]:1",
        "192.0.2.1%1:1",
        "2001:db8::1:1",
        "[2001:db8::1]",
        "[2001:db8::1]:",
        "[2001:db8::1]1",
        "2001:db8::1]:1",
        "[fe80::1%]:1",
        "[fe80::1%eth0]:1",
        "localhost:1",
    ],
)
def test_what_is_not_an_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_endpoint(text)


def test_host_bits_of_a_prefix_are_masked_off() -> None:
    assert parse_prefix("10.1.2.3/8") == ip_network("10.0.0.0/8")
    assert parse_prefix("fd00::ffff:1/64") == ip_network("fd00::/64")
    assert parse_prefix("1.2.3.4/0") == ip_network("0.0.0.0/0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/8",
        "10.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/08",
        "10.0.0.0/+8",
        "10.0.0.0/-1",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/8/8",
        "10.0.0/8",
        "010.0.0.0/8",
        " 10.0.0.0/8",
        "+10.0.0.0/8",
        "fd00::/129",
        "fe80::1%1/64",
        "fd00:::/8",
    ],
)
def test_what_is_not_a_prefix_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_prefix(text)


def test_a_number_is_digits_within_its_bits() -> None:
    assert parse_unsigned("0", 16) == 0
    assert parse_unsigned("00065535", 16) == 65535
    for text in ("", "65536", "-1", "+1", " 1", "1 ", "1_0", "0x1", "1.0", "\u0661", "\u00b2", "9" * 10_000):
        with pytest.raises(ValueError):
            parse_unsigned(text, 16)


@pytest.mark.parametrize("key", [KEY.hex(), KEY.hex()[:-1], b64encode(KEY).decode(), b64encode(KEY).decode()[:-1]])
@pytest.mark.parametrize(
    "read",
    [
        partial(parse_unsigned, bits=16),
        parse_prefix,
        lambda text: parse_prefix(f"{text}/32"),
        parse_endpoint,
        lambda text: parse_endpoint(f"{text}:51820"),
        lambda text: parse_endpoint(f"[{text}]:51820"),
        lambda text: parse_endpoint(f"[fe80::1%{text}]:51820"),
        lambda text: parse_endpoint(f"192.0.2.1:{text}"),
    ],
)
def test_an_error_does_not_repeat_what_may_be_a_key(read: Callable[[str], object], key: str) -> None:
    with pytest.raises(ValueError) as refused:
        read(key)

    assert key[:12] not in str(refused.value)


def test_an_error_repeats_what_is_short() -> None:
    with pytest.raises(ValueError, match="'65536'"):
        parse_unsigned("65536", 16)


@given(device_configs)
def test_the_changes_to_a_configuration_say_everything_of_it(config: DeviceConfig) -> None:
    device, *peers = changes_to(config)

    assert device == SetDevice(config.private_key, config.listen_port, config.fwmark, replace_peers=True)
    assert all(isinstance(peer, SetPeer) and peer.replace_allowed_ips and not peer.removed_allowed_ips for peer in peers)
    assert [(p.public_key, p.preshared_key, p.endpoint, p.persistent_keepalive, p.allowed_ips) for p in config.peers] == [
        (p.public_key, p.preshared_key, p.endpoint, p.persistent_keepalive, p.allowed_ips)
        for p in peers
        if isinstance(p, SetPeer)
    ]


def test_no_secret_is_in_a_repr() -> None:
    secret = b"secret secret secret secret !!!!"
    peer = PeerConfig(KEY, preshared_key=secret)
    values = (
        peer,
        DeviceConfig(secret, peers=(peer,)),
        DeviceSnapshot(secret),
        SetDevice(secret),
        SetPeer(KEY, preshared_key=secret),
    )

    for value in values:
        assert "secret" not in repr(value)
        assert "_key=" not in repr(value).replace("public_key=", "")
