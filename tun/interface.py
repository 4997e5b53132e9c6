"""What a network interface is to the rest of wgpy, and the ways it can fail.

Every packet that is read or written has ten bytes in front, a *virtio header*: how much of the packet's work the kernel
left to us, or we leave to the kernel (a checksum to complete, a superpacket to split). ``tun.offload`` makes and
understands them; here they are only the bytes that come first.

Two kinds of interface exist: ``tun.linux.LinuxTun``, and ``tun.memory.MemoryTun`` for tests and benchmarks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class TunError(Exception):
    """The interface cannot be opened or used. The message is one line: what is wrong, and what to do."""


class TunGone(TunError):
    """The interface was deleted. Nothing can be done with it any more but close it."""


class TunDown(TunError):
    """A packet was written while the interface is down, and is lost. Count it and go on."""


class TunRefused(TunError):
    """The kernel refuses a packet as malformed.

    Some kernels refuse superpackets which are well formed: ``Coalescer.refused`` says what to do about these. Anything
    else is one packet lost: count it and go on.
    """


@dataclass(frozen=True, slots=True)
class Offloads:
    """What the kernel agreed to. All False is an interface that works, one packet per read and write."""

    tso: bool = False
    """Reads may bring TCP superpackets, and packets with a half-done checksum."""
    uso: bool = False
    """Reads may bring UDP superpackets."""
    tcp_gro: bool = False
    """Writes may carry TCP superpackets."""
    udp_gro: bool = False
    """Writes may carry UDP superpackets."""


class Tun(Protocol):
    """A network interface whose packets this process reads and writes. Neither call blocks."""

    @property
    def name(self) -> str:
        """The name it was opened with. It may have been renamed since: ``tun.link`` knows."""

    @property
    def offloads(self) -> Offloads: ...

    def fileno(self) -> int:
        """What to wait on: readable while a packet waits."""

    def read(self, buffers: Sequence[memoryview | bytearray]) -> int:
        """Read one packet or superpacket into ``buffers``, in order, virtio header first; return the bytes of both.

        Together the buffers should hold 10 + 65,535 bytes: what does not fit is lost. Raises BlockingIOError when no
        packet waits and TunGone once the interface was deleted.
        """

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        """Write one packet or superpacket, virtio header first; return the bytes of both.

        Raises TunDown (this packet is lost), TunRefused (this packet is malformed) and TunGone.
        """

    def persist(self) -> None:
        """Have the interface outlive this process. Raises TunError.

        While nobody reads it, packets routed to it wait or are dropped, but never take another route. Best done last: what
        fails before this leaves no interface behind.
        """

    def close(self) -> None:
        """Let the interface go. It disappears with this unless it is persistent."""
