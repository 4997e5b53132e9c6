"""A whole process, run in the test's own loop: a real interface in a namespace, real sockets, the UAPI socket in a directory of
its own. How the command behaves from outside is in tests/e2e."""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from noise import crypto
from tun import open_tun
from wgpy.client import Client, ClientError
from wgpy.config import DEFAULT_MTU, Change, DeviceSnapshot, Endpoint, SetDevice, SetPeer
from wgpy.daemon import run, uapi_server
from wgpy.daemon.run import Process, SetupError, _child_command, _configure_logging, _nth_address
from wgpy.daemon.uapi_server import listen

PATIENCE = 20.0
NAME = "wg0"
PRIVATE_KEY = crypto.clamp(b"\x11" * 32)
PEER_KEY = crypto.public_key(crypto.clamp(b"\x22" * 32))
OTHER_KEY = crypto.public_key(crypto.clamp(b"\x33" * 32))


def ip(arguments: str) -> str:
    return subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True).stdout


def has_interface() -> bool:
    return Path("/proc/thread-self/net/dev").read_text().count(f"{NAME}:") == 1


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("", port))
        except OSError:
            return False
        return True


class Running:
    """A process that was started, and what a client of it asks."""

    def __init__(self, process: Process, directory: Path) -> None:
        self.process = process
        self.client = Client(NAME, directory=directory)
        self.work = asyncio.create_task(process.run())

    async def get(self) -> DeviceSnapshot:
        return await asyncio.to_thread(self.client.get)

    async def set(self, *changes: Change) -> None:
        await asyncio.to_thread(self.client.set, changes)

    async def ends(self) -> None:
        await asyncio.wait_for(self.work, PATIENCE)


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(namespace: None, directory: Path) -> AsyncIterator[Start]:
    """Starts a process; what still runs in the end is stopped."""
    running: list[Running] = []

    async def start(state: Path | None = None, metrics: str | None = None) -> Running:
        process = Process(open_tun(NAME, mtu=DEFAULT_MTU), listen(NAME, directory), state, metrics)
        await process.start()
        running.append(Running(process, directory))
        return running[-1]

    yield start
    for one in running:
        one.process._stop()
        await one.ends()
    gc.unfreeze()
    gc.set_threshold(700, 10, 10)


async def is_up(running: Running) -> bool:
    await running.get()
    return running.process.device.is_up


@pytest.mark.e2e
async def test_what_its_timers_do_is_spread_over_a_third_of_a_second(start: Start) -> None:
    """Two processes that lost each other's packets must not initiate at the same instant, again and again (paper 6.1)."""
    running = await start()
    await running.set(SetDevice(PRIVATE_KEY), SetPeer(PEER_KEY))

    jitter = running.process.device.peers[PEER_KEY].timers.jitter
    spread = [jitter() for _ in range(200)]

    assert len(set(spread)) > 100
    assert 0 <= min(spread) < 0.05
    assert 0.28 < max(spread) <= 1 / 3


# -- link state -----------------------------------------------------------------------------------------------------


@pytest.mark.e2e
async def test_sockets_are_bound_while_the_interface_is_up(start: Start) -> None:
    running = await start()
    await running.set(SetDevice(PRIVATE_KEY, listen_port=4321))
    assert (await running.get()).listen_port == 4321
    assert port_is_free(4321)

    ip(f"link set {NAME} up")
    assert (await running.get()).listen_port == 4321
    assert not port_is_free(4321)
    ip(f"link set {NAME} down")
    await running.get()

    assert port_is_free(4321)


@pytest.mark.e2e
async def test_the_port_that_was_chosen_is_told(start: Start) -> None:
    running = await start()
    ip(f"link set {NAME} up")

    port = (await running.get()).listen_port

    assert port > 0
    assert not port_is_free(port)
    await running.set(SetDevice(listen_port=0))
    assert (await running.get()).listen_port == port, "0 was what it had"


@pytest.mark.e2e
async def test_the_mtu_is_followed(start: Start) -> None:
    running = await start()
    assert running.process.device.mtu == DEFAULT_MTU

    ip(f"link set {NAME} mtu 1300")
    await running.get()

    assert running.process.device.mtu == 1300


@pytest.mark.e2e
async def test_a_port_in_use_is_refused_and_nothing_else_of_the_request_is_done(start: Start) -> None:
    running = await start()
    ip(f"link set {NAME} up")
    await running.set(SetDevice(PRIVATE_KEY, listen_port=4321))
    before = await running.get()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 5432))

        with pytest.raises(ClientError) as refused:
            await running.set(SetDevice(listen_port=5432, fwmark=7, replace_peers=True), SetPeer(PEER_KEY))

        assert refused.value.errno == errno.EADDRINUSE
        assert await running.get() == before
        assert not port_is_free(4321)


@pytest.mark.e2e
async def test_a_port_that_is_free_later_is_bound_when_it_is_asked_for_again(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start()
    await running.set(SetDevice(PRIVATE_KEY, listen_port=5432))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 5432))
        ip(f"link set {NAME} up")
        assert (await running.get()).listen_port == 0
        assert not await is_up(running)
        with pytest.raises(ClientError) as refused:
            await running.set(SetDevice(listen_port=5432))
        assert refused.value.errno == errno.EADDRINUSE
    assert "UDP port 5432 cannot be bound: Address already in use; choose another" in caplog.text

    await running.set(SetDevice(listen_port=5433))

    assert await is_up(running)
    assert not port_is_free(5433)


# -- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.e2e
async def test_a_new_process_goes_on_with_the_configuration_of_the_old_one(start: Start, tmp_path: Path) -> None:
    first = await start(tmp_path)
    await first.set(
        SetDevice(PRIVATE_KEY, listen_port=4321, fwmark=7),
        SetPeer(PEER_KEY, preshared_key=b"\x44" * 32, endpoint=Endpoint("192.0.2.1", 1), persistent_keepalive=9),
        SetPeer(OTHER_KEY),
    )
    config = (await first.get()).config
    path = tmp_path / f"{NAME}.conf"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_text()
    first.process._stop()
    await first.ends()
    assert not has_interface()
    path.write_text(kept)  # as after SIGKILL: what the end of the process may have written does not count

    second = await start(tmp_path)

    assert (await second.get()).config == config


@pytest.mark.e2e
async def test_a_refused_request_is_not_kept(start: Start, tmp_path: Path) -> None:
    running = await start(tmp_path)
    await running.set(SetDevice(PRIVATE_KEY))
    before = (tmp_path / f"{NAME}.conf").read_text()

    with pytest.raises(ClientError):
        await running.set(SetDevice(fwmark=9, listen_port=70_000))

    assert (tmp_path / f"{NAME}.conf").read_text() == before


@pytest.mark.e2e
async def test_peers_are_greeted_by_a_process_that_took_over(start: Start, tmp_path: Path) -> None:
    """They may hold sessions that nobody can open any more."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(PATIENCE)
        first = await start(tmp_path)
        await first.set(SetDevice(PRIVATE_KEY), SetPeer(PEER_KEY, endpoint=Endpoint(*peer.getsockname())))
        first.process._stop()
        await first.ends()

        await start(tmp_path)
        ip(f"link set {NAME} up")

        assert len(await asyncio.to_thread(peer.recv, 200)) == 148


# -- beginning and end ----------------------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "interface deleted", "socket file deleted"])
async def test_it_ends_and_leaves_nothing(start: Start, directory: Path, how: str) -> None:
    running = await start()
    await running.set(SetDevice(PRIVATE_KEY, listen_port=4321))
    ip(f"link set {NAME} up")
    await running.get()

    if how == "interface deleted":
        ip(f"link del {NAME}")
    elif how == "socket file deleted":
        (directory / f"{NAME}.sock").unlink()
    else:
        os.kill(os.getpid(), signal.Signals[how])

    await running.ends()
    assert not has_interface()
    assert list(directory.iterdir()) == []
    assert port_is_free(4321)


@pytest.mark.e2e
async def test_a_socket_of_somebody_else_in_the_place_of_ours_is_left_alone(start: Start, directory: Path) -> None:
    running = await start()
    path = directory / f"{NAME}.sock"
    path.unlink()
    with listen(NAME, directory):
        await running.ends()

        assert path.exists()


@pytest.mark.e2e
@pytest.mark.parametrize("what", ["state", "port", "metrics"])
async def test_what_cannot_be_set_up_leaves_nothing(start: Start, directory: Path, tmp_path: Path, what: str) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as served,
    ):
        taken.bind(("", 5432))
        served.bind(("127.0.0.1", 9586))
        served.listen()
        text = {"state": "[Interface]\nListenPort = x\n", "port": "[Interface]\nListenPort = 5432\n"}.get(what, "")
        (tmp_path / f"{NAME}.conf").write_text(text)

        with pytest.raises(SetupError) as refused:
            await start(tmp_path, "127.0.0.1:9586" if what == "metrics" else None)

    assert "\n" not in str(refused.value)
    assert ("127.0.0.1:9586" if what == "metrics" else f"{NAME}.conf") in str(refused.value)
    assert not has_interface()
    assert list(directory.iterdir()) == []
    assert (tmp_path / f"{NAME}.conf").read_text() == text, "what is there is left as it is"


@pytest.mark.e2e
async def test_a_machine_that_is_out_of_watches_is_told_in_one_line(
    namespace: None, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes nodes run out of inotify instances."""

    def refuse(path: Path) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(uapi_server, "_inotify", refuse)
    monkeypatch.setattr(run, "listen", partial(listen, directory=directory))

    with pytest.raises(SetupError, match="Too many open files"):
        await run._serve(NAME, state=None, metrics=None, persist=False, ready=lambda: None)

    assert not has_interface()
    assert list(directory.iterdir()) == []


@pytest.mark.e2e
async def test_metrics_are_served_from_the_same_loop_until_the_end(start: Start) -> None:
    running = await start(metrics="127.0.0.1:9586")

    reader, writer = await asyncio.open_connection("127.0.0.1", 9586)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        answer = await reader.read()
    writer.close()

    assert f'iface="{NAME}"'.encode() in answer
    running.process._stop()
    await running.ends()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", 9586)


@pytest.mark.e2e
async def test_it_is_ready_unless_its_port_is_taken_and_alive_all_along(start: Start) -> None:
    async def ask(path: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", 9586)
        writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body

    running = await start(metrics="127.0.0.1:9586")
    await running.set(SetDevice(PRIVATE_KEY, listen_port=5432))
    assert await ask("/readyz") == (200, "ok\n"), "an interface that is down waits to be taken up"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 5432))
        ip(f"link set {NAME} up")
        assert not await is_up(running)

        assert await ask("/readyz") == (503, "the interface is up, but UDP port 5432 cannot be bound\n")
        assert await ask("/healthz") == (200, "ok\n")
    await running.set(SetDevice(listen_port=5432))
    assert await ask("/readyz") == (200, "ok\n")


@pytest.mark.e2e
async def test_a_large_configuration_lets_packets_and_others_go_first(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "TURN", 0.0)
    running = await start()
    turns = 0
    done = asyncio.Event()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await running.process._apply([SetPeer(number.to_bytes(32)) for number in range(1, 1001)])
    done.set()
    await counting

    assert turns >= 1000


# -- processes and addresses ----------------------------------------------------------------------------------------


def test_each_interface_has_a_process_with_the_same_options_and_the_next_metrics_port() -> None:
    commands = [
        _child_command(name, Path("/state"), _nth_address("[::1]:9586", number), True)
        for number, name in enumerate(["wg0", "wg1"])
    ]

    assert commands == [
        [sys.executable, "-m", "wgpy", "run", name, "--state", "/state", "--metrics", f"[::1]:{port}", "--persist"]
        for name, port in (("wg0", 9586), ("wg1", 9587))
    ]
    assert _child_command("wg0", None, _nth_address(None, 0), False) == [sys.executable, "-m", "wgpy", "run", "wg0"]


@pytest.mark.parametrize(
    ("level", "number"),
    [
        ("verbose", logging.DEBUG),
        ("debug", logging.DEBUG),
        ("info", logging.INFO),
        ("error", logging.ERROR),
        ("silent", logging.CRITICAL + 1),
        ("nonsense", logging.ERROR),
    ],
)
def test_the_environment_says_how_loud_the_log_is(level: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, object] = {}
    monkeypatch.setenv("LOG_LEVEL", level)
    monkeypatch.setattr(logging, "basicConfig", lambda **kwargs: told.update(kwargs))

    assert _configure_logging("wg0", "error") == level

    assert told["level"] == number
    assert "(wg0)" in str(told["format"])
