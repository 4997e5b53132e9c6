"""MACs and cookies (1.5, and paper 5.4.4 and 5.4.7) at both ends, as long as the box is not under load."""

import os
import time

from noise.messages import CookieReply
from tests.conformance.behaviour import behaviour, expect
from tests.conformance.peer import INITIATION, RESPONSE, TRANSPORT, Datagram, Peer
from tests.conformance.trial import Trial

NO_MAC = bytes(16)
HELD_AT_LEAST, HELD_AT_MOST = 115.0, 120.0
"""How long a cookie is used. The kernel's WireGuard leaves it 5 s to travel, wireguard-go does not."""
RETRY_SECONDS, RETRY_JITTER = 5.0, 1 / 3
LATE = 0.5
"""What a busy machine may add."""


def response_of(peer: Peer) -> Datagram:
    """The response to one more initiation."""
    time.sleep(0.05)
    peer.send(peer.initiation())
    return peer.expect(RESPONSE)


# mac1 and mac2, as they come and as they are sent -----------------------------------------------------------------------


@behaviour("1.5", "an initiation with a wrong mac1 is dropped in silence")
def mac1_of_initiation(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version)
        good = peer.initiation()
        for wrong in (NO_MAC, os.urandom(16), bytes([good[-32] ^ 1]) + good[-31:-16]):
            peer.send(good[:-32] + wrong + NO_MAC)
        peer.expect_silence(0.7, "to initiations with a wrong mac1")
        peer.send(good)
        peer.finish(peer.expect(RESPONSE, why="to the same initiation with the right mac1"))


@behaviour("1.5", "a response with a wrong mac1 is ignored")
def mac1_of_response(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward()
    good, session = peer.response(peer.expect(INITIATION))
    for wrong in (NO_MAC, os.urandom(16)):
        peer.send(good[:-32] + wrong + NO_MAC)
    peer.expect_silence(0.7, "after responses with a wrong mac1", [TRANSPORT])
    peer.send(good)
    session.receive("the packet that waited, after the same response with the right mac1")


@behaviour("1.5", "who is not under load does not look at mac2", seconds=2)
def mac2_not_demanded(trial: Trial) -> None:
    peer = trial.peer()
    peer.send(peer.initiation()[:-16] + os.urandom(16))
    peer.finish(peer.expect(RESPONSE, why="to an initiation with a strange mac2"))
    other = trial.peer(host=2)
    trial.outward()
    response, session = other.response(other.expect(INITIATION))
    other.send(response[:-16] + os.urandom(16))
    session.receive("the packet that waited, after a response with a strange mac2")


@behaviour("1.5", "without a cookie mac2 is zero")
def no_cookie_no_mac2(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward()
    initiation = peer.expect(INITIATION)
    expect(initiation.mac2 == NO_MAC, "an initiation without a cookie has a mac2")
    other = trial.peer(host=2)
    expect(response_of(other).mac2 == NO_MAC, "a response without a cookie has a mac2")


# A cookie that is received ----------------------------------------------------------------------------------------------


@behaviour(
    "1.5", "a cookie is used by the next retransmission, which is neither hastened nor sent elsewhere", seconds=RETRY_SECONDS + 1
)
def cookie_for_an_initiation(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=1)
        elsewhere = trial.peer(version=version, host=2, is_known=False)
        trial.outward(version=version)
        first = peer.expect(INITIATION)
        elsewhere.send(peer.cookie_reply(first))
        second = peer.expect(INITIATION, RETRY_SECONDS + 3, "again, where the first one went")
        after = second.time - first.time
        expect(after > RETRY_SECONDS - 0.005, f"a cookie reply is followed by an initiation after {after:.3f} s")
        expect(after < RETRY_SECONDS + RETRY_JITTER + LATE, f"a cookie reply put off the retransmission: {after:.3f} s")
        expect(second.mac2 != NO_MAC, "the retransmission after a cookie reply has no mac2")
        expect(peer.mac2_is_valid(second), "the mac2 of the retransmission is not made with the cookie")
        peer.respond(second).receive("the packet that waited")


@behaviour("1.5", "a cookie for a response is used by the next handshake message to that peer, and by none to another")
def cookie_for_a_response(trial: Trial) -> None:
    for version in (6, 4):
        peer, other = trial.peer(version=version, host=1), trial.peer(version=version, host=2)
        peer.send(peer.cookie_reply(response_of(peer)))
        second = response_of(peer)
        expect(peer.mac2_is_valid(second), f"the response after a cookie reply over IPv{version} has no good mac2")
        expect(response_of(other).mac2 == NO_MAC, "a response to another peer has a mac2, too")


@behaviour("1.5", "a cookie reply that is forged, torn, or for another message is ignored", seconds=2)
def cookie_forged(trial: Trial) -> None:
    peer, other = trial.peer(), trial.peer(host=2)
    past = response_of(peer)
    theirs = response_of(other)
    now = response_of(peer)
    good = CookieReply.unpack(peer.cookie_reply(now))
    assert good is not None
    index, nonce, cookie = good.receiver_index, good.nonce, good.encrypted_cookie
    stale = peer.cookie_reply(past)
    for forged in (
        CookieReply(index, nonce, cookie[:-1] + bytes([cookie[-1] ^ 1])).pack(),
        CookieReply(index, nonce, os.urandom(32)).pack(),
        CookieReply(index, bytes(24), cookie).pack(),
        CookieReply(theirs.sender_index, nonce, cookie).pack(),
        stale,
        stale[:4] + good.pack()[4:8] + stale[8:],
        other.cookie_reply(now),
        good.pack()[:-1],
        good.pack() + bytes(1),
    ):
        peer.send(forged)
    next_one = response_of(peer)
    expect(next_one.mac2 == NO_MAC, "a cookie reply that is not good was taken")
    expect(response_of(other).mac2 == NO_MAC, "a cookie reply that is not good was taken for another peer")
    peer.send(peer.cookie_reply(next_one))
    expect(peer.mac2_is_valid(response_of(peer)), "the good cookie reply after these was not taken")


@behaviour("1.5", "each handshake message admits one cookie reply")
def cookie_once(trial: Trial) -> None:
    peer = trial.peer()
    stranger = trial.peer(host=2, is_known=False, private=peer.local.private)  # the same keys, another secret
    response = response_of(peer)
    peer.send(peer.cookie_reply(response))
    time.sleep(0.05)  # some work on several at a time
    peer.send(stranger.cookie_reply(response))
    time.sleep(0.05)
    second = response_of(peer)
    expect(not stranger.mac2_is_valid(second), "a second cookie reply to the same message was taken")
    expect(peer.mac2_is_valid(second), "after two cookie replies mac2 is made with neither")


@behaviour("1.5", "a newer cookie takes the place of the one before")
def cookie_replaced(trial: Trial) -> None:
    peer = trial.peer()
    newer = trial.peer(host=2, is_known=False, private=peer.local.private)
    peer.send(peer.cookie_reply(response_of(peer)))
    response = response_of(peer)
    expect(peer.mac2_is_valid(response), "the cookie is not used")
    peer.send(newer.cookie_reply(response))
    expect(newer.mac2_is_valid(response_of(peer)), "the newer cookie is not used")


@behaviour("1.5", "a cookie is used for 115 s at least, and for 120 s at most", seconds=HELD_AT_MOST + 3)
def cookie_age(trial: Trial) -> None:
    peer = trial.peer()
    reply = peer.cookie_reply(response_of(peer))
    earliest = time.monotonic()
    peer.send(reply)
    expect(peer.mac2_is_valid(response_of(peer)), "the cookie is not used")
    latest = time.monotonic()
    time.sleep(earliest + HELD_AT_LEAST - 1.5 - time.monotonic())
    aged = response_of(peer)
    # Our own secret is as old: mac2 is compared as its maker would have seen it.
    expect(aged.mac2 != NO_MAC, f"a cookie of {time.monotonic() - earliest:.1f} s is no longer used")
    time.sleep(max(0.0, latest + HELD_AT_MOST + 0.3 - time.monotonic()))
    expect(response_of(peer).mac2 == NO_MAC, "a cookie of more than 120 s is still used")


@behaviour("1.5", "a cookie reply touches no timer and no statistics, nor the endpoint", seconds=17)
def cookie_reply_is_no_sign_of_life(trial: Trial) -> None:
    peer = trial.peer()
    elsewhere = trial.peer(host=2, is_known=False)
    trial.outward(b"first")
    initiation = peer.expect(INITIATION)
    session = peer.respond(initiation)
    data = peer.expect(TRANSPORT)
    expect(session.open(data) is not None, "the packet does not open")
    before = trial.known(peer)
    time.sleep(2)
    for _ in range(3):  # at most one is taken, and none is proof of anything
        elsewhere.send(peer.cookie_reply(initiation))
    again = peer.expect(INITIATION, 17, "though its packet had no answer")
    after = again.time - data.time
    expect(15 - 0.005 < after < 15 + RETRY_JITTER + LATE, f"it initiated {after:.2f} s after a packet that had no answer, not 15")
    expect(peer.mac2_is_valid(again), "the cookie is not used")
    known = trial.known(peer)
    expect(known.rx_bytes == before.rx_bytes, f"a cookie reply counts as {known.rx_bytes - before.rx_bytes} received bytes")
