"""No core dumps: whoever holds keys calls this first, the data plane and the agent alike."""

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def leave_no_core_dump() -> None:
    """From now on this process leaves none. Programs that it starts inherit the limit alone. Raises OSError."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A core_pattern that is a program gets dumps whatever the limit; nor may our own user trace us.
    if ctypes.CDLL(None, use_errno=True).prctl(
        _PR_SET_DUMPABLE, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)
    ):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")
