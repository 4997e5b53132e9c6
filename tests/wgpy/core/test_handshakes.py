"""What becomes of handshakes is counted at both ends, and each outcome once."""

from tests.sim import Sim, packet
from wgpy.core.handshakes import Handshake


def counted(sim: Sim, name: str) -> dict[str, int]:
    return {result.value: count for result, count in sim[name].device.handshakes.items() if count}


def test_a_handshake_counts_at_the_initiator_and_at_the_responder() -> None:
    sim = Sim.connected()

    assert counted(sim, "A") == {"begun": 1, "initiated": 1}
    assert counted(sim, "B") == {"answered": 1}
    assert sim["A"].device.rekeys == sim["B"].device.rekeys == 0


def test_what_takes_the_place_of_a_session_that_is_good_is_a_rekey_and_what_follows_a_rest_is_none() -> None:
    sim = Sim.connected()
    for _ in range(13):
        sim.advance(10)
        sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"))
    sim.advance(1)
    assert (sim["A"].device.rekeys, sim["B"].device.rekeys) == (1, 1)

    sim.advance(1000)
    before = counted(sim, "A")["initiated"]
    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"))
    sim.advance(1)
    assert counted(sim, "A")["initiated"] == before + 1
    assert (sim["A"].device.rekeys, sim["B"].device.rekeys) == (1, 1)


def test_a_peer_that_never_answers_is_asked_twenty_times_and_given_up() -> None:
    sim = Sim("A", "B")
    sim["A"].peer(sim["B"])  # B does not know A

    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"))
    sim.advance(120)

    found = counted(sim, "A")
    assert found["given_up"] == 1 and Handshake.INITIATED.value not in found
    assert found["begun"] == found["unanswered"] + 1 >= 18


def test_queued_messages_are_those_that_wait() -> None:
    sim = Sim.pair()
    sim["A"].send_packet(packet("10.0.0.1", "10.0.0.2"))
    sim.advance(1)
    device = sim["B"].device
    for _ in range(3):
        device.message_received(sim.log[0].datagram, sim["A"].endpoint, b"", sim.now)
    assert device.queued_messages == 3

    device.handle_messages(1000, sim.now)
    assert device.queued_messages == 0
