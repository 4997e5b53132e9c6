"""The matrix: real implementations with each other, on good wires and on bad ones.

A row is tried on a :class:`~tests.conformance.pair.Pair`; its title is about the first side, the second is anybody. Nothing is
played by hand here: what is wanted is that traffic goes on. TCP has to arrive as it was sent, of UDP nothing may come twice, and
the bounds are the protocol's times and those that TCP adds to them: its retransmissions double their distance, so it is back at
most as long after the tunnel as the tunnel was away.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from itertools import product

from noise.handshake import HandshakeError, LocalStatic, RemoteStatic, consume_initiation
from tests.conformance.behaviour import Broken, NotApplicable, Pairing, behaviour, expect
from tests.conformance.boxes import INTERFACE, MTU, PORT
from tests.conformance.forwarder import Badness
from tests.conformance.pair import Flow, Pair, await_packet, send_steadily, streams
from tests.conformance.peer import INITIATION
from wgpy.config import Endpoint, SetDevice, SetPeer

REKEY_AFTER = 120
REKEY_TIMEOUT = 5.34
TRIES = 8
"""Of two who begin at once and cross again and again. In an emulated guest on a busy machine that is likelier than not."""
NEW_HANDSHAKE = 15.34
"""Seconds after which unanswered data is followed by an initiation, with all its jitter (protocol 1.7)."""
SLOWNESS = 2.0
"""Seconds that anything may take longer on a busy machine."""
HOUR = 3600
MIB = 1 << 20
AGAIN = 1.0
"""Seconds after which a packet that has not arrived is sent once more."""
LARGEST = 1392
"""Bytes of payload in an ICMP echo over IPv4 that fills the tunnel's MTU."""


# A good wire ------------------------------------------------------------------------------------------------------------


@behaviour("matrix", "pings, packets and TCP pass both ways, over IPv4 and IPv6, with and without a preshared key",
           seconds=8, pairing=Pairing(everyone=True))  # fmt: skip
def traffic(pair: Pair) -> None:
    for outer, preshared in product((4, 6), (False, True)):
        pair.connect(outer, preshared=preshared)
        over = f"over IPv{outer}{' with a preshared key' * preshared}"
        pair.expect_packets(f"the first packets {over}")
        for (source, _), version in product(pair.directions, (4, 6)):
            came = pair.ping(source, version, count=2)
            expect(came == 2, f"{came} of 2 pings from {source.name} came back {over}, IPv{version} inside")
            with pair.flow(source, version, size=MIB):
                pass


@behaviour("matrix", "it takes a new session after two minutes, and not a packet is lost over it or comes twice",
           seconds=135, pairing=Pairing())  # fmt: skip
def rekey(pair: Pair) -> str:
    """Few packets at first, and 200/s each way while it happens."""
    pair.meet()
    began = time.monotonic()
    at_first = pair.session("at first")
    with streams(pair) as both:
        send_steadily(both, 10, began + REKEY_AFTER - 2 - time.monotonic())
        before = pair.session("before it is time")
        send_steadily(both, 200, began + REKEY_AFTER + 8 - time.monotonic())
        lost = [stream.lost() for stream in both]
    after = pair.session("afterwards")
    for stream, missing in zip(both, lost, strict=True):
        expect(not missing, f"{len(missing)} of {stream.sent} packets {stream.said} were lost: {spans(missing)}")
        expect(not stream.twice, f"{len(stream.twice)} packets {stream.said} came twice", stream.receiver)
    expect(before == at_first, f"there was a new session before {REKEY_AFTER} s")
    expect(not set(after) & set(before), f"there was no new session {REKEY_AFTER + 8} s after the first")
    return f"{sum(stream.sent for stream in both)} packets"


@behaviour("matrix", "both begin at the same moment, twenty times, and have a session each time",
           seconds=120, pairing=Pairing(symmetric=True))  # fmt: skip
def crossing(pair: Pair) -> str:
    """10 ms on the way, so that the initiations do cross. Who forgets its own over the other's needs a second try, and as the
    jitter is at most 333 ms, one in seventeen of these crosses again."""
    pair.bad_wire(Badness(delay=0.01))
    retried = 0
    for number in range(20):
        pair.connect(4 if number < 10 else 6)
        marks = [os.urandom(16) for _ in pair.sides]
        began = time.monotonic()
        waiting = dict(zip(pair.directions, marks, strict=True))
        while waiting:
            for (source, destination), mark in list(waiting.items()):
                expect(
                    time.monotonic() < began + TRIES * REKEY_TIMEOUT + SLOWNESS,
                    f"round {number + 1}: from {source.name} to {destination.name}: no packet over IPv4",
                )
                pair.send(source, mark)  # again: a retry that falls into the 5 s after a response of its own is left out
            until = time.monotonic() + AGAIN
            for direction, mark in list(waiting.items()):
                with suppress(Broken):
                    await_packet(direction[1], mark, "", 4, max(0.01, until - time.monotonic()))
                    del waiting[direction]
        retried += time.monotonic() - began > REKEY_TIMEOUT - 1
        pair.expect_packets(f"after round {number + 1}", seconds=SLOWNESS, versions=(4,))
    return f"{retried} of 20 took another try"


# Sides that move, stop, or become another ---------------------------------------------------------------------------------


@behaviour("matrix", "its address and its port change in mid-transfer, and it is followed", seconds=15, pairing=Pairing())
def roaming(pair: Pair) -> str:
    mover, _ = pair.sides
    gaps = []
    for outer in (4, 6):
        pair.move(mover, outer, 11)  # from now on it has one address
        pair.meet(outer)
        with pair.flow(pair.first) as there, pair.flow(pair.second, 6) as back:
            begun(there, back)
            pair.move(mover, outer, 12)
            gaps.append(followed(pair, "another address", mover.endpoint(outer), there, back))
            mover.box.set([SetDevice(listen_port=PORT + 1)])
            gaps.append(followed(pair, "another port", mover.endpoint(outer, PORT + 1), there, back))
    return f"longest gap {max(gaps):.1f} s"


@behaviour("matrix", "it goes on over IPv6 in mid-transfer, has no IPv4 any more, and is followed", seconds=8, pairing=Pairing())
def roaming_to_ipv6(pair: Pair) -> str:
    mover, observer = pair.sides
    pair.meet(4)
    pair.move(mover, 6, 11)
    with pair.flow(mover) as there, pair.flow(observer, 6) as back:
        begun(there, back)
        pair.leave(mover, 4)
        mover.box.set([SetPeer(observer.public, update_only=True, endpoint=observer.endpoint(6))])
        gap = followed(pair, "IPv6", mover.endpoint(6), there, back)
    return f"gap {gap:.1f} s"


def begun(*flows: Flow) -> None:
    for flow in flows:
        flow.expect_more("at first", 2 * REKEY_TIMEOUT)
        flow.mark()


def followed(pair: Pair, what: str, endpoint: Endpoint, there: Flow, back: Flow) -> float:
    """Expect traffic both ways, and the second side to send to ``endpoint``. Gives the longest gap, in seconds: it is bounded."""
    there.expect_more(f"with {what}", 10)
    deadline = time.monotonic() + 5
    while (known := pair.second.peer.config.endpoint) != endpoint:
        expect(
            time.monotonic() < deadline, f"{pair.second.name} sends to {known}, not to {endpoint}: {pair.first.name} has {what}"
        )
        time.sleep(0.05)
    back.expect_more(f"with {what}", 10)
    time.sleep(0.5)
    gap = max(there.gap, back.gap)
    expect(gap < 4, f"no traffic for {gap:.1f} s with {what}")
    for flow in (there, back):
        flow.mark()
    return gap


@behaviour("matrix", "it starts again in mid-transfer, and TCP goes on: at once if it sends, after 15 s if only its peer does",
           seconds=50, pairing=Pairing())  # fmt: skip
def restart(pair: Pair) -> str:
    pair.meet()
    gaps = []
    for sender, bound in ((pair.first, 15.0), (pair.second, 40.0)):
        with pair.flow(sender) as flow:
            begun(flow)
            pair.restart(pair.first)
            flow.expect_more(f"after {pair.first.name} was started again", bound)
            gaps.append(flow.gap)
    return f"gaps of {gaps[0]:.1f} s and {gaps[1]:.1f} s"


@behaviour("matrix", "its key changes in mid-transfer, its peer is told a little later, and TCP goes on",
           seconds=20, pairing=Pairing())  # fmt: skip
def new_key(pair: Pair) -> str:
    pair.meet()
    with pair.flow(pair.first) as there, pair.flow(pair.second, 6) as back:
        begun(there, back)
        old = pair.first.public
        pair.first.private = os.urandom(32)
        pair.first.box.set([SetDevice(pair.first.private)])
        time.sleep(0.5)
        pair.second.box.set([SetPeer(old, remove=True), pair.introduction(pair.first)])
        for flow in (there, back):
            flow.expect_more("with the new key", 2 * (REKEY_TIMEOUT + SLOWNESS))
        gap = max(there.gap, back.gap)
    return f"gap {gap:.1f} s"


@behaviour("matrix", "it stands still for longer than a session may last: nothing of the old one is taken, and a new one made",
           seconds=210, pairing=Pairing())  # fmt: skip
def standstill(pair: Pair) -> str:
    """All clocks go on, as in a suspend that they count. What was sealed for the old session waits in its socket meanwhile."""
    process = pair.first.box.process
    pair.meet()
    with streams(pair) as (_, back):
        send_steadily([back], 4, 1)
        os.kill(process, signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            send_steadily([back], 4, 185)
        finally:
            os.kill(process, signal.SIGCONT)
        woke = time.monotonic()
        send_steadily([back], 10, 2 * REKEY_TIMEOUT + SLOWNESS)
        back.lost(1.0)
    # Its peer has sealed these at once: it does not doubt the session before it has waited 15 s for an answer.
    old = [number for number, at in enumerate(back.sent_at) if stopped + 0.5 < at < stopped + 14]
    late = back.came.intersection(old)
    said = f"{len(late)} of {len(old)} packets came that were sealed for a session of more than 180 s ago"
    expect(not late, said, back.receiver)
    fresh = [at - woke for number, at in enumerate(back.sent_at) if number in back.came and at > woke]
    expect(fresh, f"nothing that was sent afterwards came within {2 * REKEY_TIMEOUT + SLOWNESS:.0f} s")
    return f"packets sent {fresh[0]:.1f} s after it went on came"


@behaviour("matrix", "its wall clock jumps by an hour and back: sessions go on, and it is locked out until its peer initiates",
           seconds=60, pairing=Pairing())  # fmt: skip
def wall_clock(pair: Pair) -> str:
    """Timestamps that are not newer than the last are replays, whoever sends them (paper 5.1): the peer cannot know better."""
    first, second = pair.sides
    first.box.own_clock()
    pair.meet()
    stamps = Stamps(pair)
    with pair.flow(first) as there, pair.flow(second, 6) as back:
        begun(there, back)
        for seconds in (HOUR, 0):
            jump(pair, seconds, there, back)
            pair.forget_session(first)
            time.sleep(0.5)  # what was on its way has come
            there.expect_more("with a new session", 2 * NEW_HANDSHAKE + SLOWNESS)
            stamp = stamps.latest(f"after a jump to {seconds:+d} s")
            if seconds and abs(stamp - seconds) > 60:
                raise NotApplicable(f"its timestamps do not follow a jump of the clock ({stamp:+.0f} s for {seconds:+d} s)")
        back.expect_more("after both jumps", 2 * NEW_HANDSHAKE + SLOWNESS)
        gap = there.gap
    return f"gap {gap:.1f} s while it was locked out"


def jump(pair: Pair, seconds: int, *flows: Flow) -> None:
    for flow in flows:
        flow.mark()
    pair.first.box.shift_clock(seconds)
    for flow in flows:
        flow.expect_more(f"after the clock jumped to {seconds:+d} s", 5)
        expect(flow.gap < 4, f"{flow.said}: no traffic for {flow.gap:.1f} s after the clock jumped to {seconds:+d} s")
        flow.mark()


class Stamps:
    """The timestamps of the first side's initiations, opened with the second side's key."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.sniffer = pair.sniffer(pair.first)

    def latest(self, when: str) -> float:
        """Seconds that the latest initiation since the last call is ahead of the true time. Raises Broken if there was none."""
        local = LocalStatic(self.pair.second.private)
        remote = RemoteStatic(local, self.pair.first.public)
        found = None
        for message in self.pair.messages(self.sniffer, INITIATION):
            try:
                stamp = consume_initiation(local, message, {remote.public: remote}.get).timestamp
            except HandshakeError as error:
                raise Broken(f"{self.pair.first.name} sent an initiation that is not good: {error.reason.value}") from None
            found = int.from_bytes(stamp[:8]) - 0x400000000000000A - time.time()
        if found is None:
            raise Broken(f"{self.pair.first.name} has not initiated {when}")
        return found


# Bad wires --------------------------------------------------------------------------------------------------------------


def on_a_bad_wire(pair: Pair, badness: Badness, *, most_lost: float) -> str:
    """A transfer and a stream of packets each way, over IPv4 and over IPv6. ``most_lost``: this part of the stream may be."""
    done = []
    for outer in (4, 6):
        pair.bad_wire(badness)
        pair.connect(outer)
        with pair.flow(pair.first, size=MIB), pair.flow(pair.second, 6, size=MIB):
            pass
        with streams(pair, 10 - outer) as both:
            send_steadily(both, 200, 3)
            lost = [stream.lost(1.0 + SLOWNESS) for stream in both]
        for stream, missing in zip(both, lost, strict=True):
            expect(not stream.twice, f"{len(stream.twice)} of {stream.sent} packets {stream.said} came twice", stream.receiver)
            expect(
                len(missing) <= most_lost * stream.sent,
                f"{len(missing)} of {stream.sent} packets {stream.said} were lost: {spans(missing)}",
            )
        for way in pair.counts():
            bad = way.lost + way.swapped + way.doubled
            expect(bad > 5, f"the wire was not bad: {way}")
            done.append(bad)
    return f"{sum(done)} packets were dealt with badly"


@behaviour("matrix", "of a wire that loses 1 %, TCP takes no harm", seconds=12, pairing=Pairing(symmetric=True))
def loss(pair: Pair) -> str:
    return on_a_bad_wire(pair, Badness(lose=0.01, seed=6), most_lost=0.05)


@behaviour("matrix", "packets that overtake each other all come", seconds=12, pairing=Pairing(symmetric=True))
def reordering(pair: Pair) -> str:
    return on_a_bad_wire(pair, Badness(swap=0.1), most_lost=0.0)


@behaviour("matrix", "of packets that come twice one is taken", seconds=12, pairing=Pairing(symmetric=True))
def duplication(pair: Pair) -> str:
    return on_a_bad_wire(pair, Badness(double=0.2), most_lost=0.0)


@behaviour("matrix", "over a path that is narrower than the tunnel, large packets come in fragments",
           seconds=12, pairing=Pairing(symmetric=True))  # fmt: skip
def narrow_path(pair: Pair) -> str:
    """The routers fragment what may be, and say so of what may not: whoever sent that, with DF, fragments from then on."""
    lost = 0
    for mtu, outer in product((1400, 1280), (4, 6)):
        pair.wire(mtu)
        pair.connect(outer)
        pair.expect_packets("small packets")
        for source, _ in pair.directions:
            came = pair.ping(source, 4, "-s", str(LARGEST), count=4, seconds=1)
            expect(came >= 2, f"{came} of 4 large packets came back to {source.name} over IPv{outer} and an MTU of {mtu}")
            lost += 4 - came
        with pair.flow(pair.first, size=MIB), pair.flow(pair.second, 6, size=MIB):
            pass
    return f"{lost} of 32 were lost while the path was new"


@behaviour("matrix", "a path that swallows large packets takes nothing else, and a smaller MTU of the interface is followed",
           seconds=15, pairing=Pairing(symmetric=True))  # fmt: skip
def black_hole(pair: Pair) -> None:
    for outer in (4, 6):
        pair.bad_wire(Badness(largest=1400), mtu=9000)
        pair.connect(outer)
        pair.expect_packets("small packets")
        for source, _ in pair.directions:
            expect(pair.ping(source, 4, "-s", str(LARGEST), count=1, seconds=0.5) == 0, "a packet came that cannot have come")
        pair.expect_packets("small packets after large ones", seconds=SLOWNESS)
        for side in pair.sides:
            side.box.ip(f"link set {INTERFACE} mtu 1300")
        with pair.flow(pair.first, size=MIB), pair.flow(pair.second, 6, size=MIB):
            pass
        expect(all(way.too_large for way in pair.counts()), "nothing was too large")
        for side in pair.sides:
            side.box.ip(f"link set {INTERFACE} mtu {MTU}")
            for version in (4, 6):  # what the tester has learnt of the smaller one
                side.tester.run(["ip", f"-{version}", "route", "flush", "cache"])


def spans(numbers: list[int]) -> str:
    """``3, 7-9``: of long lists the beginning."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, each)) for each in found[:5]) + ", …" * (len(found) > 5)
