"""Messages and handshakes (1.1 to 1.3, and paper 5.4): who gets an answer, and what makes an initiation old."""

import os
import time
from ipaddress import ip_network

from noise.crypto import clamp, dh, public_key
from noise.messages import HandshakeResponse
from noise.tai64n import timestamp
from tests.conformance import forge
from tests.conformance.behaviour import behaviour, expect
from tests.conformance.boxes import PORT
from tests.conformance.peer import INITIATION, RESPONSE, TRANSPORT, Datagram, Peer, Session, stamp_of, unpacked
from tests.conformance.trial import Trial
from wgpy.config import Endpoint, SetDevice, SetPeer

RETRY_SECONDS = 8.0
"""A retransmission has come by then: 5 s, jitter, and a busy machine."""
FLOOD_SECONDS = 0.02
"""An initiation is not consumed sooner after another of the same peer."""


# 1.1 Messages ---------------------------------------------------------------------------------------------------------


@behaviour("1.1", "anything in the reserved bytes makes a message unknown")
def reserved_bytes(trial: Trial) -> None:
    peer = trial.peer()
    for at in (1, 2, 3):
        message = bytearray(peer.initiation())
        message[at] = 1
        peer.send(bytes(message))
        # The MACs cover these bytes as they are: with MACs of its own the message is as good as it can be.
        peer.send(peer.with_macs(bytes(message)))
        time.sleep(0.05)
    peer.expect_silence(0.7, "to a message with reserved bytes set", [RESPONSE])
    session = peer.initiate()
    datagram = bytearray(session.seal(trial.inward(b"x")))
    datagram[1] = 1
    peer.send(bytes(datagram))
    trial.inner.expect_nothing("a transport message with a reserved byte set")
    trial.expect_inward(session, "a packet after that")


@behaviour("1.1", "a handshake message that is longer or shorter than its type says is dropped", seconds=2)
def message_lengths(trial: Trial) -> None:
    peer = trial.peer()
    good = peer.initiation()
    for bad in (good + bytes(1), good[:-1], good[:-32], peer.with_macs(good + bytes(16)), peer.with_macs(good[:-16])):
        peer.send(bad)
    peer.expect_silence(0.5, "to initiations of a wrong length")
    trial.outward()
    initiation = peer.expect(INITIATION)
    response, session = peer.response(initiation)
    for bad in (response + bytes(1), response[:-1], peer.with_macs(response + bytes(16))):
        peer.send(bad)
    peer.expect_silence(0.5, "after responses of a wrong length", [TRANSPORT])
    peer.send(response)
    session.receive("a packet after the response of the right length")


@behaviour("1.1", "what is no message of WireGuard gets no answer, and does no harm")
def strange_datagrams(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    for kind in (*range(7), 0xFFFFFFFF):
        for length in (0, 1, 3, 4, 15, 16, 31, 32, 63, 64, 65, 91, 92, 93, 147, 148, 149, 1500):
            peer.send((kind.to_bytes(4, "little") + os.urandom(1500))[:length])
    peer.expect_silence(0.7, "to bytes that mean nothing")
    trial.inner.expect_nothing("bytes that mean nothing", 0.1)
    trial.expect_inward(session, "a packet after that")


@behaviour("1.1", "transport data of any length that arrives is taken, whatever the interface's MTU")
def long_transport_data(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    for length in (0, 1, 1400, 3000, 8000):
        payload = os.urandom(length)
        session.send(trial.inward(payload))
        trial.inner.expect(payload, f"a packet with {length} bytes in it")


# 1.3 Who is answered, and how -----------------------------------------------------------------------------------------


@behaviour("1.3", "it answers an initiation, and both sides have the same keys")
def responder(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version)
        session = peer.initiate()
        for inside in (4, 6):
            trial.expect_inward(session, f"an IPv{inside} packet under the session it answered over IPv{version}", version=inside)
            trial.expect_outward(
                session, f"an IPv{inside} packet under the session it answered over IPv{version}", version=inside
            )


@behaviour("1.3", "it initiates when there is something to send, and sends that first")
def initiator(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version)
        trial.outward(b"first")
        session = peer.respond(peer.expect(INITIATION, why=f"over IPv{version} for a packet without a session"))
        expect(b"first" in session.receive("the packet that had to wait"), "what came first under the session is another packet")
        trial.expect_inward(session, f"a packet under the session it initiated over IPv{version}", version=10 - version)
        trial.expect_outward(session, f"a packet under the session it initiated over IPv{version}", version=10 - version)


@behaviour("1.3", "whom it answers over IPv6 does not depend on what it sent over IPv4 before")
def families_apart(trial: Trial) -> None:
    for version in (4, 6, 4, 6):
        peer = trial.peer(version=version, host=version)
        peer.initiate()


@behaviour("1.3", "each initiation has an ephemeral key and a sender index of its own", seconds=RETRY_SECONDS)
def fresh_initiations(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward()
    first = peer.expect(INITIATION)
    second = peer.expect(INITIATION, RETRY_SECONDS, "again")
    expect(unpacked(first).unencrypted_ephemeral != unpacked(second).unencrypted_ephemeral, "the ephemeral key is used twice")
    expect(first.sender_index != second.sender_index, "the sender index is used twice")
    expect(stamp_of(peer.consume(first)) < stamp_of(peer.consume(second)), "the second timestamp is not greater")


@behaviour("1.3", "each response names the initiation's index, with an ephemeral key and an index of its own")
def fresh_responses(trial: Trial) -> None:
    peer = trial.peer()
    seen: set[bytes] = set()
    for index in (1, 0xFFFFFFFF, 0x01020304):
        peer.send(peer.initiation(index=index))
        response = peer.expect(RESPONSE)
        expect(response.receiver_index == index, f"it answered {response.receiver_index:#x} instead of {index:#x}")
        peer.finish(response)
        seen |= {response.payload[4:8], response.payload[12:44]}
        time.sleep(0.05)
    expect(len(seen) == 6, "a response's index or ephemeral key was used twice")


@behaviour("1.3", "who is no peer gets no answer")
def stranger(trial: Trial) -> None:
    peer = trial.peer()
    unknown = trial.peer(host=2, is_known=False)
    unknown.send(unknown.initiation())
    unknown.expect_silence(1.0, "to somebody who is not configured")
    peer.initiate()


@behaviour("1.3", "a preshared key is mixed in, and a response made with another one is ignored", seconds=2)
def preshared_key(trial: Trial) -> None:
    peer = trial.peer(preshared=os.urandom(32))
    trial.expect_inward(peer.initiate(), "a packet under a session with a preshared key")
    peer = trial.peer(host=2, preshared=os.urandom(32))
    trial.outward()
    initiation = peer.expect(INITIATION)
    good, peer.preshared = peer.preshared, os.urandom(32)
    peer.respond(initiation)
    peer.preshared = bytes(32)
    peer.respond(initiation)
    peer.expect_silence(0.7, "after a response with another preshared key", [TRANSPORT])
    peer.preshared = good
    peer.respond(initiation).receive("the packet that waited, after a response with the right preshared key")


@behaviour("1.3", "a forged initiation has no answer, and does not change what is answered next")
def forged_initiation(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    time.sleep(0.05)
    later = time.time_ns() + 10**10
    good = peer.initiation(stamp=timestamp(later))
    for at in (8, 40, 87, 88, 115):  # the ephemeral, the encrypted static and timestamp
        forged = bytearray(good)
        forged[at] ^= 4
        peer.send(peer.with_macs(bytes(forged)))
    peer.expect_silence(0.7, "to forged initiations")
    trial.expect_inward(session, "a packet under the session there was")
    peer.send(good)
    peer.finish(peer.expect(RESPONSE, why="to the good initiation that the forged ones were made of"))


@behaviour("1.3", "a forged response is ignored, and the true one is still taken", seconds=2)
def forged_response(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward()
    good, session = peer.response(peer.expect(INITIATION))
    for at in (8, 12, 44, 59):  # the receiver index, the ephemeral, the tag
        forged = bytearray(good)
        forged[at] ^= 4
        peer.send(peer.with_macs(bytes(forged)))
    peer.expect_silence(0.7, "after forged responses", [TRANSPORT])
    peer.send(good)
    session.receive("the packet that waited, after the true response")


@behaviour("1.3", "a response to an initiation that a newer one has replaced is ignored", seconds=RETRY_SECONDS)
def late_response(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward()
    older = peer.expect(INITIATION)
    newer = peer.expect(INITIATION, RETRY_SECONDS, "again")
    peer.respond(older)
    peer.expect_silence(0.7, "after a response to an initiation that was replaced", [TRANSPORT])
    peer.respond(newer).receive("the packet that waited, after the response to the newer initiation")


@behaviour("1.3", "a response is taken once", seconds=2)
def replayed_response(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward()
    message, session = peer.response(peer.expect(INITIATION))
    peer.send(message)
    session.receive("the packet that waited")
    trial.expect_inward(session, "a packet under the session")
    peer.send(message)
    peer.expect_silence(0.7, "after the same response again", [TRANSPORT])
    trial.expect_inward(session, "a packet after that")
    trial.expect_outward(session, "a packet after that")


@behaviour("1.3", "an index is good for one thing: a response for a handshake's, transport data for a session's", seconds=2)
def index_kinds(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    # A response to its response, which names a session: of the right length, with the right mac1.
    bogus = HandshakeResponse(1, session.keys.remote_index, os.urandom(32), os.urandom(16)).pack()
    peer.send(peer.with_macs(bogus))
    peer.expect_silence(0.5, "to a response that names a session", [TRANSPORT, INITIATION])
    trial.expect_inward(session, "a packet after that")
    other = trial.peer(host=2)
    trial.outward()
    initiation = other.expect(INITIATION)
    for length in (16, 48):
        other.send(bytes([4, 0, 0, 0]) + initiation.payload[4:8] + bytes(8) + os.urandom(length))
    other.expect_silence(0.5, "to transport data that names a handshake", [TRANSPORT])
    other.respond(initiation).receive("the packet that waited")


@behaviour("1.3", "initiations that cross lead to a session that carries data both ways", seconds=2)
def crossing_initiations(trial: Trial) -> None:
    for host, answers in enumerate(("neither", "before", "after"), start=1):
        cross(trial, trial.peer(host=host), answers)


def cross(trial: Trial, peer: Peer, answers: str) -> None:
    """Initiate while the box does, and answer its initiation before or after it answers ours, or not at all."""
    trial.outward()
    theirs = peer.expect(INITIATION)
    sessions = [peer.respond(theirs)] if answers == "before" else []
    peer.send(peer.initiation())
    ours = peer.finish(peer.expect(RESPONSE, why="to an initiation that crossed its own"))
    if answers == "after":
        sessions.append(peer.respond(theirs))
    ours.send()
    why = f"a packet after initiations that crossed (its own answered: {answers})"
    trial.expect_inward(ours, why)
    trial.outward(b"both ways")
    trial.wait_until(lambda: carries(peer.receive(0.1), [ours, *sessions], b"both ways"), why)


def carries(datagram: Datagram | None, sessions: list[Session], payload: bytes) -> bool:
    """Whether ``payload`` is in a datagram, under one of these sessions."""
    return datagram is not None and any(payload in (each.open(datagram) or b"") for each in sessions)


# Timestamps -----------------------------------------------------------------------------------------------------------


@behaviour("1.3", "an initiation whose timestamp is not newer is dropped")
def replayed_initiation(trial: Trial) -> None:
    peer = trial.peer()
    now = time.time_ns()
    peer.send(peer.initiation(stamp=timestamp(now)))
    peer.expect(RESPONSE)
    time.sleep(0.1)
    peer.send(peer.initiation(stamp=timestamp(now)))
    peer.send(peer.initiation(stamp=timestamp(now - 10**9)))
    peer.expect_silence(1.0, "to an initiation that is no newer than the last one", [RESPONSE])
    peer.send(peer.initiation(stamp=timestamp(now + 10**9)))
    peer.expect(RESPONSE, why="to a newer one after that")


@behaviour("1.3", "a clock that is years ahead or behind is no matter, as long as it goes forward")
def strange_clocks(trial: Trial) -> None:
    for host, year in ((1, -20), (2, 200)):
        peer = trial.peer(host=host)
        for later in (0, 1):
            peer.send(peer.initiation(stamp=timestamp(time.time_ns() + (year * 365 * 86400 + later) * 10**9)))
            peer.expect(RESPONSE, why=f"to a peer whose clock is {year} years off")
            time.sleep(0.05)


@behaviour("1.3", "timestamps are TAI64N, and tell the time to 16.8 ms only", seconds=6)
def whitened_timestamps(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward()
    for _ in range(2):
        initiation = peer.expect(INITIATION, RETRY_SECONDS)
        stamp = stamp_of(peer.consume(initiation))
        seconds, nanoseconds = int.from_bytes(stamp[:8]) - 2**62, int.from_bytes(stamp[8:])
        # TAI is ahead of UTC by 10 s in 1970 and by 37 s since 2017; which of them one takes is nobody's business.
        expect(5 < seconds - initiation.time < 40, f"its clock is {seconds - initiation.time:.0f} s off TAI, which is 10 to 37")
        expect(nanoseconds < 10**9, f"the timestamp says {nanoseconds} nanoseconds")
        expect(nanoseconds & 0xFFFFFF == 0, f"the timestamp tells {nanoseconds} ns: the lower 24 bits are not cleared")


@behaviour("1.3", "initiations of a peer 20 ms apart are all answered", seconds=2)
def fifty_initiations_a_second(trial: Trial) -> None:
    peer = trial.peer()
    stamp = time.time_ns()
    for count in range(12):
        peer.send(peer.initiation(stamp=timestamp(stamp + count * 2**25)))
        peer.expect(RESPONSE, why=f"to initiation {count + 1}, 22 ms after the answer to the one before")
        time.sleep(FLOOD_SECONDS + 0.002)


@behaviour("1.3", "initiations of a peer that come within 20 ms of the last are dropped", seconds=2)
def initiation_flood(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version)
        stamp = time.time_ns()
        messages = [peer.initiation(stamp=timestamp(stamp + count * 2**25)) for count in range(20)]
        began = time.time()
        for message in messages:
            peer.send(message)
        answers = peer.collect(0.7, [RESPONSE])
        expect(answers, "no answer to any of 20 initiations")
        lasted = answers[-1].time - began
        allowed = 1 + (lasted + 0.001) / FLOOD_SECONDS
        expect(len(answers) <= allowed, f"{len(answers)} of 20 initiations were answered in {lasted * 1e3:.0f} ms")


# Keys that are none ---------------------------------------------------------------------------------------------------


@behaviour("1.3", "an initiation with an ephemeral key of low order is dropped")
def low_order_ephemeral(trial: Trial) -> None:
    peer = trial.peer()
    for later, point in enumerate(forge.LOW_ORDER_POINTS):
        stamp = timestamp(time.time_ns() + later * 2**25)
        shared = peer.remote.static_static
        made = forge.initiation(peer.remote.public, point, peer.public, es=forge.ZERO, ss=shared, timestamp=stamp)
        peer.send(peer.with_macs(made))
        peer.expect_silence(0.1, f"to an initiation with the ephemeral key {point.hex()[:8]}… of low order")
    time.sleep(0.05)
    peer.send(peer.initiation(stamp=timestamp(time.time_ns() + 10**9)))
    peer.finish(peer.expect(RESPONSE, why="to a good initiation after that"))


@behaviour("1.3", "a response with an ephemeral key of low order is ignored, and the true one is still taken", seconds=2)
def low_order_response(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward()
    initiation = peer.expect(INITIATION)
    consumed = peer.consume(initiation)
    for point in forge.LOW_ORDER_POINTS:
        peer.send(peer.with_macs(forge.response(consumed, point, ee=forge.ZERO, se=forge.ZERO)))
    peer.expect_silence(0.7, "after responses with ephemeral keys of low order", [TRANSPORT])
    peer.respond(initiation).receive("the packet that waited, after the true response")


@behaviour("1.3", "a peer whose key is of low order is neither greeted nor answered", seconds=3)
def low_order_peer(trial: Trial) -> None:
    hand = trial.peer(is_known=False)
    points = forge.LOW_ORDER_POINTS[:-2]  # the last two are the first two again, for who counts modulo p
    for host, point in enumerate(points, start=1):
        allowed_ips = (ip_network(trial.plan.remote(4, host)),)
        trial.box.set([SetPeer(point, endpoint=Endpoint(*hand.address), persistent_keepalive=1, allowed_ips=allowed_ips)])
    trial.outward()
    hand.expect_silence(1.5, "to a peer whose key is of low order")
    for point in points:
        # With DH results of zero anybody can make this: no private key is needed.
        ephemeral = os.urandom(32)
        shared, stamp = dh(ephemeral, hand.remote.public), timestamp(time.time_ns())
        made = forge.initiation(hand.remote.public, public_key(ephemeral), point, es=shared, ss=forge.ZERO, timestamp=stamp)
        hand.send(hand.with_macs(made))
    hand.expect_silence(0.7, "to an initiation that anybody can make for a peer whose key is of low order")


@behaviour("1.3", "without a private key it neither initiates nor answers", seconds=3)
def no_private_key(trial: Trial) -> None:
    trial.box.set([SetDevice(listen_port=PORT)])
    peer = trial.peer(start=False, keepalive=1)
    trial.box.up()
    trial.outward()
    peer.expect_silence(1.5, "from a device without a private key")
    peer.learn(public_key(clamp(bytes(32))))  # what the key of zeros would be, if it were one
    peer.send(peer.initiation())
    peer.expect_silence(0.7, "from a device without a private key, to an initiation for the key of zeros")
