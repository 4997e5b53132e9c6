"""Key slots (1.8, and paper 6.3): which session sends, and which still receive."""

import time

from tests.conformance.behaviour import behaviour, expect
from tests.conformance.peer import INITIATION, TRANSPORT, Peer, Session
from tests.conformance.trial import Trial

APART = 0.05
"""Seconds between initiations, so that none is taken for a flood."""
SILENCE_SECONDS = 17.0
"""After data that nobody answers: 15 s, jitter, and a busy machine."""


def another(peer: Peer, *, confirm: bool = True) -> Session:
    """One more session that the peer initiates."""
    time.sleep(APART)
    return peer.initiate(confirm=confirm)


def initiated(trial: Trial, peer: Peer) -> Session:
    """A session that the box initiates, because there is something to send."""
    trial.outward(b"for this")
    session = peer.respond(peer.expect(INITIATION))
    expect(b"for this" in session.receive("the packet that waited"), "another packet came first")
    return session


@behaviour("1.8", "a responder sends nothing under a session before the initiator has confirmed it")
def confirmation(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate(confirm=False)
    trial.outward(b"too early")
    peer.expect_silence(1.0, "before the session was confirmed", [TRANSPORT])
    session.send()
    expect(b"too early" in session.receive("the packet that waited"), "another packet came first")


@behaviour("1.8", "data confirms a session as a keepalive does, and is delivered")
def confirmation_by_data(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version)
        session = peer.initiate(confirm=False)
        trial.expect_inward(session, "the packet that confirms a session", version=version)
        trial.expect_outward(session, "a packet after that", version=version)


@behaviour("1.8", "what does not authenticate confirms nothing")
def confirmation_forged(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate(confirm=False)
    trial.outward(b"waits")
    forged = bytearray(session.seal(b"", counter=0))
    forged[-1] ^= 1
    peer.send(bytes(forged))
    peer.expect_silence(0.7, "after a forged confirmation", [TRANSPORT])
    session.send()
    expect(b"waits" in session.receive("the packet that waited"), "another packet came first")


@behaviour("1.8", "a new session is unconfirmed: the one before goes on sending until the initiator uses it")
def sends_under_current(trial: Trial) -> None:
    peer = trial.peer()
    first = peer.initiate()
    trial.expect_inward(first, "a packet under the first session")
    second = another(peer, confirm=False)
    trial.expect_outward(first, "a packet while the second session is not confirmed")
    trial.expect_inward(first, "a packet under the first session, which confirms nothing")
    trial.expect_outward(first, "a packet while the second session is not confirmed")
    trial.expect_inward(second, "the packet that confirms the second session")
    trial.expect_outward(second, "a packet after the second session was confirmed")
    trial.expect_inward(first, "a packet still on its way under the first session")
    trial.expect_outward(second, "a packet after one came in under the first session")


@behaviour("1.8", "an initiator confirms at once, by a keepalive where nothing waits to be sent", seconds=2)
def confirms_by_keepalive(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version, keepalive=25)
        session = peer.respond(peer.expect(INITIATION, why="for a persistent keepalive"))
        began = time.time()
        datagram = peer.expect(TRANSPORT, why="to confirm the session")
        expect(datagram.is_keepalive, f"it confirmed by {len(datagram.payload)} bytes instead of the 32 of a keepalive")
        expect(session.open(datagram) == b"", "what confirms the session is not under it")
        expect(datagram.counter == 0, f"the first counter is {datagram.counter}")
        expect(datagram.time - began < 0.7, f"it confirmed after {datagram.time - began:.2f} s")


@behaviour("1.8", "after a rekey the session before it still receives, and the one before that does not", seconds=2)
def previous_session(trial: Trial) -> None:
    peer = trial.peer()
    first = peer.initiate()
    second = another(peer)
    trial.expect_inward(second, "a packet under the second session")
    trial.expect_inward(first, "a packet under the first session")
    third = another(peer)
    trial.expect_inward(third, "a packet under the third session")
    trial.expect_inward(second, "a packet under the second session")
    trial.expect_no_inward(first, "a packet under the first session of three")
    trial.expect_outward(third, "a packet")


@behaviour("1.8", "a responder lets go of the previous session as soon as it derives a new one", seconds=2)
def previous_ends_with_next(trial: Trial) -> None:
    peer = trial.peer()
    first, second = peer.initiate(), another(peer)
    trial.expect_inward(first, "a packet under the previous session")
    third = another(peer, confirm=False)
    trial.expect_no_inward(first, "a packet under the previous session after a new one was derived")
    trial.expect_inward(second, "a packet under the current session")
    trial.expect_inward(third, "a packet under the new session")


@behaviour("1.8", "of two sessions that were never confirmed only the newer is good", seconds=2)
def unconfirmed_replaced(trial: Trial) -> None:
    peer = trial.peer()
    current = peer.initiate()
    older, newer = another(peer, confirm=False), another(peer, confirm=False)
    trial.expect_no_inward(older, "a packet under an unconfirmed session that a newer one has replaced")
    trial.expect_outward(current, "a packet while the newer session is not confirmed")
    trial.expect_inward(newer, "a packet under the newer session")
    trial.expect_outward(newer, "a packet after that")


@behaviour("1.8", "an initiator uses a new session at once, and still receives under the one before", seconds=SILENCE_SECONDS)
def initiator_rekeys(trial: Trial) -> None:
    peer = trial.peer()
    first = initiated(trial, peer)
    initiation = peer.expect(INITIATION, SILENCE_SECONDS, "though nothing was answered")
    second = peer.respond(initiation)
    confirmed = peer.expect(TRANSPORT, why="to confirm the new session")
    expect(second.open(confirmed) == b"", "the first message after the response is no keepalive under the new session")
    trial.expect_outward(second, "a packet after the rekey")
    trial.expect_inward(second, "a packet under the new session")
    trial.expect_inward(first, "a packet under the session before")
    trial.expect_outward(second, "a packet after one came in under the session before")


@behaviour("1.8", "an initiator that holds an unconfirmed session keeps it beside the one it initiates", seconds=SILENCE_SECONDS)
def initiator_keeps_unconfirmed(trial: Trial) -> None:
    peer = trial.peer()
    first = initiated(trial, peer)
    theirs = another(peer, confirm=False)
    trial.expect_outward(first, "a packet while the new session is not confirmed")
    initiation = peer.expect(INITIATION, SILENCE_SECONDS, "though nothing was answered")
    ours = peer.respond(initiation)
    trial.wait_until(lambda: confirms(ours, peer), "the new session was not confirmed")
    trial.expect_inward(theirs, "a packet under the session that was not confirmed")
    trial.expect_inward(ours, "a packet under the session that it initiated")


def confirms(session: Session, peer: Peer) -> bool:
    """Whether the next message is one under ``session``."""
    datagram = peer.receive(0.1)
    return datagram is not None and session.open(datagram) is not None
