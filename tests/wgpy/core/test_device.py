"""The device: configuration, handshakes, key slots, load and deadlines. What the paper says of time is in tests/test_paper.py."""

from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise import crypto
from noise.keypair import Keypair
from tests.sim import Host, Sim, kind_of, packet
from wgpy.config import NO_KEY, Change, DeviceConfig, DeviceSnapshot, Endpoint, PeerConfig, SetDevice, SetPeer, changes_to
from wgpy.core.device import MAX_QUEUED_MESSAGES, UNDER_LOAD_MESSAGES, Device, Way
from wgpy.core.peer import Peer

ELSEWHERE = Endpoint("203.0.113.9", 9999)

LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]
"""All points of X25519 whose multiples are zero (cr.yp.to/ecdh.html)."""


def ping(sim: Sim, sender: str, receiver: str, payload: bytes = b"ping") -> bytes:
    data = packet(sim[sender].address, sim[receiver].address, payload)
    sim[sender].send_packet(data)
    return data


def sent(sim: Sim) -> list[tuple[str, str]]:
    """Who sent what since the log was cleared."""
    return [(entry.sender, entry.kind) for entry in sim.log]


def public_key(number: int) -> bytes:
    return crypto.public_key(crypto.clamp(bytes([number]) * 32))


# -- configuration: the private key ---------------------------------------------------------------------------------


def test_the_same_private_key_again_changes_nothing() -> None:
    sim = Sim.connected()
    before = sim["A"].device.snapshot()

    sim["A"].set_device(private_key=sim["A"].private_key)
    sim["A"].set_device(private_key=bytes([1]) * 32)  # what it was clamped from

    assert sim["A"].device.snapshot() == before
    ping(sim, "A", "B")
    assert sent(sim) == [("A", "data")]


def test_a_new_private_key_shakes_hands_at_once_though_the_last_handshake_is_recent() -> None:
    """netns.sh stage 10."""
    sim = Sim.connected()
    sim["A"].private_key = crypto.clamp(b"\x77" * 32)
    sim["A"].public_key = crypto.public_key(sim["A"].private_key)
    sim["B"].peer(sim["A"])

    sim["A"].set_device(private_key=sim["A"].private_key)
    assert sent(sim) == [], "a change of keys by itself sends nothing"
    data = ping(sim, "A", "B")
    sim.advance(1)

    assert sent(sim) == [("A", "initiation"), ("B", "response"), ("A", "data")]
    assert sim["B"].packets == [data]


def test_what_was_sealed_before_our_private_key_changed_is_still_opened() -> None:
    sim = Sim.connected()
    ping(sim, "B", "A")

    sim["A"].set_device(private_key=crypto.clamp(b"\x77" * 32))
    sim.advance(1)

    assert len(sim["A"].packets) == 1


def test_a_new_private_key_forgets_the_handshake_under_way() -> None:
    sim = Sim.pair()
    ping(sim, "A", "B")

    sim["A"].set_device(private_key=crypto.clamp(b"\x77" * 32))
    assert sim["A"].device.indices == {}
    sim.advance(1)

    assert sim["A"].drops() == {"bad_mac1": 1}, "B's response was for the key we had"
    assert not sim["A"].session_with(sim["B"])


@pytest.mark.parametrize("under_load", [False, True])
@pytest.mark.parametrize("private_key", [NO_KEY, crypto.clamp(b"\x77" * 32)])
def test_messages_that_wait_while_the_private_key_changes_were_for_the_old_one(private_key: bytes, under_load: bool) -> None:
    sim = Sim.pair()
    ping(sim, "A", "B")
    device = sim["B"].device
    copies = UNDER_LOAD_MESSAGES if under_load else 1
    for _ in range(copies):
        device.message_received(sim.log[0].datagram, sim["A"].endpoint, b"", sim.now)

    sim["B"].set_device(private_key=private_key)
    device.handle_messages(1000, sim.now)

    assert sim.sent("B") == []
    assert sum(device.drops.values()) == copies
    assert not device.has_messages


def test_without_a_private_key_nothing_is_sent_or_answered() -> None:
    sim = Sim.pair()
    sim["A"].set_device(private_key=NO_KEY)
    sim["A"].set_peer(sim["B"], persistent_keepalive=1)

    ping(sim, "A", "B")
    ping(sim, "B", "A")
    sim.advance(30)

    assert sim.sent("A") == []
    assert sim["A"].drops() == {"no_private_key": len(sim.sent("B", "initiation"))}
    assert sim["A"].device.snapshot().private_key == NO_KEY


def test_the_first_private_key_of_an_interface_that_is_up_lets_go_what_waited() -> None:
    """netns.sh stage 24: set the key later, and the keepalive is sent at once."""
    sim = Sim("A", "B", "C", "D")
    sim["A"].set_device(private_key=NO_KEY)
    sim["A"].peer(sim["B"], persistent_keepalive=25)
    sim["A"].peer(sim["C"])
    sim["A"].peer(sim["D"])
    ping(sim, "A", "C")
    assert sim.log == []

    sim["A"].set_device(private_key=sim["A"].private_key)

    assert [train.endpoint for train in sim["A"].trains] == [sim["B"].endpoint, sim["C"].endpoint]
    assert all(sim["A"].peer_of(sim[name]).tx_bytes == 148 for name in "BC")


def test_a_change_from_one_private_key_to_another_sends_nothing_by_itself() -> None:
    sim = Sim("A", "B")
    sim["A"].peer(sim["B"], persistent_keepalive=25)
    sim.log.clear()

    sim["A"].set_device(private_key=crypto.clamp(b"\x77" * 32))

    assert sim.log == []


def test_peers_that_are_replaced_along_with_the_private_key_never_hear_of_it() -> None:
    """``wg setconf`` says both in one request."""
    sim = Sim("A", "B")
    sim["A"].set_device(private_key=NO_KEY)
    sim["A"].peer(sim["B"], persistent_keepalive=25)

    sim["A"].device.apply(changes_to(DeviceConfig(sim["A"].private_key)), sim.now)

    assert sim.log == []
    assert sim["A"].device.peers == {}


# -- configuration: peers -------------------------------------------------------------------------------------------


def test_a_peer_with_our_own_key_is_ignored() -> None:
    """netns.sh stage 27. Silently: its lines are read, and nothing comes of them."""
    sim = Sim("A", "B")
    sim["A"].peer(sim["B"])

    sim["A"].peer(sim["A"], allowed_ips=(ip_network(sim["B"].address),))

    assert list(sim["A"].device.peers) == [sim["B"].public_key]
    assert ip_network(sim["B"].address) in sim["A"].device.snapshot().peers[0].config.allowed_ips


def test_a_peer_whose_key_becomes_ours_goes_and_can_come_back_when_our_key_changes() -> None:
    sim = Sim.connected()
    other = crypto.clamp(b"\x77" * 32)

    sim["A"].set_device(private_key=sim["B"].private_key)
    assert sim["A"].device.peers == {}
    assert sim["A"].device.indices == {}
    sim["A"].set_device(private_key=other)
    sim["A"].peer(sim["B"])

    assert list(sim["A"].device.peers) == [sim["B"].public_key]


def test_a_prefix_given_to_another_peer_moves() -> None:
    sim = Sim("A", "B", "C")
    prefix = ip_network("10.9.0.0/16")
    for name in "BC":
        sim["A"].peer(sim[name])

    sim["A"].set_peer(sim["B"], allowed_ips=(prefix,))
    sim["A"].set_peer(sim["C"], allowed_ips=(prefix,))
    sim["A"].set_peer(sim["B"], removed_allowed_ips=(prefix,))  # no longer its own: nothing happens

    b, c = (peer.config for peer in sim["A"].device.snapshot().peers)
    assert prefix not in b.allowed_ips
    assert c.allowed_ips[-1] == prefix


def test_allowed_ips_are_replaced_added_and_taken_away() -> None:
    sim = Sim("A", "B")
    one, two, three = (ip_network(f"10.{number}.0.0/16") for number in range(3))
    sim["A"].peer(sim["B"])

    sim["A"].set_peer(sim["B"], replace_allowed_ips=True, allowed_ips=(one, two))
    assert sim["A"].device.snapshot().peers[0].config.allowed_ips == (one, two)
    sim["A"].set_peer(sim["B"], allowed_ips=(three,), removed_allowed_ips=(one,))
    assert sim["A"].device.snapshot().peers[0].config.allowed_ips == (two, three)
    sim["A"].set_peer(sim["B"], replace_allowed_ips=True)
    assert sim["A"].device.snapshot().peers[0].config.allowed_ips == ()


def test_update_only_creates_nobody_and_takes_nothing_from_others() -> None:
    sim = Sim("A", "B", "C")
    sim["A"].peer(sim["B"])
    before = sim["A"].device.snapshot()

    sim["A"].peer(sim["C"], update_only=True, allowed_ips=(ip_network(sim["B"].address),))
    assert sim["A"].device.snapshot() == before
    sim["A"].set_peer(sim["B"], update_only=True, persistent_keepalive=7)

    assert sim["A"].device.snapshot().peers[0].config.persistent_keepalive == 7


def test_a_peer_that_is_removed_takes_everything_along() -> None:
    sim = Sim.connected()
    ping(sim, "A", "B")
    sim.advance(1)

    sim["A"].set_peer(sim["B"], remove=True)
    sim["A"].set_peer(sim["B"], remove=True)  # nobody: nothing happens

    device = sim["A"].device
    assert (device.peers, device.indices, len(device.allowed_ips)) == ({}, {}, 0)
    sim.log.clear()
    ping(sim, "A", "B")
    sim.advance(700)
    assert sim.sent("A") == []
    assert sim["A"].drops()["no_peer"] == 1
    assert device.next_deadline() == float("inf")


def test_a_peer_that_is_removed_while_its_packets_wait_sends_none_of_them() -> None:
    sim = Sim.pair()
    sim.cut("B")
    ping(sim, "A", "B")
    sim.advance(1)

    sim["A"].set_peer(sim["B"], remove=True)
    sim.heal()
    sim["A"].peer(sim["B"])
    sim.advance(100)

    assert sim["B"].packets == []


def test_a_peer_added_again_is_a_new_one_and_its_last_timestamp_is_forgotten() -> None:
    """Protocol 1.3: the way out for a peer whose clock went backwards."""
    sim = Sim.connected()
    sim["B"].set_peer(sim["A"], remove=True)
    sim["B"].peer(sim["A"])
    sim.epoch -= 3600
    sim.advance(200)

    data = ping(sim, "A", "B")
    sim.advance(1)

    assert sim["B"].packets == [data]


def test_a_clock_that_goes_backwards_is_locked_out() -> None:
    sim = Sim.connected()
    sim.epoch -= 3600
    sim.advance(200)

    ping(sim, "A", "B")
    sim.advance(1)

    assert sim["B"].packets == []
    assert sim["B"].drops() == {"replayed_initiation": 1}


def test_replace_peers_forgets_those_not_named() -> None:
    sim = Sim("A", "B", "C")
    sim["A"].peer(sim["B"])
    changes: list[Change] = [SetDevice(replace_peers=True), SetPeer(sim["C"].public_key)]

    sim["A"].device.apply(changes, sim.now)

    assert list(sim["A"].device.peers) == [sim["C"].public_key]


def test_peers_are_shown_in_the_order_they_were_added() -> None:
    sim = Sim("A")
    keys = [public_key(number) for number in (9, 3, 7, 5)]

    for key in [*keys, keys[0]]:
        sim["A"].device.apply([SetPeer(key, persistent_keepalive=3)], sim.now)

    assert [peer.config.public_key for peer in sim["A"].device.snapshot().peers] == keys


def test_a_device_becomes_what_its_configuration_says() -> None:
    sim = Sim.connected()
    config = DeviceConfig(
        private_key=crypto.clamp(b"\x55" * 32),
        listen_port=1234,
        fwmark=7,
        peers=(
            PeerConfig(public_key(9), b"\x01" * 32, ELSEWHERE, 25, (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
            PeerConfig(public_key(8)),
        ),
    )

    sim["A"].device.apply(changes_to(config), sim.now)

    assert sim["A"].device.snapshot().config == config


def test_a_preshared_key_is_of_the_next_handshake() -> None:
    sim = Sim.connected()

    for name, other in ("AB", "BA"):
        sim[name].set_peer(sim[other], preshared_key=b"\x42" * 32)
    ping(sim, "A", "B")
    sim.advance(1)
    assert sent(sim) == [("A", "data")], "the session stays"
    sim.advance(125)
    ping(sim, "A", "B")
    sim.advance(1)
    ping(sim, "A", "B")
    sim.advance(1)

    assert len(sim["B"].packets) == 3
    assert len(sim.sent("A", "initiation")) == 1
    assert sim["A"].drops() == {}


def test_a_new_endpoint_keeps_the_session_and_forgets_the_source_address() -> None:
    sim = Sim.connected()
    peer = sim["A"].peer_of(sim["B"])
    peer.source = b"an address of ours"
    sim["B"].endpoint = ELSEWHERE

    sim["A"].set_peer(sim["B"], endpoint=ELSEWHERE)
    ping(sim, "A", "B")
    sim.advance(1)

    assert sent(sim) == [("A", "data")]
    assert len(sim["B"].packets) == 1
    assert sim["A"].trains[0].source == b""


@pytest.mark.parametrize("change", [{"listen_port": 4}, {"fwmark": 4}])
def test_another_port_or_mark_forgets_source_addresses(change: dict[str, int]) -> None:
    sim = Sim.connected()
    peer = sim["A"].peer_of(sim["B"])
    peer.source = b"an address of ours"

    sim["A"].set_device(listen_port=51820, fwmark=0)
    assert peer.source == b"an address of ours", "nothing has changed"
    sim["A"].set_device(**change)

    assert peer.source == b""


def test_replies_leave_from_the_address_they_were_asked_at() -> None:
    sim = Sim.connected()
    device = sim["A"].device
    ping(sim, "B", "A")
    datagram = sim.log[-1].datagram
    device.inbound.buffer[: len(datagram)] = datagram

    device.inbound.datagrams_received(len(datagram), 0, sim["B"].endpoint, b"an address of ours", 0, sim.now)
    ping(sim, "A", "B")

    assert sim["A"].trains[-1].source == b"an address of ours"


class Roads:
    """A way to everywhere that leaves by ``egress``, and for which the address it is asked about fits if ``fits`` says so."""

    def __init__(self, *hosts: Host, egress: int = 2) -> None:
        self.egress, self.fits = egress, True
        self.asked: list[tuple[Endpoint, bytes]] = []
        for host in hosts:
            host.way = self.way

    def way(self, endpoint: Endpoint, arrival: bytes) -> Way:
        self.asked.append((endpoint, arrival))
        return Way(arrival if self.fits else b"", self.egress)


def arrives(sim: Sim, source: bytes, endpoint: Endpoint | None = None) -> None:
    """A packet of B comes to A at one of A's addresses."""
    sim["B"].send_packet(packet("10.0.0.2", "10.0.0.1"))
    datagram, inbound = sim.log[-1].datagram, sim["A"].device.inbound
    inbound.buffer[: len(datagram)] = datagram
    inbound.datagrams_received(len(datagram), 0, endpoint or sim["B"].endpoint, source, 0, sim.now)


def leaves_from(sim: Sim) -> bytes:
    """The source of A's next packet to B."""
    ping(sim, "A", "B")
    return sim["A"].trains[-1].source


def test_the_way_is_asked_for_when_a_peer_moves_or_comes_in_elsewhere_and_not_for_each_datagram() -> None:
    sim = Sim.connected()
    roads = Roads(sim["A"])
    here, there = b"one address of ours", b"another one"

    for source in (here, here, here, there, there, here):
        arrives(sim, source)
    arrives(sim, here, ELSEWHERE)
    arrives(sim, here, ELSEWHERE)
    sim["A"].set_peer(sim["B"], endpoint=sim["B"].endpoint)

    b = sim["B"].endpoint
    assert roads.asked == [(b, here), (b, there), (b, here), (ELSEWHERE, here), (b, b"")]


def test_a_source_that_does_not_fit_the_way_back_is_not_used_and_not_asked_about_again() -> None:
    sim = Sim.connected()
    roads = Roads(sim["A"])
    roads.fits = False

    for _ in range(3):
        arrives(sim, b"an address of ours")
        assert leaves_from(sim) == b""
    assert len(roads.asked) == 1


@pytest.mark.parametrize("initiator", ["A", "B"])
def test_a_handshake_shows_the_way_too(initiator: str) -> None:
    sim = Sim.pair()
    roads = Roads(sim["A"])

    sim.connect(initiator, "B" if initiator == "A" else "A")

    assert (sim["B"].endpoint, b"") in roads.asked
    assert sim["A"].peer_of(sim["B"]).egress == 2


def test_who_cannot_authenticate_has_no_way_asked_for() -> None:
    sim = Sim.connected()
    roads = Roads(sim["A"])
    inbound = sim["A"].device.inbound
    sim["B"].send_packet(packet("10.0.0.2", "10.0.0.1"))
    forged = sim.log[-1].datagram[:-1] + bytes([sim.log[-1].datagram[-1] ^ 1])
    inbound.buffer[: len(forged)] = forged

    inbound.datagrams_received(len(forged), 0, ELSEWHERE, b"an address of ours", 0, sim.now)

    assert roads.asked == []


def test_routes_that_change_without_changing_the_way_change_nothing() -> None:
    sim = Sim.connected()
    roads = Roads(sim["A"])
    arrives(sim, b"an address of ours")

    sim["A"].device.routes_changed(sim["A"].peer_of(sim["B"]))

    assert leaves_from(sim) == b"an address of ours"
    assert roads.asked[-1] == (sim["B"].endpoint, b"an address of ours")


def test_a_way_by_another_interface_is_free_of_the_old_ones_address_until_something_arrives() -> None:
    sim = Sim.connected()
    roads = Roads(sim["A"])
    arrives(sim, b"an address of ours")

    roads.egress = 3
    sim["A"].device.routes_changed(sim["A"].peer_of(sim["B"]))

    assert leaves_from(sim) == b""
    arrives(sim, b"an address of ours")
    assert leaves_from(sim) == b"an address of ours"


def test_a_way_that_fits_again_is_seen_when_the_routes_change() -> None:
    sim = Sim.connected()
    roads = Roads(sim["A"])
    roads.fits = False
    arrives(sim, b"an address of ours")

    roads.fits = True
    sim["A"].device.routes_changed(sim["A"].peer_of(sim["B"]))

    assert leaves_from(sim) == b"an address of ours"


def test_there_is_no_way_to_a_peer_without_an_endpoint() -> None:
    sim = Sim("A", "B")
    roads = Roads(sim["A"])
    sim["A"].peer(sim["B"], endpoint=False)

    sim["A"].device.routes_changed(sim["A"].peer_of(sim["B"]))

    assert roads.asked == []


def test_a_source_that_was_forgotten_comes_back_with_the_next_datagram() -> None:
    sim = Sim.connected()
    arrives(sim, b"an address of ours")

    sim["A"].device.forget_sources()

    assert leaves_from(sim) == b""
    arrives(sim, b"an address of ours")
    assert leaves_from(sim) == b"an address of ours"


def test_a_source_address_that_may_be_why_nobody_answers_is_forgotten() -> None:
    sim = Sim.connected()
    peer = sim["A"].peer_of(sim["B"])
    sim.cut()
    ping(sim, "A", "B")
    peer.source = b"an address of ours"

    sim.advance(16)

    assert peer.source == b""
    assert sim.sent("A", "initiation")


@pytest.mark.parametrize("is_under_load", [False, True])
def test_an_answer_leaves_from_the_address_its_initiation_came_to(is_under_load: bool) -> None:
    sim = Sim.pair()
    ping(sim, "A", "B")
    device = sim["B"].device
    for _ in range(UNDER_LOAD_MESSAGES if is_under_load else 1):
        device.message_received(sim.log[0].datagram, sim["A"].endpoint, b"an address of ours", sim.now)
    device.handle_messages(1000, sim.now)

    answers = {(kind_of(train.datagrams), train.source) for train in sim["B"].trains}
    assert answers == {("cookie reply" if is_under_load else "response", b"an address of ours")}


# -- configuration: keepalives --------------------------------------------------------------------------------------


def test_a_keepalive_interval_on_an_interface_that_is_up_sends_one_at_once() -> None:
    sim = Sim.connected()

    sim["A"].set_peer(sim["B"], persistent_keepalive=25)
    assert sent(sim) == [("A", "keepalive")]
    sim["A"].set_peer(sim["B"], persistent_keepalive=20)
    assert len(sim.log) == 1, "another interval is no news"
    sim["A"].set_peer(sim["B"], persistent_keepalive=0)
    sim["A"].set_peer(sim["B"], persistent_keepalive=20)

    assert sent(sim) == [("A", "keepalive")] * 2


def test_a_keepalive_interval_without_a_session_begins_one() -> None:
    sim = Sim.pair()

    sim["A"].set_peer(sim["B"], persistent_keepalive=25)

    assert sent(sim) == [("A", "initiation")]


def test_a_keepalive_that_is_switched_off_is_not_sent() -> None:
    sim = Sim.connected()
    sim["A"].set_peer(sim["B"], persistent_keepalive=5)
    sim.advance(6)
    sim.log.clear()

    sim["A"].set_peer(sim["B"], persistent_keepalive=0)
    sim.advance(100)

    assert sim.sent("A") == []


def test_an_endpoint_given_later_lets_go_what_waited() -> None:
    sim = Sim("A", "B")
    sim["B"].peer(sim["A"])
    sim["A"].peer(sim["B"], endpoint=False, persistent_keepalive=25)
    assert sim.log == []

    sim["A"].set_peer(sim["B"], endpoint=sim["B"].endpoint)
    sim.advance(1)

    assert sent(sim) == [("A", "initiation"), ("B", "response"), ("A", "keepalive")]


@pytest.mark.parametrize("key", LOW_ORDER)
def test_a_peer_with_a_key_of_low_order_is_listed_and_never_sent_anything(key: bytes) -> None:
    """netns.sh stage 29."""
    sim = Sim("A")
    change = SetPeer(key, endpoint=ELSEWHERE, persistent_keepalive=1, allowed_ips=(ip_network("10.9.9.9"),))

    sim["A"].device.apply([change], sim.now)
    sim["A"].send_packet(packet("10.0.0.1", "10.9.9.9"))
    sim.advance(10)

    assert sim.log == []
    assert [peer.config.public_key for peer in sim["A"].device.snapshot().peers] == [key]
    assert sim["A"].device.indices == {}


# -- link state -----------------------------------------------------------------------------------------------------


def test_an_interface_that_comes_up_greets_who_wants_keepalives() -> None:
    """netns.sh stage 23: tx_bytes are 0 before and more than 0 immediately after."""
    sim = Sim("A", "B")
    sim["A"].device.down()
    sim["A"].peer(sim["B"], persistent_keepalive=25)
    assert sim["A"].peer_of(sim["B"]).tx_bytes == 0

    sim["A"].device.up(sim.now)

    assert sim["A"].peer_of(sim["B"]).tx_bytes == 148


def test_an_interface_that_is_down_sends_and_answers_nothing() -> None:
    sim = Sim("A", "B")
    sim["A"].peer(sim["B"])
    sim["B"].peer(sim["A"], persistent_keepalive=1)
    sim.advance(1)
    sim.log.clear()

    sim["A"].device.down()
    sim["A"].set_peer(sim["B"], persistent_keepalive=1)
    ping(sim, "A", "B")
    ping(sim, "B", "A")
    sim.advance(60)

    assert sim.sent("A") == []
    assert sim.sent("B", "data") and sim.sent("B", "initiation")
    dropped = sim["A"].drops()
    assert dropped.pop("unknown_index") == len(sim.sent("B", "data", "keepalive"))
    assert dropped == {"interface_down": 1 + len(sim.sent("B", "initiation"))}


def test_an_interface_that_goes_down_forgets_its_sessions_and_shakes_hands_at_once_when_it_is_back() -> None:
    sim = Sim.connected()

    sim["A"].device.down()
    assert sim["A"].device.indices == {}
    assert sim["A"].peer_of(sim["B"]).keypairs.current is None
    assert sim["A"].device.snapshot().peers[0].last_handshake != 0, "when it was is still known"
    sim["A"].device.up(sim.now)
    data = ping(sim, "A", "B")
    sim.advance(1)

    assert sim["B"].packets == [data]


def test_what_waits_is_not_sent_after_the_interface_was_down() -> None:
    sim = Sim.pair()
    sim.cut("B")
    ping(sim, "A", "B")
    sim.advance(1)

    sim["A"].device.down()
    sim.heal()
    sim["A"].device.up(sim.now)
    sim.advance(30)

    assert sim["B"].packets == []


# -- statistics -----------------------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_kernel() -> None:
    """netns.sh stage 2: ten pings of 84 bytes."""
    sim = Sim.pair()
    for _ in range(10):
        ping(sim, "B", "A", bytes(56))
        sim.advance(0.1)
        ping(sim, "A", "B", bytes(56))
        sim.advance(0.1)

    two, one = sim["B"].peer_of(sim["A"]), sim["A"].peer_of(sim["B"])
    assert (two.tx_bytes, two.rx_bytes) == (148 + 10 * 128, 92 + 10 * 128)
    assert (one.tx_bytes, one.rx_bytes) == (two.rx_bytes, two.tx_bytes)


def test_bytes_are_those_of_all_datagrams_the_later_handshakes_included() -> None:
    sim = Sim.pair()
    for _ in range(30):
        ping(sim, "A", "B")
        sim.advance(10)
        ping(sim, "B", "A")
        sim.advance(1)

    one, two = sim["A"].peer_of(sim["B"]), sim["B"].peer_of(sim["A"])
    assert len(sim.sent("A", "initiation")) + len(sim.sent("B", "initiation")) >= 3
    assert one.tx_bytes == two.rx_bytes == sum(entry.size for entry in sim.sent("A"))
    assert two.tx_bytes == one.rx_bytes == sum(entry.size for entry in sim.sent("B"))


def test_a_snapshot_tells_each_number_of_each_peer_by_itself() -> None:
    sim = Sim.connected()
    ping(sim, "A", "B", bytes(500))
    sim["A"].device.apply([SetPeer(public_key(9))], sim.now)
    sim.advance(0.1)
    peer = sim["A"].peer_of(sim["B"])

    both = sim["A"].device.snapshot().peers
    (shown,) = sim["A"].device.snapshot([peer]).peers

    assert [each.config.public_key for each in both] == [sim["B"].public_key, public_key(9)]
    assert shown == both[0]
    assert (shown.last_handshake, shown.tx_bytes, shown.rx_bytes) == (peer.last_handshake, peer.tx_bytes, peer.rx_bytes)
    assert len({shown.last_handshake, shown.tx_bytes, shown.rx_bytes, 0}) == 4
    assert (both[1].last_handshake, both[1].tx_bytes, both[1].rx_bytes) == (0, 0, 0)


def test_a_device_begins_down_and_without_a_port() -> None:
    host = Sim.connected()["A"]
    device = Device(host, random_bytes=bytes, jitter=float, wall_clock=int)

    assert (device.is_up, device.snapshot()) == (False, DeviceSnapshot(NO_KEY, 0, 0, ()))


def test_packets_that_the_socket_does_not_take_are_counted_by_their_number() -> None:
    sim = Sim.connected()
    sim["A"].takes_sends = False
    before = sim["A"].peer_of(sim["B"]).tx_bytes

    for _ in range(3):
        ping(sim, "A", "B")
    sim["A"].device.data_sealed(sim["A"].peer_of(sim["B"]), memoryview(bytes(5 * 64)), 64, 5, 0, sim.now)

    assert sim["A"].drops() == {"send_failed": 8}
    assert sim["A"].peer_of(sim["B"]).tx_bytes == before


def test_packets_sealed_for_an_endpoint_that_is_gone_are_counted_by_their_number() -> None:
    sim = Sim.connected()
    peer = sim["A"].peer_of(sim["B"])
    peer.endpoint = None

    sim["A"].device.data_sealed(peer, memoryview(bytes(5 * 64)), 64, 5, 0, sim.now)

    assert sim["A"].drops() == {"no_endpoint": 5}


def test_the_last_handshake_is_told_in_wall_clock_time() -> None:
    sim = Sim.pair()
    assert sim["A"].device.snapshot().peers[0].last_handshake == 0

    ping(sim, "A", "B")
    sim.advance(1)

    for name, other in ("AB", "BA"):
        assert sim[name].peer_of(sim[other]).last_handshake / 1e9 == pytest.approx(sim.epoch + 1000.02, abs=0.011)


def test_a_cookie_reply_counts_for_nothing_and_moves_nothing() -> None:
    sim = Sim.pair()
    load(sim["B"])
    sim["B"].endpoint = ELSEWHERE
    ping(sim, "A", "B")
    initiation = sim.log[-1].datagram
    sim["B"].receive(initiation, 0, sim["A"].endpoint)
    before = sim["A"].device.snapshot()
    deadlines = list(sim["A"].peer_of(sim["B"]).timers.deadlines)

    sim.advance(1)

    assert [entry.kind for entry in sim.sent("B")] == ["cookie reply"]
    assert sim["A"].device.snapshot() == before, "neither bytes nor the endpoint"
    assert sim["A"].peer_of(sim["B"]).timers.deadlines == deadlines
    assert sim["B"].peer_of(sim["A"]).tx_bytes == 0
    assert len(sim.sent("A")) == 1, "it waits for its next retransmission"


# -- timers around a handshake --------------------------------------------------------------------------------------


def test_data_sent_at_the_end_of_a_handshake_is_missed_when_it_is_not_answered() -> None:
    """The initiator's first packet is lost: 15 s later it shakes hands again."""
    sim = Sim.pair()
    sim.deliver = lambda sender, datagram: () if kind_of(datagram) == "data" else (0.01,)
    ping(sim, "A", "B")

    sim.advance(20)

    first, second = sim.sent("A", "initiation")[:2]
    assert second.at - first.at == pytest.approx(15.02, abs=0.334)


def test_data_sent_at_the_confirmation_of_a_session_is_missed_when_it_is_not_answered() -> None:
    """The same at the responder, which had something to send."""
    sim = Sim.pair()
    sim.cut("B")
    ping(sim, "B", "A")
    sim.advance(1)
    sim.deliver = lambda sender, datagram: () if (sender.name, kind_of(datagram)) == ("B", "data") else (0.01,)
    sim.log.clear()
    sim["A"].device.send_initiation(sim["A"].peer_of(sim["B"]), sim.now)
    sim.advance(0.1)
    assert [entry.kind for entry in sim.log] == ["initiation", "response", "keepalive", "data"]
    start = sim.log[-1].at
    sim.cut("A")  # A's keepalives would be an answer

    sim.advance(20)

    (initiation,) = [entry for entry in sim.sent("B", "initiation") if entry.at > start][:1]
    assert 15 <= initiation.at - start <= 15.334


def test_a_responder_that_answers_at_once_sends_no_keepalive_besides() -> None:
    sim = Sim.pair()
    sim.cut("B")
    ping(sim, "B", "A")
    sim.advance(1)
    sim.heal()
    ping(sim, "A", "B")
    sim.advance(0.1)
    assert [(entry.sender, entry.kind) for entry in sim.log[-2:]] == [("A", "data"), ("B", "data")]
    sim.log.clear()

    sim.advance(14)

    assert sent(sim) == [("A", "keepalive")]


def test_what_comes_in_does_not_prolong_a_handshake_that_nobody_answers() -> None:
    """B knows nothing of A's new key and goes on sending under the session they have."""
    sim = Sim.connected()
    sim["A"].set_device(private_key=crypto.clamp(b"\x77" * 32))
    ping(sim, "A", "B")

    for _ in range(110):
        ping(sim, "B", "A")
        sim.advance(1)

    assert len(sim["A"].packets) == 110
    assert sim["A"].drops()["no_session"] == 1, "it gave up, and what waited with it"


# -- key slots ------------------------------------------------------------------------------------------------------


def indices_are_exact(host: Host) -> bool:
    """Whether the index table holds the sessions and handshakes of the peers, and nothing else."""
    expected: dict[int, tuple[Peer, Keypair | None]] = {}
    for peer in host.device.peers.values():
        for keypair in (peer.keypairs.previous, peer.keypairs.current, peer.keypairs.next):
            if keypair is not None:
                expected[keypair.local_index] = (peer, keypair)
        if peer.handshake is not None:
            assert peer.handshake.local_index == peer.handshake_index
            expected[peer.handshake_index] = (peer, None)
    return host.device.indices == expected


def test_what_was_sealed_before_a_rekey_is_opened_after_it() -> None:
    sim = Sim.connected()
    sim.advance(10)
    sim.deliver = lambda sender, datagram: (2.0,) if kind_of(datagram) == "data" else (0.01,)
    data = ping(sim, "A", "B")
    back = ping(sim, "B", "A")
    sim["A"].device.send_initiation(sim["A"].peer_of(sim["B"]), sim.now)
    sim.advance(1)
    assert sim["B"].peer_of(sim["A"]).keypairs.previous is not None

    sim.advance(2)

    assert (sim["A"].packets, sim["B"].packets) == ([back], [data])


def test_a_responder_goes_on_with_the_old_session_while_its_responses_are_lost() -> None:
    sim = Sim.connected()
    old = sim["B"].peer_of(sim["A"]).keypairs.current
    sim.deliver = lambda sender, datagram: () if kind_of(datagram) == "response" else (0.01,)
    sim.advance(10)
    sim["A"].device.send_initiation(sim["A"].peer_of(sim["B"]), sim.now)
    for _ in range(4):
        sim.advance(5.5)
        ping(sim, "B", "A")
        ping(sim, "A", "B")
    sim.advance(1)

    assert len(sim["A"].packets) == len(sim["B"].packets) == 4
    assert sim["B"].peer_of(sim["A"]).keypairs.current is old
    assert len(sim["B"].device.indices) == 2, "the session, and the newest one that waits for confirmation"
    sim.heal()
    sim.advance(6)
    ping(sim, "A", "B")
    sim.advance(1)
    assert sim["B"].peer_of(sim["A"]).keypairs.current is not old
    assert all(indices_are_exact(host) for host in sim.hosts.values())


@pytest.mark.parametrize("latency", [0.001, 0.1, 0.6])
@pytest.mark.parametrize("keepalive", [0, 5])
def test_initiations_that_cross_make_a_session_at_once(latency: float, keepalive: int) -> None:
    """Two ends that both have something to send all the time would otherwise initiate in the same moment again and again."""
    sim = Sim("A", "B")
    sim.deliver = lambda sender, datagram: (latency,)
    for name, other in ("AB", "BA"):
        sim[name].peer(sim[other], persistent_keepalive=keepalive)
    for _ in range(30):
        ping(sim, "A", "B")
        ping(sim, "B", "A")
        sim.advance(0.1)
    sim.advance(1)

    assert len(sim["A"].packets) == len(sim["B"].packets) == 30
    assert len(sim.sent("A", "initiation")) == len(sim.sent("B", "initiation")) == 1
    assert all(indices_are_exact(host) for host in sim.hosts.values())


@pytest.mark.parametrize("latency", [0.001, 0.05])
@pytest.mark.parametrize("first", ["A", "B"])
def test_initiations_that_crossed_leave_one_session_with_one_initiator_who_rekeys_without_loss(
    first: str, latency: float
) -> None:
    """If both went on with a session of their own, each rekey would cross, and cost the packets of a round trip."""
    sim = Sim.pair()
    sim.deliver = lambda sender, datagram: (latency,)
    second = "B" if first == "A" else "A"
    ping(sim, first, second)
    sim.advance(latency / 2)
    ping(sim, second, first)
    sim.advance(118)
    for _ in range(1000):
        ping(sim, "A", "B")
        ping(sim, "B", "A")
        sim.advance(0.004)
    sim.advance(1)

    assert len(sim["A"].packets) == len(sim["B"].packets) == 1001
    assert sorted([len(sim.sent("A", "initiation")), len(sim.sent("B", "initiation"))]) == [1, 2]
    one, other = sim["A"].peer_of(sim["B"]).keypairs.current, sim["B"].peer_of(sim["A"]).keypairs.current
    assert one is not None and other is not None
    assert one.remote_index == other.local_index


@pytest.mark.parametrize("late", ["A", "B"])
def test_of_crossed_initiations_one_whose_response_is_late_is_given_up(late: str) -> None:
    """The other's session is in use by then."""
    sim = Sim.pair()
    other = "B" if late == "A" else "A"
    sim.deliver = lambda sender, datagram: (0.3,) if sender.name == other and kind_of(datagram) == "response" else (0.01,)
    ping(sim, "A", "B")
    ping(sim, "B", "A")
    sim.advance(0.1)
    assert len(sim["A"].packets) == len(sim["B"].packets) == 1
    used = sim[late].peer_of(sim[other]).keypairs.current

    sim.advance(1)

    assert sim[late].peer_of(sim[other]).keypairs.current is used
    assert sim[late].drops() == {"unknown_index": 1}
    assert all(indices_are_exact(host) for host in sim.hosts.values())


@pytest.mark.parametrize("forgetful", ["A", "B"])
def test_initiations_that_cross_with_those_of_a_peer_that_forgets_its_own_make_a_session_at_once(
    forgetful: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's WireGuard and wireguard-go do."""
    sim = Sim.pair()
    host, other = (sim["A"], sim["B"]) if forgetful == "A" else (sim["B"], sim["A"])
    respond = host.device._initiation

    def respond_and_forget(message: bytes, endpoint: Endpoint, source: bytes, now: float) -> None:
        respond(message, endpoint, source, now)
        host.device._forget_handshake(host.peer_of(other))

    monkeypatch.setattr(host.device, "_initiation", respond_and_forget)
    ping(sim, "A", "B")
    ping(sim, "B", "A")
    sim.advance(1)

    assert len(sim["A"].packets) == len(sim["B"].packets) == 1


def test_a_late_response_to_an_older_initiation_is_ignored() -> None:
    sim = Sim.pair()
    sim.deliver = lambda sender, datagram: (5.7,) if kind_of(datagram) == "response" else (0.01,)
    ping(sim, "A", "B")

    sim.advance(6)

    assert len(sim.sent("A", "initiation")) == 2
    assert sim["A"].drops() == {"unknown_index": 1}
    assert not sim["A"].session_with(sim["B"])


def test_a_response_just_sent_keeps_us_from_initiating_for_5_seconds() -> None:
    """Or both ends would initiate in turn."""
    sim = Sim.pair()
    sim.cut("B")
    ping(sim, "A", "B")
    sim.advance(0.1)
    assert [entry.kind for entry in sim.sent("B")] == ["response"]

    for _ in range(49):
        ping(sim, "B", "A")
        sim.advance(0.1)
    assert sim.sent("B", "initiation") == []
    ping(sim, "B", "A")
    sim.advance(0.1)
    ping(sim, "B", "A")

    assert len(sim.sent("B", "initiation")) == 1


def test_a_second_initiation_within_20_ms_is_refused() -> None:
    sim = Sim("A", "B")
    sim["B"].peer(sim["A"])
    initiations = []
    for _ in range(2):
        sim["A"].restart()
        sim["A"].peer(sim["B"])
        ping(sim, "A", "B")
        initiations.append(sim.log[-1].datagram)
        sim.epoch += 1  # the timestamps differ

    for initiation in initiations:
        sim["B"].receive(initiation, 0, sim["A"].endpoint)

    assert sim["B"].drops() == {"initiation_flood": 1}
    assert len(sim.sent("B", "response")) == 1


steps = st.sampled_from(
    ["A sends", "B sends", "A again", "wait", "long wait", "A restarts", "A's key", "A down", "B drops A", "lossy", "heal"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=60), st.integers(0, 1000))
def test_the_index_table_holds_sessions_and_handshakes_and_nothing_else(script: list[str], seed: int) -> None:
    sim = Sim.pair(seed=seed)
    a, b = sim["A"], sim["B"]

    for step in script:
        match step:
            case "A sends":
                ping(sim, "A", "B")
            case "B sends":
                ping(sim, "B", "A")
            case "A again":
                if b.public_key in a.device.peers:
                    a.peer_of(b).timers.forget_last_handshake()
                    a.device.send_initiation(a.peer_of(b), sim.now)
            case "wait":
                sim.advance(sim.random.uniform(0, 0.1))
            case "long wait":
                sim.advance(sim.random.uniform(0, 200))
            case "A restarts":
                a.restart()
                a.peer(b)
            case "A's key":
                a.set_device(private_key=NO_KEY)
                a.set_device(private_key=a.private_key)
            case "A down":
                a.device.down()
                a.device.up(sim.now)
            case "B drops A":
                b.set_peer(a, remove=True)
                assert indices_are_exact(b)
                b.peer(a)
            case "lossy":
                sim.deliver = lambda sender, datagram: () if sim.random.random() < 0.4 else (sim.random.uniform(0, 1),)
            case "heal":
                sim.heal()
        assert indices_are_exact(a) and indices_are_exact(b)


def test_a_thousand_handshakes_leave_no_index_behind() -> None:
    sim = Sim.pair()
    sim.deliver = lambda sender, datagram: () if sim.random.random() < 0.3 else (sim.random.uniform(0, 0.02),)

    for number in range(1000):
        sender, receiver = (sim["A"], sim["B"]) if number % 3 else (sim["B"], sim["A"])
        sender.peer_of(receiver).timers.forget_last_handshake()
        sender.device.send_initiation(sender.peer_of(receiver), sim.now)
        sim.advance(sim.random.uniform(0, 0.1))

    for host in sim.hosts.values():
        assert indices_are_exact(host)
        assert len(host.device.indices) <= 4
    sim.cut()
    sim.advance(1000)
    assert sim["A"].device.indices == sim["B"].device.indices == {}


# -- load -----------------------------------------------------------------------------------------------------------


def load(host: Host) -> None:
    """Put a device under load for a second, as a flood of messages with a right mac1 would."""
    message = handshake_message(host)
    for _ in range(UNDER_LOAD_MESSAGES):
        host.device.message_received(message, ELSEWHERE, b"", host.sim.now)
    host.device._messages.clear()
    host.device.drops = dict.fromkeys(host.device.drops, 0)


def handshake_message(host: Host) -> bytes:
    """148 bytes that only mac1 is right of: anybody can make it who knows the public key."""
    body = b"\x01" + bytes(115)
    key = crypto.hash_(b"mac1----" + host.public_key)
    return body + crypto.mac(key, body) + bytes(16)


def test_only_so_many_messages_wait() -> None:
    sim = Sim("B")
    message = handshake_message(sim["B"])

    for _ in range(MAX_QUEUED_MESSAGES + 10):
        sim["B"].device.message_received(message, ELSEWHERE, b"", sim.now)

    assert sim["B"].drops() == {"handshake_queue_full": 10}
    assert sim.log == []


@pytest.mark.parametrize(("waiting", "asked"), [(10, 4), (300, 200)])
def test_no_more_messages_are_worked_on_than_asked_for(waiting: int, asked: int) -> None:
    sim = Sim("B")
    message = handshake_message(sim["B"])
    for _ in range(waiting):
        sim["B"].device.message_received(message, ELSEWHERE, b"", sim.now)

    sim["B"].device.handle_messages(asked, sim.now)

    assert sim["B"].drops() == {"bad_handshake": asked}
    assert sim["B"].device.has_messages


def test_of_those_that_are_refused_sixteen_count_as_one() -> None:
    sim = Sim("B")
    message = handshake_message(sim["B"])
    for _ in range(UNDER_LOAD_MESSAGES):
        sim["B"].device.message_received(message, ELSEWHERE, b"", sim.now)

    sim["B"].device.handle_messages(4, sim.now)

    assert sim["B"].drops() == {"under_load": 64}


def test_a_queue_of_512_messages_is_load_and_is_for_a_second_more() -> None:
    sim = Sim("B")
    device, message = sim["B"].device, handshake_message(sim["B"])
    for _ in range(511):
        device.message_received(message, ELSEWHERE, b"", sim.now)
    device.handle_messages(1000, sim.now)
    assert sim["B"].drops() == {"bad_handshake": 511}, "not yet"

    for _ in range(512):
        device.message_received(message, ELSEWHERE, b"", sim.now)
    device.handle_messages(1000, sim.now)
    assert sim["B"].drops() == {"bad_handshake": 511, "under_load": 512}
    sim.now += 0.99
    sim["B"].receive(message, 0, ELSEWHERE)
    assert sim["B"].drops() == {"bad_handshake": 511, "under_load": 513}
    sim.now += 1.01
    sim["B"].receive(message, 0, ELSEWHERE)

    assert sim["B"].drops() == {"bad_handshake": 512, "under_load": 513}
    assert {(train.endpoint, len(train.datagrams), train.ds) for train in sim["B"].trains} == {(ELSEWHERE, 64, 0)}


@pytest.mark.parametrize(("a_second", "refused"), [(4000, False), (4200, True)])
def test_who_works_on_messages_before_they_wait_is_under_load_by_their_number(a_second: int, refused: bool) -> None:
    """4,096 within a second: and as long as they come, not in turns, or each turn would cost as much as the flood."""
    sim = Sim("B")
    message = handshake_message(sim["B"])
    in_a_turn = a_second // 100

    for _ in range(100):
        sim.now += 0.01
        for _ in range(in_a_turn):
            sim["B"].receive(message, 0, ELSEWHERE)
    assert sim["B"].drops().get("under_load", 0) <= 200
    for _ in range(500):
        sim.now += 0.01
        for _ in range(in_a_turn):
            sim["B"].receive(message, 0, ELSEWHERE)

    drops = sim["B"].drops()
    assert drops.get("under_load", 0) >= 5 * a_second if refused else "under_load" not in drops


def test_load_goes_on_while_many_are_refused_though_none_waits() -> None:
    """2,000 at once, every 0.4 s: where the first of them waited, the others are answered as they come."""
    sim = Sim("B")
    message = handshake_message(sim["B"])
    load(sim["B"])

    for _ in range(20):
        sim.now += 0.4
        for _ in range(2000):
            sim["B"].receive(message, 0, ELSEWHERE)
    assert sim["B"].drops() == {"under_load": 40_000}
    sim.now += 1.01
    sim["B"].receive(message, 0, ELSEWHERE)
    assert sim["B"].drops() == {"under_load": 40_000, "bad_handshake": 1}, "a second after the last it is over"


def test_messages_that_anybody_can_make_are_no_load() -> None:
    """A wrong mac1, or a cookie reply that names no session of ours: neither may keep true handshakes out."""
    sim = Sim.pair()
    cookie_reply = b"\x03\0\0\0" + bytes(60)
    forged = handshake_message(sim["A"])  # for another key

    for _ in range(MAX_QUEUED_MESSAGES):
        for message in (cookie_reply, forged):
            sim["B"].device.message_received(message, ELSEWHERE, b"", sim.now)
    ping(sim, "A", "B")
    sim.advance(1)

    assert len(sim["B"].packets) == 1
    assert sim["B"].drops() == {"bad_mac1": MAX_QUEUED_MESSAGES, "bad_cookie_reply": MAX_QUEUED_MESSAGES}


def test_a_cookie_is_good_from_the_address_it_was_sent_to_and_only_from_there() -> None:
    sim = Sim.pair()
    load(sim["B"])
    ping(sim, "A", "B")
    sim.advance(1)
    load(sim["B"])
    sim.cut()
    sim.advance(5)
    with_cookie = sim.sent("A", "initiation")[-1].datagram
    assert with_cookie[-16:] != bytes(16)
    load(sim["B"])

    sim["B"].receive(with_cookie, 0, Endpoint(sim["A"].endpoint.host, 4))
    assert sim["B"].drops() == {"under_load": 1}
    sim["B"].receive(with_cookie, 0, sim["A"].endpoint)

    assert sim["B"].drops() == {"under_load": 1}
    assert sim.sent("B")[-1].kind == "response"


def test_a_cookie_reply_is_taken_once() -> None:
    sim = Sim.pair()
    load(sim["B"])
    ping(sim, "A", "B")
    sim.advance(1)
    reply = sim.sent("B", "cookie reply")[0].datagram

    sim["A"].receive(reply, 0, ELSEWHERE)

    assert sim["A"].drops() == {"bad_cookie_reply": 1}


def test_an_initiator_under_load_wants_a_cookie_in_the_response() -> None:
    sim = Sim.pair()
    ping(sim, "A", "B")
    load(sim["A"])
    sim.advance(1)
    assert [entry.kind for entry in sim.log] == ["initiation", "response", "cookie reply"]

    sim.advance(4)
    load(sim["A"])
    sim.advance(0.35)
    load(sim["A"])
    sim.advance(1)

    assert [entry.kind for entry in sim.log[3:]] == ["initiation", "response", "data"]
    assert sim["A"].drops() == {}


def test_under_load_an_address_is_worked_on_5_times_at_once_and_20_times_a_second() -> None:
    """All of them have proved that they are there. The port makes no difference: many may be behind one NAT."""
    sim = Sim("B", *"CDEFGHIJ")
    b, *others = sim.hosts.values()
    load(b)
    for number, host in enumerate(others):
        host.endpoint = Endpoint(ELSEWHERE.host, 1000 + number)
        b.peer(host)
        host.peer(b, persistent_keepalive=25)
    sim.advance(1)
    assert len(sim.sent("B", "cookie reply")) == 8
    sim.cut()

    def all_initiate() -> tuple[int, int]:
        """How many of 8 were answered so far, and how many refused."""
        for host in others:
            host.peer_of(b).timers.forget_last_handshake()
            host.device.send_initiation(host.peer_of(b), sim.now)
            load(b)
            b.receive(sim.log[-1].datagram, 0, host.endpoint)
            refused.append(b.drops().get("rate_limited", 0))
        return len(sim.sent("B", "response")), sum(refused)

    refused: list[int] = []
    assert all_initiate() == (5, 3)
    sim.now += 0.1
    assert all_initiate() == (5 + 2, 3 + 6)
    sim.now += 10
    assert all_initiate() == (7 + 5, 9 + 3)


# -- deadlines ------------------------------------------------------------------------------------------------------


def test_busy_traffic_does_not_fill_the_schedule() -> None:
    sim = Sim.pair()
    for name, other in ("AB", "BA"):
        sim[name].set_peer(sim[other], persistent_keepalive=25)

    for _ in range(8_000):
        ping(sim, "A", "B")
        sim.advance(0.05)
        if sim.random.random() < 0.5:
            ping(sim, "B", "A")
        sim.log.clear()
        sim["A"].writes.clear()
        for host in sim.hosts.values():
            assert len(host.device._schedule) <= 5

    assert len(sim["B"].packets) == 8_000


@pytest.mark.parametrize("removed", ["B", "C"])
def test_all_that_is_due_is_done_in_one_go_though_one_of_them_is_no_peer_any_more(removed: str) -> None:
    sim = Sim("A", "B", "C")
    for name in "BC":
        sim["A"].peer(sim[name], persistent_keepalive=25)
    sim.cut()
    sim.advance(1)
    sim["A"].set_peer(sim[removed], remove=True)
    sim.log.clear()

    sim.now += 6
    sim["A"].device.expire(sim.now)

    assert sent(sim) == [("A", "initiation")], "again, to the one that is left"


def test_at_the_last_minute_a_session_is_renewed_once_and_the_timer_tries_again() -> None:
    """Not each packet that comes in then: paper 6.2, kernel sent_lastminute_handshake."""
    sim = Sim.connected()
    sim.now += 167
    sim.cut("A")
    begun = sim.now
    while sim.now < begun + 5.3:
        ping(sim, "B", "A")
        sim.advance(0.05)

    first, *again = [entry.at - begun for entry in sim.sent("A", "initiation")]
    assert first < 0.1
    assert len(again) <= 1 and all(at - first > 5.05 for at in again), "with its jitter"


def test_an_announced_deadline_is_never_later_than_a_timer() -> None:
    sim = Sim.pair()
    sim.deliver = lambda sender, datagram: () if sim.random.random() < 0.3 else (sim.random.uniform(0, 0.5),)

    for _ in range(3000):
        sim.advance(sim.random.choice([0.01, 0.1, 1, 7]))
        ping(sim, *sim.random.choice(["AB", "BA"]))
        for name, other in ("AB", "BA"):
            assert sim[name].device.next_deadline() <= sim[name].peer_of(sim[other]).timers.next_deadline()


def test_peers_that_come_and_go_leave_deadlines_that_do_nothing() -> None:
    sim = Sim.pair()
    for _ in range(50):
        ping(sim, "A", "B")
        sim.advance(0.1)
        sim["A"].set_peer(sim["B"], remove=True)
        sim["A"].peer(sim["B"])

    sim["A"].set_peer(sim["B"], remove=True)
    sim["B"].set_peer(sim["A"], remove=True)
    sim.log.clear()
    sim.advance(1000)

    assert sim.log == []
    assert sim["A"].device._schedule == []


# -- nothing the TUN says hurts -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=120), st.binary(min_size=10, max_size=10)), max_size=10), st.booleans())
def test_whatever_is_read_from_the_interface_is_sent_staged_or_counted(reads: list[tuple[bytes, bytes]], connected: bool) -> None:
    sim = Sim.connected() if connected else Sim.pair()

    for data, header in reads:
        sim["A"].read(data, header)
        sim["A"].read(packet("10.0.0.1", "10.0.0.2", data), header)
    sim["A"].device.outbound.flush(sim.now)
    probe = packet("10.0.0.1", "10.0.0.2", b"still well")
    sim["A"].send_packet(probe)
    sim.advance(1)

    assert sim["B"].delivered()[-1] == probe
