"""Transport data (1.6, and paper 5.4.6): order, replay, source, length, padding."""

import os
import time
from ipaddress import ip_network

from noise.messages import TransportData
from tests.conformance.behaviour import behaviour, expect
from tests.conformance.boxes import INTERFACE, MTU
from tests.conformance.peer import COOKIE_REPLY, NAMES, PATIENCE, TRANSPORT, Datagram, Peer, Session
from tests.conformance.trial import Trial

WINDOW = 8128
"""Counters so much older than the greatest are refused."""
REJECT_AFTER_MESSAGES = 2**64 - 8130
"""The kernel's value. The paper's is 63 less; between the two anything may be done."""
PAPERS_REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
OVERHEAD = 32
REJECT_AFTER_TIME = 180.0


def flipped(datagram: bytes) -> bytes:
    """The same with another last bit."""
    return datagram[:-1] + bytes([datagram[-1] ^ 1])


def established(trial: Trial, peer: Peer, version: int = 4) -> Session:
    """A session that the box knows to be confirmed: it has delivered a packet under it."""
    session = peer.initiate()
    trial.expect_inward(session, "the first packet under a session", version=version)
    return session


# Replay ---------------------------------------------------------------------------------------------------------------


@behaviour("1.6", "a counter is taken once, and within a window of 8128")
def replay_window(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    old = session.send(trial.inward(b"1"), counter=20000)
    trial.inner.expect(b"1", "the first")
    peer.send(old)
    trial.inner.expect_nothing("a replay")
    session.send(trial.inward(b"2"), counter=20000 - WINDOW)
    trial.inner.expect(b"2", "the oldest in the window")
    session.send(trial.inward(b"3"), counter=20000 - WINDOW)
    session.send(trial.inward(b"4"), counter=20000 - WINDOW - 1)
    trial.inner.expect_nothing("a counter seen, or older than the window")
    session.send(trial.inward(b"5"), counter=20001)
    trial.inner.expect(b"5", "the next")


@behaviour("1.6", "of the first 8130 counters, taken backwards, all but the first are in the window")
def replay_window_backwards(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate(confirm=False)
    around = [
        counter for counter in range(WINDOW + 1, -1, -1) if counter % 64 in (0, 1, 63)
    ]  # where words of a ring begin and end
    for counter in around:
        session.send(trial.inward(counter.to_bytes(2)), counter=counter)
        if counter:
            trial.inner.expect(counter.to_bytes(2), f"counter {counter} after {WINDOW + 1}")
    trial.inner.expect_nothing(f"counter 0 after {WINDOW + 1}")
    for counter in around:
        session.send(trial.inward(counter.to_bytes(2)), counter=counter)
    trial.inner.expect_nothing("counters that were all seen")


@behaviour("1.6", "a leap of the counter forgets what was seen one or more windows ago")
def replay_window_leaps(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate(confirm=False)
    # Each counter but the leaps has the place in a ring of 8192 bits of one that was seen.
    for counter in (5, 64, 8192 + 300, 8192 + 5, 8192 + 64, 10 * 8192 + 5, 9 * 8192 + 300, 10 * 8192 + 4, 2**40 + 5, 2**40 + 4):
        session.send(trial.inward(b"%d" % counter), counter=counter)
        trial.inner.expect(b"%d" % counter, f"counter {counter}")
    for counter in (5, 8192 + 300, 10 * 8192 + 5, 2**40 - WINDOW + 4, 2**40 + 5, 2**40 + 4):
        session.send(trial.inward(b"%d" % counter), counter=counter)
    trial.inner.expect_nothing("counters that were seen, or are older than the window")


@behaviour("1.6", "what does not authenticate does not count: neither its counter nor its payload")
def authenticated_first(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    for counter in (1, 1000, 2**32, 2**63):
        forged = TransportData(session.keys.remote_index, counter, os.urandom(64))
        peer.send(forged.pack())
        peer.send(flipped(session.seal(trial.inward(b"flipped"), counter)))
    trial.inner.expect_nothing("forged transport data", 0.3)
    for counter in (1, 2, 1000):
        session.send(trial.inward(b"%d" % counter), counter=counter)
        trial.inner.expect(b"%d" % counter, f"counter {counter}, after it and greater ones were forged")


@behaviour("1.6", "each datagram of a burst is judged by itself: forged, replayed, malformed, of a wrong source, and good")
def mixed_burst(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version)
        session = peer.initiate()
        good = [os.urandom(64) for _ in range(12)]
        packets = [trial.inward(payload, version=version) for payload in good]
        sealed = [session.seal(packet) for packet in packets]
        forged = flipped(sealed[0])
        source = ip_network("10.200.0.0/16" if version == 4 else "fd20::/16")[9]
        foreign = session.seal(trial.inward(bytes(64), version=version, source=source))
        malformed = session.seal(b"\x70" + packets[0][1:])
        index = TransportData(session.keys.remote_index ^ 1, 50, os.urandom(len(packets[0]) + 16)).pack()
        bad = [forged, sealed[1], foreign, malformed, index, sealed[3]]
        train = sealed[:2]
        for position, each in enumerate(bad):
            train += [each, sealed[2 + position]]
        peer.send_train(train + sealed[8:])
        inner = trial.inner_of(version)
        came = [inner.receive() for _ in good]
        expect(
            came == good, f"of {len(good)} good datagrams in an IPv{version} burst {len([c for c in came if c in good])} arrived"
        )
        inner.expect_nothing("a datagram of a burst that should have been dropped", 0.3)


@behaviour("1.6", "counters of REJECT_AFTER_MESSAGES and above are refused, and do not move the window")
def reject_after_messages(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    for counter in (2**64 - 1, REJECT_AFTER_MESSAGES + 1, REJECT_AFTER_MESSAGES):
        session.send(trial.inward(b"too great"), counter=counter)
    trial.inner.expect_nothing("a counter of REJECT_AFTER_MESSAGES or above")
    trial.expect_inward(session, "the next packet, after counters that are refused")
    last = PAPERS_REJECT_AFTER_MESSAGES - 1
    session.send(trial.inward(b"last"), counter=last)
    trial.inner.expect(b"last", f"counter {last}, the last that is good")
    session.send(trial.inward(b"last"), counter=last)
    trial.expect_no_inward(session, "a replay of the last counter, or one far behind it")


# Roaming --------------------------------------------------------------------------------------------------------------


@behaviour("1.6", "the endpoint moves with any authenticated datagram: data, keepalives, and packets of a wrong source")
def endpoint_moves(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=1)
        session = peer.initiate()
        inward, foreign = trial.inward(b"data", version=version), trial.plan.network(version, 99)[200]
        moves_with(trial, peer, session, version, 2, "data", inward)
        trial.inner_of(version).expect(b"data", f"a packet from elsewhere over IPv{version}")
        moves_with(trial, peer, session, version, 3, "a keepalive", b"")
        packet = trial.inward(b"foreign", version=version, source=foreign)
        moves_with(trial, peer, session, version, 4, "a packet of a wrong source", packet)
        moves_with(trial, peer, session, version, 5, "a malformed packet", bytes(16))
        trial.inner_of(version).expect_nothing("a packet of a wrong source, or malformed", 0.1)


def moves_with(trial: Trial, peer: Peer, session: Session, version: int, host: int, what: str, packet: bytes) -> None:
    """Raise Broken unless the box follows the peer to ``host`` when it sends ``packet`` from there."""
    peer.move(trial.plan.outer(version, host))
    session.send(packet)
    why = f"the endpoint did not follow {what} over IPv{version}"
    trial.wait_until(lambda: endpoint_of(trial, peer) == peer.address, why)
    trial.expect_outward(session, f"a packet to where {what} came from", version=version)


def endpoint_of(trial: Trial, peer: Peer) -> tuple[str, int] | None:
    """Where the box thinks that the peer is."""
    endpoint = trial.known(peer).config.endpoint
    return None if endpoint is None else (endpoint.host, endpoint.port)


@behaviour("1.6", "the endpoint does not move with replays, nor with what does not authenticate")
def endpoint_stays(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=1)
        elsewhere = trial.peer(version=version, host=2, is_known=False)
        session = peer.initiate()
        seen = session.send(trial.inward(b"here", version=version))
        trial.inner_of(version).expect(b"here", "a packet")
        elsewhere.send(seen)
        elsewhere.send(flipped(seen))
        elsewhere.send(flipped(session.seal(b"", counter=100)))
        elsewhere.expect_silence(0.3, "to a replay")
        trial.expect_outward(session, "a packet after replays from elsewhere", version=version)
        expect(endpoint_of(trial, peer) == peer.address, f"the endpoint moved with a replay over IPv{version}")


# The inner packet -----------------------------------------------------------------------------------------------------


@behaviour("1.6", "a packet is taken from the peer whose allowed IPs hold its source by the longest prefix, and no other")
def source_by_longest_prefix(trial: Trial) -> None:
    for version in (6, 4):
        network, single = trial.plan.network(version, 88), trial.plan.remote(version, 5)
        wide = trial.peer(version=version, host=1, allowed_ips=[network])
        narrow = trial.peer(version=version, host=2, allowed_ips=[ip_network(single)])
        inner = trial.inner_of(version)
        sessions = {wide: wide.initiate(), narrow: narrow.initiate()}
        for peer, host, is_good in ((wide, 6, True), (narrow, 5, True), (wide, 5, False), (narrow, 6, False), (wide, 4, True)):
            payload = os.urandom(8)
            sessions[peer].send(trial.inward(payload, version=version, source=trial.plan.remote(version, host)))
            if is_good:
                inner.expect(payload, f"a packet of the peer whose IPv{version} address its source is")
            else:
                inner.expect_nothing(f"a packet with another peer's IPv{version} source", 0.3)


@behaviour("1.6", "a packet whose source is nobody's is dropped")
def source_of_nobody(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version, allowed_ips=[ip_network(trial.plan.remote(version))])
        session = peer.initiate()
        session.send(trial.inward(b"x", version=version, source=trial.plan.remote(version, 2)))
        session.send(trial.inward(b"x", version=version, source=trial.plan.outer(version, version)))
        trial.inner_of(version).expect_nothing("a packet whose source is nobody's")
        trial.expect_inward(session, "a packet after that", version=version)


@behaviour("1.6", "the IP header says how long a packet is: whatever follows it is cut off")
def trimmed(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    for version in (6, 4):
        for padding in (0, 1, 15, 16, 100, 1300):
            payload = os.urandom(20)
            session.send(trial.inward(payload, version=version) + os.urandom(padding))
            trial.inner_of(version).expect(payload, f"an IPv{version} packet with {padding} bytes behind it")


@behaviour("1.6", "a malformed packet goes nowhere: no IP version, too short for its header, longer than what came", seconds=2)
def malformed_packets(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    four, six = trial.inward(bytes(40)), trial.inward(bytes(40), version=6)
    bad = [bytes([version << 4]) + four[1:] for version in (0, 1, 5, 7, 15)]
    bad += [b"\x45", b"\x60", bytes(16), four[:19], six[:39]]
    bad += [four[:2] + length.to_bytes(2) + four[4:] for length in (0, 19, len(four) + 1, 0xFFFF)]
    bad += [six[:4] + length.to_bytes(2) + six[6:] for length in (len(six) - 39, 0xFFFF, 65496, 65500)]
    before = delivered(trial)
    for packet in bad:
        session.send(packet)
        time.sleep(0.01)  # apart, so that nothing joins them
    session.send(four)
    trial.inner.expect(bytes(40), "a good packet after malformed ones")
    session.send(six)
    trial.inner_of(6).expect(bytes(40), "a good packet after malformed ones")
    came = delivered(trial) - before
    expect(came == 2, f"{came - 2} of {len(bad)} malformed packets were handed to the interface")


def delivered(trial: Trial) -> int:
    """How many packets have come out of the tunnel, by the interface's own count."""
    return int(trial.box.run(["cat", f"/sys/class/net/{INTERFACE}/statistics/rx_packets"]).stdout)


# What is sent ---------------------------------------------------------------------------------------------------------


def sealed_lengths(trial: Trial, session: Session, lengths: list[int], version: int) -> dict[int, int]:
    """For packets of these lengths: the length of the plaintext they leave in. Raises Broken if padding is not zero."""
    header = 28 if version == 4 else 48
    found = {}
    for length in lengths:
        payload = os.urandom(length - header)
        trial.outward(payload, version=version)
        packet = session.receive(f"a packet of {length} bytes")
        expect(packet[header:length] == payload, f"a packet of {length} bytes was not carried as it is")
        expect(not any(packet[length:]), f"the padding of a packet of {length} bytes is not zero")
        found[length] = len(packet)
    return found


@behaviour("1.6", "packets are padded with zeros to a multiple of 16")
def padding(trial: Trial) -> None:
    peer = trial.peer()
    session = established(trial, peer)
    for version, shortest in ((4, 28), (6, 48)):
        lengths = [shortest, 49, 63, 64, 65, 100, 1000, MTU - 13, MTU - 12]
        for length, padded in sealed_lengths(trial, session, lengths, version).items():
            due = -(-length // 16) * 16
            expect(padded == due, f"an IPv{version} packet of {length} bytes was padded to {padded} instead of {due}")


@behaviour("1.6", "padding never makes a packet longer than the MTU, whatever the MTU", seconds=3)
def padding_within_mtu(trial: Trial) -> None:
    peer = trial.peer()
    session = established(trial, peer)
    for mtu in (MTU, 1300, 1281):
        if mtu != MTU:
            trial.box.ip(f"link set {INTERFACE} mtu {mtu}")
            time.sleep(0.5)  # until it has heard of it
        for version in (6, 4):
            for length, padded in sealed_lengths(trial, session, [mtu, mtu - 1, mtu - 3], version).items():
                expect(length <= padded <= mtu, f"a packet of {length} bytes was padded to {padded} at an MTU of {mtu}")


@behaviour("1.6", "counters begin at 0 and leave in order, none twice")
def counters_in_order(trial: Trial) -> None:
    for version in (6, 4):
        peer = trial.peer(version=version, host=version)
        session = established(trial, peer)
        for _ in range(300):
            trial.outward(bytes(100))
        came = transport_messages(peer, 250)
        counters = [datagram.counter for datagram in came]
        expect(all(session.open(datagram) for datagram in came), "a packet does not open")
        expect(counters == list(range(len(counters))), f"over IPv{version} the counters are not 0, 1, 2, …: {counters[:9]}…")


def transport_messages(peer: Peer, least: int) -> list[Datagram]:
    """So many, and what comes with them. Raises Broken if they do not come in time."""
    came: list[Datagram] = []
    deadline = time.monotonic() + PATIENCE
    while len(came) < least and time.monotonic() < deadline:
        came += peer.collect(0.2, [TRANSPORT])
    expect(len(came) >= least, f"only {len(came)} of at least {least} packets came")
    return came


@behaviour("1.6", "the statistics count UDP payload: sent handshakes, data and keepalives, and received ones that are good")
def statistics(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    sent = 148 + OVERHEAD
    for packet in (trial.inward(b"1"), trial.inward(b"2") + bytes(100), b""):
        sent += len(session.send(packet))
    replay = session.send(trial.inward(b"3"))
    sent += len(replay)
    for datagram in (replay, flipped(session.seal(trial.inward(b"4"))), peer.initiation()[:-32] + bytes(32), bytes(100)):
        peer.send(datagram)
    trial.outward(bytes(200))
    trial.outward(bytes(201))
    came = peer.collect(1.0)
    received = 92 + sum(len(datagram.payload) for datagram in came if datagram.message in NAMES.keys() - {COOKIE_REPLY})
    known = trial.known(peer)
    expect(known.rx_bytes == sent, f"it says that it received {known.rx_bytes} bytes; {sent} were sent that are good")
    expect(known.tx_bytes == received, f"it says that it sent {known.tx_bytes} bytes; {received} came")


# Age ------------------------------------------------------------------------------------------------------------------


@behaviour("1.6", "a session of 180 s is too old to receive under, one of 178 s is not", seconds=REJECT_AFTER_TIME + 3)
def too_old_to_receive(trial: Trial) -> None:
    peer = trial.peer()
    began = time.time()
    session = peer.initiate()
    time.sleep(began + REJECT_AFTER_TIME - 2 - time.time())
    trial.expect_inward(session, "a packet under a session of 178 s")
    time.sleep(max(0.0, session.began + REJECT_AFTER_TIME + 0.3 - time.time()))
    trial.expect_no_inward(session, "a packet under a session of more than 180 s")
