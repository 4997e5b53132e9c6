"""The four messages on the wire (paper section 5.4), and nothing about what their fields mean.

All integers are little-endian and there is no padding. A message begins with its type in one byte and three reserved
zero bytes. Both are read as *one* 32-bit integer: a message with something in the reserved bytes is simply of no known
type. ``unpack`` answers None to bytes that are not such a message, for the network may send us anything.
"""

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Self

from noise.constants import (
    MAC_LENGTH,
    MESSAGE_COOKIE_REPLY,
    MESSAGE_INITIATION,
    MESSAGE_LENGTHS,
    MESSAGE_RESPONSE,
    MESSAGE_TRANSPORT_DATA,
    TRANSPORT_OVERHEAD,
)

NO_MAC = bytes(MAC_LENGTH)


def message_type(message: bytes) -> int:
    """The first four bytes as one integer: a known type only if the reserved bytes are zero."""
    return int.from_bytes(message[:4], "little")


def _is_handshake(message: bytes, type_: int) -> bool:
    return message_type(message) == type_ and len(message) == MESSAGE_LENGTHS[type_]


@dataclass(frozen=True, slots=True)
class HandshakeInitiation:
    """5.4.2, 148 bytes."""

    LAYOUT: ClassVar[Struct] = Struct("<II32s48s28s16s16s")

    sender_index: int
    unencrypted_ephemeral: bytes
    encrypted_static: bytes
    encrypted_timestamp: bytes
    mac1: bytes = NO_MAC
    mac2: bytes = NO_MAC

    def pack(self) -> bytes:
        return self.LAYOUT.pack(
            MESSAGE_INITIATION,
            self.sender_index,
            self.unencrypted_ephemeral,
            self.encrypted_static,
            self.encrypted_timestamp,
            self.mac1,
            self.mac2,
        )

    @classmethod
    def unpack(cls, message: bytes) -> Self | None:
        if not _is_handshake(message, MESSAGE_INITIATION):
            return None
        return cls(*cls.LAYOUT.unpack(message)[1:])


@dataclass(frozen=True, slots=True)
class HandshakeResponse:
    """5.4.3, 92 bytes. ``receiver_index`` is the initiation's sender index."""

    LAYOUT: ClassVar[Struct] = Struct("<III32s16s16s16s")

    sender_index: int
    receiver_index: int
    unencrypted_ephemeral: bytes
    encrypted_nothing: bytes
    mac1: bytes = NO_MAC
    mac2: bytes = NO_MAC

    def pack(self) -> bytes:
        return self.LAYOUT.pack(
            MESSAGE_RESPONSE,
            self.sender_index,
            self.receiver_index,
            self.unencrypted_ephemeral,
            self.encrypted_nothing,
            self.mac1,
            self.mac2,
        )

    @classmethod
    def unpack(cls, message: bytes) -> Self | None:
        if not _is_handshake(message, MESSAGE_RESPONSE):
            return None
        return cls(*cls.LAYOUT.unpack(message)[1:])


@dataclass(frozen=True, slots=True)
class CookieReply:
    """5.4.7, 64 bytes. ``receiver_index`` is the sender index of the message it answers."""

    LAYOUT: ClassVar[Struct] = Struct("<II24s32s")

    receiver_index: int
    nonce: bytes
    encrypted_cookie: bytes

    def pack(self) -> bytes:
        return self.LAYOUT.pack(MESSAGE_COOKIE_REPLY, self.receiver_index, self.nonce, self.encrypted_cookie)

    @classmethod
    def unpack(cls, message: bytes) -> Self | None:
        if not _is_handshake(message, MESSAGE_COOKIE_REPLY):
            return None
        return cls(*cls.LAYOUT.unpack(message)[1:])


@dataclass(frozen=True, slots=True)
class TransportData:
    """5.4.6, 32 bytes and more. For one message at a time; the data path fills headers by the column (noise.transport)."""

    HEADER: ClassVar[Struct] = Struct("<IIQ")

    receiver_index: int
    counter: int
    encrypted_packet: bytes

    def pack(self) -> bytes:
        return self.HEADER.pack(MESSAGE_TRANSPORT_DATA, self.receiver_index, self.counter) + self.encrypted_packet

    @classmethod
    def unpack(cls, message: bytes) -> Self | None:
        if message_type(message) != MESSAGE_TRANSPORT_DATA or len(message) < TRANSPORT_OVERHEAD:
            return None
        _, receiver_index, counter = cls.HEADER.unpack_from(message)
        return cls(receiver_index, counter, message[cls.HEADER.size :])
