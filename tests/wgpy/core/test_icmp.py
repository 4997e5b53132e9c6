"""About which packets there is an ICMP error, and its bytes."""

import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgpy.core.icmp import QUOTE_IPV4, QUOTE_IPV6, Refused, refused, unreachable

UDP = 17
PORTS = b"\x13\x88\x00\x50"
ECHO4, ECHO6 = b"\x08\x00\x00\x00\x12\x34\x00\x01", b"\x80\x00\x00\x00\x12\x34\x00\x01"


def ipv4(
    payload: bytes = PORTS + bytes(8),
    *,
    source: str = "10.0.0.1",
    destination: str = "10.9.9.9",
    protocol: int = UDP,
    fragment: int = 0,
    options: bytes = b"",
    length: int | None = None,
) -> bytes:
    header = 20 + len(options)
    total = header + len(payload) if length is None else length
    addresses = ip_address(source).packed + ip_address(destination).packed
    return struct.pack(">BBHHHBBH", 0x40 | header // 4, 0, total, 7, fragment, 64, protocol, 0) + addresses + options + payload


def ipv6(
    payload: bytes = PORTS + bytes(8),
    *,
    source: str = "fd00::1",
    destination: str = "fd99::9",
    protocol: int = UDP,
    length: int | None = None,
) -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    return struct.pack(">IHBB", 6 << 28, len(payload) if length is None else length, protocol, 64) + addresses + payload


def extension(following: int, units: int = 0, field: bytes = bytes(2)) -> bytes:
    """An extension header of 8 + 8 * units bytes; ``field`` is what a fragment header has of an offset."""
    return bytes([following, units]) + field + bytes(4 + 8 * units)


# -- which --------------------------------------------------------------------------------------------------------------


def test_an_ordinary_packet_is_read() -> None:
    assert refused(ipv4()) == Refused(socket.inet_aton("10.0.0.1"), socket.inet_aton("10.9.9.9"), UDP, PORTS + bytes(4))
    assert refused(ipv6()) == Refused(ip_address("fd00::1").packed, ip_address("fd99::9").packed, UDP, PORTS + bytes(4))


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(ipv4(options=bytes(40)), id="options"),
        pytest.param(ipv4(fragment=0x2000), id="the-first-fragment"),
        pytest.param(ipv4(fragment=0x4000), id="dont-fragment"),
        pytest.param(ipv4() + bytes(9), id="more-than-its-length"),
        pytest.param(ipv4(ECHO4, protocol=1), id="a-ping"),
        pytest.param(ipv4(b"\x00" + bytes(7), protocol=1), id="the-answer-to-one"),
        pytest.param(ipv4(b"", protocol=47), id="nothing-in-it"),
        pytest.param(ipv4(ECHO6, protocol=58), id="an-ICMPv6-number-over-IPv4"),
        pytest.param(ipv4(source="223.255.255.254", destination="223.1.1.1"), id="the-last-unicast-addresses"),
        pytest.param(ipv6(ECHO6, protocol=58), id="a-ping6"),
        pytest.param(ipv6(b"\x81" + bytes(7), protocol=58), id="the-answer-to-one6"),
        pytest.param(ipv6(b"\x03" + bytes(7), protocol=1), id="an-ICMP-number-over-IPv6"),
        pytest.param(ipv6(extension(UDP) + PORTS, protocol=0), id="hop-by-hop"),
        pytest.param(ipv6(extension(43) + extension(60) + extension(UDP, 2) + PORTS, protocol=0), id="a-chain"),
        pytest.param(ipv6(extension(UDP, field=b"\x00\x01") + PORTS, protocol=44), id="the-first-fragment6"),
        pytest.param(ipv6(bytes([UDP, 4]) + bytes(22) + PORTS, protocol=51), id="authentication-header"),
        pytest.param(ipv6(source="fe80::1", destination="fe80::2"), id="link-local"),
    ],
)
def test_there_is_an_error_about(packet: bytes) -> None:
    found = refused(packet)

    assert found is not None
    assert len(found.transport) <= 8


@pytest.mark.parametrize("size", [0, 8, 16])
def test_what_follows_extension_headers_is_found(size: int) -> None:
    found = refused(ipv6(extension(43, size // 8) + extension(UDP) + PORTS, protocol=0))

    assert found is not None
    assert (found.protocol, found.transport) == (UDP, PORTS)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x45", id="one-byte"),
        pytest.param(ipv4()[:19], id="less-than-a-header"),
        pytest.param(b"\x50" + ipv4()[1:], id="another-version"),
        pytest.param(b"\x44" + ipv4()[1:], id="a-header-too-short"),
        pytest.param(b"\x4f" + ipv4()[1:], id="a-header-longer-than-the-packet"),
        pytest.param(ipv4(length=19), id="a-length-below-the-header"),
        pytest.param(ipv4(length=400), id="a-length-beyond-the-end"),
        pytest.param(ipv4(fragment=1), id="another-fragment"),
        pytest.param(ipv4(fragment=0x3FFF), id="the-last-fragment"),
        *(pytest.param(ipv4(bytes([kind]) + bytes(7), protocol=1), id=f"ICMP-{kind}") for kind in (3, 4, 5, 11, 12, 1, 19, 255)),
        pytest.param(ipv4(b"", protocol=1), id="ICMP-without-a-type"),
        pytest.param(ipv4(destination="224.0.0.1"), id="to-many"),
        pytest.param(ipv4(destination="255.255.255.255"), id="to-all"),
        *(pytest.param(ipv4(source=one), id=f"from-{one}") for one in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255")),
        pytest.param(ipv6()[:39], id="less-than-a-header6"),
        pytest.param(ipv6(length=13), id="a-length-beyond-the-end6"),
        pytest.param(ipv6(destination="ff02::1"), id="to-many6"),
        *(pytest.param(ipv6(source=one), id=f"from-{one}") for one in ("::", "::1", "ff02::1")),
        *(
            pytest.param(ipv6(bytes([kind]) + bytes(7), protocol=58), id=f"ICMPv6-{kind}")
            for kind in (0, 1, 2, 3, 4, 100, 127, 137)
        ),
        pytest.param(ipv6(b"", protocol=58), id="ICMPv6-without-a-type"),
        pytest.param(ipv6(extension(58) + b"\x01" + bytes(7), protocol=0), id="ICMPv6-behind-an-extension"),
        pytest.param(ipv6(extension(UDP, field=b"\x00\x08") + PORTS, protocol=44), id="another-fragment6"),
        pytest.param(ipv6(extension(UDP)[:7], protocol=0), id="an-extension-cut-short"),
        pytest.param(ipv6(extension(UDP, 3)[:16], protocol=0), id="an-extension-beyond-the-end"),
    ],
)
def test_there_is_no_error_about(packet: bytes) -> None:
    assert refused(packet) is None
    assert refused(memoryview(packet)) is None


@given(st.binary(max_size=120), st.sampled_from([0, 4, 6]))
def test_whatever_comes_is_read_or_not_and_quoted_if_it_is(data: bytes, version: int) -> None:
    packet = bytes([version << 4 | data[0] & 15]) + data[1:] if version and data else data

    if refused(packet) is not None:
        assert unreachable(packet)[8:] == packet


def test_there_is_no_error_about_an_error_of_ours() -> None:
    assert refused(ipv4(unreachable(ipv4()), protocol=1)) is None
    assert refused(ipv6(unreachable(ipv6()), protocol=58)) is None


# -- its bytes ------------------------------------------------------------------------------------------------------------


def test_an_error_for_ipv4_is_host_unreachable_with_a_checksum() -> None:
    for packet in (ipv4(), ipv4(b"odd"), ipv4(b"\xff" * 300)):
        message = unreachable(packet)

        assert (message[0], message[1]) == (3, 1)
        assert message[4:8] == bytes(4)
        assert message[8:] == packet
        padded = message + bytes(len(message) % 2)
        total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
        assert total % 0xFFFF == 0, "RFC 1071: with its checksum in it, the sum is all ones"


def test_an_error_for_ipv6_is_address_unreachable_and_the_kernel_adds_the_checksum() -> None:
    message = unreachable(memoryview(ipv6()))

    assert message == bytes([1, 3, 0, 0]) + bytes(4) + ipv6()


def test_no_more_is_quoted_than_every_host_takes() -> None:
    assert unreachable(ipv4(bytes(1400)))[8:] == ipv4(bytes(1400))[:548]
    assert unreachable(ipv6(bytes(1400)))[8:] == ipv6(bytes(1400))[:1232]
    assert (QUOTE_IPV4, QUOTE_IPV6) == (576 - 28, 1280 - 48)
