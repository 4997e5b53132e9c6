"""Many datagrams in one call: recvmmsg(2) and sendmmsg(2), which the standard library does not have.

HOT under load; guarded by ``benchmarks/micro.py``. In a flood of handshakes every datagram comes from another address, so that
neither UDP_GRO nor UDP_SEGMENT has a train to make of them, and calls are most of what a message costs. Here as much as
possible is done for all of a call's datagrams at once, and what the kernel says of one stays as the kernel wrote it: addresses
and control messages are bytes, and most of those were seen before.

The structures are laid out by :mod:`struct` and not by ctypes, whose fields cost ten times as much to read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterator, Sequence

SLOTS = 16
"""Datagrams in one call, at most."""
ROOM = 1 << 16
"""Bytes for what one slot receives: a whole train, which has at most one less, as the buffer it is copied to has."""
ADDRESS_ROOM = 28  # struct sockaddr_in6
CONTROL_ROOM = 128

_MESSAGE = struct.Struct("@PIPNPNi0PI0P")
"""struct mmsghdr: name and its length, vectors and their count, control and its length, flags; bytes received or sent."""
_VECTOR = struct.Struct("@PN")
_CONTROL = struct.Struct("@Nii")
"""struct cmsghdr: its length, level, type."""
_ALIGNMENT = struct.calcsize("N")

_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg, _sendmmsg = _libc.recvmmsg, _libc.sendmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


Datagrams = tuple[memoryview, bytes, bytes, int]
"""What one slot received: its data (good until the next call), where it came from (a struct sockaddr), its control messages one
after the other, and flags."""


class Inbox:
    """Slots to receive into: a megabyte, of which what has been used is resident."""

    def __init__(self) -> None:
        self._data = mmap.mmap(-1, SLOTS * ROOM)  # a bytearray would be written to, all of it
        self._addresses = bytearray(SLOTS * ADDRESS_ROOM)
        self._controls = bytearray(SLOTS * CONTROL_ROOM)
        data, addresses, controls = (_address(room) for room in (self._data, self._addresses, self._controls))
        vectors = b"".join(_VECTOR.pack(data + slot * ROOM, ROOM - 1) for slot in range(SLOTS))
        self._vectors = bytearray(vectors)
        vector = _address(self._vectors)
        self._empty = b"".join(
            _MESSAGE.pack(
                addresses + slot * ADDRESS_ROOM,
                ADDRESS_ROOM,
                vector + slot * _VECTOR.size,
                1,
                controls + slot * CONTROL_ROOM,
                CONTROL_ROOM,
                0,
                0,
            )
            for slot in range(SLOTS)
        )
        self._messages = bytearray(self._empty)
        self._address = _address(self._messages)
        self._view = memoryview(self._data)

    def receive(self, descriptor: int) -> list[Datagrams]:
        """What one call brings from a socket that does not block: up to :data:`SLOTS` datagrams, or trains of them.

        Raises BlockingIOError when there is nothing, OSError for a pending error of an earlier send.
        """
        count = _recvmmsg(descriptor, self._address, SLOTS, 0, None)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        view, addresses, controls = self._view, self._addresses, self._controls
        used = count * _MESSAGE.size
        said = self._messages[:used]
        self._messages[:used] = self._empty[:used]
        data = address = first = 0
        got: list[Datagrams] = []
        for _, name, _, _, _, control, flags, size in _MESSAGE.iter_unpack(said):
            got.append(
                (
                    view[data : data + size],
                    bytes(addresses[address : address + name]),
                    bytes(controls[first : first + control]),
                    flags,
                )
            )
            data, address, first = data + ROOM, address + ADDRESS_ROOM, first + CONTROL_ROOM
        return got


class Outbox:
    """Slots to send from."""

    def __init__(self) -> None:
        self._headers: dict[tuple[int, int, int], tuple[int, bytearray, bytearray]] = {}
        self._data = bytearray(ROOM)
        self._addresses = bytearray(SLOTS * ADDRESS_ROOM)
        self._control = bytearray(CONTROL_ROOM)

    def send(self, descriptor: int, datagrams: Sequence[bytes], addresses: Sequence[bytes], control: bytes) -> int:
        """Send each of up to :data:`SLOTS` datagrams of one length to its address (a struct sockaddr), all with ``control``.

        Gives how many went before one that did not; what is wrong with that one the kernel does not say. Raises BlockingIOError
        if there is no room for the first.
        """
        count, size, name = len(datagrams), len(datagrams[0]), len(addresses[0])
        headers = self._headers.get((size, name, len(control))) or self._made(size, name, len(control))
        data, names = b"".join(datagrams), b"".join(addresses)
        assert count <= SLOTS and len(data) == count * size and len(names) == count * name
        self._data[: len(data)], self._addresses[: len(names)], self._control[: len(control)] = data, names, control
        sent = int(_sendmmsg(descriptor, headers[0], count, 0))
        if sent < 0 and ctypes.get_errno() == errno.EAGAIN:
            raise BlockingIOError
        return max(0, sent)

    def _made(self, size: int, name: int, control: int) -> tuple[int, bytearray, bytearray]:
        """The headers of messages whose parts are so long, and the vectors that they point to: sending does not change them."""
        assert SLOTS * size <= ROOM and name <= ADDRESS_ROOM and control <= CONTROL_ROOM
        data, addresses, controls = (_address(room) for room in (self._data, self._addresses, self._control))
        vectors = bytearray(b"".join(_VECTOR.pack(data + slot * size, size) for slot in range(SLOTS)))
        vector = _address(vectors)
        messages = bytearray(
            b"".join(
                _MESSAGE.pack(addresses + slot * name, name, vector + slot * _VECTOR.size, 1, controls, control, 0, 0)
                for slot in range(SLOTS)
            )
        )
        made = self._headers[size, name, control] = _address(messages), messages, vectors
        return made


def pack_control(control: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Control messages (level, type, data), as sendmsg(2) takes them."""
    return b"".join(_aligned(_CONTROL.pack(_CONTROL.size + len(data), level, kind) + data) for level, kind, data in control)


def unpack_control(control: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The control messages (level, type, data) that recvmsg(2) gave."""
    start = 0
    while start + _CONTROL.size <= len(control):
        length, level, kind = _CONTROL.unpack_from(control, start)
        if length < _CONTROL.size:
            return
        yield level, kind, control[start + _CONTROL.size : start + length]
        start += length + -length % _ALIGNMENT


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


def _address(room: bytearray | mmap.mmap) -> int:
    """Where it lies in memory, as long as it lives and keeps its length."""
    return ctypes.addressof(ctypes.c_char.from_buffer(room))
