"""Under load (1.5, and paper 5.3): what becomes of handshakes, and of everything else, while the box is flooded with them.

Most of these rows flood in bursts: each puts a WireGuard under load for a second, and leaves it the time to do its work. The last
ones flood evenly, and as much as the project promises to bear.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.behaviour import Broken, NotApplicable, behaviour, expect
from tests.conformance.flood import Flood, throughput, tunnel
from tests.conformance.peer import COOKIE_REPLY, INITIATION, RESPONSE, TRANSPORT, Datagram, Peer, Session
from tests.conformance.trial import Trial

GENTLY, BURSTS = 5000.0, 0.4
"""Initiations a second, in bursts so many seconds apart: 2,000 at a time, where 512 that wait are load for the kernel's."""
UNDER_WAY = 0.5
OVER = 1.6
"""Seconds after a flood: what waits has been worked on, and the second of load that follows is over."""
SOURCE_RATE, SOURCE_BURST = 20, 5
COOKIE_SECRET_MAX_AGE = 120.0
TRIES = 12

FLOOD = 20_000.0
RETRY_SECONDS = 5.1
NEWCOMER_SECONDS = 10.0
MEMORY_MB = 200
TRANSFER_SECONDS = 3.0
ROUNDS = 3
KEPT = 0.5
"""The share of its throughput that a tunnel keeps under the flood."""


def gentle(trial: Trial, version: int) -> Flood:
    trial.start()
    return Flood(trial, rate=GENTLY, version=version, every=BURSTS)


def answers_to(peer: Peer, message: bytes) -> list[Datagram]:
    peer.send(message)
    return peer.collect(0.25, [RESPONSE, COOKIE_REPLY])


def refused(peer: Peer, message: bytes) -> Datagram | None:
    """Send a handshake message that should get a cookie reply: that, or None if nothing came. Raises Broken for a response."""
    answers = answers_to(peer, message)
    expect(not [each for each in answers if each.message == RESPONSE], "it answered as if it were not under load")
    return answers[0] if answers else None


def get_cookie(peer: Peer) -> None:
    """Ask until a cookie comes, and keep it. A queue that is full at the moment drops what comes, so one try is not enough."""
    for _ in range(TRIES):
        reply = refused(peer, peer.initiation())
        if reply is not None:
            expect(peer.holder.consume_cookie_reply(reply.payload, time.monotonic()), "the cookie reply is not good")
            return
    raise Broken(f"no answer to {TRIES} initiations under load")


def admitted(peer: Peer) -> Session:
    """Shake hands with the cookie."""
    for _ in range(TRIES):
        for answer in answers_to(peer, peer.initiation()):
            expect(answer.message == RESPONSE, "an initiation with the right mac2 got a cookie reply")
            return peer.finish(answer)
    raise Broken(f"no answer to {TRIES} initiations with a cookie under load")


@behaviour("1.5", "under load an initiation gets a cookie reply, and with the cookie a response", seconds=5, alone=True)
def cookie_under_load(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version)
        with gentle(trial, version):
            time.sleep(UNDER_WAY)
            get_cookie(peer)
            session = admitted(peer)
            session.send()
            trial.expect_inward(session, "a packet under a session that was made under load", version=version)


@behaviour("1.5", "a cookie is good for the address and the port that it was sent to", seconds=5, alone=True)
def cookie_for_an_address(trial: Trial) -> None:
    peer = trial.peer()
    with gentle(trial, 4):
        time.sleep(UNDER_WAY)
        get_cookie(peer)
        port = peer.address[1]
        for what, where, other_port in (("port", 1, 0), ("address", 2, port)):
            peer.move(trial.plan.outer(4, where), other_port)
            came = None
            for _ in range(TRIES):
                came = came or refused(peer, peer.initiation())
            expect(came, f"no cookie reply to a mac2 that was made with the cookie of another {what}")
        peer.move(trial.plan.outer(4, 1), port)
        admitted(peer)


@behaviour("1.5", "under load a wrong mac2 gets a cookie reply, and a wrong mac1 nothing", seconds=5, alone=True)
def wrong_macs_under_load(trial: Trial) -> None:
    peer = trial.peer()
    with gentle(trial, 4):
        time.sleep(UNDER_WAY)
        get_cookie(peer)
        replies = [refused(peer, peer.initiation()[:-16] + os.urandom(16)) for _ in range(4)]
        expect(any(replies), "no cookie reply to initiations with a wrong mac2")
        for _ in range(4):
            came = refused(peer, peer.initiation()[:-32] + os.urandom(32))
            expect(came is None, "a cookie reply to an initiation with a wrong mac1")
        admitted(peer)


@behaviour("1.5", "under load a response needs mac2, too", seconds=8, alone=True)
def response_under_load(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version)
        trial.outward(version=version)
        initiation = peer.expect(INITIATION)
        with gentle(trial, version):
            time.sleep(UNDER_WAY)
            reply = refused_response(peer, initiation)
            expect(peer.holder.consume_cookie_reply(reply.payload, time.monotonic()), "the cookie reply is not good")
            message, session = peer.response(initiation)
            for _ in range(TRIES):
                peer.send(message)
                if peer.collect(0.25, [TRANSPORT]):
                    break
            trial.expect_inward(session, "a packet after a response with the right mac2 under load", version=version)


def refused_response(peer: Peer, initiation: Datagram) -> Datagram:
    """Respond until a cookie reply comes. Raises Broken if the session is confirmed instead."""
    for _ in range(TRIES):
        peer.respond(initiation)
        answers = peer.collect(0.25, [TRANSPORT, COOKIE_REPLY])
        expect(TRANSPORT not in [each.message for each in answers], "it took a response without mac2 under load")
        if answers:
            return answers[0]
    raise Broken(f"no answer to {TRIES} responses under load")


@behaviour("1.5", "load is over a second after the flood: mac2 is not asked for any more", seconds=5, alone=True)
def load_passes(trial: Trial) -> None:
    peer = trial.peer()
    with gentle(trial, 4):
        time.sleep(UNDER_WAY)
        get_cookie(peer)
    peer.learn(trial.public)  # which forgets the cookie
    time.sleep(OVER)
    peer.drain()
    peer.initiate()


@behaviour(
    "1.5", "under load a source gets 20 handshakes a second, 5 at once; others are not held up by it", seconds=8, alone=True
)
def rate_of_a_source(trial: Trial) -> None:
    first, others = households(trial, 4, (1, 2))
    with gentle(trial, 4):
        time.sleep(UNDER_WAY)
        get_cookie(first[0])
        get_cookie(others[0])
        time.sleep(1)  # until the source is as good as new
        count, seconds = burst([first])
        within(count, seconds)
        count, _ = burst([others])
        expect(count >= 3, f"after a burst from one address only {count} of {len(others)} initiations from another were answered")
        time.sleep(1)
        answered = sum(paced(first))
        expect(answered >= 8, f"of 12 initiations 60 ms apart, with the right mac2, {answered} were answered")


@behaviour("1.5", "under load all addresses of an IPv6 /64 are one source", seconds=6, alone=True)
def rate_of_a_network(trial: Trial) -> None:
    first, second = households(trial, 6, (1, 2))
    with gentle(trial, 6):
        time.sleep(UNDER_WAY)
        get_cookie(first[0])
        get_cookie(second[0])
        time.sleep(1)
        count, seconds = burst([first, second])
        within(count, seconds)


def households(trial: Trial, version: int, hosts: tuple[int, int]) -> list[list[Peer]]:
    """For each host twelve peers behind one address and port: their cookie is the same, but not what a peer may do in 20 ms."""
    found = []
    for host in hosts:
        head, *others = (trial.peer(version=version, host=host) for _ in range(12))
        for other in others:
            other.socket.close()
            other.socket, other.holder = head.socket, head.holder
        found.append([head, *others])
    return found


def burst(houses: list[list[Peer]]) -> tuple[int, float]:
    """One initiation of each peer, all at once: how many responses came, and in how many seconds."""
    messages = [(peer, peer.initiation()) for peers in houses for peer in peers]
    began = time.time()
    for peer, message in messages:
        peer.send(message)
    answers = [answer for peers in houses for answer in peers[0].collect(0.4, [RESPONSE])]
    return len(answers), max((answer.time for answer in answers), default=began) - began


def within(count: int, seconds: float) -> None:
    """Raise Broken unless so many in so many seconds is what one source may have."""
    most = SOURCE_BURST + SOURCE_RATE * seconds + 1
    expect(count <= most, f"{count} initiations of one source were answered within {seconds * 1e3:.0f} ms")
    expect(
        count >= SOURCE_BURST - 2,
        f"{count} initiations of a source that had rested were answered; {SOURCE_BURST} may come at once",
    )


def paced(peers: list[Peer]) -> Iterator[bool]:
    for peer in peers:
        peer.send(peer.initiation())
        yield bool(peer.collect(1.2 / SOURCE_RATE, [RESPONSE]))


@behaviour("1.5", "a cookie is accepted for 120 s, and then no more", seconds=COOKIE_SECRET_MAX_AGE + 5)
def cookie_secret_age(trial: Trial) -> None:
    peer = trial.peer()
    with gentle(trial, 4):
        time.sleep(UNDER_WAY)
        began = time.monotonic()
        get_cookie(peer)
    got = time.monotonic()

    def aged() -> bytes:
        """An initiation with the cookie, however old it is."""
        return peer.holder.add_macs(peer.initiation(), got)

    time.sleep(began + COOKIE_SECRET_MAX_AGE - 10 - time.monotonic())
    with gentle(trial, 4):
        time.sleep(UNDER_WAY)
        answers = [answer.message for _ in range(TRIES) for answer in answers_to(peer, aged())]
        expect(RESPONSE in answers, "a cookie of 110 s is not accepted")
        expect(COOKIE_REPLY not in answers, "a cookie of 110 s gets a cookie reply")
    time.sleep(max(0.0, got + COOKIE_SECRET_MAX_AGE + 0.5 - time.monotonic()))
    with gentle(trial, 4):
        time.sleep(UNDER_WAY)
        expect(
            any([refused(peer, aged()) for _ in range(TRIES)]), "no cookie reply to a mac2 made with a cookie of more than 120 s"
        )


# As much as is promised -------------------------------------------------------------------------------------------------


def on_a_real_machine(trial: Trial) -> None:
    if trial.box.is_emulated:
        raise NotApplicable("its machine is emulated: what that bears says nothing")


@behaviour("1.5", "under 20,000 initiations a second an honest newcomer is up within 10 s", seconds=30, alone=True, promised=True)
def newcomers_in_a_flood(trial: Trial) -> str:
    on_a_real_machine(trial)
    said = []
    for version in (6, 4):
        peers = [trial.peer(version=version, host=host) for host in (1, 2, 3, 4)]
        flood = Flood(trial, rate=FLOOD, version=version)
        with flood:
            time.sleep(1)
            took = max(join(peers))
        said.append(f"IPv{version}: four are up after {took:.1f} s at {flood.achieved():,.0f}/s")
    return "; ".join(said)


def join(peers: list[Peer]) -> list[float]:
    """Shake hands as initiators do who hear nothing, or are given a cookie: again after 5 s. How long each took, in seconds."""
    began = time.monotonic()
    due = {peer: began for peer in peers}
    up: dict[Peer, float] = {}
    while len(up) < len(peers):
        now = time.monotonic()
        expect(
            now < began + NEWCOMER_SECONDS,
            f"{len(peers) - len(up)} of {len(peers)} newcomers are not up after {now - began:.1f} s",
        )
        for peer in due.keys() - up.keys():
            if now >= due[peer]:
                due[peer] = now + RETRY_SECONDS
                peer.send(peer.initiation())
            answer = peer.receive(0.01)
            if answer is not None and answer.message == COOKIE_REPLY:
                peer.holder.consume_cookie_reply(answer.payload, time.monotonic())
            elif answer is not None and answer.message == RESPONSE:
                peer.finish(answer).send()
                up[peer] = time.monotonic() - began
    return list(up.values())


@behaviour(
    "1.5", "under 20,000 initiations a second a tunnel keeps half of its throughput", seconds=60, alone=True, promised=True
)
def throughput_in_a_flood(trial: Trial) -> str:
    on_a_real_machine(trial)
    said = []
    with tunnel(trial):
        throughput(trial, 2, inward=True)  # what is lazy is done now
        for inward, what in ((True, "in"), (False, "out")):
            quiet, flooded = [], []
            for _ in range(ROUNDS):
                quiet.append(throughput(trial, TRANSFER_SECONDS, inward=inward))
                flood = Flood(trial, rate=FLOOD)
                with flood:
                    time.sleep(1)
                    flooded.append(throughput(trial, TRANSFER_SECONDS, inward=inward))
                rate = flood.achieved()
            share = sum(flooded) / sum(quiet)
            said.append(f"{what}: {sum(flooded) / ROUNDS:,.0f} of {sum(quiet) / ROUNDS:,.0f} Mb/s ({share:.0%}) at {rate:,.0f}/s")
            expect(share >= KEPT, f"TCP {said[-1]}")
    return "; ".join(said)


@behaviour("1.5", "under 20,000 initiations a second it needs less than 200 MB of memory", seconds=8, alone=True, promised=True)
def memory_in_a_flood(trial: Trial) -> str:
    process = trial.box.process
    trial.start()
    flood = Flood(trial, rate=FLOOD)
    with flood:
        time.sleep(5)
        megabytes = resident(process)
    expect(megabytes < MEMORY_MB, f"{megabytes:.0f} MB resident at {flood.achieved():,.0f} initiations a second")
    return f"{megabytes:.0f} MB at {flood.achieved():,.0f}/s"


def resident(process: int) -> float:
    """The most that a process had in memory so far, in MB."""
    status = Path(f"/proc/{process}/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024
