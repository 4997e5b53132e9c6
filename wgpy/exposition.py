"""What a process says of itself over HTTP: metrics for Prometheus, and whether it is alive and ready, for the kubelet.

The data plane and the agent both have it. It is served from the process's own event loop: no thread, and no wake-up unless
somebody asks. So an answer of any kind is the proof that the loop goes round, and ``/healthz`` needs no more than that.

A :class:`Server` has a page for each path. One request, one answer, and the connection is closed: who is slow, silent or
speaks nonsense keeps nobody waiting, and is hung up on after REQUEST_TIMEOUT. There are MOST_CONNECTIONS at once: where there is
no room, whoever has been there longest makes it, so that strangers cannot take the descriptors that the process needs itself.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client.exposition import CONTENT_TYPE_LATEST

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 10.0
MOST_CONNECTIONS = 64
MAX_HEADERS = 100
"""Lines of a request that are read before its answer, and no more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[], Awaitable[Answer]]
"""Called for each request. What it raises is answered with 500 and logged."""


def metrics(text: bytes) -> Answer:
    """The answer to a scrape."""
    return Answer(text, content_type=CONTENT_TYPE_LATEST)


def probe(complaint: Callable[[], str | None]) -> Page:
    """A page for a probe: 200 while there is nothing to complain of, else 503 and the complaint, which is one line."""

    async def page() -> Answer:
        return verdict(complaint())

    return page


def verdict(complaint: str | None) -> Answer:
    if complaint is None:
        return Answer(b"ok\n")
    return Answer(complaint.encode() + b"\n", HTTPStatus.SERVICE_UNAVAILABLE)


async def alive() -> Answer:
    """The page of ``/healthz``: who answers at all is alive."""
    return Answer(b"ok\n")


class Server:
    """Answers ``GET`` for the paths of ``pages`` on ``address`` ("127.0.0.1:9586", "[::1]:9586")."""

    def __init__(self, address: str, pages: Mapping[str, Page]) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._pages = pages
        self._open: dict[asyncio.Task[None], None] = {}
        """The task of each connection, the oldest first."""

    async def start(self) -> None:
        """Raises OSError if the address cannot be bound."""
        self._server = await asyncio.start_server(self._serve, self._host, self._port)

    @property
    def port(self) -> int:
        """The port bound, of interest where the address has port 0."""
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        while len(self._open) >= MOST_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        self._open[task] = None
        try:
            with contextlib.suppress(OSError, ValueError, TimeoutError):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await self._converse(reader, writer)
        finally:
            self._open.pop(task, None)
            writer.transport.abort()  # of what is closed already nothing is left; else it would wait for who does not read

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, its answer to the last byte, and the end."""
        request = await reader.readline()
        for _ in range(MAX_HEADERS):
            if not (await reader.readline()).strip():
                break
        answer = await self._answer(request)
        if writer.is_closing():
            return
        head = (
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + answer.body)
        writer.close()
        await writer.wait_closed()

    async def _answer(self, request: bytes) -> Answer:
        """To the first line of a request. A query does not matter."""
        method, _, target = request.partition(b" ")
        path = target.partition(b" ")[0].partition(b"?")[0].decode(errors="replace")
        page = self._pages.get(path) if method == b"GET" else None
        if page is None:
            listing = ", ".join(f"GET {path}" for path in self._pages)
            return Answer(f"there is {listing}\n".encode(), HTTPStatus.NOT_FOUND)
        try:
            return await page()
        except Exception:  # whatever it is, it must not end in silence: a scrape that hangs hides all else
            log.exception("%s cannot be served", path)
            return Answer(b"it cannot be said: see the log\n", HTTPStatus.INTERNAL_SERVER_ERROR)
