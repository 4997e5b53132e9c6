"""Metrics as Prometheus gets them, held against what Calico's Felix says of a device of the kernel."""

import asyncio
import re
import socket
from base64 import b64encode
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.sim import Sim, packet
from tun.interface import Offloads
from wgpy.config import NO_KEY, Endpoint
from wgpy.core.drops import Drop
from wgpy.daemon.metrics import DeviceCollector, MetricsServer, renderer
from wgpy.daemon.udp import Sockets

PATIENCE = 10.0
HOSTNAME = socket.gethostname()

FELIX = """\
# HELP wireguard_meta wireguard interface and runtime metadata
# TYPE wireguard_meta gauge
# HELP wireguard_latest_handshake_seconds wireguard interface latest handshake unix timestamp in seconds to a peer
# TYPE wireguard_latest_handshake_seconds gauge
# HELP wireguard_bytes_sent wireguard interface outgoing bytes count to peer
# TYPE wireguard_bytes_sent counter
# HELP wireguard_bytes_rcvd wireguard interface incoming bytes count from peer
# TYPE wireguard_bytes_rcvd counter
"""


def base64(key: bytes) -> str:
    return b64encode(key).decode()


def scraped(sim: Sim, sockets: Sockets | None = None) -> str:
    return renderer(DeviceCollector("wg0", sim["A"].device, sockets or Sockets(), Offloads()))().decode()


def samples(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each line of a series. (prometheus_client's parser takes a counter without ``_total`` for another.)"""
    assert list(text_string_to_metric_families(text)), "it can be parsed"
    return [
        (dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
        for labels, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
    ]


def test_names_types_and_help_of_the_four_series_are_those_of_felix() -> None:
    text = scraped(Sim.connected())

    said = [line for line in text.splitlines() if line.startswith("#") and " wireguard_" in line]
    assert said == FELIX.splitlines()
    assert "wireguard_bytes_sent_total" not in text


def test_labels_and_values_of_a_peer_with_a_session() -> None:
    sim = Sim.connected()
    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"))
    sim.advance(1)
    own, peer = base64(sim["A"].public_key), base64(sim["B"].public_key)
    labels = {"hostname": HOSTNAME, "public_key": own, "peer_key": peer, "peer_endpoint": "192.0.2.2:51820"}

    text = scraped(sim)

    assert samples(text, "wireguard_meta") == [
        ({"hostname": HOSTNAME, "public_key": own, "iface": "wg0", "listen_port": "51820"}, 1.0)
    ]
    assert samples(text, "wireguard_bytes_sent") == [(labels, 148 + 32 + 64)]
    assert samples(text, "wireguard_bytes_rcvd") == [(labels, 92)]
    ((handshake_labels, when),) = samples(text, "wireguard_latest_handshake_seconds")
    assert handshake_labels == labels
    assert when == pytest.approx(sim.epoch + 1000.02, abs=0.01)


def test_values_of_a_peer_that_never_shook_hands_are_the_zero_values_of_go() -> None:
    sim = Sim("A", "B")
    sim["A"].set_device(private_key=NO_KEY)
    sim["A"].peer(sim["B"], endpoint=False)

    text = scraped(sim)

    ((labels, when),) = samples(text, "wireguard_latest_handshake_seconds")
    assert (labels["peer_endpoint"], labels["public_key"], when) == ("<nil>", "", -6.21355968e10)


def test_an_ipv6_endpoint_is_written_as_go_writes_it() -> None:
    sim = Sim("A", "B")
    sim["A"].peer(sim["B"])
    sim["A"].set_peer(sim["B"], endpoint=Endpoint("2001:db8::7", 7))

    ((labels, _),) = samples(scraped(sim), "wireguard_bytes_sent")
    assert labels["peer_endpoint"] == "[2001:db8::7]:7"


def test_every_reason_to_drop_has_a_series_from_the_start() -> None:
    """A counter that appears with its first event cannot be alerted on."""
    sim = Sim.connected()
    assert {labels["reason"] for labels, value in samples(scraped(sim), "wgpy_drops_total")} == {drop.value for drop in Drop}

    sim["A"].receive(b"rubbish", 0, sim["B"].endpoint)

    counted = {labels["reason"]: value for labels, value in samples(scraped(sim), "wgpy_drops_total") if value}
    assert counted == {"unknown_message": 1.0}


def test_what_the_sockets_count_is_there() -> None:
    sockets = Sockets()
    sockets.send_errors, sockets.plain_trains = 3, 4
    text = scraped(Sim.connected(), sockets)

    assert samples(text, "wgpy_send_errors_total") == [({"interface": "wg0"}, 3.0)]
    assert samples(text, "wgpy_plain_trains_total") == [({"interface": "wg0"}, 4.0)]


def test_no_secret_is_told() -> None:
    sim = Sim.pair(preshared_key=b"\xee" * 32)
    text = scraped(sim)

    for secret in (b"\xee" * 32, sim["A"].private_key):
        assert base64(secret) not in text
        assert secret.hex() not in text


# -- the server -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = MetricsServer("127.0.0.1:0", lambda: b"some_series 1.0\n")
    await server.start()
    yield server._server.sockets[0].getsockname()[1]
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
    assert b"/metrics" in body


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
        await MetricsServer(f"127.0.0.1:{port}", lambda: b"").start()


@pytest.mark.parametrize(("address", "host", "port"), [("127.0.0.1:9", "127.0.0.1", 9), ("[::1]:9", "::1", 9), (":9", "", 9)])
def test_an_address_is_host_and_port(address: str, host: str, port: int) -> None:
    server = MetricsServer(address, lambda: b"")

    assert (server._host, server._port) == (host, port)
