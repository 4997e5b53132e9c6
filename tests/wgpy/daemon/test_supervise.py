"""A supervisor in a process of its own, and children that are short shell scripts. Each tells what it does through a pipe."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 20.0
ROOT = Path(__file__).parents[3]
SUPERVISE = """
import sys
from wgpy.daemon.supervise import supervise
sys.exit(supervise([["sh", "-c", script] for script in sys.argv[1:]]))
"""
FOREVER = "trap 'echo {0} ends; exit 0' TERM; echo {0} $$; while :; do sleep 0.05; done"


class Supervisor:
    """``said`` are the lines of all children so far."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.said: list[str] = []
        self._rest = b""

    def hear(self, line: str, count: int = 1) -> float:
        """Wait until children have said so ``count`` times; the seconds that it took."""
        began = time.monotonic()
        assert self.process.stdout is not None
        while sum(said.split()[0] == line or said == line for said in self.said) < count:
            left = began + PATIENCE - time.monotonic()
            assert left > 0 and select.select([self.process.stdout], [], [], left)[0], f"no {line!r} in {self.said}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"all have ended without {line!r}: {self.said}"
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.said += [one.decode() for one in lines]
        return time.monotonic() - began

    def pid(self, name: str) -> int:
        """Of the child that last said its name and number."""
        return next(int(said.split()[1]) for said in reversed(self.said) if said.split()[0] == name and said.split()[1].isdigit())

    def wait(self) -> tuple[int, float]:
        """Its exit status, and how long that took."""
        began = time.monotonic()
        return self.process.wait(PATIENCE), time.monotonic() - began


@contextmanager
def supervised(*scripts: str) -> Iterator[Supervisor]:
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, *scripts], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    try:
        yield Supervisor(process)
    finally:
        process.kill()  # its children get SIGTERM by that
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_them_all_and_then_the_supervisor(number: int) -> None:
    with supervised(FOREVER.format("a"), FOREVER.format("b")) as supervisor:
        supervisor.hear("a")
        supervisor.hear("b")

        supervisor.process.send_signal(number)

        supervisor.hear("a ends")
        supervisor.hear("b ends")
        assert supervisor.wait()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_dies_is_started_again_and_the_other_never_notices(number: int) -> None:
    with supervised(FOREVER.format("a"), FOREVER.format("b")) as supervisor:
        supervisor.hear("a")
        supervisor.hear("b")
        pid = supervisor.pid("b")

        os.kill(supervisor.pid("a"), number)

        supervisor.hear("a", 2 if number != signal.SIGTERM else 3)
        assert supervisor.said.count(f"b {pid}") == 1
        assert is_alive(pid)


def test_one_that_is_waited_for_delays_no_other() -> None:
    """The crash of one is no business of the others."""
    with supervised("echo a; exit 3", FOREVER.format("b")) as supervisor:
        supervisor.hear("b")
        supervisor.hear("a", 4)  # the next pause of this one is 4 s, and b's is half a second

        os.kill(supervisor.pid("b"), signal.SIGKILL)

        supervisor.hear("b", 2)
        assert supervisor.said.count("a") == 4


def test_a_signal_ends_a_supervisor_that_waits_to_start_one_again() -> None:
    with supervised("echo a $$ $(cut -d' ' -f1 /proc/uptime); exit 3") as supervisor:
        supervisor.hear("a", 4)
        first, second, third, _ = (float(said.split()[2]) for said in supervisor.said)
        assert second - first >= 0.45 and third - second >= 0.95, "each pause is longer than the one before"
        until(lambda: not Path(f"/proc/{supervisor.pid('a')}").exists())  # it was waited for: the next pause of 4 s has begun

        supervisor.process.terminate()

        status, seconds = supervisor.wait()
        assert (status, seconds < 3.5) == (0, True)


def test_one_that_cannot_be_set_up_ends_them_all_with_its_status() -> None:
    with supervised(FOREVER.format("a"), "echo b; exit 1") as supervisor:
        supervisor.hear("b")

        assert supervisor.wait()[0] == 1
        supervisor.hear("a ends" if any(said.startswith("a ") for said in supervisor.said) else "b")


def test_status_1_later_on_is_a_crash_like_any_other() -> None:
    """The interface was there before: it can be again."""
    with tempfile.NamedTemporaryFile() as file:
        script = f"echo a; if [ -s {file.name} ]; then exit 1; fi; echo x > {file.name}; kill -9 $$"
        with supervised(script, FOREVER.format("b")) as supervisor:
            supervisor.hear("a", 3)
            assert supervisor.process.poll() is None


def test_a_supervisor_that_is_killed_takes_its_children_along() -> None:
    with supervised(FOREVER.format("a")) as supervisor:
        supervisor.hear("a")
        pid = supervisor.pid("a")

        supervisor.process.kill()

        supervisor.hear("a ends")
        until(lambda: not is_alive(pid))


def test_children_get_the_signals_that_a_program_expects() -> None:
    """Nothing is blocked or ignored in them that was not so in the supervisor's parent."""
    with supervised("grep -E 'Sig(Blk|Ign)' /proc/self/status | tr -d '\\n\\t'; echo; echo done; sleep 60") as supervisor:
        supervisor.hear("done")

        blocked = int(supervisor.said[0].split("SigBlk:")[1][:16], 16)
        ignored = int(supervisor.said[0].split("SigIgn:")[1][:16], 16)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            assert not (blocked | ignored) >> number - 1 & 1
