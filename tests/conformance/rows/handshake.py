"""Handshakes (1.3, and paper 5.4): who gets an answer, and what makes an initiation old."""

import os
import time

from noise.tai64n import timestamp
from tests.conformance.behaviour import behaviour, expect
from tests.conformance.peer import INITIATION, RESPONSE, TRANSPORT
from tests.conformance.trial import Trial


@behaviour("1.3", "it answers an initiation, and both sides have the same keys")
def responder(trial: Trial) -> None:
    for version in (4, 6):
        peer = trial.peer(version=version, host=version)
        session = peer.initiate()
        session.send(trial.inward(b"one"))
        trial.inner.expect(b"one", f"a packet under the session it answered over IPv{version}")


@behaviour("1.3", "it initiates when there is something to send, and confirms the session at once")
def initiator(trial: Trial) -> None:
    peer = trial.peer()
    trial.outward(b"first")
    session = peer.respond(peer.expect(INITIATION, why="for a packet without a session"))
    expect(b"first" in session.receive("the packet that had to wait"), "what came first under the session is another packet")


@behaviour("1.3", "a preshared key is mixed in, and one that differs is no session")
def preshared_key(trial: Trial) -> None:
    peer = trial.peer(preshared=os.urandom(32))
    session = peer.initiate()
    session.send(trial.inward(b"one"))
    trial.inner.expect(b"one", "a packet under a session with a preshared key")
    peer.preshared = os.urandom(32)
    trial.box.restart()
    stranger = trial.peer(preshared=os.urandom(32), is_known=False)
    stranger.send(stranger.initiation())
    stranger.expect_silence(1.0, "answered a peer that is not configured", [RESPONSE])


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


@behaviour("1.1", "anything in the reserved bytes makes a message unknown")
def reserved_bytes(trial: Trial) -> None:
    peer = trial.peer()
    for at in (1, 2, 3):
        message = bytearray(peer.initiation())
        message[at] = 1
        peer.send(bytes(message))
        # Nothing of mac1 covers the type as one reads it: a MAC over the changed bytes is good, too.
        remade = peer.holder.add_macs(bytes(message), time.monotonic())
        peer.send(remade)
        time.sleep(0.05)
    peer.expect_silence(0.7, "to a message with reserved bytes set", [RESPONSE])
    session = peer.initiate()
    datagram = bytearray(session.seal(trial.inward(b"x")))
    datagram[1] = 1
    peer.send(bytes(datagram))
    trial.inner.expect_nothing("a transport message with a reserved byte set")
    session.send(trial.inward(b"y"))
    trial.inner.expect(b"y", "a packet after that")


@behaviour("1.8", "a responder sends nothing under a session before the initiator has confirmed it")
def confirmation(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate(confirm=False)
    trial.outward(b"too early")
    peer.expect_silence(1.0, "before the session was confirmed", [TRANSPORT])
    session.send()
    expect(b"too early" in session.receive("the packet that waited"), "another packet came first")
