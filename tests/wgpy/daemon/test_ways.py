"""Which way to a peer, by the routes of a namespace, and when it is asked for anew."""

import asyncio
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from tests.sim import Sim
from wgpy.config import Endpoint, SetPeer
from wgpy.core.device import Way
from wgpy.daemon import ways as module
from wgpy.daemon.pump import boottime
from wgpy.daemon.udp import Sockets
from wgpy.daemon.ways import PORTION, SHARE, Ways

pytestmark = pytest.mark.e2e

PATIENCE = 20.0
FAR, FAR6 = Endpoint("10.9.9.9", 51820), Endpoint("fd99::9", 51820)
LAID = """\
link add veth1 type veth peer name end1
link set veth1 up
link set end1 up
addr add 10.1.0.1/24 dev veth1
addr add fd01::1/64 dev veth1 nodad
link add veth2 type veth peer name end2
link set veth2 up
link set end2 up
addr add 10.2.0.1/24 dev veth2
addr add fd02::1/64 dev veth2 nodad
route add 10.9.0.0/16 via 10.1.0.2 metric 20
route add fd99::/64 dev veth1 metric 20
"""
BY_THE_OTHER = "route add 10.9.0.0/16 via 10.2.0.2 metric 10\nroute add fd99::/64 dev veth2 metric 10\n"


def ip(commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)


def came(address: str, interface: str) -> bytes:
    """The source of what came to an address of ours by an interface."""
    packed, index = ip_address(address).packed, socket.if_nametoindex(interface)
    return struct.pack("=I4s4s", index, packed, bytes(4)) if len(packed) == 4 else struct.pack("=16sI", packed, index)


@pytest.fixture
def sockets(namespace: None) -> Iterator[Sockets]:
    """In a namespace with two interfaces; the way to FAR and FAR6 is by veth1."""
    ip(LAID)
    sockets = Sockets()
    yield sockets
    sockets.close()


@pytest.fixture
def ways(sockets: Sockets) -> Iterator[Ways]:
    ways = Ways(sockets)
    yield ways
    ways._close_sockets()


def index(name: str) -> int:
    return socket.if_nametoindex(name)


def test_the_address_that_was_spoken_to_fits_if_the_way_back_is_the_same(ways: Ways) -> None:
    for endpoint, address in ((FAR, "10.1.0.1"), (FAR6, "fd01::1")):
        assert ways.way(endpoint, came(address, "veth1")) == Way(came(address, "veth1"), index("veth1"))


def test_any_address_of_ours_fits_that_came_in_there(ways: Ways) -> None:
    """netns.sh, stage 21."""
    assert ways.way(FAR, came("10.2.0.1", "veth1")).source == came("10.2.0.1", "veth1")


def test_of_ipv4_an_address_does_not_fit_if_the_way_back_is_another(ways: Ways) -> None:
    """The kernel's WireGuard does not ask this of IPv6."""
    assert ways.way(FAR, came("10.2.0.1", "veth2")) == Way(b"", index("veth1"))
    assert ways.way(FAR6, came("fd02::1", "veth2")) == Way(came("fd02::1", "veth2"), index("veth1"))


def test_a_rule_for_an_address_of_ours_is_followed(ways: Ways) -> None:
    """Two providers, each with a table of its own: what came by one goes back by it."""
    ip("route add 10.9.0.0/16 via 10.2.0.2 table 7\nrule add from 10.2.0.1 table 7\n")

    assert ways.way(FAR, came("10.2.0.1", "veth2")) == Way(came("10.2.0.1", "veth2"), index("veth2"))
    assert ways.way(FAR, came("10.1.0.1", "veth1")).egress == index("veth1")


def test_the_mark_and_the_ports_are_those_of_the_sockets(ways: Ways, sockets: Sockets) -> None:
    ip("route add 10.9.0.0/16 via 10.2.0.2 table 7\nrule add fwmark 9 table 7\n")
    assert ways.way(FAR, b"").egress == index("veth1")
    sockets.bind(0, 9)
    assert ways.way(FAR, b"").egress == index("veth2")

    ip(f"rule del fwmark 9 table 7\nrule add ipproto udp sport {sockets.port} dport 51820 table 7\n")
    assert ways.way(FAR, b"").egress == index("veth2")
    assert ways.way(Endpoint("10.9.9.9", 1), b"").egress == index("veth1")


def test_an_address_that_is_gone_does_not_fit(ways: Ways) -> None:
    assert ways.way(FAR, came("10.77.0.1", "veth1")) == Way(b"", index("veth1"))


def test_where_no_way_leads_nothing_is_known(ways: Ways) -> None:
    assert ways.way(Endpoint("192.0.2.1", 1), came("10.1.0.1", "veth1")) == Way(b"", 0)
    assert ways.way(Endpoint("2001:db8::1", 1), came("fd01::1", "veth1")) == Way(came("fd01::1", "veth1"), 0)


def test_a_link_local_endpoint_is_asked_for_at_its_interface(ways: Ways) -> None:
    for name in ("veth1", "veth2"):
        assert ways.way(Endpoint("fe80::9", 1, index(name)), b"").egress == index(name)


def test_without_netlink_the_address_that_was_spoken_to_is_kept(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(protocol: int) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module, "open_netlink", refuse)
    ways = Ways(sockets)

    assert ways.way(FAR, came("10.2.0.1", "veth2")) == Way(came("10.2.0.1", "veth2"))
    assert len(caplog.records) == 1


# -- changes --------------------------------------------------------------------------------------------------------------


def device_with(ways: Ways, *endpoints: Endpoint) -> Sim:
    """A has a peer at each endpoint. It asks ``ways``."""
    sim = Sim("A")
    sim["A"].way = ways.way
    changes = [SetPeer(bytes([number]) * 32, endpoint=endpoint) for number, endpoint in enumerate(endpoints, 10)]
    sim["A"].device.apply(changes, sim.now)
    return sim


async def until(condition: Callable[[], bool]) -> None:
    """The next round comes when the last is long enough ago, which is as long as that took."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("commands", [BY_THE_OTHER, "link set veth1 down\n" + BY_THE_OTHER])
async def test_a_new_route_is_seen_before_the_next_packet(ways: Ways, commands: str) -> None:
    sim = device_with(ways, FAR, FAR6)
    ways.start(sim["A"].device)
    peers = list(sim["A"].device.peers.values())
    for peer, address in zip(peers, ("10.1.0.1", "fd01::1"), strict=True):
        peer.arrival = peer.source = came(address, "veth1")
    assert {peer.egress for peer in peers} == {index("veth1")}

    await asyncio.to_thread(_in_this_namespace, commands)

    await until(lambda: {peer.egress for peer in peers} == {index("veth2")})
    assert [peer.source for peer in peers] == [b"", b""]
    ways.stop()


def _in_this_namespace(commands: str) -> None:
    """In a thread, which is in the namespace of the one that started it."""
    ip(commands)


async def test_routes_that_do_not_matter_change_nothing(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = device_with(ways, FAR)
    device, look = sim["A"].device, sim["A"].device.routes_changed
    asked: list[None] = []
    monkeypatch.setattr(device, "routes_changed", lambda peer: asked.append(look(peer)))
    ways.start(device)
    (peer,) = device.peers.values()
    peer.arrival = peer.source = came("10.1.0.1", "veth1")

    await asyncio.to_thread(_in_this_namespace, "route add 10.42.0.0/16 via 10.2.0.2\nrule add from 10.42.0.0/16 table 9\n")
    await until(lambda: bool(asked))

    assert peer.source == came("10.1.0.1", "veth1")
    ways.stop()


async def test_others_have_their_turn_between_portions_and_every_peer_its_own(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = [Endpoint(f"10.9.{number >> 8}.{number & 255}", 1) for number in range(4 * PORTION)]
    sim = device_with(ways, *endpoints[:200])
    device, asked = sim["A"].device, []
    monkeypatch.setattr(device, "routes_changed", lambda peer: asked.append(peer))
    ways.start(device)
    peers = len(device.peers)

    ways.look_again()
    assert len(asked) == PORTION, "the first at once, before whatever else waits"
    ways.look_again()
    device.apply([SetPeer(next(iter(device.peers)), remove=True)], sim.now)

    await until(lambda: set(device.peers.values()) <= set(asked))
    assert len(asked) <= 2 * peers
    ways.stop()


async def test_routes_that_never_stand_still_take_a_small_part_of_the_time(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = device_with(ways, FAR)
    rounds = 0

    def slow(peer: object) -> None:
        nonlocal rounds
        rounds += 1
        began = boottime()
        while boottime() < began + 0.005:
            pass

    monkeypatch.setattr(sim["A"].device, "routes_changed", slow)
    ways.start(sim["A"].device)
    began = boottime()
    async with asyncio.timeout(PATIENCE):
        while rounds < 4:
            ways.look_again()
            await asyncio.sleep(0.001)

    assert boottime() - began >= 3 * SHARE * 0.005
    ways.stop()


async def test_what_is_stopped_asks_no_more(ways: Ways) -> None:
    sim = device_with(ways, FAR)
    ways.start(sim["A"].device)
    ways.stop()

    ways.look_again()

    assert ways.way(FAR, b"") == Way(b"")
