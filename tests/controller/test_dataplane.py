"""Starting data planes that do not start. Those that do are in test_agent."""

import os
import signal
import time
from pathlib import Path

import pytest

from controller.dataplane import DataPlaneError, Spawner
from controller.netlink import FoundLink, Kernel
from controller.state import Link


class NoKernel(Kernel):
    """A host with no interface, or with one."""

    def __init__(self, has_link: bool = False) -> None:
        self.has_link = has_link
        self.deleted: list[str] = []

    def find_link(self, name: str) -> FoundLink | None:
        return FoundLink(1, "tun", Link(True, 1420)) if self.has_link else None

    def delete_link(self, name: str) -> None:
        self.deleted.append(name)


STARTS = "sh -c 'echo $$ > {0}/.pid; mv {0}/.pid {0}/pid; exec sleep 60' --"


def pid_in(directory: Path) -> int:
    """Who has been started by STARTS there; it may take longer to say so than it is given to answer."""
    deadline = time.monotonic() + 10
    while not (directory / "pid").exists():
        assert time.monotonic() < deadline, "it does not start"
        time.sleep(0.01)
    return int((directory / "pid").read_text())


def test_its_last_words_are_the_reason(tmp_path: Path) -> None:
    spawner = Spawner("sh -c 'echo one; echo the reason >&2; exit 4' --", tmp_path)

    with pytest.raises(DataPlaneError, match=r"^the data plane for wgx ended with status 4: the reason$"):
        spawner.start("wgx", NoKernel())
    assert (tmp_path / "wgx.log").read_text() == "one\nthe reason\n"


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataPlaneError, match=r"^cannot start the data plane /no/such: No such file or directory$"):
        Spawner("/no/such", tmp_path).start("wgx", NoKernel())


def test_the_name_is_added_or_put_in_its_place(tmp_path: Path) -> None:
    for command in (f"sh {tmp_path / 'script'} -f", f"sh {tmp_path / 'script'} {{interface}} x"):
        (tmp_path / "script").write_text('echo "$@"; exit 1\n')
        with pytest.raises(DataPlaneError):
            Spawner(command, tmp_path).start("wgx", NoKernel())

    assert (tmp_path / "wgx.log").read_text() == "-f wgx\nwgx x\n"


def test_one_that_does_not_answer_is_given_up_and_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.dataplane.START_SECONDS", 0.3)
    spawner, kernel = Spawner(STARTS.format(tmp_path), tmp_path), NoKernel()

    with pytest.raises(DataPlaneError, match=r"^the data plane for wgx does not answer: see .*wgx\.log$"):
        spawner.start("wgx", kernel)
    pid = pid_in(tmp_path)
    spawner.undo("wgx", kernel)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert kernel.deleted == ["wgx"]
    spawner.undo("wgx", kernel)
    assert kernel.deleted == ["wgx"], "once"


def test_an_interface_that_was_there_before_is_left(tmp_path: Path) -> None:
    spawner, kernel = Spawner("sh -c 'exit 1' --", tmp_path), NoKernel(has_link=True)

    with pytest.raises(DataPlaneError):
        spawner.start("wgx", kernel)
    spawner.undo("wgx", kernel)

    assert kernel.deleted == []


def test_it_outlives_whoever_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.dataplane.START_SECONDS", 0.2)
    spawner = Spawner(STARTS.format(tmp_path), tmp_path)
    with pytest.raises(DataPlaneError):
        spawner.start("wgx", NoKernel())
    pid = pid_in(tmp_path)

    try:
        assert os.getsid(pid) != os.getsid(0), "a signal to the agent's group does not reach it"
        assert os.readlink(f"/proc/{pid}/fd/1") == str(tmp_path / "wgx.log"), "nor does the end of the agent's output"
    finally:
        os.kill(pid, signal.SIGKILL)
        spawner.undo("wgx", NoKernel())
