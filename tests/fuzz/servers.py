"""Targets: the two servers, fed byte by byte as a client would feed them, with no socket in between.

The UAPI server frames requests and does what :mod:`wgpy.uapi` says; a dozen lines that know all of the input at once say
what the answers must be. So do a few for the HTTP of :mod:`wgpy.exposition`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

from tests.fuzz.reader import Reader
from wgpy import uapi
from wgpy.config import Change, DeviceSnapshot
from wgpy.daemon.uapi_server import UapiServer
from wgpy.exposition import Answer, Server, alive


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


# --- UAPI ---


class _Client:
    """Stands for the loop's part in a connection: what is received and what is sent."""

    def __init__(self, said: bytes, size: int) -> None:
        self._said = Reader(said)
        self._size = size
        self.heard = b""

    async def sock_recv(self, connection: object, size: int) -> bytes:
        return self._said.take(min(self._size, size))

    async def sock_sendall(self, connection: object, data: bytes) -> None:
        self.heard += data

    def time(self) -> float:
        return 0.0


def _snapshot() -> DeviceSnapshot:
    return DeviceSnapshot(listen_port=7)


def _get() -> Iterator[str]:
    return uapi.format_get_chunks(_snapshot())


def uapi_server(data: bytes) -> None:
    """A byte for the size of what arrives at once, and what a client says before it hangs up. Nothing is raised; every whole
    request is answered in its order, up to one of no known operation."""
    said = data[1:]
    client = _Client(said, 8 + (data[0] if data else 0))
    applied: list[list[Change]] = []

    async def apply(changes: list[Change]) -> None:
        applied.append(changes)

    async def serve() -> None:
        server = UapiServer(cast(Any, None), _get, apply)
        server._loop = cast(Any, client)
        server._quiet_until = float("inf")  # it would log every refusal
        await server._serve(cast(Any, None))

    _runner().run(serve())
    expected = list(answers(said))
    assert client.heard.decode() == "".join(answer for answer, _ in expected)
    assert applied == [changes for _, changes in expected if changes is not None]


def answers(said: bytes) -> Iterator[tuple[str, list[Change] | None]]:
    """The answer to each request of a client, and what it changes."""
    while b"\n\n" in said:
        request, _, said = said.partition(b"\n\n")
        operation, _, body = request.partition(b"\n")
        if operation == b"get=1":
            yield uapi.format_get(_snapshot()) if not body else uapi.reply_get(errno.EINVAL), None
        elif operation == b"set=1":
            try:
                changes = uapi.parse_set(body.decode(errors="replace"))
            except uapi.UapiError as error:
                yield uapi.reply_set(error.errno), None
            else:
                yield uapi.reply_set(), changes
        else:
            return


# --- HTTP ---


class _Writer:
    """What the server writes to a client. It is its own transport."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = self.aborted = 0
        self.transport = self

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed += 1

    async def wait_closed(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted += 1


async def _broken() -> Answer:
    raise RuntimeError("a page that cannot be made")


def http(data: bytes) -> None:
    """What a client says before it hangs up. It gets the one answer that its first line deserves, and is hung up on."""

    async def serve() -> _Writer:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        writer = _Writer()
        await Server("127.0.0.1:0", {"/metrics": alive, "/broken": _broken})._serve(reader, cast(Any, writer))
        return writer

    log = logging.getLogger("wgpy.exposition")
    log.disabled = True  # a traceback for each page that cannot be made
    try:
        writer = _runner().run(serve())
    finally:
        log.disabled = False
    assert writer.closed == writer.aborted == 1
    assert writer.written.split(b" ", 2)[1] == _status(data)


def _status(data: bytes) -> bytes:
    """The status that the first line of a request deserves."""
    method, _, target = (data.partition(b"\n")[0] + b"\n" * (b"\n" in data)).partition(b" ")
    path = target.partition(b" ")[0].partition(b"?")[0]
    return {b"/metrics": b"200", b"/broken": b"500"}.get(path, b"404") if method == b"GET" else b"404"
