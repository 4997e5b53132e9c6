"""Row memory: how many rows there are, how long they are, and what they have in common in both directions.

A datagram is 16 bytes of header, a padded packet, 16 bytes of tag (protocol 1.1). Both buffers of a direction hold 64
KB, what one UDP_SEGMENT or UDP_GRO call carries.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 128
"""Packets that can stand in an arena: what is left of one superpacket, less than a train, and the whole of the next."""

MAX_SEGMENTS = 64
"""Datagrams one UDP_SEGMENT call takes on every kernel that has it (UDP_MAX_SEGMENTS; 128 on newer ones)."""

MAX_TRAIN = 65507
"""Bytes one UDP_SEGMENT call carries over IPv4: 65535 less an IP and a UDP header."""

HEADER = 16
"""Bytes before the sealed packet: message type, receiver index, counter."""

TAG = 16
OVERHEAD = HEADER + TAG

MAX_LAYOUTS = 128
"""Padded lengths whose views are kept. They are multiples of 16, so an MTU of 1420 has 90 of them."""


def padded_length(length: int, mtu: int) -> int:
    """Bytes of ``length`` with its padding: a multiple of 16, but no padding that would exceed the MTU (protocol 1.6)."""
    padded = (length + 15) & ~15
    return padded if padded <= mtu else length


def column(memory: bytearray, rows: int, stride: int, offset: int, dtype: str) -> NDArray[Any]:
    """One field of every row: the numbers at ``offset`` of each ``stride`` bytes, as a writable view."""
    return np.ndarray((rows,), dtype=dtype, buffer=memory, offset=offset, strides=(stride,))
