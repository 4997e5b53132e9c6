"""A TUN interface of Linux, opened through python-pytun.

pytun knows how to attach to a TUN device by name, and little else: its descriptor blocks, is inherited by children and
closes when the object dies, and its read and write know neither scattered buffers nor the errors told apart here. So
pytun opens the device, and ``LinuxTun`` keeps a duplicate of its descriptor: the same class serves a descriptor that was
opened by somebody else (WG_TUN_FD).

The interface is opened with a virtio header on every packet (IFF_VNET_HDR), without which no superpacket passes, and then
asked for offloads one step at a time: kernels before 6.2 know no UDP superpackets, and a refusal costs speed only.
"""

import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Callable, Sequence

import pytun

from tun.interface import Offloads, TunDown, TunError, TunGone, TunRefused

DEVICE_PATH = "/dev/net/tun"
TX_QUEUE_LENGTH = 1024
"""Packets or superpackets that wait to be read. The default of 500 drops bursts; the kernel's own WireGuard has 1024."""

NAME_LENGTH = 15  # IFNAMSIZ less its terminating zero
HEADER_LENGTH = 10

# include/uapi/linux/if_tun.h and sockios.h; asm-generic numbers, which x86 and ARM share
TUNSETPERSIST = 0x400454CB
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETVNETHDRSZ = 0x400454D8
SIOCSIFTXQLEN = 0x8943
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
IFREQ = struct.Struct("16sH22x")

_UDP_GRO_SINCE = (6, 8, 5)


class LinuxTun:
    """An attached TUN descriptor, which this object owns. See ``interface.Tun`` for the methods."""

    def __init__(self, fd: int, *, offload: bool = True) -> None:
        """Make an attached descriptor ours: non-blocking, closed on exec, offloads on unless unwanted. Raises TunError."""
        try:
            self.name, flags = _attachment(fd)
        except OSError as error:
            raise TunError(f"file descriptor {fd} is not an attached TUN interface: {error.strerror}") from None
        if flags & (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR) != IFF_TUN | IFF_NO_PI | IFF_VNET_HDR:
            raise TunError(f"{self.name} was opened without IFF_TUN, IFF_NO_PI or IFF_VNET_HDR: open it with all three")
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER_LENGTH))  # a persistent interface keeps an earlier size
        self.offloads = _request_offloads(fd, offload)
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def read(self, buffers: Sequence[memoryview | bytearray]) -> int:
        try:
            return os.readv(self._fd, buffers)
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._meaning_of(error) from None

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        try:
            return os.writev(self._fd, buffers)
        except OSError as error:
            raise self._meaning_of(error) from None

    def persist(self) -> None:
        try:
            fcntl.ioctl(self._fd, TUNSETPERSIST, 1)
        except OSError as error:
            raise TunError(f"{self.name} cannot be made persistent: {error.strerror}") from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _meaning_of(self, error: OSError) -> Exception:
        match error.errno:
            case errno.EIO:
                return TunDown(f"{self.name} is down: bring it up with `ip link set {self.name} up`")
            case errno.EINVAL:
                return TunRefused(f"the kernel refuses a packet written to {self.name} as malformed")
            case errno.EBADFD | errno.EBADF:
                return TunGone(f"{self.name} was deleted")
            case _:
                return error


def open_device(name: str, *, mtu: int | None = None, path: str = DEVICE_PATH, offload: bool = True) -> LinuxTun:
    """Open the TUN interface ``name``: see ``tun.open_tun``."""
    if (wrong := _wrong_with_name(name)) is not None:
        raise TunError(f"{name!r} cannot name an interface: {wrong}")
    existed = _exists(name)
    try:
        device = pytun.TunTapDevice(name=name, flags=IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, dev=path)
    except OSError as error:
        raise TunError(_why_not_opened(name, existed, path, error)) from None
    fd = os.dup(device.fileno())
    try:
        tun = LinuxTun(fd, offload=offload)
        if mtu is not None and not existed:
            device.mtu = mtu
        _set_tx_queue_length(name)
    except (OSError, OverflowError, TunError) as error:
        os.close(fd)
        raise TunError(f"{name} cannot be set up: {getattr(error, 'strerror', None) or error}") from None
    finally:
        device.close()
    return tun


def _wrong_with_name(name: str) -> str | None:
    """What the kernel would object to (net/core/dev.c dev_valid_name), or None."""
    if not name or name in (".", ".."):
        return "it needs a name"
    if len(os.fsencode(name)) > NAME_LENGTH:
        return f"it is longer than {NAME_LENGTH} characters"
    if re.search(r"[\s/:%\0]", name):
        return "it holds a space, '/', ':' or '%'"
    return None


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _why_not_opened(name: str, existed: bool, path: str, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO | errno.ENOTTY:
            return f"{path} is not there or not a TUN device: load the tun module, or give the container this device"
        case errno.EACCES:
            return f"no permission to open {path}: run as root or change its mode"
        case errno.EPERM:
            return f"no permission to create {name}: CAP_NET_ADMIN is missing, or the interface belongs to another user"
        case errno.EBUSY:
            return f"{name} is in use by another process: stop that one, or choose another name"
        case errno.EINVAL if existed:
            return f"{name} exists and is not a TUN interface: delete it, or choose another name"
        case _:
            return f"{name} cannot be created: {error.strerror or error}"


def _attachment(fd: int) -> tuple[str, int]:
    """Name and IFF_ flags of the interface a TUN descriptor is attached to. Raises OSError: EBADFD once it is deleted."""
    name, flags = IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))
    return os.fsdecode(name.rstrip(b"\0")), flags


def _set_tx_queue_length(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFTXQLEN, struct.pack("16si20x", os.fsencode(name), TX_QUEUE_LENGTH))


def _request_offloads(fd: int, wanted: bool = True) -> Offloads:
    if not wanted:
        _succeeds(lambda: fcntl.ioctl(fd, TUNSETOFFLOAD, 0))  # a persistent interface keeps what was asked for earlier
        return Offloads()
    tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
    tso = _succeeds(lambda: fcntl.ioctl(fd, TUNSETOFFLOAD, tcp))
    uso = tso and _succeeds(lambda: fcntl.ioctl(fd, TUNSETOFFLOAD, tcp | TUN_F_USO4 | TUN_F_USO6))
    return Offloads(
        tso=tso,
        uso=uso,
        tcp_gro=tso and _takes_superpackets(fd, _tcp_probe()),
        # before 6.8.5 UDP superpackets that are forwarded into a VXLAN or Geneve tunnel vanish: protocol 3.5
        udp_gro=uso and _kernel_version(os.uname().release) >= _UDP_GRO_SINCE and _takes_superpackets(fd, _udp_probe()),
    )


def _succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError:
        return False
    return True


def _kernel_version(release: str) -> tuple[int, ...]:
    """(6, 8, 5) of "6.8.5-arch1"."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:3])


def _takes_superpackets(fd: int, probe: bytes) -> bool:
    """Whether the kernel takes well-formed superpackets, without troubling anybody with one.

    The kernel checks the virtio header before it asks whether the interface is up: EIO says that the header is right, EINVAL
    that it is refused. An interface that is up already drops the probe for its bad IP header checksum. Either way it shows
    among the dropped packets of ``ip -s link``.
    Kernels with commit e269d79c and without 89add40 (6.1, 6.6 and 6.10 for a while) refuse TCP superpackets whose segments
    are shorter than their headers, or whose last one is: the probe's are.
    """
    try:
        os.write(fd, probe)
    except OSError as error:
        return error.errno == errno.EIO
    return True


def _tcp_probe() -> bytes:
    virtio = struct.pack("=BBHHHH", 1, 1, 40, 8, 20, 16)
    ip = struct.pack(">BBHHHBBH8x", 0x45, 0, 60, 0, 0, 64, socket.IPPROTO_TCP, 0)
    tcp = struct.pack(">HHLLBBHHH", 9, 9, 0, 0, 5 << 4, 0x10, 0, 0, 0)
    return virtio + ip + tcp + bytes(20)


def _udp_probe() -> bytes:
    virtio = struct.pack("=BBHHHH", 1, 5, 28, 8, 20, 6)
    ip = struct.pack(">BBHHHBBH8x", 0x45, 0, 48, 0, 0, 64, socket.IPPROTO_UDP, 0)
    return virtio + ip + struct.pack(">HHHH", 9, 9, 28, 0) + bytes(20)
