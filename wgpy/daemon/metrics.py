"""Prometheus metrics, made from a snapshot when somebody asks: the data path only counts integers.

The four ``wireguard_*`` series have the names, labels and help texts of Calico's Felix (calico reference, section 8),
so that dashboards made for it work; ``wgpy_*`` series say what Felix cannot. They are served from the daemon's own
loop: no thread, and no wake-up unless asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from base64 import b64encode
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tun.interface import Offloads
from wgpy.config import DeviceSnapshot, PeerSnapshot
from wgpy.core.device import Device
from wgpy.daemon.udp import Sockets

NEVER_SHAKEN_HANDS = -6.21355968e10
"""Felix's value for no handshake: Go's zero time as a Unix timestamp."""

REQUEST_TIMEOUT = 10.0


class DeviceCollector:
    """Reads a device at scrape time."""

    def __init__(self, interface: str, device: Device, sockets: Sockets, tun_offloads: Offloads) -> None:
        self._interface = interface
        self._tun_offloads = tun_offloads
        self._device = device
        self._sockets = sockets

    def collect(self) -> Iterable[Metric]:
        snapshot = self._device.snapshot()
        yield from self._calico(snapshot)
        drops = CounterMetricFamily("wgpy_drops", "Datagrams and packets thrown away, by reason", labels=["interface", "reason"])
        for reason, count in self._device.drops.items():
            drops.add_metric([self._interface, reason.value], count)
        yield drops
        for name, text, value in (
            ("wgpy_send_errors", "Sends the kernel refused", self._sockets.send_errors),
            ("wgpy_plain_trains", "Trains of datagrams the kernel refused, sent one by one", self._sockets.plain_trains),
        ):
            family = CounterMetricFamily(name, text, labels=["interface"])
            family.add_metric([self._interface], value)
            yield family
        plain = GaugeMetricFamily(
            "wgpy_plain_destinations",
            "Destinations that refused a train of datagrams and get them one by one for a while",
            labels=["interface"],
        )
        plain.add_metric([self._interface], self._sockets.plain_destinations)
        yield plain
        yield self._offloads()

    def _offloads(self) -> Metric:
        """What the kernel does for us, piece by piece: 0 is a fallback, which costs speed and nothing else."""
        coalescer, offloads = self._device.inbound.coalescer, self._tun_offloads
        family = GaugeMetricFamily(
            "wgpy_offload",
            "Whether the kernel's help of this kind is in use (1) or done without (0)",
            labels=["interface", "offload"],
        )
        for name, value in (
            ("tun-tso", offloads.tso),
            ("tun-uso", offloads.uso),
            ("tun-tcp-gro", coalescer.tso),
            ("tun-udp-gro", coalescer.uso),
            ("udp-gso", self._sockets.segmentation),
            ("udp-gro", self._sockets.coalescing),
        ):
            family.add_metric([self._interface, name], value)
        return family

    def _calico(self, snapshot: DeviceSnapshot) -> Iterable[Metric]:
        hostname = socket.gethostname()
        own_key = "" if self._device.local is None else b64encode(self._device.local.public).decode()
        meta = GaugeMetricFamily(
            "wireguard_meta",
            "wireguard interface and runtime metadata",
            labels=["hostname", "public_key", "iface", "listen_port"],
        )
        meta.add_metric([hostname, own_key, self._interface, str(snapshot.listen_port)], 1)
        yield meta
        labels = ["hostname", "public_key", "peer_key", "peer_endpoint"]
        handshakes = GaugeMetricFamily(
            "wireguard_latest_handshake_seconds",
            "wireguard interface latest handshake unix timestamp in seconds to a peer",
            labels=labels,
        )
        sent = _PlainCounter("wireguard_bytes_sent", "wireguard interface outgoing bytes count to peer", "counter")
        received = _PlainCounter("wireguard_bytes_rcvd", "wireguard interface incoming bytes count from peer", "counter")
        for peer in snapshot.peers:
            values = [hostname, own_key, b64encode(peer.config.public_key).decode(), _endpoint(peer)]
            when = peer.last_handshake / 1e9 if peer.last_handshake else NEVER_SHAKEN_HANDS
            handshakes.add_metric(values, when)
            sent.add_sample(sent.name, dict(zip(labels, values, strict=True)), peer.tx_bytes)
            received.add_sample(received.name, dict(zip(labels, values, strict=True)), peer.rx_bytes)
        yield handshakes
        yield sent
        yield received


class _PlainCounter(Metric):
    """A counter whose samples are named as the family is: Felix's have no suffix ``_total``."""


def _endpoint(peer: PeerSnapshot) -> str:
    return "<nil>" if peer.config.endpoint is None else str(peer.config.endpoint)


class MetricsServer:
    """Answers ``GET /metrics`` on ``address`` ("127.0.0.1:9586", "[::1]:9586")."""

    def __init__(self, address: str, render: Callable[[], bytes]) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._render = render

    async def start(self) -> None:
        """Raises OSError if the address cannot be bound."""
        self._server = await asyncio.start_server(self._serve, self._host, self._port)

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                request = await reader.readline()
                while (await reader.readline()).strip():
                    pass
                if request.split(b" ")[:2] == [b"GET", b"/metrics"]:
                    status, kind, body = "200 OK", CONTENT_TYPE_LATEST, self._render()
                else:
                    status, kind, body = "404 Not Found", "text/plain", b"GET /metrics is what is here\n"
                head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        writer.close()


def renderer(collector: DeviceCollector) -> Callable[[], bytes]:
    """What a scrape of ``collector`` answers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)

    def render() -> bytes:
        text = generate_latest(registry)
        for name in (b"wireguard_bytes_sent", b"wireguard_bytes_rcvd"):
            # HELP and TYPE of a counter always get the suffix: prometheus_client knows no counters without
            text = text.replace(b" %b_total " % name, b" %b " % name)
        return text

    return render
