"""The behaviour the paper describes, section by section, on devices with a virtual clock.

The constants are typed in again: the tests hold the implementation to the paper, not to itself.
"""

from itertools import pairwise

import pytest

from tests.sim import Host, Sim, packet

REKEY_AFTER_TIME = 120
REJECT_AFTER_TIME = 180
REKEY_TIMEOUT = 5
KEEPALIVE_TIMEOUT = 10


def ping(sim: Sim, sender: str, receiver: str, payload: bytes = b"ping") -> bytes:
    data = packet(sim[sender].address, sim[receiver].address, payload)
    sim[sender].send_packet(data)
    return data


def test_a_packet_crosses_after_a_handshake_of_one_and_a_half_round_trips() -> None:
    """5.4: initiation, response, data; the initiator's data confirms the session."""
    sim = Sim.pair()

    sent = ping(sim, "A", "B")
    sim.advance(1)

    assert sim["B"].packets == [sent]
    assert [entry.kind for entry in sim.log] == ["initiation", "response", "data"]
    assert [entry.size for entry in sim.log] == [148, 92, 64]


def test_both_directions_use_one_session() -> None:
    sim = Sim.connected()

    ping(sim, "B", "A")
    ping(sim, "A", "B")
    sim.advance(1)

    assert [entry.kind for entry in sim.log] == ["data", "data"]


@pytest.mark.parametrize("keys", [(b"\1" * 32, b"\1" * 32), (b"\0" * 32, b"\0" * 32)])
def test_a_preshared_key_both_know_works(keys: tuple[bytes, bytes]) -> None:
    """5.4.3: the preshared key is always mixed in, zeros when there is none."""
    sim = Sim("A", "B")
    sim["A"].peer(sim["B"], preshared_key=keys[0])
    sim["B"].peer(sim["A"], preshared_key=keys[1])

    ping(sim, "A", "B")
    sim.advance(1)

    assert len(sim["B"].packets) == 1


def test_a_preshared_key_only_one_knows_makes_no_session() -> None:
    sim = Sim("A", "B")
    sim["A"].peer(sim["B"], preshared_key=b"\1" * 32)
    sim["B"].peer(sim["A"])

    ping(sim, "A", "B")
    sim.advance(30)

    assert not sim["A"].session_with(sim["B"])
    assert sim["B"].packets == []
    assert sim["A"].drops() == {"bad_handshake": 6}


def test_the_initiator_without_packets_confirms_with_a_keepalive() -> None:
    """6.5: a persistent keepalive starts the handshake; its empty packet is what confirms."""
    sim = Sim("A", "B")
    sim["B"].peer(sim["A"])
    sim["A"].peer(sim["B"], persistent_keepalive=25)

    sim.advance(1)

    assert [entry.kind for entry in sim.log] == ["initiation", "response", "keepalive"]
    assert sim["B"].session_with(sim["A"])


def test_the_responder_sends_nothing_before_the_initiator_confirmed() -> None:
    """6.2"""
    sim = Sim("A", "B")
    sim["A"].peer(sim["B"])
    sim["B"].peer(sim["A"])
    sim.deliver = lambda sender, datagram: () if sender.name == "B" else (0.01,)
    ping(sim, "A", "B")
    sim.advance(0.1)

    ping(sim, "B", "A")
    sim.advance(1)

    assert sim.sent("B", "data") == []
    assert len(sim.sent("B", "response")) == 1


def test_20_initiations_and_then_silence_when_nobody_answers() -> None:
    """6.4, as the kernel counts: 20 in all, 5 to 5.33 s apart, the last near 98.8 s; then nothing."""
    sim = Sim.pair()
    sim.cut()

    ping(sim, "A", "B")
    sim.advance(3600)

    times = [entry.at - 1000 for entry in sim.sent("A")]
    assert len(times) == 20
    assert all(REKEY_TIMEOUT <= later - earlier <= REKEY_TIMEOUT + 0.334 for earlier, later in pairwise(times))
    assert 95 <= times[-1] <= 102
    assert sim["A"].drops() == {"no_session": 1}
    assert sim["A"].device.next_deadline() > sim.now


def test_a_new_packet_after_the_silence_starts_again() -> None:
    sim = Sim.pair()
    sim.cut()
    ping(sim, "A", "B")
    sim.advance(600)
    sim.heal()

    ping(sim, "A", "B", b"again")
    sim.advance(1)

    assert len(sim["B"].packets) == 1


def test_the_initiator_rekeys_after_120_seconds_without_losing_a_packet() -> None:
    """6.2: at 1,000 packets a second across three rekeys (and at ten in between, to save time)."""
    sim = Sim.connected()
    sent = 0

    while sim.now < 1400:
        ping(sim, "A", "B")
        sent += 1
        is_near_a_rekey = (sim.now - 1000) % REKEY_AFTER_TIME < 2 or (sim.now - 1000) % REKEY_AFTER_TIME > 119
        sim.advance(0.001 if is_near_a_rekey else 0.1)
    sim.advance(1)

    assert sent > 10_000
    assert len(sim["B"].packets) == sent
    initiations = sim.sent("A", "initiation")
    assert len(initiations) == 3
    assert initiations[0].at == pytest.approx(1000 + REKEY_AFTER_TIME, abs=0.1)
    assert sim.sent("B", "initiation") == []


def test_the_responder_never_rekeys_by_age() -> None:
    """6.2: only the initiator of a session does, or both would at once. It answers the initiator's initiations."""
    sim = Sim.connected()

    for _ in range(170):
        ping(sim, "B", "A")
        sim.advance(1)

    assert sim.sent("B", "initiation") == []


def test_an_initiator_that_receives_shortly_before_the_end_rekeys_at_once() -> None:
    """6.2: after REJECT_AFTER_TIME − KEEPALIVE_TIMEOUT − REKEY_TIMEOUT = 165 s it does not wait until it sends; and only once."""
    sim = Sim.connected()
    sim.cut("A")
    for age in (163, 166, 172):
        sim.advance(1000 + age - sim.now)
        ping(sim, "B", "A")

    sim.advance(1)

    initiations = sim.sent("A", "initiation")
    assert initiations[0].at - 1000 == pytest.approx(166, abs=0.1)
    assert all(5 <= later.at - initiations[0].at <= 5.4 for later in initiations[1:])


def test_an_old_session_is_not_used_for_sending() -> None:
    """6.2: after REJECT_AFTER_TIME a packet waits for a new handshake."""
    sim = Sim.connected()
    sim.advance(REJECT_AFTER_TIME + 1)
    sim.log.clear()

    ping(sim, "B", "A")

    assert [entry.kind for entry in sim.log] == ["initiation"]
    sim.advance(1)
    assert len(sim["A"].packets) == 1


def test_silence_after_data_starts_a_handshake_after_15_seconds() -> None:
    """6.5: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT after the first unanswered packet."""
    sim = Sim.connected()
    sim.cut()
    start = sim.now
    ping(sim, "A", "B")

    sim.advance(20)

    initiation = sim.sent("A", "initiation")[0]
    assert 15.0 <= initiation.at - start <= 15.334


def test_a_passive_keepalive_answers_data_after_10_seconds_and_no_keepalive() -> None:
    """6.5: once, and it provokes none itself."""
    sim = Sim.connected()
    sim.advance(60)
    sim.log.clear()
    start = sim.now
    ping(sim, "A", "B")

    sim.advance(60)

    assert [(entry.sender, entry.kind) for entry in sim.log] == [("A", "data"), ("B", "keepalive")]
    assert sim.log[1].at - start == pytest.approx(KEEPALIVE_TIMEOUT + 0.01, abs=0.001)


def test_persistent_keepalives_go_out_at_their_interval_while_nothing_else_does() -> None:
    sim = Sim("A", "B")
    sim["B"].peer(sim["A"])
    sim["A"].peer(sim["B"], persistent_keepalive=25)
    sim.advance(1)
    sim.log.clear()

    sim.advance(101)

    assert len(sim.sent("A", "keepalive")) == 4


def test_keys_are_forgotten_after_540_seconds() -> None:
    """6.3: three times REJECT_AFTER_TIME without a new session."""
    sim = Sim.connected()

    sim.advance(539)
    assert any(peer.keypairs.current for peer in sim["A"].device.peers.values())
    sim.advance(2)

    for host in (sim["A"], sim["B"]):
        assert host.device.indices == {}
        for peer in host.device.peers.values():
            assert (peer.keypairs.previous, peer.keypairs.current, peer.keypairs.next, peer.handshake) == (None,) * 4
        assert host.device.next_deadline() == float("inf")


def test_crossing_initiations_end_in_a_session() -> None:
    """Both sides start at once; jitter keeps them from doing so for ever."""
    sim = Sim.pair()
    ping(sim, "A", "B")
    ping(sim, "B", "A")

    sim.advance(20)

    assert len(sim["A"].packets) == 1
    assert len(sim["B"].packets) == 1


def test_under_load_a_sender_has_to_prove_its_address() -> None:
    """5.3: cookie reply instead of work; the next retransmission carries mac2 and is worked on. Nothing is sent at once."""
    sim = Sim.pair()
    loaded = sim["B"].device
    loaded._under_load_until = sim.now + 3600

    ping(sim, "A", "B")
    sim.advance(1)
    assert [entry.kind for entry in sim.log] == ["initiation", "cookie reply"]
    assert sim["B"].drops() == {"under_load": 1}

    sim.advance(6)
    # B's initiation or response is not loaded A's business; A's second initiation got through.
    assert len(sim["B"].packets) == 1


def test_the_first_handshake_has_an_outer_ds_of_0x88_and_data_carries_the_ecn_bits() -> None:
    sim = Sim.pair()
    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2", tos=0xB9))  # DSCP EF, ECT(1)
    sim.advance(1)

    assert [entry.ds for entry in sim.log] == [0x88, 0x88, 0x01]


def test_a_peer_that_moves_is_followed() -> None:
    """2.1: the endpoint is where the last authenticated message came from."""
    sim = Sim.connected()
    moved = type(sim["A"].endpoint)("198.51.100.7", 4444)
    sim["A"].endpoint = moved

    ping(sim, "A", "B")
    sim.advance(1)
    ping(sim, "B", "A")
    sim.advance(1)

    assert sim["B"].device.peers[sim["A"].public_key].endpoint == moved
    assert len(sim["A"].packets) == 1


def test_a_replayed_datagram_neither_counts_nor_moves_the_endpoint() -> None:
    sim = Sim.connected()
    ping(sim, "A", "B")
    sim.advance(1)
    recorded = sim.sent("A", "data")[0].datagram
    before = sim["B"].device.snapshot()

    elsewhere = type(sim["A"].endpoint)("203.0.113.66", 6666)
    sim["B"].receive(recorded, 0, elsewhere)

    assert sim["B"].device.snapshot() == before
    assert sim["B"].drops() == {"replayed": 1}


def test_a_replayed_initiation_is_refused() -> None:
    """5.1: its timestamp is not greater than the last."""
    sim = Sim.pair()
    ping(sim, "A", "B")
    sim.advance(1)
    recorded = sim.sent("A", "initiation")[0].datagram
    elsewhere = type(sim["A"].endpoint)("203.0.113.66", 6666)
    before = sim["B"].device.snapshot()

    sim["B"].receive(recorded, 0, elsewhere)

    assert sim["B"].drops() == {"replayed_initiation": 1}
    assert sim["B"].device.snapshot() == before


def test_128_packets_wait_for_a_session_and_the_oldest_makes_room() -> None:
    sim = Sim.pair()
    for number in range(130):
        ping(sim, "A", "B", b"%d" % number)

    sim.advance(1)

    assert sim["A"].drops() == {"staged_full": 2}
    payloads = [p[28:] for p in sim["B"].packets]
    assert payloads == [b"%d" % number for number in range(2, 130)]


def test_a_session_survives_heavy_reordering_loss_and_duplication() -> None:
    sim = Sim.connected()

    def deliver(sender: Host, datagram: bytes) -> tuple[float, ...]:
        copies = sim.random.choices((0, 1, 2), (1, 7, 2))[0]
        return tuple(sim.random.uniform(0, 0.5) for _ in range(copies))

    sim.deliver = deliver
    for number in range(5000):
        ping(sim, "A", "B", b"%d" % number)
        sim.advance(0.01)
    sim.advance(1)

    got = [p[28:] for p in sim["B"].packets]
    assert len(got) == len(set(got)), "a duplicate was delivered"
    assert len(got) > 4000
    assert set(sim["B"].drops()) <= {"replayed", "replayed_initiation"}
