"""An interface without a kernel, for tests and benchmarks: ``LinuxTun``'s twin.

The test plays the kernel: it injects what the interface is to deliver, and finds in ``writes`` what was written to it.
``packets`` is the same as the kernel's stack would see it, superpackets split. Packets wait in a socket pair, so
that an event loop can watch the descriptor.
"""

import socket
from collections.abc import Sequence

from tun.interface import Offloads, TunDown, TunGone, TunRefused
from tun.offload import GSO_NONE, ZERO_HEADER, packets_of

HEADER_LENGTH = len(ZERO_HEADER)
ALL_OFFLOADS = Offloads(tso=True, uso=True, tcp_gro=True, udp_gro=True)


class MemoryTun:
    """See ``interface.Tun`` for what the reader calls, and below for what the test does."""

    def __init__(self, name: str = "memory", offloads: Offloads = ALL_OFFLOADS) -> None:
        self.name = name
        self.offloads = offloads
        self.is_up = True
        self.is_persistent = False
        self.refuses_superpackets = False
        """Answer them with TunRefused, as some kernels do."""
        self.writes: list[tuple[bytes, bytes]] = []
        """Virtio header and packet of each write."""
        self._reader, self._kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._reader.setblocking(False)
        self._kernel.setblocking(False)
        self._kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)

    def inject(self, packet: bytes | memoryview, header: bytes | memoryview = ZERO_HEADER) -> None:
        """Have a packet or superpacket wait to be read. Raises BlockingIOError when too many do (some megabytes)."""
        self._kernel.sendmsg([header, packet])

    def packets(self) -> list[bytes]:
        """The packets written since the last call, and forget ``writes``."""
        taken, self.writes = self.writes, []
        return [packet for write in taken for packet in packets_of(write)]

    def delete(self) -> None:
        """As ``ip link delete`` does."""
        self._kernel.close()

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self, buffers: Sequence[memoryview | bytearray]) -> int:
        size = self._reader.recvmsg_into(buffers)[0]
        if size == 0:
            raise TunGone(f"{self.name} was deleted")
        return size

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        if self._kernel.fileno() < 0:
            raise TunGone(f"{self.name} was deleted")
        whole = b"".join(buffers)
        header, packet = whole[:HEADER_LENGTH], whole[HEADER_LENGTH:]
        if not packet or packet[0] >> 4 not in (4, 6) or (self.refuses_superpackets and header[1] != GSO_NONE):
            raise TunRefused(f"a packet written to {self.name} is malformed")
        if not self.is_up:
            raise TunDown(f"{self.name} is down")
        self.writes.append((header, packet))
        return len(whole)

    def persist(self) -> None:
        self.is_persistent = True

    def close(self) -> None:
        self._reader.close()
        self._kernel.close()
