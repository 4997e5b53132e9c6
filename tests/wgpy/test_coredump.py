"""What the kernel says of a process afterwards; that nobody can trace it is seen in tests/e2e/test_privileges.py."""

import subprocess
import sys


def test_a_process_has_no_limit_left_and_is_not_dumpable() -> None:
    program = (
        "import ctypes, resource\n"
        "from wgpy.coredump import leave_no_core_dump\n"
        "libc = ctypes.CDLL(None)\n"
        "before = libc.prctl(3, 0, 0, 0, 0)\n"
        "leave_no_core_dump()\n"
        "print(before, libc.prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))\n"
    )

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "1 0 0 0\n"
