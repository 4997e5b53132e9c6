"""The network interface whose packets wgpy encrypts.

* ``interface``: what an interface can do, and how it fails.
* ``linux``: the real one, a TUN device.
* ``memory``: its twin without a kernel, for tests and benchmarks.
* ``offload``: superpackets into packets and back, checksums. HOT and pure: numpy and nothing else.
* ``link``: whether the interface is up, its MTU, its name, its network namespace.

Addresses and routes belong to whoever asked for the interface, not to this package.
"""

from tun.interface import Offloads, Tun, TunDown, TunError, TunGone, TunRefused

__all__ = ["Offloads", "Tun", "TunDown", "TunError", "TunGone", "TunRefused", "adopt_tun", "open_tun"]


def open_tun(name: str, *, mtu: int | None = None, offload: bool = True) -> Tun:
    """Open the TUN interface ``name``, and create it if need be: then it is down and has no addresses.

    ``mtu`` (bytes) is given to an interface created here; one that existed keeps its own. Without ``offload`` each read and
    write carries one complete packet. Raises TunError, and leaves nothing behind then.
    """
    from tun.linux import open_device  # here, so that the pure tun.offload can be had without a TUN library

    return open_device(name, mtu=mtu, offload=offload)


def adopt_tun(fd: int, *, offload: bool = True) -> Tun:
    """Take over an open TUN file descriptor (WG_TUN_FD). It is closed by the Tun's ``close``. Raises TunError."""
    from tun.linux import LinuxTun

    return LinuxTun(fd, offload=offload)
