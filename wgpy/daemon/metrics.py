"""Prometheus metrics of a device, made when somebody asks: the data path only counts integers.

What every WireGuard counts has several names, and who scrapes chooses one set by the page. ``/metrics`` has the four
``wireguard_*`` series of Calico's Felix, with its names, labels, help texts and the values it gives to what is not there
(calico reference, section 8), so that dashboards made for it work. ``/metrics/mindflavor`` and ``/metrics/mdlayher`` have those
of the exporters of these names. They are never on one page: Felix and MindFlavor mean different things by
``wireguard_latest_handshake_seconds``. The ``wgpy_*`` series, which say what nobody else can, are on each of them.

The series of peers are written here, a line each, and not by prometheus_client: that takes 180 ms for 5,000 peers, in which no
packet would go anywhere (and it knows no counters without the suffix ``_total``, which Felix's lack). Between PORTION peers
packets get their turn.
"""

from __future__ import annotations

import asyncio
import platform
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

import wgpy
from tun.interface import Offloads
from wgpy.config import PeerSnapshot
from wgpy.core.device import Device
from wgpy.daemon.pump import boottime
from wgpy.daemon.udp import Sockets
from wgpy.daemon.unreachable import Unreachables
from wgpy.exposition import Answer, Page, alive, metrics, probe

NEVER_SHAKEN_HANDS = -6.21355968e10
"""Felix's value for no handshake: Go's zero time as a Unix timestamp."""

PORTION = 64
"""Peers written, about a millisecond of work, before packets get their turn."""


def pages(collector: DeviceCollector, unreadiness: Callable[[], str | None]) -> Mapping[str, Page]:
    """What a data plane serves. ``unreadiness`` says what keeps it from its work, None if nothing does."""

    def page(names: NameSet) -> Page:
        async def scrape() -> Answer:
            return metrics(generate_latest(collector) + await collector.peers(names))

        return scrape

    return {**{path: page(names) for path, names in NAME_SETS.items()}, "/healthz": alive, "/readyz": probe(unreadiness)}


class DeviceCollector(Collector):
    """Reads a device at scrape time."""

    def __init__(
        self, interface: str, device: Device, sockets: Sockets, tun_offloads: Offloads, unreachables: Unreachables
    ) -> None:
        self._interface = interface
        self._unreachables = unreachables
        self._tun_offloads = tun_offloads
        self._device = device
        self._sockets = sockets

    def collect(self) -> Iterable[Metric]:
        """All but what there is for each peer, and what has other names elsewhere."""
        build = GaugeMetricFamily(
            "wgpy_build_info", "Which data plane this is: always 1", labels=["interface", "version", "python"]
        )
        build.add_metric([self._interface, wgpy.__version__, platform.python_version()], 1)
        yield build
        drops = CounterMetricFamily("wgpy_drops", "Datagrams and packets thrown away, by reason", labels=["interface", "reason"])
        for reason, count in self._device.drops.items():
            drops.add_metric([self._interface, reason.value], count)
        yield drops
        handshakes = CounterMetricFamily("wgpy_handshakes", "Handshakes by result", labels=["interface", "result"])
        for result, count in self._device.handshakes.items():
            handshakes.add_metric([self._interface, result.value], count)
        yield handshakes
        for name, text, value in (
            ("wgpy_rekeys", "Sessions that took the place of one that was still good", self._device.rekeys),
            ("wgpy_sends", "Calls that sent a datagram or a train of them", self._sockets.sends),
            ("wgpy_receives", "Calls that received a datagram or several at once", self._sockets.receives),
            ("wgpy_send_errors", "Sends the kernel refused", self._sockets.send_errors),
            ("wgpy_plain_trains", "Trains of datagrams the kernel refused, sent one by one", self._sockets.plain_trains),
            ("wgpy_icmp_unreachables", "Senders told that nobody takes their packet", self._unreachables.sent),
        ):
            family = CounterMetricFamily(name, text, labels=["interface"])
            family.add_metric([self._interface], value)
            yield family
        for name, text, value in (
            ("wgpy_handshake_queue", "Handshake messages that wait to be worked on", self._device.queued_messages),
            (
                "wgpy_plain_destinations",
                "Destinations that refused a train of datagrams and get them one by one for a while",
                self._sockets.plain_destinations,
            ),
            (
                "wgpy_icmp_unreachables_possible",
                "Whether senders can be told that nobody takes their packet (1) or not (0: no CAP_NET_RAW)",
                self._unreachables.is_possible,
            ),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["interface"])
            gauge.add_metric([self._interface], value)
            yield gauge
        yield self._offloads()

    async def peers(self, names: NameSet) -> bytes:
        """The series of all peers. Between portions of them others have their turn, and peers may come and go."""
        now, uptime = time.time(), boottime()
        peers = list(self._device.peers.values())
        written = [[_head(one.name, one.type, one.help)] for one in names.series]
        sessions = handshakes = staged = 0
        for start in range(0, len(peers), PORTION):
            portion = [self._device.peer_snapshot(peer) for peer in peers[start : start + PORTION]]
            labels = [names.labels(peer, self) for peer in portion]
            for series, parts in zip(names.series, written, strict=True):
                parts += [
                    f"{series.name}{{{of}{more}}} {series.value(peer, now)}\n"
                    for peer, of in zip(portion, labels, strict=True)
                    for more in series.more(peer)
                ]
            for peer in peers[start : start + PORTION]:
                sessions += peer.can_send(uptime)
                handshakes += peer.handshake is not None
                staged += len(peer.staged)
            await asyncio.sleep(0)
        text = "".join(part for parts in written for part in parts)
        return (names.device(self) + text + self._census(len(peers), sessions, handshakes, staged)).encode()

    def _census(self, *counts: int) -> str:
        """What was counted of all peers, in the order of CENSUS."""
        label = f'{{interface="{self._interface}"}}'
        return "".join(
            f"{_head(name, 'gauge', text)}{name}{label} {count}\n" for (name, text), count in zip(CENSUS, counts, strict=True)
        )

    @property
    def interface(self) -> str:
        return self._interface

    @property
    def own_key(self) -> str:
        return "" if self._device.local is None else _base64(self._device.local.public)

    @property
    def port(self) -> int:
        return self._sockets.port if self._sockets.is_bound else self._device.listen_port

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


CENSUS = (
    ("wgpy_peers", "Peers that are configured"),
    ("wgpy_sessions", "Peers that something can be sent to at once, without a handshake"),
    ("wgpy_handshakes_under_way", "Peers that were sent an initiation and have not answered it yet"),
    ("wgpy_staged_packets", "Packets that wait for a session"),
)


# What others call it ----------------------------------------------------------------------------------------------


class Series(NamedTuple):
    """One series of a peer. ``value`` gets the peer and the time, in seconds since 1970."""

    name: str
    type: str
    help: str
    value: Callable[[PeerSnapshot, float], float]
    more: Callable[[PeerSnapshot], Iterable[str]] = lambda peer: ("",)
    """What it has of labels besides, with a comma in front; several make several lines."""


@dataclass(frozen=True, slots=True)
class NameSet:
    """The series there are of each peer, the ``labels`` they all have, and the one of the ``device``. No label needs escaping."""

    device: Callable[[DeviceCollector], str]
    labels: Callable[[PeerSnapshot, DeviceCollector], str]
    series: tuple[Series, ...]


def _head(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _calico_device(of: DeviceCollector) -> str:
    labels = f'hostname="{socket.gethostname()}",public_key="{of.own_key}",iface="{of.interface}",listen_port="{of.port}"'
    return f"{_head('wireguard_meta', 'gauge', 'wireguard interface and runtime metadata')}wireguard_meta{{{labels}}} 1\n"


def _calico_labels(peer: PeerSnapshot, of: DeviceCollector) -> str:
    endpoint = "<nil>" if peer.config.endpoint is None else peer.config.endpoint
    return (
        f'hostname="{socket.gethostname()}",public_key="{of.own_key}",'
        f'peer_key="{_base64(peer.config.public_key)}",peer_endpoint="{endpoint}"'
    )


def _mindflavor_labels(peer: PeerSnapshot, of: DeviceCollector) -> str:
    ranges = ",".join(map(str, peer.config.allowed_ips)) or "(none)"
    return f'interface="{of.interface}",public_key="{_base64(peer.config.public_key)}",allowed_ips="{ranges}",friendly_name=""'


def _mdlayher_device(of: DeviceCollector) -> str:
    head = _head("wireguard_device_info", "gauge", "Metadata about a device.")
    return f'{head}wireguard_device_info{{device="{of.interface}",public_key="{of.own_key}"}} 1\n'


def _mdlayher_labels(peer: PeerSnapshot, of: DeviceCollector) -> str:
    return f'device="{of.interface}",public_key="{_base64(peer.config.public_key)}"'


def _handshake(peer: PeerSnapshot) -> float:
    return peer.last_handshake / 1e9


CALICO = NameSet(
    _calico_device,
    _calico_labels,
    (
        Series(
            "wireguard_latest_handshake_seconds",
            "gauge",
            "wireguard interface latest handshake unix timestamp in seconds to a peer",
            lambda peer, now: _handshake(peer) or NEVER_SHAKEN_HANDS,
        ),
        Series(
            "wireguard_bytes_sent", "counter", "wireguard interface outgoing bytes count to peer", lambda peer, now: peer.tx_bytes
        ),
        Series(
            "wireguard_bytes_rcvd",
            "counter",
            "wireguard interface incoming bytes count from peer",
            lambda peer, now: peer.rx_bytes,
        ),
    ),
)

MINDFLAVOR = NameSet(
    lambda of: "",
    _mindflavor_labels,
    (
        Series("wireguard_sent_bytes_total", "counter", "Bytes sent to the peer", lambda peer, now: peer.tx_bytes),
        Series("wireguard_received_bytes_total", "counter", "Bytes received from the peer", lambda peer, now: peer.rx_bytes),
        Series(
            "wireguard_latest_handshake_seconds",
            "gauge",
            "Unix time of the latest handshake with the peer, 0 for never",
            lambda peer, now: _handshake(peer),
        ),
        Series(
            "wireguard_latest_handshake_delay_seconds",
            "gauge",
            "Seconds since the latest handshake with the peer, since 1970 for never",
            lambda peer, now: now - _handshake(peer),
        ),
    ),
)


MDLAYHER = NameSet(
    _mdlayher_device,
    _mdlayher_labels,
    (
        Series(
            "wireguard_peer_info",
            "gauge",
            "Metadata about a peer. The public_key label is the peer's, not the device's.",
            lambda peer, now: 1,
            lambda peer: (f',endpoint="{peer.config.endpoint or ""}",name=""',),
        ),
        Series(
            "wireguard_peer_allowed_ips_info",
            "gauge",
            "Metadata about each of a peer's allowed IPs.",
            lambda peer, now: 1,
            lambda peer: [f',allowed_ips="{prefix}",family="IPv{prefix.version}"' for prefix in peer.config.allowed_ips],
        ),
        Series("wireguard_peer_receive_bytes_total", "counter", "Bytes received from the peer.", lambda peer, now: peer.rx_bytes),
        Series("wireguard_peer_transmit_bytes_total", "counter", "Bytes sent to the peer.", lambda peer, now: peer.tx_bytes),
        Series(
            "wireguard_peer_last_handshake_seconds",
            "gauge",
            "Unix time of the latest handshake with the peer, 0 for never.",
            lambda peer, now: int(_handshake(peer)),
        ),
    ),
)

NAME_SETS = {"/metrics": CALICO, "/metrics/mindflavor": MINDFLAVOR, "/metrics/mdlayher": MDLAYHER}
"""By the page that has it."""


def _base64(key: bytes) -> str:
    return b64encode(key).decode()
