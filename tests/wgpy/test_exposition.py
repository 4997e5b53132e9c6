"""Who asks gets one answer, and who does not ask keeps nobody waiting."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from wgpy import exposition
from wgpy.exposition import MAX_HEADERS, MOST_CONNECTIONS, Answer, Server, alive, metrics, probe

PATIENCE = 10.0
COMPLAINTS: list[str] = []


async def scrape() -> Answer:
    return metrics(b"some_series 1.0\n")


async def broken() -> Answer:
    raise RuntimeError("a secret")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    COMPLAINTS.clear()
    complaint = lambda: COMPLAINTS[0] if COMPLAINTS else None  # noqa: E731 (said where it is used)
    server = Server("127.0.0.1:0", {"/metrics": scrape, "/healthz": alive, "/readyz": probe(complaint), "/broken": broken})
    await server.start()
    yield server.port
    await server.stop()


async def ask(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
    return head, body


async def test_a_scrape_is_answered_and_hung_up_on(port: int) -> None:
    head, body = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n")

    status, *fields = head.decode().split("\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert body == b"some_series 1.0\n"
    assert f"Content-Length: {len(body)}" in fields
    assert any(field.startswith("Content-Type: text/plain; version=") for field in fields)


@pytest.mark.parametrize(
    "request_line", [b"GET / HTTP/1.1", b"POST /metrics HTTP/1.1", b"GET /metrics2 HTTP/1.1", b"GET", b"\xff\xfe"]
)
async def test_anything_else_is_not_found(port: int, request_line: bytes) -> None:
    head, body = await ask(port, request_line + b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b"GET /metrics, GET /healthz" in body


async def test_a_query_does_not_matter(port: int) -> None:
    """Prometheus adds one where its configuration has params."""
    _, body = await ask(port, b"GET /metrics?name%5B%5D=x HTTP/1.1\r\n\r\n")

    assert body == b"some_series 1.0\n"


async def test_two_scrapes_at_once_are_both_answered(port: int) -> None:
    request = b"GET /metrics HTTP/1.1\r\n\r\n"

    assert {body for _, body in await asyncio.gather(*(ask(port, request) for _ in range(10)))} == {b"some_series 1.0\n"}


async def test_a_probe_is_200_until_there_is_something_to_complain_of(port: int) -> None:
    request = b"GET /readyz HTTP/1.1\r\n\r\n"
    assert (await ask(port, request))[0].startswith(b"HTTP/1.1 200 OK\r\n")

    COMPLAINTS.append("no key is published")

    head, body = await ask(port, request)
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert body == b"no key is published\n"
    assert (await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n"))[0].startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_page_that_fails_is_500_and_logged_and_says_nothing_else(port: int, caplog: pytest.LogCaptureFixture) -> None:
    head, body = await ask(port, b"GET /broken HTTP/1.1\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in head + body
    assert "/broken cannot be served" in caplog.text


async def test_endless_headers_are_not_read_to_their_end(port: int) -> None:
    head, _ = await ask(port, b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_HEADERS + 1))

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("said", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\n", b"x" * 100_000])
async def test_a_client_that_falls_silent_or_talks_nonsense_delays_nobody(port: int, said: bytes) -> None:
    _, silent = await asyncio.open_connection("127.0.0.1", port)
    silent.write(said)

    head, _ = await ask(port, b"GET /metrics HTTP/1.0\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200 OK")
    silent.transport.abort()
    await asyncio.sleep(0)


async def test_an_address_in_use_cannot_be_served(port: int) -> None:
    with pytest.raises(OSError, match="in use"):
        await Server(f"127.0.0.1:{port}", {}).start()


@pytest.mark.parametrize(("address", "host", "port"), [("127.0.0.1:9", "127.0.0.1", 9), ("[::1]:9", "::1", 9), (":9", "", 9)])
def test_an_address_is_host_and_port(address: str, host: str, port: int) -> None:
    server = Server(address, {})

    assert (server._host, server._port) == (host, port)


async def test_strangers_do_not_take_all_descriptors(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is longest there makes room, and a scrape is answered all the same."""
    monkeypatch.setattr(exposition, "REQUEST_TIMEOUT", 10 * PATIENCE)
    strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST_CONNECTIONS + 20)]

    head, _ = await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    async with asyncio.timeout(PATIENCE):
        for reader, _ in strangers[:20]:
            with suppress(ConnectionError):
                assert await reader.read() == b"", "hung up on"
    assert not strangers[-1][0].at_eof()
    for _, writer in strangers:
        writer.transport.abort()


async def test_who_does_not_read_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "REQUEST_TIMEOUT", 0.3)

    async def large() -> Answer:
        return Answer(bytes(16 << 20))

    server = Server("127.0.0.1:0", {"/metrics": large})
    await server.start()
    before = descriptors()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            while descriptors() <= before + 1:
                await asyncio.sleep(0.01)
            while descriptors() > before + 1:  # only the client's own is left
                await asyncio.sleep(0.01)
    await server.stop()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
