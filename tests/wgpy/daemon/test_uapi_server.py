"""The server on a real socket, before a real device."""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.sim import Host, Sim
from wgpy.config import Change, Endpoint, SetPeer
from wgpy.daemon import uapi_server
from wgpy.daemon.uapi_server import Deletion, SocketInUse, UapiServer, listen
from wgpy.uapi import format_get, format_get_chunks

PATIENCE = 10.0
KEY = bytes(range(32)).hex()
PEER = f"public_key={KEY}\n"


class Served:
    """A device and its server. ``apply`` waits at ``gate`` before it does anything."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "wg0.sock"
        self.host: Host = Sim("A", "B")["A"]
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusal: OSError | None = None
        self.applied: list[Change] = []
        self.server = UapiServer(listen("wg0", directory), self._reply, self._apply)

    def _reply(self) -> Iterator[str]:
        return format_get_chunks(self.host.device.snapshot())

    async def _apply(self, changes: list[Change]) -> None:
        if self.refusal is not None:
            raise self.refusal
        for change in changes:
            await self.gate.wait()
            await asyncio.sleep(0)  # where another request could come in between
            self.applied.append(change)
            self.host.device.apply([change], 1000)


@pytest.fixture
async def served(directory: Path) -> AsyncIterator[Served]:
    served = Served(directory)
    await served.server.start()
    yield served
    await served.server.stop()


class Connection:
    """A client that speaks as it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, text: str | bytes) -> None:
        self.writer.write(text if isinstance(text, bytes) else text.encode())

    async def reply(self) -> str:
        """Up to the blank line."""
        async with asyncio.timeout(PATIENCE):
            return (await self.reader.readuntil(b"\n\n")).decode()

    async def ask(self, text: str | bytes) -> str:
        self.say(text)
        return await self.reply()

    async def rest(self) -> bytes:
        """What comes until the server hangs up."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()


Connect = Callable[[], Awaitable[Connection]]


@pytest.fixture
async def connect(served: Served) -> AsyncIterator[Connect]:
    """Makes connections, and closes them in the end."""
    made: list[Connection] = []

    async def connect() -> Connection:
        made.append(Connection(*await asyncio.open_unix_connection(str(served.path), limit=1 << 24)))
        return made[-1]

    yield connect
    for connection in made:
        connection.writer.transport.abort()
    await asyncio.sleep(0)


@pytest.fixture
async def connection(connect: Connect) -> Connection:
    return await connect()


# -- requests -------------------------------------------------------------------------------------------------------


async def test_what_was_set_can_be_got(served: Served, connection: Connection) -> None:
    reply = await connection.ask(f"set=1\nlisten_port=7\n{PEER}endpoint=192.0.2.7:7\nallowed_ip=10.7.0.0/16\n\n")

    assert reply == "errno=0\n\n"
    assert served.applied[1] == SetPeer(
        bytes.fromhex(KEY), endpoint=Endpoint("192.0.2.7", 7), allowed_ips=(ip_network("10.7.0.0/16"),)
    )
    assert await connection.ask("get=1\n\n") == format_get(served.host.device.snapshot())


async def test_a_connection_carries_several_operations_even_if_they_come_at_once(connection: Connection) -> None:
    connection.say(f"get=1\n\nset=1\n{PEER}\nget=1\n\nset=1\nfwmark=3\n\n")

    replies = [await connection.reply() for _ in range(4)]

    assert [KEY in reply for reply in replies] == [False, False, True, False]
    assert [reply.endswith("errno=0\n\n") for reply in replies] == [True] * 4


@pytest.mark.parametrize("operation", ["", "\n", "get=2\n\n", "set\n\n", "GET / HTTP/1.0\r\n\r\n", "get=1 \n\n", "set=0\n\n"])
async def test_an_unknown_operation_is_hung_up_on_without_a_reply(connection: Connection, operation: str) -> None:
    connection.say(operation)
    connection.writer.write_eof()

    assert await connection.rest() == b""


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ("listen_port=65536\n", errno.EINVAL),
        ("private_key=00\n", errno.EINVAL),
        ("no equals sign\n", errno.EPROTO),
        (f"{PEER}endpoint=127.0.0.1:1:2\n", errno.EINVAL),
        (f"{PEER}allowed_ip=10.0.0.0\n", errno.EINVAL),
        (f"{PEER}replace_allowed_ips=false\n", errno.EINVAL),
        ("unknown=1\n", errno.EINVAL),
    ],
)
async def test_a_bad_line_changes_nothing_and_the_errno_of_a_set_is_negative(
    served: Served, connection: Connection, lines: str, number: int
) -> None:
    """Not even what came before it; wireguard-go would have carried that out."""
    before = served.host.device.snapshot()

    reply = await connection.ask(f"set=1\nfwmark=9\n{lines}\n")

    assert reply == f"errno=-{number}\n\n"
    assert served.host.device.snapshot() == before
    assert await connection.ask("set=1\nfwmark=9\n\n") == "errno=0\n\n", "the connection goes on"


async def test_bytes_that_are_no_text_are_a_bad_line(served: Served, connection: Connection) -> None:
    assert await connection.ask(b"set=1\nfwmark=\xff\xfe\n\n") == f"errno=-{errno.EINVAL}\n\n"
    assert served.applied == []


@pytest.mark.parametrize("zone", ["lo", str(socket.if_nametoindex("lo"))])
async def test_a_link_local_endpoint_may_name_its_interface(served: Served, connection: Connection, zone: str) -> None:
    """``wg`` sends the name, ``wgpy`` the index."""
    assert await connection.ask(f"set=1\n{PEER}endpoint=[fe80::1%{zone}]:51820\n\n") == "errno=0\n\n"

    (peer,) = served.host.device.snapshot().peers
    assert peer.config.endpoint == Endpoint("fe80::1", 51820, socket.if_nametoindex("lo"))


async def test_a_zone_that_is_nowhere_is_refused(connection: Connection) -> None:
    assert await connection.ask(f"set=1\n{PEER}endpoint=[fe80::1%nowhere]:1\n\n") == f"errno=-{errno.EINVAL}\n\n"


async def test_the_errno_of_a_get_is_positive(connection: Connection) -> None:
    assert await connection.ask("get=1\nsomething=else\n\n") == f"errno={errno.EINVAL}\n\n"


async def test_what_the_system_refuses_is_told_by_its_errno(served: Served, connection: Connection) -> None:
    served.refusal = OSError(errno.EADDRINUSE, "the port is taken")

    assert await connection.ask("set=1\nlisten_port=7\n\n") == f"errno=-{errno.EADDRINUSE}\n\n"


async def test_a_request_may_come_byte_by_byte(served: Served, connection: Connection) -> None:
    for byte in "set=1\nfwmark=7\n\nget=1\n\n":
        connection.say(byte)
        await connection.writer.drain()
        await asyncio.sleep(0.002)

    assert await connection.reply() == "errno=0\n\n"
    assert "fwmark=7\n" in await connection.reply()


async def test_an_empty_set_is_fine(served: Served, connection: Connection) -> None:
    assert await connection.ask("set=1\n\n") == "errno=0\n\n"
    assert served.applied == []


async def test_a_line_no_configuration_has_is_refused(served: Served, connection: Connection) -> None:
    assert await connection.ask("set=1\nfwmark=9\nprivate_key=" + 100_000 * "0" + "\n\n") == f"errno=-{errno.EINVAL}\n\n"
    assert served.applied == []


@pytest.mark.parametrize("line", ["0", "a=0\n"])
async def test_a_request_without_an_end_is_refused_and_hung_up_on(
    served: Served, connection: Connection, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(uapi_server, "REQUEST_LIMIT", 1 << 20)

    def speak() -> bytes:
        with socket.socket(socket.AF_UNIX) as endless:
            endless.settimeout(PATIENCE)
            endless.connect(str(served.path))
            endless.sendall(b"set=1\nfwmark=9\n")
            with contextlib.suppress(ConnectionError):
                while True:
                    endless.sendall((line * 1000).encode())
            return endless.recv(100)

    assert await asyncio.to_thread(speak) == f"errno=-{errno.EMSGSIZE}\n\n".encode()
    assert served.applied == []
    assert (await connection.ask("get=1\n\n")).endswith("errno=0\n\n")


async def test_a_thousand_peers_come_and_go(served: Served, connection: Connection) -> None:
    peers = "".join(f"public_key={number:064x}\nallowed_ip=10.{number >> 8}.{number & 255}.0/24\n" for number in range(1, 1001))

    assert await connection.ask(f"set=1\nreplace_peers=true\n{peers}\n") == "errno=0\n\n"

    assert (await connection.ask("get=1\n\n")).count("public_key=") == 1000


@pytest.mark.parametrize("line", [f"private_key={KEY}\nlisten_port=x", f"private_key={KEY[:-1]}", f"private_key={KEY}=", KEY])
async def test_what_was_refused_is_logged_without_secrets(
    connection: Connection, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    with caplog.at_level(logging.DEBUG):
        await connection.ask(f"set=1\n{line}\n\n")

    assert len(caplog.records) == 1
    assert KEY[:16] not in caplog.text


async def test_who_sends_nonsense_without_end_does_not_fill_the_log(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        await connection.ask("set=1\nnonsense\n\n")

    assert 1 <= len(caplog.records) < 100


# -- clients that are in nobody's way -------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["", "get=1", "get=1\n", "set=1\n", f"set=1\n{PEER}", "set=1\nprivate_key=00"])
async def test_a_client_that_falls_silent_delays_nobody(connect: Connect, connection: Connection, said: str) -> None:
    silent = await connect()
    silent.say(said)
    await silent.writer.drain()

    assert (await connection.ask("get=1\n\n")).endswith("errno=0\n\n")
    assert await connection.ask("set=1\nfwmark=1\n\n") == "errno=0\n\n"


@pytest.mark.parametrize("said", ["set=1\nfwmark=9\n", "set=1\nfwmark=9", f"set=1\nfwmark=9\n{PEER}remove=true\n"])
async def test_half_a_request_changes_nothing(served: Served, connect: Connect, connection: Connection, said: str) -> None:
    half = await connect()
    half.say(said)
    half.writer.write_eof()

    assert await half.rest() == b""
    assert served.applied == []
    assert (await connection.ask("get=1\n\n")).endswith("errno=0\n\n")


async def test_a_client_that_reads_nothing_of_a_large_reply_delays_nobody(served: Served, connection: Connection) -> None:
    prefixes = tuple(ip_network((10 << 24 | number << 8, 24)) for number in range(50_000))
    served.host.device.apply([SetPeer(bytes.fromhex(KEY), allowed_ips=prefixes)], 1000)
    deaf = socket.socket(socket.AF_UNIX)
    deaf.connect(str(served.path))
    deaf.sendall(b"get=1\n\n")

    reply = await connection.ask("get=1\n\n")

    assert reply.count("allowed_ip=") == 50_000
    deaf.close()
    assert await connection.ask("set=1\nfwmark=1\n\n") == "errno=0\n\n"


async def test_requests_of_two_clients_do_not_mix(served: Served, connect: Connect, connection: Connection) -> None:
    """A large set is applied in portions, but by itself."""
    served.gate.clear()
    other = await connect()
    keys = {name: "".join(f"public_key={name}{number:063x}\n" for number in range(1, 6)) for name in "ab"}
    connection.say(f"set=1\n{keys['a']}\n")
    other.say(f"set=1\n{keys['b']}\n")
    served.gate.set()

    assert [await connection.reply(), await other.reply()] == ["errno=0\n\n"] * 2

    order = "".join(change.public_key.hex()[0] for change in served.applied if isinstance(change, SetPeer))
    assert order in ("aaaaabbbbb", "bbbbbaaaaa")


async def test_a_get_is_answered_while_a_set_takes_its_time(served: Served, connect: Connect, connection: Connection) -> None:
    served.gate.clear()
    slow = await connect()
    slow.say("set=1\nfwmark=1\n\n")

    assert (await connection.ask("get=1\n\n")).endswith("errno=0\n\n")
    served.gate.set()
    assert await slow.reply() == "errno=0\n\n"


async def beats(work: Awaitable[object]) -> int:
    """How often the loop came round, which is to say packets had their turn, before ``work`` was done."""
    task = asyncio.ensure_future(work)
    count = 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    await task
    return count


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step each."""
    monkeypatch.setattr(uapi_server, "TURN", 0.0)


@pytest.mark.usefixtures("short_turns")
async def test_packets_have_their_turn_while_a_large_request_is_read_and_answered(connection: Connection) -> None:
    prefixes = "".join(f"allowed_ip=10.{number}.0.0/16\n" for number in range(200))

    assert await beats(connection.ask(f"set=1\n{PEER}{prefixes}\n")) > 200
    peers = "".join(f"public_key={number:064x}\n" for number in range(1, 101))
    assert await beats(connection.ask(f"set=1\n{peers}\n")) > 200, "each line, and each change that it makes"
    assert await beats(connection.ask("get=1\n\n")) > 100


@pytest.mark.parametrize("request_", ["get=1\n\n", "get=1\nx\n\n", "set=1\n\n", "set=1\nnonsense\n\n", "set=1\nfwmark=1\n\n"])
async def test_packets_have_their_turn_between_requests_that_come_at_once(connection: Connection, request_: str) -> None:
    async def flood() -> None:
        connection.say(500 * request_)
        for _ in range(500):
            await connection.reply()

    assert await beats(flood()) > 500


@pytest.mark.usefixtures("short_turns")
async def test_who_asks_little_does_not_wait_for_who_asks_much(connect: Connect, connection: Connection) -> None:
    greedy = await connect()
    much = asyncio.create_task(
        greedy.ask(f"set=1\n{PEER}" + "".join(f"allowed_ip=10.0.{n % 256}.0/24\n" for n in range(20_000)) + "\n")
    )
    while not (await connection.ask("get=1\n\n")).endswith("errno=0\n\n"):
        pass

    assert await connection.ask("set=1\nfwmark=1\n\n") == "errno=0\n\n"
    assert not much.done()
    assert await much == "errno=0\n\n"


@pytest.mark.parametrize("request_", ["get=1\n\n", "set=1\nfwmark=2\n\n", "set=1\nnonsense\n\n"])
async def test_who_floods_us_with_requests_delays_nobody(connect: Connect, connection: Connection, request_: str) -> None:
    floods = [await connect() for _ in range(5)]
    for flood in floods:
        flood.say(100_000 * request_)  # and reads nothing: what is not taken from it waits in its own process

    for _ in range(20):
        assert (await connection.ask("get=1\n\n")).endswith("errno=0\n\n")
        assert await connection.ask("set=1\nfwmark=1\n\n") == "errno=0\n\n"


def our_connections(path: Path) -> int:
    """How many the server's process holds: lines of /proc/net/unix that name the path, but for the listener's own."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {path}") for line in lines) - 1


async def test_a_thousand_connections_keep_nobody_out_and_are_not_all_kept(served: Served, connection: Connection) -> None:
    crowd: list[socket.socket] = []

    def come() -> None:
        for said in (b"", b"set=1\nfw", b"get=1\n\n", b"nonsense\n") * 250:
            crowd.append(socket.socket(socket.AF_UNIX))
            crowd[-1].connect(str(served.path))
            with contextlib.suppress(BrokenPipeError):
                crowd[-1].send(said)

    try:
        await asyncio.to_thread(come)

        # On a busy machine a newcomer, too, may take longer to ask than it has grace, and then comes again.
        replies: list[str] = []
        async with asyncio.timeout(10):
            while not replies:
                newcomer = Connection(*await asyncio.open_unix_connection(str(served.path)))
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    replies.append(await newcomer.ask("get=1\n\n"))
                newcomer.writer.transport.abort()
        assert replies[0].endswith("errno=0\n\n")

        assert len(served.server._serving) <= uapi_server.MAX_CONNECTIONS + 1
        assert our_connections(served.path) <= uapi_server.MAX_CONNECTIONS + 1
    finally:
        for one in crowd:
            one.close()


async def test_where_there_is_no_room_who_waited_longest_gives_way(
    served: Served, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uapi_server, "MAX_CONNECTIONS", 3)
    first, second, third = [await connect() for _ in range(3)]
    for one in (first, second, third, first):
        await one.ask("get=1\n\n")

    newcomer = await connect()

    assert (await newcomer.ask("get=1\n\n")).endswith("errno=0\n\n")
    assert await second.rest() == b"", "it was the first that had last been answered"
    for one in (first, third, newcomer):
        assert (await one.ask("get=1\n\n")).endswith("errno=0\n\n")


async def test_who_has_just_come_does_not_give_way(served: Served, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uapi_server, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(uapi_server, "GRACE", 10 * PATIENCE)
    first, newcomer = await connect(), await connect()
    newcomer.say("get=1\n\n")
    await asyncio.sleep(0.02)

    assert (await first.ask("get=1\n\n")).endswith("errno=0\n\n")


async def test_who_has_come_and_says_nothing_gives_way_in_the_end(
    served: Served, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uapi_server, "MAX_CONNECTIONS", 1)
    silent, newcomer = await connect(), await connect()

    assert (await newcomer.ask("get=1\n\n")).endswith("errno=0\n\n")
    assert await silent.rest() == b""


async def test_who_asks_much_at_once_gives_way_to_who_has_no_answer_yet(
    served: Served, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uapi_server, "MAX_CONNECTIONS", 1)
    greedy = await connect()
    greedy.say(100_000 * "get=1\n\n")
    await greedy.reply()

    newcomer = await connect()

    assert (await newcomer.ask("get=1\n\n")).endswith("errno=0\n\n")
    with contextlib.suppress(ConnectionError):
        assert (await greedy.rest()).count(b"errno=0\n\n") < 100_000 - 1


async def test_who_is_being_served_does_not_give_way(served: Served, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uapi_server, "MAX_CONNECTIONS", 2)
    served.gate.clear()
    busy = [await connect(), await connect()]
    for one in busy:
        one.say("set=1\nfwmark=1\n\n")
    while len(served.server._waiting) or len(served.server._serving) < 2:
        await asyncio.sleep(0)
    newcomer = await connect()
    newcomer.say("get=1\n\n")
    await asyncio.sleep(0.05)
    assert len(served.server._serving) == 2

    served.gate.set()

    assert [await one.reply() for one in busy] == ["errno=0\n\n"] * 2
    assert (await newcomer.reply()).endswith("errno=0\n\n")


@pytest.mark.parametrize("said", ["get=1", "set=1\n", f"set=1\n{PEER}"])
async def test_a_client_that_falls_silent_in_a_request_is_hung_up_on_in_the_end(
    connection: Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """And one that rests between two requests is not."""
    monkeypatch.setattr(uapi_server, "PATIENCE", 0.05)
    await connection.ask("get=1\n\n")
    silent = await connect()
    silent.say(said)

    assert await silent.rest() == b""
    assert (await connection.ask("get=1\n\n")).endswith("errno=0\n\n")


async def test_a_client_that_reads_nothing_is_hung_up_on_in_the_end(
    served: Served, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = tuple(ip_network((10 << 24 | number << 8, 24)) for number in range(50_000))
    served.host.device.apply([SetPeer(bytes.fromhex(KEY), allowed_ips=prefixes)], 1000)
    monkeypatch.setattr(uapi_server, "PATIENCE", 0.05)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(served.path))
        deaf.sendall(b"get=1\n\n")
        async with asyncio.timeout(PATIENCE):
            while our_connections(served.path) > 1:
                await asyncio.sleep(0.01)


async def test_who_hangs_up_in_the_middle_leaves_nothing(served: Served, connection: Connection) -> None:
    for said in (b"", b"g", b"get=1\n", b"get=1\n\n", b"set=1\nfwmark=1\n\n", b"set=1\nfwmark=1\n", b"set=1\n" + 100_000 * b"x"):
        with socket.socket(socket.AF_UNIX) as hasty:
            hasty.connect(str(served.path))
            hasty.setblocking(False)
            hasty.send(said)

    assert (await connection.ask("get=1\n\n")).endswith("errno=0\n\n")
    connection.writer.transport.abort()
    async with asyncio.timeout(PATIENCE):
        while served.server._serving:
            await asyncio.sleep(0)
    assert served.server._waiting == {}
    assert our_connections(served.path) == 0


async def test_stopping_hangs_up(served: Served, connection: Connection) -> None:
    await connection.ask("get=1\n\n")

    await served.server.stop()

    assert await connection.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_unix_connection(str(served.path))


# -- the socket file ------------------------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_in_a_directory_all_may_see(directory: Path) -> None:
    umask = os.umask(0)
    try:
        listener = listen("wg0", directory)
    finally:
        left = os.umask(umask)
    with listener:
        assert stat.S_IMODE((directory / "wg0.sock").stat().st_mode) == 0o700
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755
        assert left == 0, "the umask is as it was"


def test_a_socket_that_nobody_serves_any_more_is_cleared_away(directory: Path) -> None:
    listen("wg0", directory).close()
    assert (directory / "wg0.sock").exists()

    with listen("wg0", directory) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())


def test_a_socket_that_somebody_serves_is_left_alone(directory: Path) -> None:
    with listen("wg0", directory) as listener:
        with pytest.raises(SocketInUse, match=r"wg0\.sock is served by another process"):
            listen("wg0", directory)

        with socket.socket(socket.AF_UNIX) as client:
            client.connect(listener.getsockname())


def test_all_that_nobody_serves_any_more_is_cleared_away(directory: Path) -> None:
    """An interface that has got another name will never be started under the old one again."""
    listen("old", directory).close()
    with listen("living", directory), listen("wg0", directory):
        assert sorted(path.name for path in directory.iterdir()) == ["living.sock", "wg0.sock"]


def test_a_process_that_is_stopped_with_its_queue_full_is_not_robbed(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stopped, contextlib.ExitStack() as stack:
        directory.mkdir()
        stopped.bind(str(directory / "wg0.sock"))
        stopped.listen(1)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(directory / "wg0.sock"))

        with pytest.raises(SocketInUse):
            listen("wg0", directory)


def test_of_many_that_start_at_once_one_gets_the_socket(directory: Path) -> None:
    """Each round with one in the way that nobody serves."""
    for _ in range(20):
        directory.mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX) as abandoned:
            abandoned.bind(str(directory / "wg0.sock"))
        start = threading.Barrier(8)

        def compete(start: threading.Barrier = start) -> socket.socket | None:
            start.wait()
            try:
                return listen("wg0", directory)
            except SocketInUse:
                return None

        with ThreadPoolExecutor(8) as pool:
            (winner,) = filter(None, [future.result() for future in [pool.submit(compete) for _ in range(8)]])
        with winner, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(directory / "wg0.sock"))
            winner.accept()[0].close()
        (directory / "wg0.sock").unlink()


def test_who_holds_the_lock_of_the_directory_keeps_nobody_out(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody on the machine may read the directory, and so take its lock."""
    monkeypatch.setattr(uapi_server, "_LOCK_ATTEMPTS", 2)
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)

    listen("wg0", directory).close()

    os.close(fd)


def test_two_interfaces_have_two_sockets(directory: Path) -> None:
    with listen("wg0", directory), listen("wg1", directory):
        assert sorted(path.name for path in directory.iterdir()) == ["wg0.sock", "wg1.sock"]


def readable(deletion: Deletion, seconds: float = 0) -> bool:
    return bool(select.select([deletion], [], [], seconds)[0])


def test_the_deletion_of_the_socket_file_is_noticed(directory: Path) -> None:
    with listen("wg0", directory):
        path = directory / "wg0.sock"
        deletion = Deletion(path)
        assert not readable(deletion) and not deletion.happened()

        path.unlink()

        assert readable(deletion, PATIENCE)
        assert deletion.happened()
        deletion.close()


def test_another_socket_in_its_place_is_a_deletion_too(directory: Path) -> None:
    with listen("wg0", directory), socket.socket(socket.AF_UNIX) as other:
        path = directory / "wg0.sock"
        deletion = Deletion(path)
        other.bind(str(path.with_suffix(".new")))

        path.with_suffix(".new").rename(path)

        assert readable(deletion, PATIENCE)
        assert deletion.happened()
        deletion.close()


def test_other_changes_of_the_file_are_no_deletion(directory: Path) -> None:
    with listen("wg0", directory):
        path = directory / "wg0.sock"
        deletion = Deletion(path)

        path.chmod(0o755)

        assert not deletion.happened()
        assert not readable(deletion), "the event was swallowed"
        deletion.close()
