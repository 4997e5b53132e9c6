"""What the outer header says (1.10): congestion, service class, fragmentation, and the mark that routing goes by."""

import itertools
import os
import time

from tests.conformance.behaviour import behaviour, expect
from tests.conformance.peer import COOKIE_REPLY, INITIATION, RESPONSE, TRANSPORT
from tests.conformance.rows.load import TRIES, UNDER_WAY, answers_to, gentle
from tests.conformance.trial import Sniffer, Trial, udp_payload
from tests.tun.packets import checksum
from wgpy.config import SetDevice

NOT_ECT, ECT_1, ECT_0, CE = range(4)
DSCP = 0xB8
"""Expedited forwarding: any service class would do."""
HANDSHAKE_DS = 0x88
FAMILIES = (6, 4)
"""IPv6 first: wireguard-go cannot send IPv6 after IPv4 (1.11), which is no matter of most rows."""
FWMARK = 4711
BURST = 40


def ds_of(packet: bytes) -> int:
    """The DS byte of an IP packet."""
    return packet[1] if packet[0] >> 4 == 4 else int.from_bytes(packet[:2]) >> 4 & 0xFF


def udp_packets(sniffer: Sniffer) -> list[bytes]:
    """Those with UDP in them, and not behind other headers."""
    return [packet for packet in sniffer.packets(0.5) if packet[9 if packet[0] >> 4 == 4 else 6] == 17]


# ECN and DSCP ---------------------------------------------------------------------------------------------------------


@behaviour("1.10", "outside, data has the ECN of the packet (CE becomes ECT(0)) and never its DSCP", seconds=3)
def encapsulated_ecn(trial: Trial) -> None:
    for outer, inner in itertools.product(FAMILIES, FAMILIES):
        peer = trial.peer(version=outer, host=outer)
        peer.initiate()
        for ecn, service in itertools.product(range(4), (0, DSCP)):
            trial.outward(version=inner, ds=ecn | service)
            ds = peer.expect(TRANSPORT, why=f"for an IPv{inner} packet").ds
            expected = ECT_0 if ecn == CE else ecn
            expect(ds == expected, f"an IPv{inner} packet with DS {ecn | service:#04x} left with {ds:#04x} over IPv{outer}")
        time.sleep(0.05)


@behaviour("1.10", "in a burst each packet has its own ECN outside", seconds=2)
def encapsulated_ecn_in_a_burst(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    time.sleep(0.1)
    marks = [(ECT_0, ECT_0, CE, NOT_ECT, ECT_1)[number % 5] for number in range(BURST)]
    for number, ecn in enumerate(marks):
        trial.outward(number.to_bytes(2), ds=ecn)
    came = {}
    for datagram in peer.collect(1.0, [TRANSPORT]):
        if packet := session.open(datagram):
            came[int.from_bytes(udp_payload(packet))] = datagram.ds
    expect(came, "nothing of a burst came")
    wrong = [number for number, ds in came.items() if ds != (ECT_0 if marks[number] == CE else marks[number])]
    expect(not wrong, f"{len(wrong)} of {len(came)} packets in a burst have another one's ECN")


def decapsulated(outer: int, inner: int) -> int:
    """RFC 6040 as the kernel has it: nothing is dropped, and what does not take part in ECN is left alone."""
    if inner != NOT_ECT and outer == CE:
        return CE
    return ECT_1 if (outer, inner) == (ECT_1, ECT_0) else inner


@behaviour("1.10", "congestion that is marked outside arrives inside, if the packet takes part in ECN; DSCP stays", seconds=6)
def decapsulated_ecn(trial: Trial) -> None:
    sniffer = trial.sniffer("inner")
    for outer, inner in itertools.product(FAMILIES, FAMILIES):
        peer = trial.peer(version=outer, host=outer)
        session = peer.initiate()
        pairs = list(itertools.product(range(4), range(4)))
        for number, (outside, inside) in enumerate(pairs):
            packet = trial.inward(number.to_bytes(2), version=inner, ds=inside | DSCP)
            peer.send(session.seal(packet), ds=outside)
            time.sleep(0.01)
        came = {int.from_bytes(udp_payload(packet)): ds_of(packet) for packet in udp_packets(sniffer)}
        for number, (outside, inside) in enumerate(pairs):
            expected = decapsulated(outside, inside) | DSCP
            what = f"an IPv{inner} packet with DS {inside | DSCP:#04x} in one with ECN {outside} over IPv{outer}"
            expect(number in came, f"{what} was dropped")
            expect(came[number] == expected, f"{what} arrived with {came[number]:#04x} instead of {expected:#04x}")


@behaviour("1.10", "the checksum of an IPv4 header in which congestion was marked is right")
def decapsulated_checksum(trial: Trial) -> None:
    sniffer = trial.sniffer("inner")
    peer = trial.peer()
    session = peer.initiate()
    for ecn in (ECT_0, ECT_1):
        for number in range(8):  # of other lengths, so that carries differ
            peer.send(session.seal(trial.inward(os.urandom(number), ds=ecn)), ds=CE)
            time.sleep(0.01)
    came = udp_packets(sniffer)
    expect(len(came) == 16, f"{len(came)} of 16 packets arrived")
    expect(all(ds_of(packet) == CE for packet in came), "congestion was not marked")
    expect(all(checksum(packet[:20]) == 0 for packet in came), "a header has a wrong checksum")


@behaviour("1.10", "congestion that is marked on some of a burst arrives on those, and no others", seconds=2)
def decapsulated_ecn_in_a_burst(trial: Trial) -> None:
    sniffer = trial.sniffer("inner")
    for version in FAMILIES:
        peer = trial.peer(version=version, host=version)
        session = peer.initiate()
        marks = [CE if number % 7 == 3 else ECT_0 for number in range(BURST)]
        for number, ecn in enumerate(marks):
            # Each is longer than the one before, and so for itself on the inner leg, too.
            peer.send(session.seal(trial.inward(number.to_bytes(2) + bytes(number), ds=ECT_0)), ds=ecn)
        came = {int.from_bytes(udp_payload(packet)[:2]): ds_of(packet) for packet in udp_packets(sniffer)}
        expect(came, f"nothing of a burst over IPv{version} arrived")
        wrong = [number for number, ds in came.items() if ds != marks[number]]
        expect(not wrong, f"{len(wrong)} of {len(came)} packets in a burst over IPv{version} have another one's mark")


@behaviour("1.10", "initiations and responses have DS 0x88 (AF41)")
def handshake_ds(trial: Trial) -> None:
    for version in FAMILIES:
        peer = trial.peer(version=version, host=version)
        trial.outward()
        initiation = peer.expect(INITIATION)
        expect(initiation.ds == HANDSHAKE_DS, f"an initiation has DS {initiation.ds:#04x} over IPv{version}")
        peer.send(peer.initiation())
        response = peer.expect(RESPONSE)
        expect(response.ds == HANDSHAKE_DS, f"a response has DS {response.ds:#04x} over IPv{version}")


@behaviour("1.10", "cookie replies have DS 0", seconds=8, alone=True)
def cookie_reply_ds(trial: Trial) -> None:
    for version in FAMILIES:
        peer = trial.peer(version=version, host=version)
        with gentle(trial, version):
            time.sleep(UNDER_WAY)
            answers = [each for _ in range(TRIES) for each in answers_to(peer, peer.initiation())]
        replies = [each.ds for each in answers if each.message == COOKIE_REPLY]
        expect(replies, f"no cookie reply to {TRIES} initiations under load")
        expect(not any(replies), f"a cookie reply has DS {max(replies):#04x} over IPv{version}")


# Fragments ------------------------------------------------------------------------------------------------------------


@behaviour("1.10", "outer IPv4 packets may be fragmented: the DF bit is not set")
def no_outer_df(trial: Trial) -> None:
    sniffer = trial.sniffer("outer")
    peer = trial.peer()
    trial.outward()
    peer.respond(peer.expect(INITIATION)).receive()
    peer.send(peer.initiation())
    peer.expect(RESPONSE)
    came = udp_packets(sniffer)
    kinds = {packet[28]: packet for packet in came if packet[0] >> 4 == 4}
    expect({INITIATION, RESPONSE, TRANSPORT} <= set(kinds), "not every kind of message was seen on the wire")
    for kind, packet in kinds.items():
        expect(not packet[6] & 0x40, f"a message of type {kind} has the DF bit set")


@behaviour("1.10", "outer packets that are longer than the way is wide arrive in fragments", seconds=2)
def outer_fragments(trial: Trial) -> None:
    trial.start()
    trial.box.ip("link set eth0 mtu 1280")
    for version in FAMILIES:
        peer = trial.peer(version=version, host=version)
        session = peer.initiate()
        payload = os.urandom(1350)
        for _ in range(3):
            trial.outward(payload)
            expect(
                payload in session.receive(f"a packet of 1378 bytes over IPv{version} by a link of 1280"), "another packet came"
            )


# The mark -------------------------------------------------------------------------------------------------------------


@behaviour("1.10", "every datagram bears the fwmark, a changed one at once, and none when it is 0", seconds=4)
def fwmark(trial: Trial) -> None:
    trial.start()
    box, plan = trial.box, trial.plan
    box.set([SetDevice(fwmark=FWMARK)])
    for version in FAMILIES:
        # What does not bear the mark does not get there.
        rule = ["ip", f"-{version}", "rule", "add", "to", str(plan.outer(version, version))]
        box.run([*rule, "pref", "10", "fwmark", str(FWMARK), "lookup", "main"])
        box.run([*rule, "pref", "11", "prohibit"])
        peer = trial.peer(version=version, host=version)
        trial.outward()
        session = peer.respond(peer.expect(INITIATION, why=f"with the mark over IPv{version}"))
        session.receive(f"a packet with the mark over IPv{version}")
        peer.send(peer.initiation())
        session = peer.finish(peer.expect(RESPONSE, why=f"with the mark over IPv{version}"))
        trial.expect_inward(session, f"a packet that confirms the session over IPv{version}")
        trial.expect_outward(session, f"a packet with the mark over IPv{version}")
        for other in (0, FWMARK + 1):
            box.set([SetDevice(fwmark=other)])
            expect(box.get().fwmark == other, f"the mark is shown as {box.get().fwmark} instead of {other}")
            trial.outward()
            peer.expect_silence(0.3, f"over IPv{version} with the mark it had before")
        box.set([SetDevice(fwmark=FWMARK)])
        trial.expect_outward(session, f"a packet with the mark again over IPv{version}")
