"""Network namespaces, for the tests which need a kernel."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

CLONE_NEWNET = 0x40000000
Result = TypeVar("Result")


def ip(*arguments: str, pid: int | None = None) -> str:
    """Run ip(8) in this thread's network namespace, or in that of a process."""
    inside = ["nsenter", "-n", "-t", str(pid)] if pid is not None else []
    return subprocess.run([*inside, "ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network namespace of this test's own. It disappears, with all that is in it, when nobody holds it any more."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a network namespace")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("needs /dev/net/tun")
    libc = ctypes.CDLL(None, use_errno=True)
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            pytest.skip(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}")
        ip("link", "set", "lo", "up")
        yield
    finally:
        libc.setns(ours, CLONE_NEWNET)
        os.close(ours)


@pytest.fixture
def elsewhere(namespace: None) -> Iterator[int]:
    """The PID of a process in another network namespace."""
    process = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    ip("link", "set", "lo", "up", pid=process.pid)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def without_capability(number: int, function: Callable[[], Result]) -> Result:
    """Call ``function`` in a thread that lacks one capability."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)
            sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and again for capabilities from 32 on
            assert libc.capget(header, sets) == 0
            sets[3 * (number // 32)] &= ~(1 << number % 32)
            assert libc.capset(header, sets) == 0
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
