"""The device (1.13): its keys, its peers, whose addresses are whose, up and down, and what it counts."""

import os
import time
from ipaddress import ip_network

from noise.crypto import clamp, public_key
from noise.tai64n import timestamp
from tests.conformance.behaviour import behaviour, expect
from tests.conformance.boxes import INTERFACE, PORT
from tests.conformance.peer import INITIATION, PATIENCE, RESPONSE, TRANSPORT, Peer
from tests.conformance.trial import Trial
from wgpy.config import NO_KEY, Endpoint, Prefix, SetDevice, SetPeer

FAMILIES = (6, 4)
"""IPv6 first: wireguard-go cannot send IPv6 after IPv4 (1.11), which is no matter of most rows."""
INITIATION_LENGTH, RESPONSE_LENGTH, OVERHEAD = 148, 92, 32


def networks(*texts: str) -> tuple[Prefix, ...]:
    return tuple(map(ip_network, texts))


def peers_shown(trial: Trial) -> list[bytes]:
    return [peer.config.public_key for peer in trial.box.get().peers]


def allowed_ips(trial: Trial, peer: Peer) -> tuple[Prefix, ...]:
    return trial.known(peer).config.allowed_ips


# Keys -----------------------------------------------------------------------------------------------------------------


def new_key(trial: Trial) -> bytes:
    """Give the box another private key; its public one."""
    private = clamp(os.urandom(32))
    trial.box.set([SetDevice(private_key=private)])
    return public_key(private)


@behaviour(
    "1.13", "with a new private key nothing is sent under the old session: the next packet shakes hands at once", seconds=2
)
def private_key_change(trial: Trial) -> None:
    for responds in (False, True):
        peer = trial.peer(host=2 if responds else 1)
        if responds:
            trial.outward()
            peer.respond(peer.expect(INITIATION)).receive()
        else:
            peer.initiate()
        time.sleep(0.1)
        public = new_key(trial)
        peer.drain()
        trial.outward(b"after that")
        came = peer.receive(PATIENCE)
        expect(came is not None, "silence for the first packet after a change of key, right after a handshake")
        assert came is not None
        expect(came.message == INITIATION, f"{came} for the first packet after a change of key")
        peer.learn(public)
        session = peer.respond(came)
        expect(b"after that" in session.receive("the packet under the new key"), "another packet came first")
        trial.expect_inward(session, "a packet under the new key")
        trial.private = trial.box.get().private_key


@behaviour("1.13", "with a new private key what comes under the old session is still taken", seconds=1)
def old_session_receives(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    trial.expect_inward(session, "a packet before the change of key")
    new_key(trial)
    trial.expect_inward(session, "a packet under the session from before the change of key")


@behaviour(
    "1.13", "with a new private key initiations for the old one are not answered, and those for the new one are", seconds=2
)
def old_key_is_not_answered(trial: Trial) -> None:
    peer = trial.peer()
    peer.initiate()
    public = new_key(trial)
    time.sleep(0.05)
    peer.send(peer.initiation())
    peer.expect_silence(0.7, "to an initiation for a key it no longer has", [RESPONSE])
    peer.learn(public)
    trial.expect_inward(peer.initiate(), "a packet under a session with the new key")


@behaviour("1.13", "a timestamp that was seen before a change of key is old after it, too", seconds=1)
def timestamps_outlive_the_key(trial: Trial) -> None:
    peer = trial.peer()
    now = time.time_ns()
    peer.send(peer.initiation(stamp=timestamp(now + 10**10)))
    peer.expect(RESPONSE)
    peer.learn(new_key(trial))
    time.sleep(0.05)
    peer.send(peer.initiation(stamp=timestamp(now)))
    peer.expect_silence(0.7, "to an initiation that is older than one under the former key", [RESPONSE])
    peer.send(peer.initiation(stamp=timestamp(now + 2 * 10**10)))
    peer.expect(RESPONSE, why="to a newer one")


@behaviour("1.13", "to set the private key that it has changes nothing", seconds=1)
def same_private_key(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    trial.expect_outward(session, "a packet before the key was set again")
    trial.box.set([SetDevice(private_key=trial.private)])
    trial.expect_outward(session, "a packet under the session, after the same key was set again")
    trial.expect_inward(session, "a packet under the session, after the same key was set again")


@behaviour("1.13", "a peer with the device's own key is ignored, and what stands beside it is not", seconds=1)
def own_key_as_peer(trial: Trial) -> None:
    trial.start()
    other = os.urandom(32)
    trial.box.set(
        [SetPeer(trial.public, allowed_ips=networks("10.1.0.0/16")), SetPeer(other, allowed_ips=networks("10.2.0.0/16"))]
    )
    expect(
        peers_shown(trial) == [other],
        "its own key is shown as a peer" if trial.public in peers_shown(trial) else "a peer is missing",
    )


@behaviour("1.13", "a peer whose key becomes the device's own is removed, and can be added again after another change", seconds=1)
def peer_becomes_ourselves(trial: Trial) -> None:
    private = clamp(os.urandom(32))
    peer = trial.peer(private=private)
    trial.box.set([SetDevice(private_key=private)])
    expect(peer.public not in peers_shown(trial), "the peer with its own key is still there")
    trial.box.set([SetDevice(private_key=trial.private)])
    expect(peer.public not in peers_shown(trial), "the peer has come back by itself")
    trial.change(peer, endpoint=Endpoint(*peer.address), allowed_ips=(trial.plan.network(4, 88),))
    trial.expect_inward(peer.initiate(), "a packet of the peer that was added again")


@behaviour("1.13", "a private key that is taken away ends everything: nothing is sent or answered any more", seconds=4)
def key_is_taken_away(trial: Trial) -> None:
    peer = trial.peer(keepalive=1)
    session = peer.respond(peer.expect(INITIATION))
    peer.expect(TRANSPORT)
    trial.box.set([SetDevice(private_key=NO_KEY)])
    expect(trial.box.get().private_key == NO_KEY, "the key is still shown")
    peer.drain()
    trial.outward()
    session.send()
    peer.send(peer.initiation())
    peer.expect_silence(2.5, "from a device whose key was taken away")


@behaviour(
    "1.13", "a device that is up without a key sends nothing, and greets who wants keepalives as soon as it has one", seconds=2
)
def key_comes_later(trial: Trial) -> None:
    trial.box.set([SetDevice(listen_port=PORT)])
    peer = trial.peer(start=False, keepalive=25)
    trial.box.up()
    peer.expect_silence(1.0, "from a device without a key")
    expect(trial.known(peer).tx_bytes == 0, "it has sent something without a key")
    trial.box.set([SetDevice(private_key=trial.private)])
    peer.respond(peer.expect(INITIATION, 1.0, "as soon as there is a key")).send()


@behaviour("1.13", "a changed preshared key counts for later handshakes: the session goes on", seconds=2)
def preshared_key_change(trial: Trial) -> None:
    peer = trial.peer(preshared=os.urandom(32))
    session = peer.initiate()
    trial.expect_outward(session, "a packet before the change")
    changed = os.urandom(32)
    trial.change(peer, preshared_key=changed)
    trial.expect_outward(session, "a packet under the session after the change of preshared key")
    trial.expect_inward(session, "a packet under the session after the change of preshared key")
    peer.preshared = changed
    time.sleep(0.05)
    session = peer.initiate()
    trial.expect_inward(session, "a packet under a session with the new preshared key")
    trial.expect_outward(session, "a packet under a session with the new preshared key")
    peer.preshared = NO_KEY
    trial.change(peer, preshared_key=NO_KEY)
    time.sleep(0.05)
    trial.expect_inward(peer.initiate(), "a packet under a session after the preshared key was taken away")


# Peers ----------------------------------------------------------------------------------------------------------------


@behaviour("1.13", "a changed endpoint keeps the session, and is used at once", seconds=1)
def endpoint_change(trial: Trial) -> None:
    for before, after in ((6, 6), (6, 4), (4, 4), (4, 6)):
        peer = trial.peer(version=before, host=before)
        session = peer.initiate()
        trial.expect_outward(session, "a packet to the old endpoint")
        peer.move(trial.plan.outer(after, 7))
        trial.change(peer, endpoint=Endpoint(*peer.address))
        trial.expect_outward(session, f"a packet to the new endpoint (IPv{before} to IPv{after})")


@behaviour("1.13", "a peer that is removed is gone: its session, its addresses, its right to an answer", seconds=2)
def peer_removal(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    trial.expect_inward(session, "a packet before the peer is removed")
    trial.change(peer, remove=True)
    expect(not peers_shown(trial), "the peer is still shown")
    trial.expect_no_inward(session, "a packet of a peer that was removed")
    time.sleep(0.05)
    peer.send(peer.initiation())
    trial.outward()
    peer.expect_silence(0.7, "to a peer that was removed")


@behaviour(
    "1.13", "a peer that is added again begins anew: nothing is left of its session, its timestamp and its counts", seconds=2
)
def peer_added_again(trial: Trial) -> None:
    peer = trial.peer()
    now = time.time_ns()
    peer.send(peer.initiation(stamp=timestamp(now + 10**10)))
    session = peer.finish(peer.expect(RESPONSE))
    trial.expect_inward(session, "a packet before the peer is removed")
    trial.change(peer, remove=True)
    trial.change(peer, endpoint=Endpoint(*peer.address), allowed_ips=(trial.plan.network(4, 88),))
    shown = trial.known(peer)
    expect((shown.tx_bytes, shown.rx_bytes, shown.last_handshake) == (0, 0, 0), "it still has the counts of before")
    trial.expect_no_inward(session, "a packet under a session from before the peer was removed")
    peer.send(peer.initiation(stamp=timestamp(now)))
    session = peer.finish(peer.expect(RESPONSE, why="to an initiation that is older than one from before the peer was removed"))
    trial.expect_inward(session, "a packet of the peer that was added again")


@behaviour("1.13", "replacing all peers removes them, and those that come with it are there", seconds=2)
def peers_replaced(trial: Trial) -> None:
    peer, other = trial.peer(), trial.peer(host=2)
    session = other.initiate()
    trial.expect_inward(session, "a packet before the peers are replaced")
    trial.box.set([SetDevice(replace_peers=True), SetPeer(peer.public, allowed_ips=networks("10.1.0.0/16"))])
    expect(peers_shown(trial) == [peer.public], "other peers are shown than those that came with the replacement")
    expect(trial.known(peer).config.endpoint is None, "a peer that was replaced still has its endpoint")
    trial.expect_no_inward(session, "a packet of a peer that was replaced")


@behaviour("1.13", "peers are listed in the order in which they were added", seconds=1)
def peers_in_order(trial: Trial) -> None:
    keys = [os.urandom(32) for _ in range(40)]
    for key in keys:
        trial.box.set([SetPeer(key)])
    trial.box.set([SetPeer(keys[3], persistent_keepalive=7)])  # which moves nobody
    expect(peers_shown(trial) == keys, "40 peers are listed in another order")


# Allowed IPs ----------------------------------------------------------------------------------------------------------


@behaviour("1.13", "allowed IPs are listed in the order in which they were added", seconds=1)
def allowed_ips_in_order(trial: Trial) -> None:
    peer = trial.peer(allowed_ips=[])
    wanted = networks("10.9.0.0/16", "fd00:5::/64", "10.1.2.3/32", "0.0.0.0/0", "10.1.0.0/16", "fd00:4::1/128", "10.200.0.0/24")
    trial.change(peer, allowed_ips=wanted[:4])
    trial.change(peer, allowed_ips=wanted[4:])
    expect(allowed_ips(trial, peer) == wanted, "they are listed in another order, or others are")


@behaviour("1.13", "an allowed IP that another peer is given moves to that one, with its packets", seconds=2)
def allowed_ip_moves(trial: Trial) -> None:
    plan = trial.plan
    for version in FAMILIES:
        keep, moving = ip_network(plan.remote(version, 100)), plan.network(version, 88)
        first = trial.peer(version=version, host=1, allowed_ips=[keep, moving])
        second = trial.peer(version=version, host=2, allowed_ips=[])
        one, two = first.initiate(), second.initiate()
        trial.expect_outward(one, "a packet to the first owner", version=version)
        trial.change(second, allowed_ips=networks("10.123.0.0/16", str(moving)))
        expect(allowed_ips(trial, first) == (keep,), "the former owner still has it")
        expect(
            allowed_ips(trial, second) == networks("10.123.0.0/16", str(moving)), "the new owner does not have it, or not last"
        )
        trial.expect_outward(two, "a packet to the new owner", version=version)
        trial.expect_inward(two, "a packet of the new owner", version=version)
        one.send(trial.inward(b"not mine any more", version=version))
        trial.inner_of(version).expect_nothing("a packet of the former owner")


@behaviour("1.13", "an allowed IP is taken away by itself, and only from the peer that has it", seconds=2)
def allowed_ip_removal(trial: Trial) -> None:
    plan = trial.plan
    for version in FAMILIES:
        keep, gone = ip_network(plan.remote(version, 100)), plan.network(version, 88)
        peer = trial.peer(version=version, host=1, allowed_ips=[keep, gone])
        other = trial.peer(version=version, host=2, allowed_ips=[])
        session = peer.initiate()
        trial.change(other, removed_allowed_ips=(gone,))
        expect(allowed_ips(trial, peer) == (keep, gone), "it was taken from a peer that was not named")
        trial.expect_inward(session, "a packet of the owner", version=version)
        trial.change(peer, removed_allowed_ips=(gone,))
        expect(allowed_ips(trial, peer) == (keep,), "it is still listed, or another is not")
        session.send(trial.inward(b"not mine any more", version=version))
        trial.inner_of(version).expect_nothing("a packet whose source was taken away")
        session.send(trial.inward(b"mine", version=version, source=plan.remote(version, 100)))
        trial.inner_of(version).expect(b"mine", "a packet with the source that was left")


@behaviour("1.13", "replacing a peer's allowed IPs takes away all others of that peer, and none of another", seconds=1)
def allowed_ips_replaced(trial: Trial) -> None:
    first = trial.peer(allowed_ips=networks("10.1.0.0/16", "fd00:1::/64"))
    second = trial.peer(host=2, allowed_ips=networks("10.2.0.0/16"))
    trial.change(first, replace_allowed_ips=True, allowed_ips=networks("10.3.0.0/16"))
    expect(allowed_ips(trial, first) == networks("10.3.0.0/16"), "the peer has others than those that were set")
    expect(allowed_ips(trial, second) == networks("10.2.0.0/16"), "another peer's have changed")
    trial.change(first, replace_allowed_ips=True)
    expect(allowed_ips(trial, first) == (), "something is left when they are replaced by nothing")


@behaviour("1.13", "the longest prefix decides to whom a packet goes", seconds=2)
def longest_prefix(trial: Trial) -> None:
    plan = trial.plan
    for version, lengths in ((4, (0, 8, 24, 25, 31, 32)), (6, (0, 16, 64, 65, 127, 128))):
        addresses = [plan.remote(version, host) for host in (200, 201)]
        chain = {length: ip_network(f"{addresses[0]}/{length}", strict=False) for length in lengths}
        peers = {length: trial.peer(host=1 + number, allowed_ips=[]) for number, length in enumerate(lengths)}
        sessions = {length: peer.initiate() for length, peer in peers.items()}
        for length in sorted(lengths, key=lambda length: length % 7):  # in no order
            trial.change(peers[length], allowed_ips=(chain[length],))
        for length in sorted(lengths, reverse=True):
            trial.outward(b"whose?", version=version, to=addresses[0])
            sessions[length].receive(f"a packet for the peer with the /{length}, which is the longest prefix left")
            trial.change(peers[length], remove=True)
        trial.change(peers[0], remove=True)


# Up and down ----------------------------------------------------------------------------------------------------------


@behaviour("1.13", "when the interface comes up, who has a persistent keepalive is greeted at once", seconds=2)
def greets_when_up(trial: Trial) -> None:
    trial.box.set([SetDevice(private_key=trial.private, listen_port=PORT)])
    peers = [trial.peer(version=version, host=version, start=False, keepalive=25) for version in FAMILIES]
    quiet = trial.peer(host=3, start=False)
    for peer in peers:
        peer.expect_silence(0.4, "before the interface is up")
    trial.box.up()
    for peer in peers:
        peer.expect(INITIATION, 1.0, "as soon as the interface is up")
    quiet.expect_silence(0.3, "to a peer without a persistent keepalive")


@behaviour("1.13", "while the interface is down nothing is sent and nothing is answered", seconds=9)
def silent_while_down(trial: Trial) -> None:
    """For 7 s: a handshake that is under way would be repeated, and keepalives would be due."""
    plan = trial.plan
    peer = trial.peer(keepalive=1, allowed_ips=[ip_network(plan.remote(4, 1))])
    session = peer.respond(peer.expect(INITIATION))
    peer.expect(TRANSPORT)
    waiting = trial.peer(host=2, allowed_ips=[ip_network(plan.remote(4, 2))])
    trial.outward(to=plan.remote(4, 2))
    waiting.expect(INITIATION)
    trial.box.down()
    time.sleep(0.2)
    peer.drain()
    session.send(trial.inward(b"to the deaf"))
    peer.send(peer.initiation())
    peer.expect_silence(7.0, "while the interface is down")
    expect(not waiting.collect(0.05), "initiation while the interface is down")
    trial.inner.expect_nothing("a packet while the interface is down", 0.05)


@behaviour("1.13", "what was agreed before the interface went down is forgotten, and a handshake may follow at once", seconds=2)
def sessions_end_when_down(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    trial.expect_inward(session, "a packet before")
    trial.box.down()
    time.sleep(0.1)
    trial.box.up()
    trial.expect_no_inward(session, "a packet under a session from before the interface was down")
    trial.outward(b"again")
    came = peer.receive(PATIENCE)
    expect(came is not None and came.message == INITIATION, f"{came} for the first packet after the interface was down")
    assert came is not None
    session = peer.respond(came)
    expect(b"again" in session.receive("the packet under the new session"), "another packet came first")
    trial.expect_inward(session, "a packet under the new session")


@behaviour("1.13", "an interface that goes down and up again in a breath was down", seconds=2)
def down_and_up_in_a_breath(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    trial.expect_inward(session, "a packet before")
    trial.box.ip(f"link set {INTERFACE} down", f"link set {INTERFACE} up", *trial.plan.tunnel_routes())
    trial.expect_no_inward(session, "a packet under a session from before the interface was down")


@behaviour("1.13", "what was configured outlives the interface's being down", seconds=2)
def configuration_outlives_down(trial: Trial) -> None:
    trial.peer(keepalive=25, preshared=os.urandom(32))
    before = trial.box.get().config
    trial.box.down()
    expect(trial.box.get().config == before, "the configuration has changed when the interface went down")
    trial.box.up()
    expect(trial.box.get().config == before, "the configuration has changed when the interface came up again")


@behaviour("2.3", "a persistent keepalive that is switched on sends one at once, and a changed interval does not", seconds=3)
def keepalive_switched_on(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    time.sleep(0.1)
    peer.drain()
    trial.change(peer, persistent_keepalive=100)
    datagram = peer.expect(TRANSPORT, 1.0, "when a persistent keepalive was switched on")
    expect(session.open(datagram) == b"", "what came is no keepalive of the session")
    trial.change(peer, persistent_keepalive=200)
    peer.expect_silence(0.7, "for a changed interval", [TRANSPORT])


# What is counted ------------------------------------------------------------------------------------------------------


@behaviour(
    "1.13", "the latest handshake is that of the clock on the wall: at a response, and at the first data under it", seconds=2
)
def latest_handshake(trial: Trial) -> None:
    def shown(peer: Peer) -> float:
        return trial.known(peer).last_handshake / 1e9

    peer = trial.peer()
    expect(shown(peer) == 0, "there is a latest handshake before the first one")
    peer.send(peer.initiation())
    session = peer.finish(peer.expect(RESPONSE))
    time.sleep(0.1)
    expect(shown(peer) == 0, "a handshake is told before the initiator has confirmed it")
    session.send()
    trial.wait_until(lambda: shown(peer), "the latest handshake after the confirmation is told")
    expect(abs(shown(peer) - time.time()) < 2, f"the latest handshake is {time.time() - shown(peer):.0f} s ago, and not now")
    first = shown(peer)
    time.sleep(0.3)
    trial.expect_inward(session, "a packet")
    expect(shown(peer) == first, "the latest handshake changes without one")
    trial.box.down()
    trial.box.up()
    trial.outward()
    peer.respond(peer.expect(INITIATION)).receive()
    expect(first + 0.2 < shown(peer) < time.time() + 2, "the latest handshake is not the one that it began itself")


@behaviour(
    "1.13", "every byte of its UDP payloads is counted, both ways, in both roles; replays and forgeries are not", seconds=2
)
def transfer(trial: Trial) -> None:
    for version in FAMILIES:
        peer = trial.peer(version=version, host=version)
        expect_transfer(trial, peer, 0, 0, "at the beginning")
        trial.outward(bytes(100))
        session = peer.respond(peer.expect(INITIATION))
        sent = INITIATION_LENGTH + OVERHEAD + len(session.receive())
        received = RESPONSE_LENGTH
        expect_transfer(trial, peer, sent, received, "after a handshake that it began, and a packet")
        datagram = session.send(trial.inward(bytes(53)))
        trial.inner.expect(bytes(53), "a packet")
        session.send()
        received += len(datagram) + OVERHEAD
        expect_transfer(trial, peer, sent, received, "after data and a keepalive that came in")
        peer.send(datagram)
        peer.send(session.seal(b"x")[:-1] + b"?")
        peer.send(peer.initiation()[:-20] + bytes(20))
        time.sleep(0.2)
        expect_transfer(trial, peer, sent, received, "after a replay, a forgery and a wrong mac1")
        peer.initiate(confirm=False)
        sent, received = sent + RESPONSE_LENGTH, received + INITIATION_LENGTH
        expect_transfer(trial, peer, sent, received, "after a handshake that the peer began")


def expect_transfer(trial: Trial, peer: Peer, sent: int, received: int, when: str) -> None:
    """Raise Broken unless the box comes to show so many bytes within a second."""
    deadline = time.monotonic() + 1
    while (counts := (trial.known(peer).tx_bytes, trial.known(peer).rx_bytes)) != (sent, received):
        said = f"{counts[0]} bytes sent and {counts[1]} received are shown {when}, instead of {sent} and {received}"
        expect(time.monotonic() < deadline, said)
        time.sleep(0.05)
