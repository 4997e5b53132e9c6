"""What tests of a whole process need: a network namespace of their own, and short paths for sockets."""

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000


@pytest.fixture
def directory() -> Iterator[Path]:
    """One whose path is short: a socket's may have 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="wgpy") as name:
        yield Path(name) / "wireguard"


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network namespace of this test's own, with a loopback interface. It disappears with all that is in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a network namespace")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("needs /dev/net/tun")
    libc = ctypes.CDLL(None, use_errno=True)
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            pytest.skip(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        libc.setns(ours, CLONE_NEWNET)
        os.close(ours)
