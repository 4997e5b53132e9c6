"""Nodes that change their address or port are followed, and peers are answered from the address they spoke to."""

from collections.abc import Callable, Iterator

import pytest

from controller.demo.topology import Address
from tests.e2e.lab import AT_ONCE, FAMILIES, PORT, End, Tunnel, flood, ping, spare_address, wait_for
from tests.e2e.wire import INITIATION, RESPONSE, TRANSPORT, messages
from wgpy.config import Endpoint, SetDevice, SetPeer
from wgpy.wgconf import format_key

PAIRS = [("wgpy", "wgpy"), ("wgpy", "wireguard-go"), ("wireguard-go", "wgpy")]
DEFAULT_ROUTE = {4: "0.0.0.0/0 via 10.77.0.254", 6: "::/0 via fd77::ffff:ffff:ffff:fffe"}


def tunnels_of(*pairs: tuple[str, str]) -> pytest.MarkDecorator:
    """Runs a test over IPv4 and IPv6 for each pair."""
    return pytest.mark.parametrize(
        "tunnel",
        [pytest.param((pair, outer), id=f"{pair[0]}:{pair[1]}-over-IPv{outer}") for pair in pairs for outer in FAMILIES],
        indirect=True,
    )


@pytest.fixture
def tunnel(request: pytest.FixtureRequest, standing: Callable[..., Tunnel]) -> Iterator[Tunnel]:
    """With a session; the addresses that the test gives its nodes are taken back."""
    tunnel = standing(*request.param)
    assert ping(tunnel.ends[0].pod, tunnel.ends[1].pod.address(4), count=1) == 1
    yield tunnel
    for end in tunnel.ends:
        address = end.node.address(tunnel.outer)
        give(end, tunnel.outer, address)


def endpoint(address: Address, port: int = PORT) -> Endpoint:
    return Endpoint(str(address), port)


def give(end: End, version: int, *addresses: Address) -> None:
    """Let the node have these addresses on the underlay and no others."""
    family = f"-{version}"
    end.node.run(["ip", family, "addr", "flush", "dev", "eth0", "scope", "global"])
    end.node.configure(
        links=[
            *(f"addr add {address}/{24 if version == 4 else '64 nodad'} dev eth0" for address in addresses),
            f"route replace {DEFAULT_ROUTE[version]} dev eth0",
        ]
    )
    local = ["ip", family, "route", "show", "table", "local", "type", "local"]
    for address in addresses:  # the kernel takes IPv6 addresses into use a moment later
        wait_for(lambda address=address: f"local {address} " in end.node.run(local).stdout, f"{address} in use")  # type: ignore[misc]


@tunnels_of(*PAIRS)
def test_a_node_with_another_address_or_port_is_followed_at_its_first_packet(tunnel: Tunnel) -> None:
    observer, mover = tunnel.ends

    moved = spare_address(mover.number, tunnel.outer)
    give(mover, tunnel.outer, moved)
    assert ping(mover.pod, observer.pod.address(4), count=1, patience=AT_ONCE) == 1
    assert observer.peer.config.endpoint == endpoint(moved)
    assert ping(observer.pod, mover.pod.address(4), count=2, patience=AT_ONCE) == 2

    mover.client.set([SetDevice(listen_port=PORT + 1)])
    assert ping(mover.pod, observer.pod.address(FAMILIES[-1]), count=1, patience=AT_ONCE) == 1
    assert observer.peer.config.endpoint == endpoint(moved, PORT + 1)
    assert ping(observer.pod, mover.pod.address(4), count=2, patience=AT_ONCE) == 2

    assert mover.peer.config.endpoint == endpoint(observer.node.address(tunnel.outer))


# Only where wgpy answers: wireguard-go forgets the address when datagrams come in bursts (protocol 1.11).
@tunnels_of(("wgpy", "wgpy"), ("wireguard-go", "wgpy"))
def test_who_speaks_to_one_of_several_addresses_is_answered_from_that_one(tunnel: Tunnel) -> None:
    first, second = tunnel.ends
    addresses = [second.node.address(tunnel.outer), spare_address(second.number, tunnel.outer)]
    give(second, tunnel.outer, *addresses)

    for address in addresses:
        tunnel.configure()
        first.client.set([SetPeer(second.public_key, endpoint=endpoint(address))])
        with tunnel.capture() as capture:
            assert flood(first.pod, second.pod.address(4), count=100) == 100

        assert first.peer.config.endpoint == endpoint(address)
        answers = [
            one for one in messages(capture.frames, RESPONSE, TRANSPORT) if one.destination == first.node.address(tunnel.outer)
        ]
        assert {one.message for one in answers} == {RESPONSE, TRANSPORT}
        assert {one.source for one in answers} == {address}


@tunnels_of(("wgpy", "wgpy"))
def test_an_address_that_is_gone_is_not_answered_from(tunnel: Tunnel) -> None:
    first, second = tunnel.ends
    moved = spare_address(second.number, tunnel.outer)
    give(second, tunnel.outer, moved)

    first.client.set([SetPeer(second.public_key, endpoint=endpoint(moved))])
    with tunnel.capture() as capture:
        assert ping(first.pod, second.pod.address(4), count=3, patience=AT_ONCE) == 3

    sources = {one.source for one in messages(capture.frames, INITIATION, RESPONSE, TRANSPORT)}
    assert sources == {first.node.address(tunnel.outer), moved}


@pytest.mark.skipif(6 not in FAMILIES, reason="this kernel has no IPv6")
@pytest.mark.parametrize("kinds", PAIRS, ids=":".join)
def test_nodes_speak_between_link_local_addresses(standing: Callable[..., Tunnel], kinds: tuple[str, str], need_wg: None) -> None:
    """Whose zone every node has its own number for."""
    tunnel = standing(kinds, FAMILIES[-1])
    for end, other in tunnel.directions():
        address = f"[{link_local_address(other)}%eth0]:{PORT}"
        end.node.run(["wg", "set", "wg0", "peer", format_key(other.public_key), "endpoint", address])

    assert ping(tunnel.ends[0].pod, tunnel.ends[1].pod.address(4)) == 3

    for end, other in tunnel.directions():
        shown = end.node.run(["wg", "show", "wg0", "endpoints"]).stdout
        assert shown == f"{format_key(other.public_key)}\t[{link_local_address(other)}%eth0]:{PORT}\n"


def link_local_address(end: End) -> str:
    """That of the node's interface on the underlay."""
    (line,) = end.node.run(["ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"]).stdout.splitlines()
    return line.split()[3].partition("/")[0]
