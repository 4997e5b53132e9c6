"""What a data plane may do, and what others may see of it: as little as its work takes.

How to think about it: :func:`restrict` is called once, before anything else is loaded. So there is no other thread yet (the
kernel keeps capabilities thread by thread), nothing that came from outside has been read, and what cannot be done without the
rest fails at the start and not in the middle of the work. Nothing is ever taken back. Root stays root: it owns its files, and
may no longer pass over the permissions of others'.

A capability that was not given is a feature that is off, which :func:`shortfall` says; the tunnel itself needs NET_ADMIN only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from enum import IntEnum
from pathlib import Path

from wgpy.coredump import leave_no_core_dump


class Capability(IntEnum):
    """Those that have a use here, by their numbers in linux/capability.h."""

    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13
    SYS_ADMIN = 21


OFF_WITHOUT = {
    Capability.NET_ADMIN: "no firewall mark, no interface of our own making",
    Capability.NET_BIND_SERVICE: "no listen port below 1024",
    Capability.NET_RAW: "no ICMP unreachables",
    Capability.SYS_ADMIN: "the MTU of an interface in another network namespace is not followed",
}
"""What is kept, and what is off without it. A listen port can be set, and an interface moved, at any time: so these stay."""

_KEPT = sum(1 << capability for capability in OFF_WITHOUT)

# linux/prctl.h and linux/capability.h
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = Path("/proc/sys/kernel/cap_last_cap")
_HEADER = struct.Struct("=Ii")
_SETS = struct.Struct("=6I")  # effective, permitted, inheritable: their lower 32 bits, then their upper ones

_libc = ctypes.CDLL(None, use_errno=True)


def restrict() -> None:
    """Keep the capabilities in OFF_WITHOUT, of those we have, and give up all others for good; leave no core dump.

    They leave the effective, permitted, inheritable and ambient sets. They also leave the bounding set where we may change it,
    which takes SETPCAP; where not, ``no_new_privs`` sees to it that no program started from here gets what we have not. What is
    left passes to children: a supervisor's need it. Raises OSError, which is a reason not to start.
    """
    leave_no_core_dump()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.umask(os.umask(0o077) | 0o022)  # others write to nothing that is made here, whatever we were started with
    with contextlib.suppress(PermissionError):
        _narrow_bounding_set()
    effective, permitted, inheritable = _capability_sets()
    # The kernel takes out of the ambient set what is no longer permitted or inheritable.
    _set_capability_sets(effective & _KEPT, permitted & _KEPT, inheritable & _KEPT)


def shortfall() -> str | None:
    """What is off for want of a capability, in one line; None if nothing is."""
    effective, _, _ = _capability_sets()
    missing = [f"{off} (CAP_{capability.name})" for capability, off in OFF_WITHOUT.items() if not effective >> capability & 1]
    return "; ".join(missing) or None


def _narrow_bounding_set() -> None:
    """Raises PermissionError without SETPCAP."""
    for number in range(int(_LAST_CAPABILITY.read_text()) + 1):
        if not _KEPT >> number & 1:
            _prctl(_PR_CAPBSET_DROP, number)


def _capability_sets() -> tuple[int, int, int]:
    """This thread's effective, permitted and inheritable sets: bit n is capability n."""
    sets = ctypes.create_string_buffer(_SETS.size)
    _check(_libc.capget(_HEADER.pack(_CAPABILITY_VERSION_3, 0), sets), "capget")
    lower_and_upper = _SETS.unpack(sets.raw)
    effective, permitted, inheritable = (lower_and_upper[i] | lower_and_upper[i + 3] << 32 for i in range(3))
    return effective, permitted, inheritable


def _set_capability_sets(*sets: int) -> None:
    packed = _SETS.pack(*(one & 0xFFFFFFFF for one in sets), *(one >> 32 for one in sets))
    _check(_libc.capset(_HEADER.pack(_CAPABILITY_VERSION_3, 0), packed), "capset")


def _prctl(option: int, argument: int) -> None:
    _check(_libc.prctl(option, *map(ctypes.c_ulong, (argument, 0, 0, 0))), "prctl")


def _check(status: int, call: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"privileges cannot be given up: {call}: {os.strerror(number)}")
