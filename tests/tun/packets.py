"""An independent, naive model of TCP and UDP packets: plain struct, one packet at a time, loops of 16-bit words.

A ``Stream`` is one superpacket's worth of a flow. It can be written down both ways: as the superpacket that the kernel would
hand over, and as the packets the kernel would have sent without offloads.
"""

import struct
from dataclasses import dataclass

FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80


def word_sum(data: bytes) -> int:
    """The ones'-complement sum of RFC 1071, taken literally."""
    total = 0
    for i in range(0, len(data), 2):
        total += int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    return ~word_sum(data) & 0xFFFF


@dataclass(frozen=True)
class Stream:
    """``headers_between`` are IPv4 options or IPv6 extension headers; they end in no particular next header."""

    is_v4: bool = True
    is_tcp: bool = True
    payload: bytes = bytes(300)
    size: int = 100  # of the payload of each packet but the last
    headers_between: bytes = b""
    tos: int = 0
    ttl: int = 64
    flow_label: int = 0
    ident: int = 1
    dont_fragment: bool = True
    source: bytes = bytes([192, 0, 2, 1, *range(12)])
    destination: bytes = bytes([192, 0, 2, 2, *range(12)])
    ports: tuple[int, int] = (1, 2)
    sequence: int = 1
    acknowledgement: int = 1
    window: int = 3000
    flags: int = ACK
    options: bytes = b""

    @property
    def addresses(self) -> bytes:
        length = 4 if self.is_v4 else 16
        return self.source[:length] + self.destination[:length]

    @property
    def protocol(self) -> int:
        return 6 if self.is_tcp else 17

    @property
    def l4(self) -> int:
        return (20 if self.is_v4 else 40) + len(self.headers_between)

    @property
    def header_length(self) -> int:
        return self.l4 + (20 + len(self.options) if self.is_tcp else 8)

    def ip_header(self, l4_length: int, ident: int) -> bytes:
        if self.is_v4:
            header = struct.pack(
                ">BBHHHBBH",
                0x40 | self.l4 // 4,
                self.tos,
                self.l4 + l4_length,
                ident % 65536,
                0x4000 if self.dont_fragment else 0,
                self.ttl,
                self.protocol,
                0,
            )
            header += self.addresses + self.headers_between
            return header[:10] + struct.pack(">H", checksum(header)) + header[12:]
        first = 6 << 28 | self.tos << 20 | self.flow_label
        next_header = 0 if self.headers_between else self.protocol
        length = len(self.headers_between) + l4_length
        return struct.pack(">IHBB", first, length, next_header, self.ttl) + self.addresses + self.headers_between

    def pseudo_header(self, l4_length: int) -> bytes:
        return self.addresses + struct.pack(">II", l4_length, self.protocol)

    def l4_header(self, payload_length: int, sequence: int, flags: int, check: int) -> bytes:
        if not self.is_tcp:
            return struct.pack(">HHHH", *self.ports, 8 + payload_length, check)
        offset = (20 + len(self.options)) // 4 << 4
        sequence %= 1 << 32
        fields = (*self.ports, sequence, self.acknowledgement, offset, flags, self.window, check, 0)
        return struct.pack(">HHIIBBHHH", *fields) + self.options

    def packet(self, payload: bytes, number: int, flags: int) -> bytes:
        sequence = self.sequence + number * self.size
        unsummed = self.l4_header(len(payload), sequence, flags, 0) + payload
        check = checksum(self.pseudo_header(len(unsummed)) + unsummed)
        if not self.is_tcp and check == 0:
            check = 0xFFFF
        ip = self.ip_header(len(unsummed), self.ident + number)
        return ip + self.l4_header(len(payload), sequence, flags, check) + payload

    def packets(self) -> list[bytes]:
        """What goes over the wire: protocol 3.1."""
        payloads = [self.payload[i : i + self.size] for i in range(0, len(self.payload), self.size)]
        result = []
        for number, payload in enumerate(payloads):
            flags = self.flags
            if number > 0:
                flags &= ~CWR
            if number < len(payloads) - 1:
                flags &= ~(FIN | PSH)
            result.append(self.packet(payload, number, flags))
        return result

    def superpacket(self) -> tuple[bytes, bytes]:
        """Virtio header and packet, with the checksum half done."""
        l4_length = self.header_length - self.l4 + len(self.payload)
        partial = word_sum(self.pseudo_header(l4_length))
        packet = self.ip_header(l4_length, self.ident)
        packet += self.l4_header(len(self.payload), self.sequence, self.flags, partial) + self.payload
        kind = (1 if self.is_v4 else 4) if self.is_tcp else 5
        offset = 16 if self.is_tcp else 6
        return struct.pack("=BBHHHH", 1, kind, self.header_length, self.size, self.l4, offset), packet
