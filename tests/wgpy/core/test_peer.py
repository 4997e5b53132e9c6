from noise.constants import REJECT_AFTER_TIME
from noise.handshake import LocalStatic
from noise.timers import PeerTimers
from tests.sim import Sim
from wgpy.core.peer import Peer

LOCAL = LocalStatic(b"\x11" * 32)
OTHER = LocalStatic(b"\x22" * 32)


def new_peer() -> Peer:
    return Peer(OTHER.public, PeerTimers(lambda: 0.0))


def test_the_oldest_of_129_staged_packets_makes_room() -> None:
    peer = new_peer()

    kept = [peer.stage(b"%d" % number) for number in range(129)]

    assert kept == [True] * 128 + [False]
    assert list(peer.staged) == [b"%d" % number for number in range(1, 129)]


def test_what_is_computed_with_our_key_is_computed_once_and_forgotten_with_it() -> None:
    peer = new_peer()
    first = peer.remote(LOCAL)
    assert peer.remote(LOCAL) is first

    peer.forget_remote()
    other = peer.remote(LocalStatic(b"\x33" * 32))

    assert other.static_static != first.static_static
    assert peer.cookies is None


def test_a_peer_can_be_sent_to_while_its_current_session_is_young() -> None:
    assert not new_peer().can_send(0)
    sim = Sim.connected()
    peer = sim["A"].peer_of(sim["B"])
    assert peer.keypairs.current is not None
    end = peer.keypairs.current.created_at + REJECT_AFTER_TIME

    assert peer.can_send(end - 0.001)
    assert not peer.can_send(end)


def test_its_repr_holds_no_secret() -> None:
    sim = Sim.pair(preshared_key=b"\xee" * 32)
    sim["A"].device.send_initiation(sim["A"].peer_of(sim["B"]), sim.now)

    said = repr(sim["A"].peer_of(sim["B"]))

    for secret in (b"\xee" * 32, sim["A"].private_key):
        assert repr(secret)[2:20] not in said
    assert "ephemeral" not in said


def test_peers_are_equal_to_themselves_only() -> None:
    assert new_peer() != new_peer()
