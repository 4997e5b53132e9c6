"""The server on a real socket, before a real device."""

import asyncio
import errno
import logging
import os
import select
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.sim import Host, Sim
from wgpy.config import Change, Endpoint, SetPeer
from wgpy.daemon.uapi_server import Deletion, SocketInUse, UapiServer, listen
from wgpy.uapi import format_get

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
        self.server = UapiServer(listen("wg0", directory), self.host.device.snapshot, self._apply)

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


async def test_an_empty_set_is_fine(served: Served, connection: Connection) -> None:
    assert await connection.ask("set=1\n\n") == "errno=0\n\n"
    assert served.applied == []


async def test_a_line_no_configuration_has_ends_the_connection(served: Served, connection: Connection) -> None:
    connection.say("set=1\nfwmark=9\nprivate_key=" + 100_000 * "0" + "\n\n")

    assert await connection.rest() == b""
    assert served.applied == []


async def test_a_thousand_peers_come_and_go(served: Served, connection: Connection) -> None:
    peers = "".join(f"public_key={number:064x}\nallowed_ip=10.{number >> 8}.{number & 255}.0/24\n" for number in range(1, 1001))

    assert await connection.ask(f"set=1\nreplace_peers=true\n{peers}\n") == "errno=0\n\n"

    assert (await connection.ask("get=1\n\n")).count("public_key=") == 1000


async def test_what_was_refused_is_logged_without_secrets(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await connection.ask(f"set=1\nprivate_key={KEY}\nlisten_port=x\n\n")
        await connection.ask(f"set=1\nprivate_key={KEY[:-1]}\n\n")

    assert len(caplog.records) == 2
    assert KEY[:16] not in caplog.text


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
