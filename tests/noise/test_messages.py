"""§5.4: where each field is, and that nothing else is taken for a message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noise.messages import CookieReply, HandshakeInitiation, HandshakeResponse, TransportData, message_type

INITIATION = HandshakeInitiation(0x11223344, b"e" * 32, b"s" * 48, b"t" * 28, b"1" * 16, b"2" * 16)
RESPONSE = HandshakeResponse(0x55667788, 0x11223344, b"e" * 32, b"n" * 16, b"1" * 16, b"2" * 16)
COOKIE_REPLY = CookieReply(0x11223344, b"n" * 24, b"c" * 32)
TRANSPORT_DATA = TransportData(0x55667788, 0x0102030405060708, b"p" * 48)
MESSAGES: list[HandshakeInitiation | HandshakeResponse | CookieReply | TransportData] = [
    INITIATION,
    RESPONSE,
    COOKIE_REPLY,
    TRANSPORT_DATA,
]


def test_an_initiation_is_laid_out_as_in_5_4_2() -> None:
    message = INITIATION.pack()

    assert len(message) == 148
    assert message[0:4] == b"\x01\0\0\0"
    assert message[4:8] == b"\x44\x33\x22\x11"
    assert message[8:40] == b"e" * 32
    assert message[40:88] == b"s" * 48
    assert message[88:116] == b"t" * 28
    assert message[116:132] == b"1" * 16
    assert message[132:148] == b"2" * 16


def test_a_response_is_laid_out_as_in_5_4_3() -> None:
    message = RESPONSE.pack()

    assert len(message) == 92
    assert message[0:4] == b"\x02\0\0\0"
    assert message[4:8] == b"\x88\x77\x66\x55"
    assert message[8:12] == b"\x44\x33\x22\x11"
    assert message[12:44] == b"e" * 32
    assert message[44:60] == b"n" * 16
    assert message[60:76] == b"1" * 16
    assert message[76:92] == b"2" * 16


def test_a_cookie_reply_is_laid_out_as_in_5_4_7() -> None:
    message = COOKIE_REPLY.pack()

    assert len(message) == 64
    assert message[0:4] == b"\x03\0\0\0"
    assert message[4:8] == b"\x44\x33\x22\x11"
    assert message[8:32] == b"n" * 24
    assert message[32:64] == b"c" * 32


def test_transport_data_is_laid_out_as_in_5_4_6() -> None:
    message = TRANSPORT_DATA.pack()

    assert message[0:4] == b"\x04\0\0\0"
    assert message[4:8] == b"\x88\x77\x66\x55"
    assert message[8:16] == b"\x08\x07\x06\x05\x04\x03\x02\x01"
    assert message[16:] == b"p" * 48


@pytest.mark.parametrize("message", MESSAGES)
def test_unpack_undoes_pack(message: HandshakeInitiation | HandshakeResponse | CookieReply | TransportData) -> None:
    assert type(message).unpack(message.pack()) == message


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("reserved", [1, 2, 3])
def test_something_in_the_reserved_bytes_makes_it_no_message(
    message: HandshakeInitiation | HandshakeResponse | CookieReply | TransportData, reserved: int
) -> None:
    changed = bytearray(message.pack())
    changed[reserved] = 1

    assert type(message).unpack(bytes(changed)) is None
    assert message_type(bytes(changed)) not in (1, 2, 3, 4)


@pytest.mark.parametrize("message", [INITIATION, RESPONSE, COOKIE_REPLY])
def test_handshake_messages_have_exactly_one_length(message: HandshakeInitiation | HandshakeResponse | CookieReply) -> None:
    packed = message.pack()

    assert type(message).unpack(packed + b"\0") is None
    assert all(type(message).unpack(packed[:length]) is None for length in range(len(packed)))


def test_transport_data_has_at_least_a_header_and_a_tag() -> None:
    packed = TRANSPORT_DATA.pack()

    assert TransportData.unpack(packed[:32]) == TransportData(0x55667788, 0x0102030405060708, b"p" * 16)
    assert TransportData.unpack(packed[:31]) is None


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_at_most_one_message_and_never_an_exception(datagram: bytes) -> None:
    unpacked = [type(message).unpack(datagram) for message in MESSAGES]
    found = [message for message in unpacked if message is not None]

    assert len(found) <= 1
    assert all(message.pack() == datagram for message in found)
