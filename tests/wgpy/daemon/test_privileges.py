"""Each is tried in a process of its own, since nothing that is given up comes back. The daemons' privileges are in
tests/e2e/test_privileges.py."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wgpy.daemon.privileges import OFF_WITHOUT, Capability

KEPT = reduce(lambda mask, capability: mask | 1 << capability, OFF_WITHOUT, 0)
NET_ADMIN = 1 << Capability.NET_ADMIN
SETPCAP = 1 << 8
RESTRICT = "from wgpy.daemon.privileges import restrict, shortfall; restrict()"
SHOW = 'print(pathlib.Path("/proc/thread-self/status").read_text())'
IMPORTS = "import ctypes, os, pathlib, resource, subprocess, threading"
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, and setpriv of util-linux: gives capabilities away"
)


def python(*lines: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    argv = [*prefix, sys.executable, "-c", "\n".join([IMPORTS, *lines])]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def status(*lines: str, prefix: Sequence[str] = ()) -> dict[str, int]:
    """What /proc says of a process that has run ``lines``: capability sets as numbers, and NoNewPrivs."""
    return parsed(python(*lines, prefix=prefix))


def parsed(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    assert done.returncode == 0, done.stderr
    fields = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    return {name: int(fields[name], 16) for name in (*SETS, "NoNewPrivs")}


def setpriv(capabilities: int, *, ambient: int = 0) -> list[str]:
    """A prefix that runs a command of root's with these capabilities at most, and these in the ambient set."""
    return [
        "setpriv",
        f"--bounding-set={words(capabilities)}",
        f"--inh-caps={words(ambient)}",
        f"--ambient-caps={words(ambient)}",
    ]


def words(capabilities: int) -> str:
    return ",".join(["-all", *(f"+cap_{number}" for number in range(64) if capabilities >> number & 1)])


def test_what_is_left_is_what_there_was_and_has_a_use() -> None:
    """As whoever runs the tests, root or not."""
    before, after = status(SHOW), status(RESTRICT, SHOW)

    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert after[name] == before[name] & KEPT, name
    assert after["CapBnd"] == (before["CapBnd"] & KEPT if before["CapEff"] & SETPCAP else before["CapBnd"])
    assert after["NoNewPrivs"] == 1


@needs_root
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sets(st.sampled_from([*Capability, 0, 1, 8, 19, 27])).map(lambda given: sum(1 << number for number in given)))
def test_whatever_was_given(given: int) -> None:
    was = status(SHOW, prefix=setpriv(given))["CapEff"]  # this machine's root may lack some itself
    after = status(RESTRICT, SHOW, prefix=setpriv(given))

    assert after["CapEff"] == after["CapPrm"] == was & KEPT
    assert after["CapBnd"] & was == after["CapBnd"]
    assert after["CapBnd"] & ~KEPT == 0 or not was & SETPCAP


@needs_root
def test_what_is_ambient_stays_so_that_a_supervisor_can_pass_it_on() -> None:
    after = status(RESTRICT, SHOW, prefix=[*setpriv(NET_ADMIN | 1 << 19, ambient=NET_ADMIN | 1 << 19), "--reuid=65534"])

    assert [after[name] for name in SETS if name != "CapBnd"] == [NET_ADMIN] * 4


@needs_root
def test_a_program_that_is_started_gets_no_more() -> None:
    """Root gets all of its bounding set when it starts a program. Without SETPCAP that set is as it was."""
    cat = 'print(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout)'
    for capabilities in (NET_ADMIN | SETPCAP | 2, NET_ADMIN | 2):
        after = status(RESTRICT, cat, prefix=setpriv(capabilities))
        assert after["CapEff"] == after["CapPrm"] == NET_ADMIN


def test_a_second_time_changes_nothing() -> None:
    assert status(RESTRICT, SHOW) == status(RESTRICT, "restrict()", SHOW)


def test_a_thread_that_is_started_afterwards_has_no_more() -> None:
    after = status(RESTRICT, f"threading.Thread(target=lambda: {SHOW}).start()")

    assert after["CapEff"] & ~KEPT == 0


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_leaves_no_core(number: int, tmp_path: Path) -> None:
    """What the kernel says of the death is asked: whether a dump is written where we can see it depends on the machine."""
    lift = "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]; resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{IMPORTS}\n{lift}\n{RESTRICT}\nos.kill(os.getpid(), {number})"], cwd=tmp_path
    )

    ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.wait(10)

    assert ended is not None
    assert (ended.si_code, ended.si_status) == (os.CLD_KILLED, number)
    assert list(tmp_path.iterdir()) == []


def test_the_limit_of_cores_is_nothing_and_cannot_be_raised_by_a_user() -> None:
    done = python(RESTRICT, "print(resource.getrlimit(resource.RLIMIT_CORE))")

    assert done.stdout == "(0, 0)\n"


def test_it_is_not_dumpable() -> None:
    done = python(RESTRICT, "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))")  # PR_GET_DUMPABLE

    assert done.stdout == "0\n"


@pytest.mark.parametrize(("before", "after"), [(0o000, 0o022), (0o002, 0o022), (0o077, 0o077)])
def test_nobody_else_writes_to_what_is_made(before: int, after: int) -> None:
    done = python(f"os.umask({before})", RESTRICT, "print(oct(os.umask(0)))")

    assert done.stdout.strip() == oct(after)


@needs_root
@pytest.mark.parametrize("lacking", list(Capability))
def test_each_capability_that_is_missing_is_named_with_what_is_off(lacking: Capability) -> None:
    done = python(RESTRICT, "print(shortfall())", prefix=setpriv(KEPT & ~(1 << lacking)))

    assert done.stdout == f"{OFF_WITHOUT[lacking]} (CAP_{lacking.name})\n"


@needs_root
def test_nothing_is_said_where_nothing_is_missing() -> None:
    assert python(RESTRICT, "print(shortfall())", prefix=setpriv(KEPT)).stdout == "None\n"


def test_a_system_that_refuses_is_a_reason_not_to_start() -> None:
    """As a seccomp profile would: the call is made to fail."""
    lines = (
        "from wgpy.daemon import privileges",
        "class Refusing:",
        "    def __getattr__(self, name): return lambda *arguments: ctypes.set_errno(13) or -1",
        "privileges._libc = Refusing()",
        "from wgpy.cli import main",
        "raise SystemExit(main(['run', 'wg0']))",
    )
    done = python(*lines)

    assert done.returncode == 1
    assert done.stderr.startswith("wgpy run: ") and "privileges cannot be given up" in done.stderr
    assert len(done.stderr.splitlines()) == 1
