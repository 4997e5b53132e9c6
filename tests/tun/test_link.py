import asyncio
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
import uvloop

from tests.tun.conftest import ip, without_capability
from tun import Tun, TunError, TunGone, link, open_tun
from tun.link import LinkMonitor, in_namespace_of

pytestmark = pytest.mark.e2e

CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21


@pytest.fixture
def tun(namespace: None) -> Iterator[Tun]:
    tun = open_tun("wgpy-a", mtu=1420)
    yield tun
    tun.close()


@pytest.fixture
def monitor(tun: Tun) -> Iterator[LinkMonitor]:
    monitor = LinkMonitor(tun.fileno())
    monitor.drain()
    yield monitor
    monitor.close()


def is_awake(monitor: LinkMonitor) -> bool:
    return bool(select.select([monitor.fileno()], [], [], 0)[0])


def index_of(name: str, pid: int | None = None) -> int:
    return int(ip("-o", "link", "show", name, pid=pid).split(":")[0])


def namespace_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def test_up_down_and_mtu_wake_the_monitor_and_are_seen(monitor: LinkMonitor) -> None:
    assert not is_awake(monitor)
    state = monitor.state()
    assert (state.name, state.is_up, state.mtu, state.index) == ("wgpy-a", False, 1420, index_of("wgpy-a"))

    for command, is_up, mtu in (
        ("up", True, 1420),
        ("down", False, 1420),
        ("mtu 1300", False, 1300),
        ("up mtu 9000", True, 9000),
    ):
        ip("link", "set", "wgpy-a", *command.split())

        assert is_awake(monitor)
        monitor.drain()
        assert not is_awake(monitor)
        state = monitor.state()
        assert (state.is_up, state.mtu) == (is_up, mtu)


def test_the_state_is_current_without_waiting_for_an_event(monitor: LinkMonitor) -> None:
    ip("link", "set", "wgpy-a", "up")

    assert monitor.state().is_up


def test_a_renamed_interface_is_found(monitor: LinkMonitor) -> None:
    ip("link", "set", "wgpy-a", "name", "other")
    ip("link", "add", "wgpy-a", "type", "veth")

    state = monitor.state()

    assert (state.name, state.mtu, state.index) == ("other", 1420, index_of("other"))


def test_a_deleted_interface_wakes_the_monitor_and_is_gone(monitor: LinkMonitor) -> None:
    ip("link", "delete", "wgpy-a")

    assert is_awake(monitor)
    with pytest.raises(TunGone):
        monitor.state()


def test_an_interface_that_went_down_and_up_in_a_breath_was_down(monitor: LinkMonitor) -> None:
    ip("link", "set", "wgpy-a", "up")
    monitor.drain()
    ip("link", "set", "wgpy-a", "mtu", "1390")
    ip("link", "set", "lo", "down")
    ip("link", "set", "lo", "up")
    assert not monitor.drain(), "it is another that went down"

    ip("link", "set", "wgpy-a", "down")
    ip("link", "set", "wgpy-a", "up")

    assert monitor.drain() and monitor.state().is_up
    assert not monitor.drain(), "it is told once"


def test_an_interface_is_followed_into_another_namespace_and_back(monitor: LinkMonitor, elsewhere: int) -> None:
    fileno, ours = monitor.fileno(), monitor.state().namespace
    ip("link", "set", "wgpy-a", "up")
    monitor.drain()

    ip("link", "set", "wgpy-a", "netns", str(elsewhere))
    ip("link", "add", "wgpy-a", "type", "veth")  # is not ours

    assert is_awake(monitor)
    monitor.drain()
    state = monitor.state()
    assert (state.name, state.is_up, state.mtu) == ("wgpy-a", False, 1420)
    assert (state.index, state.namespace) == (index_of("wgpy-a", elsewhere), namespace_of(elsewhere))

    monitor.drain()
    ip("link", "set", "wgpy-a", "up", "mtu", "1380", pid=elsewhere)
    assert is_awake(monitor)
    monitor.drain()
    assert (monitor.state().is_up, monitor.state().mtu) == (True, 1380)
    assert (is_awake(monitor), monitor.is_elsewhere) == (False, True)

    ip("link", "set", "wgpy-a", "down", "mtu", "1300", pid=elsewhere)  # which nobody tells us: it is looked at now and then
    assert (monitor.state().is_up, monitor.state().mtu) == (False, 1300)
    ip("link", "set", "wgpy-a", "up", pid=elsewhere)
    assert is_awake(monitor)

    ip("link", "set", "wgpy-a", "name", "wgpy-z", "netns", str(os.getpid()), pid=elsewhere)
    assert is_awake(monitor)
    state = monitor.state()
    assert (state.name, state.namespace, monitor.is_elsewhere, monitor.fileno()) == ("wgpy-z", ours, False, fileno)
    monitor.drain()
    ip("link", "set", "wgpy-z", "mtu", "1310")
    assert is_awake(monitor)


def test_an_interface_that_comes_up_elsewhere_while_it_is_looked_at_is_up(
    monitor: LinkMonitor, elsewhere: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would be told of that: the next look is half a second away."""
    ip("link", "set", "wgpy-a", "netns", str(elsewhere))
    look = link._read_link

    def look_and_bring_up(queries: socket.socket, name: str) -> tuple[bool, int, int]:
        found = look(queries, name)
        ip("link", "set", "wgpy-a", "up", pid=elsewhere)
        return found

    monkeypatch.setattr(link, "_read_link", look_and_bring_up)

    assert monitor.state().is_up


def test_a_namespace_that_is_deleted_takes_the_interface_with_it(tun: Tun) -> None:
    """Nothing of ours keeps it alive, though it was looked at."""
    process = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    ip("link", "set", "wgpy-a", "netns", str(process.pid))
    ip("link", "set", "wgpy-a", "up", pid=process.pid)
    monitor = LinkMonitor(tun.fileno())
    assert monitor.state().is_up

    process.kill()
    process.wait()
    process.stdout.close()

    def is_gone() -> bool:
        try:
            monitor.state()
        except TunError:
            return True
        return False

    deadline = time.monotonic() + 10  # the kernel takes namespaces down when it finds the time
    while not is_gone():
        assert time.monotonic() < deadline, "the namespace lives on"
        time.sleep(0.02)
    monitor.close()


def test_nobody_remains_elsewhere_and_no_thread_remains(monitor: LinkMonitor, elsewhere: int) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    descriptors, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    for _ in range(3):
        ip("link", "set", "wgpy-a", "netns", str(elsewhere))
        monitor.state()
        ip("link", "set", "wgpy-a", "netns", str(os.getpid()), pid=elsewhere)
        monitor.state()

    assert os.stat("/proc/thread-self/ns/net").st_ino == before
    assert len(os.listdir("/proc/self/task")) == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_namespace_that_may_not_be_entered_leaves_up_and_down(tun: Tun, elsewhere: int) -> None:
    """As in a pod with NET_ADMIN only. Then the flags come from the descriptor, the MTU stays what it was."""

    def attempt() -> None:
        monitor = LinkMonitor(tun.fileno())
        assert (monitor.state().mtu, monitor.state().is_up) == (1420, False)  # our own namespace needs no capability

        ip("link", "set", "wgpy-a", "netns", str(elsewhere))
        ip("link", "add", "wgpy-a", "type", "veth")
        ip("link", "set", "wgpy-a", "up", "mtu", "1000")  # is not ours
        state = monitor.state()
        assert (state.name, state.is_up, state.mtu, state.namespace) == ("wgpy-a", False, 1420, namespace_of(elsewhere))

        monitor.drain()
        monitor.close()

    def attempt_when_up() -> None:
        monitor = LinkMonitor(tun.fileno())
        assert monitor.state().is_up
        monitor.close()

    without_capability(CAP_SYS_ADMIN, attempt)
    ip("link", "set", "wgpy-a", "up", pid=elsewhere)
    without_capability(CAP_SYS_ADMIN, attempt_when_up)


def test_without_net_admin_the_interface_is_watched_in_our_own_namespace(tun: Tun) -> None:
    """As by a child process which was handed the descriptor."""

    def attempt() -> None:
        monitor = LinkMonitor(tun.fileno())
        assert (monitor.state().mtu, monitor.state().namespace) == (1420, os.stat("/proc/thread-self/ns/net").st_ino)
        monitor.close()

    without_capability(CAP_NET_ADMIN, attempt)


def test_a_flood_of_events_is_drained(monitor: LinkMonitor) -> None:
    assert monitor._events is not None
    monitor._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least
    for i in range(40):
        ip("link", "set", "lo", "mtu", str(1500 + i))
    ip("link", "set", "wgpy-a", "up")

    assert is_awake(monitor)
    monitor.drain()

    assert not is_awake(monitor)
    assert monitor.state().is_up


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_an_event_loop_watches_across_a_move_and_sleeps_in_between(tun: Tun, elsewhere: int, loop_factory) -> None:
    monitor = LinkMonitor(tun.fileno())
    wakeups: list[tuple[int, bool]] = []

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def woken() -> None:
            monitor.drain()
            state = monitor.state()
            wakeups.append((state.namespace, state.is_up))
            changed.set()

        loop.add_reader(monitor.fileno(), woken)
        for command, pid, state in (
            ("up", None, (ours, True)),
            ("down", None, (ours, False)),
            (f"netns {elsewhere}", None, (namespace_of(elsewhere), False)),
            ("up", elsewhere, (namespace_of(elsewhere), True)),
        ):
            await asyncio.to_thread(ip, "link", "set", "wgpy-a", *command.split(), pid=pid)
            async with asyncio.timeout(5):
                while wakeups[-1:] != [state]:
                    changed.clear()
                    await changed.wait()
        await asyncio.sleep(0.1)
        before = len(wakeups)
        await asyncio.sleep(0.2)
        assert len(wakeups) == before
        loop.remove_reader(monitor.fileno())

    ours = monitor.state().namespace
    loop = loop_factory()
    loop.run_until_complete(watch())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    monitor.close()


def test_a_socket_made_in_the_namespace_of_the_interface_stays_there(tun: Tun, elsewhere: int) -> None:
    ip("link", "set", "wgpy-a", "netns", str(elsewhere))
    ip("address", "add", "10.9.0.2/24", "dev", "wgpy-a", pid=elsewhere)
    ip("link", "set", "wgpy-a", "up", pid=elsewhere)

    with in_namespace_of(tun.fileno(), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as made:
        made.bind(("10.9.0.2", 0))
    with pytest.raises(ZeroDivisionError):
        in_namespace_of(tun.fileno(), lambda: 1 // 0)


def test_an_interface_that_was_deleted_before_is_gone(tun: Tun) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    ip("link", "delete", "wgpy-a")

    with pytest.raises(TunGone):
        LinkMonitor(tun.fileno())
    with pytest.raises(TunGone):
        in_namespace_of(tun.fileno(), socket.socket)

    assert len(os.listdir("/proc/self/fd")) == descriptors
