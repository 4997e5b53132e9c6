"""Metrics as Prometheus gets them, held against what Calico's Felix says of a device of the kernel."""

import asyncio
import re
import socket
import time
from base64 import b64encode

import pytest
from prometheus_client.parser import text_string_to_metric_families

import wgpy
from tests.sim import Sim, packet
from tun.interface import Offloads
from wgpy.config import NO_KEY, Endpoint, SetPeer
from wgpy.core.drops import Drop
from wgpy.core.handshakes import Handshake
from wgpy.daemon.metrics import NAME_SETS, PORTION, DeviceCollector, pages
from wgpy.daemon.udp import Received, Sockets
from wgpy.daemon.unreachable import Unreachables
from wgpy.exposition import Page

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


def scraped(sim: Sim, sockets: Sockets | None = None, path: str = "/metrics") -> str:
    served = pages(DeviceCollector("wg0", sim["A"].device, sockets or Sockets(), Offloads(), Unreachables()), lambda: None)
    return asyncio.run(_body(served[path])).decode()


async def _body(page: Page) -> bytes:
    return (await page()).body


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


def test_handshakes_have_a_series_for_every_result_from_the_start() -> None:
    text = scraped(Sim("A", "B"))
    assert {labels["result"]: value for labels, value in samples(text, "wgpy_handshakes_total")} == dict.fromkeys(
        (result.value for result in Handshake), 0
    )
    assert samples(text, "wgpy_rekeys_total") == samples(text, "wgpy_handshake_queue") == [({"interface": "wg0"}, 0)]

    done = {labels["result"]: value for labels, value in samples(scraped(Sim.connected()), "wgpy_handshakes_total") if value}
    assert done == {"begun": 1, "initiated": 1}


def test_calls_are_counted_that_carry_something() -> None:
    sockets = Sockets()
    sockets.bind(0, 0)
    endpoint = Endpoint("127.0.0.1", sockets.port)
    try:
        assert sockets.send(b"x" * 250, 100, endpoint, b"", 0)
        calls = received = 0
        while received < 250:
            calls += sockets.receive(next(iter(sockets)), memoryview(bytearray(1 << 16)), burst := Received())
            received += burst.size
        with pytest.raises(BlockingIOError):
            sockets.receive(next(iter(sockets)), memoryview(bytearray(1 << 16)), burst)
        text = scraped(Sim.connected(), sockets)
        assert samples(text, "wgpy_sends_total") == [({"interface": "wg0"}, 1 if sockets.segmentation else 3)]
        assert samples(text, "wgpy_receives_total") == [({"interface": "wg0"}, calls)]
    finally:
        sockets.close()


def test_no_secret_is_told() -> None:
    sim = Sim.pair(preshared_key=b"\xee" * 32)
    text = scraped(sim)

    for secret in (b"\xee" * 32, sim["A"].private_key):
        assert base64(secret) not in text
        assert secret.hex() not in text


def test_two_scrapes_within_a_second_both_have_everything() -> None:
    sim = Sim.connected()

    assert scraped(sim) == scraped(sim)


def test_the_port_is_the_one_really_bound() -> None:
    sim, sockets = Sim.connected(), Sockets()
    sockets.bind(0, 0)
    try:
        ((labels, _),) = samples(scraped(sim, sockets), "wireguard_meta")
        assert labels["listen_port"] == str(sockets.port) != "0"
    finally:
        sockets.close()


def test_the_names_of_mindflavors_exporter_are_a_page_of_their_own() -> None:
    """Both have wireguard_latest_handshake_seconds, with other labels."""
    sim = Sim.connected()
    stranger = SetPeer(b"\x05" * 32, allowed_ips=())
    sim["A"].device.apply([stranger], sim.now)

    text = scraped(sim, path="/metrics/mindflavor")

    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert {name: kind for name, kind in families.items() if name.startswith("wireguard_")} == {
        "wireguard_sent_bytes": "counter",
        "wireguard_received_bytes": "counter",
        "wireguard_latest_handshake_seconds": "gauge",
        "wireguard_latest_handshake_delay_seconds": "gauge",
    }
    handshakes = {labels["public_key"]: (labels, at) for labels, at in samples(text, "wireguard_latest_handshake_seconds")}
    delays = {labels["public_key"]: delay for labels, delay in samples(text, "wireguard_latest_handshake_delay_seconds")}
    known, unknown = base64(sim["B"].public_key), base64(stranger.public_key)
    assert handshakes[known][0] == {
        "interface": "wg0",
        "public_key": known,
        "allowed_ips": "10.0.0.2/32,fd00::2/128",
        "friendly_name": "",
    }
    assert handshakes[unknown][0]["allowed_ips"] == "(none)" and handshakes[unknown][1] == 0
    for key, (_, at) in handshakes.items():
        assert at + delays[key] == pytest.approx(time.time(), abs=5)
    assert len(samples(text, "wireguard_sent_bytes_total")) == len(samples(text, "wireguard_received_bytes_total")) == 2


def test_the_names_of_mdlayhers_exporter_are_a_page_of_their_own() -> None:
    sim = Sim.connected()
    stranger = SetPeer(b"\x05" * 32, allowed_ips=())
    sim["A"].device.apply([stranger], sim.now)

    text = scraped(sim, path="/metrics/mdlayher")

    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert {name: kind for name, kind in families.items() if name.startswith("wireguard_")} == {
        "wireguard_device_info": "gauge",
        "wireguard_peer_info": "gauge",
        "wireguard_peer_allowed_ips_info": "gauge",
        "wireguard_peer_receive_bytes": "counter",
        "wireguard_peer_transmit_bytes": "counter",
        "wireguard_peer_last_handshake_seconds": "gauge",
    }
    known, unknown = ({"device": "wg0", "public_key": base64(key)} for key in (sim["B"].public_key, stranger.public_key))
    own = {"device": "wg0", "public_key": base64(sim["A"].public_key)}
    assert samples(text, "wireguard_device_info") == [(own, 1)]
    endpoints = [{**known, "endpoint": "192.0.2.2:51820", "name": ""}, {**unknown, "endpoint": "", "name": ""}]
    assert samples(text, "wireguard_peer_info") == [(labels, 1) for labels in endpoints]
    ranges = [("10.0.0.2/32", "IPv4"), ("fd00::2/128", "IPv6")]
    assert samples(text, "wireguard_peer_allowed_ips_info") == [
        ({**known, "allowed_ips": prefix, "family": family}, 1) for prefix, family in ranges
    ]
    received, sent = (samples(text, f"wireguard_peer_{way}_bytes_total") for way in ("receive", "transmit"))
    assert received == [(known, 92), (unknown, 0)] and sent == [(known, 180), (unknown, 0)]
    ((_, at), (_, never)) = samples(text, "wireguard_peer_last_handshake_seconds")
    assert at == int(sim.epoch + 1000.02) and never == 0


@pytest.mark.parametrize("path", NAME_SETS)
def test_what_only_wgpy_says_is_the_same_on_every_page(path: str) -> None:
    def own(path: str) -> list[str]:
        return [line for line in scraped(sim, path=path).splitlines() if line.startswith("wgpy_")]

    sim = Sim.connected()
    assert own(path) == own("/metrics") and len(own(path)) > len(Drop)


def test_sessions_handshakes_and_staged_packets_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Sim("A", "B")
    sim["A"].peer(sim["B"])
    monkeypatch.setattr("wgpy.daemon.metrics.boottime", lambda: sim.now)

    def counted() -> tuple[float, ...]:
        text = scraped(sim)
        names = ("peers", "sessions", "handshakes_under_way", "staged_packets")
        ((labels, _),) = samples(text, "wgpy_peers")
        assert labels == {"interface": "wg0"}
        return tuple(samples(text, f"wgpy_{name}")[0][1] for name in names)

    assert counted() == (1, 0, 0, 0)
    for _ in range(3):
        sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"))
    assert counted() == (1, 0, 1, 3)
    sim["B"].peer(sim["A"])
    sim.advance(30)  # the initiation was lost, and the next one is answered
    assert counted() == (1, 1, 0, 0)


def test_who_it_is_stands_there() -> None:
    ((labels, value),) = samples(scraped(Sim.connected()), "wgpy_build_info")

    assert (labels["interface"], labels["version"], value) == ("wg0", wgpy.__version__, 1)


async def test_packets_have_their_turn_between_portions_of_peers() -> None:
    sim = Sim.connected()
    sim["A"].device.apply([SetPeer(number.to_bytes(32)) for number in range(1, 4 * PORTION)], sim.now)
    served = pages(DeviceCollector("wg0", sim["A"].device, Sockets(), Offloads(), Unreachables()), lambda: None)
    scrape = asyncio.ensure_future(served["/metrics"]())
    turns = 0

    while not scrape.done():
        await asyncio.sleep(0)
        turns += 1
        sim["A"].device.apply([SetPeer(turns.to_bytes(32), remove=True)], sim.now)  # which disturbs nothing

    assert turns >= 4
    assert len(samples(scrape.result().body.decode(), "wireguard_bytes_sent")) == 4 * PORTION


def test_the_probes_are_there() -> None:
    complaints = [None, "UDP port 51820 cannot be bound"]
    collector = DeviceCollector("wg0", Sim.connected()["A"].device, Sockets(), Offloads(), Unreachables())
    served = pages(collector, lambda: complaints.pop(0))

    statuses = [asyncio.run(_status(served[path])) for path in ("/healthz", "/readyz", "/readyz")]

    assert statuses == [200, 200, 503]


async def _status(page: Page) -> int:
    return (await page()).status.value
