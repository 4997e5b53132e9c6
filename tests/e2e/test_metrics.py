"""Metrics over HTTP, while packets flow."""

import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from controller.demo.topology import Node
from tests.e2e.lab import PORT, End, Tunnel, inside, ping, wait_for
from tests.e2e.traffic import transfer
from wgpy.config import PeerSnapshot

ADDRESS = ("127.0.0.1", 9586)


@pytest.fixture(scope="module")
def tunnel(machine: None) -> Iterator[Tunnel]:
    with Tunnel.lay(("wgpy", "wgpy"), metrics=f"{ADDRESS[0]}:{ADDRESS[1]}") as laid:
        yield laid


def get(node: Node, path: str = "/metrics") -> tuple[str, str]:
    """Status line and body of a request made on the node itself."""
    with inside(node, lambda: socket.create_connection(ADDRESS, timeout=10)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    return head.splitlines()[0], body


def scrape(node: Node) -> dict[str, float]:
    """Samples by name; those of several labels are added up.

    Read as text: prometheus_client's parser has its own idea of what a counter without the suffix ``_total`` is called.
    """
    status, body = get(node)
    assert status == "HTTP/1.1 200 OK"
    samples: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+){.*} (\S+)$", body, re.MULTILINE):
        samples[name] = samples.get(name, 0) + float(value)
    return samples


def test_counters_grow_while_traffic_flows_and_hold_nothing_up(tunnel: Tunnel) -> None:
    first, second = tunnel.ends
    size = 20_000_000
    before = scrape(first.node)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(transfer, first.pod, first.pod.address(4), second.pod, second.pod.address(4), size)
        seen = [scrape(first.node)["wireguard_bytes_sent"]]
        while not running.done():
            seen.append(scrape(first.node)["wireguard_bytes_sent"])

    assert running.result().is_intact
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    after, peer = at_rest(first)
    assert after["wireguard_bytes_sent"] - before["wireguard_bytes_sent"] > size
    assert after["wireguard_bytes_sent"] == peer.tx_bytes
    assert after["wireguard_bytes_rcvd"] == peer.rx_bytes
    assert after["wireguard_latest_handshake_seconds"] == pytest.approx(peer.last_handshake / 1e9)


def at_rest(end: End) -> tuple[dict[str, float], PeerSnapshot]:
    """Metrics, and what UAPI says of the peer, of a moment when nothing passed: the last of a TCP connection comes after its end
    is known."""

    def look() -> tuple[dict[str, float], PeerSnapshot] | None:
        before, samples = end.peer, scrape(end.node)
        return (samples, before) if end.peer == before else None

    found = wait_for(look, "nothing passes")
    assert found is not None
    return found


def test_the_labels_are_those_of_felix(tunnel: Tunnel) -> None:
    first, second = tunnel.ends
    assert ping(first.pod, second.pod.address(4), count=1) == 1
    _, body = get(first.node)
    keys = {f'public_key="{b64encode(first.public_key).decode()}"', f'peer_key="{b64encode(second.public_key).decode()}"'}

    (sent,) = (line for line in body.splitlines() if line.startswith("wireguard_bytes_sent{"))
    assert all(key in sent for key in keys)
    assert f'peer_endpoint="{second.node.address(4)}:{PORT}"' in sent
    (meta,) = (line for line in body.splitlines() if line.startswith("wireguard_meta{"))
    assert 'iface="wg0"' in meta and f'listen_port="{PORT}"' in meta
    assert b64encode(first.private_key).decode() not in body


def test_what_is_thrown_away_is_counted_by_its_reason(tunnel: Tunnel) -> None:
    first, second = tunnel.ends
    line = 'wgpy_drops_total{interface="wg0",reason="unknown_message"}'
    before = [one for one in get(first.node)[1].splitlines() if one.startswith(line)]

    with inside(second.node, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as stranger:
        for _ in range(5):
            stranger.sendto(b"nonsense", (str(first.node.address(4)), PORT))
        assert ping(first.pod, second.pod.address(4), count=1) == 1
    after = [one for one in get(first.node)[1].splitlines() if one.startswith(line)]

    assert float(after[0].split()[-1]) - float(before[0].split()[-1]) == 5


def test_only_metrics_are_served_and_who_asks_for_nothing_disturbs_nobody(tunnel: Tunnel) -> None:
    first, second = tunnel.ends
    assert get(first.node, "/")[0] == "HTTP/1.1 404 Not Found"

    with inside(first.node, lambda: socket.create_connection(ADDRESS, timeout=10)):
        assert ping(first.pod, second.pod.address(4)) == 3
        assert get(first.node)[0] == "HTTP/1.1 200 OK"
