"""The proof of encryption: it holds where packets are encrypted, and a leak, a gap and a refusal are called by their names."""

import errno
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from controller.demo.capture import Conversation, Frame, Sighting
from controller.look import show
from controller.meshes.calico import observe
from controller.model import Family
from controller.status import AgentStatus, FamilyStatus, PeerStatus, SourceStatus, Traffic
from controller.verify import (
    PACKETS,
    Pair,
    Result,
    Sent,
    Verdict,
    VerifyError,
    echo,
    is_proven,
    look_in_vain,
    look_of,
    mark,
    pairs,
    verdicts,
    verify,
)
from tests.controller.cluster import block, keyed, node, objects
from tests.controller.lab import ROOT, WG4, Lab, make_lab, may_make_namespaces

TALK = Conversation(
    (ip_address("10.42.1.5"), ip_address("10.42.2.5")), (ip_address("192.0.2.1"), ip_address("192.0.2.2")), b"wgpy12345678"
)
TALK6 = Conversation(
    (ip_address("fd42::1"), ip_address("fd42::2")), (ip_address("fd00::1"), ip_address("fd00::2")), b"wgpyabcdefgh"
)
PAIR = Pair(Family.IPV4, "n2", TALK, "encrypted")
V6 = "projectcalico.org/IPv6Address"
ETHERNET = bytes(12) + b"\x08\x00"
TRANSPORT = b"\xca\x6c\xca\x6c\0\0\0\0" + b"\x04\0\0\0" + bytes(92)


def ip4(source: str, destination: str, payload: bytes, protocol: int = 17) -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    return ETHERNET + bytes([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]) + addresses + payload


def result(**fields: Any) -> Result:
    return Result(
        **{"pair": PAIR, "sighting": Sighting(0, (5, 5)), "inside": 5, "answers": 5, "sent": Sent(5), "lost": 0, **fields}
    )


# Pure ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("talk", [TALK, TALK6], ids=["IPv4", "IPv6"])
def test_an_echo_is_a_valid_packet_with_the_mark(talk: Conversation) -> None:
    packet = echo(talk, 3)
    version = packet[0] >> 4

    assert version == talk.pods[0].version
    addresses = packet[12:20] if version == 4 else packet[8:40]
    assert addresses == talk.pods[0].packed + talk.pods[1].packed
    body = packet[20:] if version == 4 else packet[40:]
    pseudo = b"" if version == 4 else addresses + len(body).to_bytes(4) + (58).to_bytes(4)
    whole = pseudo + body
    total = sum(int.from_bytes(whole[at : at + 2]) for at in range(0, len(whole), 2))
    assert (total & 0xFFFF) + (total >> 16) in (0xFFFF, 0x1FFFE - 0xFFFF), "the checksum is right (RFC 1071)"
    assert body[0] == {4: 8, 6: 128}[version] and body[6:8] == b"\0\3"
    assert packet.count(talk.marker) == 2 and len(packet) < 200


def test_marks_differ() -> None:
    assert len({mark() for _ in range(100)}) == 100 and len(mark()) == 12


def test_frames_are_counted_where_they_belong() -> None:
    request, reply = echo(TALK, 0), ip4("10.42.2.5", "10.42.1.5", b"\0\0" + TALK.marker, 1)[14:]
    inside = [Frame(0, WG4, ETHERNET + data) for data in (request, request, reply, b"other")]
    wire = [Frame(0, "eth0", ip4("192.0.2.1", "192.0.2.2", TRANSPORT))] * 2 + [
        Frame(0, "eth0", ip4("192.0.2.2", "192.0.2.1", TRANSPORT))
    ]

    (found,) = verdicts([PAIR], wire, inside, [Sent(2)], 0)

    assert (found.inside, found.answers, found.sighting) == (2, 1, Sighting(0, (2, 1)))
    assert (found.verdict, found.why) == (Verdict.ENCRYPTED, "and answered")
    (leaked,) = verdicts([PAIR], [*wire, Frame(0, "eth0", ETHERNET + request)], inside, [Sent(2)], 0)
    assert leaked.verdict is Verdict.CLEAR
    (inside_ipip,) = verdicts([PAIR], [Frame(0, "eth0", ip4("192.0.2.1", "192.0.2.2", request, 4))], inside, [Sent(2)], 0)
    assert inside_ipip.verdict is Verdict.CLEAR, "in IP-in-IP, too"


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (result(), Verdict.ENCRYPTED),
        (result(answers=0), Verdict.ENCRYPTED),
        (result(sighting=Sighting(1, (5, 5))), Verdict.CLEAR),
        (result(sighting=Sighting(1, (0, 0)), lost=7), Verdict.CLEAR),
        (result(lost=7), Verdict.UNCERTAIN),
        (result(inside=0), Verdict.NOTHING),
        (result(sighting=Sighting(0, (0, 5))), Verdict.NOTHING),
        (result(inside=0, sighting=Sighting(), sent=Sent(0, errno.EACCES)), Verdict.REFUSED),
        (result(inside=0, sighting=Sighting(), sent=Sent(4, errno.EPERM)), Verdict.NOTHING),
        (result(inside=0, sighting=Sighting(), sent=Sent(0, errno.ENETUNREACH)), Verdict.NOTHING),
        (result(inside=1), Verdict.UNCERTAIN),
        (result(inside=4, sent=Sent(4, errno.EPERM)), Verdict.ENCRYPTED),
    ],
)
def test_verdicts(one: Result, verdict: Verdict) -> None:
    assert one.verdict is verdict
    assert is_proven([one]) == (verdict in (Verdict.ENCRYPTED, Verdict.REFUSED))


def test_packets_that_went_elsewhere_are_told_of() -> None:
    assert result(inside=1).why.startswith("only 1 of 5 packets were seen going into the tunnel")


def test_without_a_wire_there_is_nothing_to_look_at() -> None:
    with pytest.raises(VerifyError, match="--wire"):
        verify([PAIR], [], [WG4])


def test_nothing_looked_at_proves_nothing() -> None:
    assert not is_proven([])
    assert not is_proven([result(), result(inside=0)])


def test_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(iter([look_of("n1", [result()], ["eth0"])]), "table", None) == 0
    text = capsys.readouterr().out
    assert "looked for on eth0" in text and "method: packets with a pod's source address" in text
    assert " ".join(text.splitlines()[-1].split()) == "n2 10.42.1.5 10.42.2.5 encrypted 0 5 5 there, 5 back 5 and answered"
    assert show(iter([look_of("n1", [result(sighting=Sighting(2))], ["eth0"])]), "json", None) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["proven"] is False and document["pairs"][0]["frames_in_clear"] == 2
    assert "raw socket" in document["method"]


def test_where_it_could_not_look_nothing_is_proven(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(iter([look_in_vain("n1", "nobody is there")]), "json", None) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "nobody is there"


def test_who_talks_to_whom() -> None:
    cluster = observe(
        objects(
            keyed("n1", "192.0.2.1/24"),
            keyed("n2", "192.0.2.2/24", "10.42.2.0"),
            node("n3", "192.0.2.3/24"),
            keyed("n4", "192.0.2.4/24"),
        ),
        "n1",
    ).cluster
    peers = (
        PeerStatus("n2", Traffic.ENCRYPTED, endpoint="192.0.2.22:51820", ranges=("10.42.2.0/26",)),
        PeerStatus("n3", Traffic.CLEAR, "has no public key", ranges=("10.42.3.0/26",)),
        PeerStatus("n4", Traffic.ENCRYPTED),
        PeerStatus("X" * 44, Traffic.ENCRYPTED, is_external=True, ranges=("10.9.0.0/16",)),
    )
    families = (
        FamilyStatus(Family.IPV4, ranges=("10.42.1.0/26",), peers=peers),
        FamilyStatus(Family.IPV6, rest="off", peers=peers),
    )
    status = AgentStatus(0.0, "n1", "calico", "1", SourceStatus("x"), families=families)
    pods = {"n1": [("fd00::1", "a/b"), ("10.42.1.9", "a/b")], "n3": [("10.42.3.9", "c/d")]}

    two, three = pairs(cluster, status, pods, lambda: b"mark")

    assert (two.peer, three.peer) == ("n2", "n3"), "n4 has no addresses, the other is no node"
    assert two.conversation.pods == (ip_address("10.42.1.9"), ip_address("10.42.2.0"))
    assert two.conversation.nodes == (ip_address("192.0.2.1"), ip_address("192.0.2.22")), "where it has roamed to"
    assert three.conversation.pods == (ip_address("10.42.1.9"), ip_address("10.42.3.9"))
    assert three.expected == "clear: has no public key"
    six = FamilyStatus(Family.IPV6, peers=(PeerStatus("n3", Traffic.ENCRYPTED, endpoint="[fd00:aa::33]:51821"),))
    both = observe(objects(*(node(f"n{number}", None, {V6: f"fd00:aa::{number}/64"}) for number in (1, 3))), "n1").cluster
    pods6 = {"n1": [("10.42.1.9", "a/b"), ("fd00::1", "a/b")], "n3": [("10.42.3.9", "c/d"), ("fd00::3", "c/d")]}
    (three,) = pairs(both, replace(status, families=(six,)), pods6, lambda: b"mark")
    assert three.conversation.pods == (ip_address("fd00::1"), ip_address("fd00::3"))
    assert three.conversation.nodes == (ip_address("fd00:aa::1"), ip_address("fd00:aa::33"))
    (alone, _) = pairs(cluster, status, {}, lambda: b"mark")
    assert alone.conversation.pods[0] == ip_address("10.42.1.1"), "an address of its range, where there is no pod"


# On a wire ----------------------------------------------------------------------------------------------------------


def with_pod(number: int) -> dict[str, Any]:
    """The block of a node, with its pod in it."""
    allocations = [0 if index == 5 else None for index in range(64)]
    attributes = [{"handle_id": "x", "secondary": {"namespace": "default", "pod": f"web-{number}", "node": f"n{number}"}}]
    return block(f"10.42.{number}.0/26", f"n{number}", allocations=allocations, attributes=attributes)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Two nodes that encrypt, one that does not; a pod on each."""
    with make_lab(tmp_path, []) as made:
        for number in (1, 2, 3):
            made.add_node(number)
            made.add_pod(number)
            made.put(with_pod(number), f"block-{number}.yaml")
        for number in (1, 2):
            made.nodes[number].start_agent("--resync", "1")
        made.until_settled(1, 2)
        yield made


def verified(lab: Lab, *options: str, before: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    one = lab.nodes[1]
    words = one.command(*before, *one.agent_words("--output", "json", *options, verb="verify"))
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    return done.returncode, json.loads(done.stdout) if done.stdout else {"said": done.stderr}


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2")
def test_it_looks_again_and_again(lab: Lab, tmp_path: Path) -> None:
    """Each look has new packets: what changes meanwhile shows."""
    one, said = lab.nodes[1], tmp_path / "said"
    lab.until(lambda: one.ping("10.42.2.0"), "they have shaken hands")
    watching = one.start(*one.agent_words("n2", "--watch", "0.1", "--output", "json", verb="verify"), output=said)

    def is_proven() -> object:
        *_, last, _ = ["{}", *said.read_text().split("\n")]
        return json.loads(last).get("proven")

    lab.until(is_proven, "it is encrypted")
    one.run("ip", "rule", "add", "priority", "50", "lookup", "main")
    lab.until(lambda: is_proven() is False, "the leak is seen")
    one.run("ip", "rule", "del", "priority", "50")
    lab.until(is_proven, "it is encrypted again")

    watching.terminate()
    watching.wait(20)


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2")
def test_encrypted_in_clear_leaking_and_refused(lab: Lab) -> None:
    one = lab.nodes[1]
    lab.until(lambda: one.ping("10.42.2.0"), "they have shaken hands")

    status, report = verified(lab, "n2")
    (two,) = report["pairs"]
    assert (status, two["verdict"], two["why"]) == (0, "encrypted", "and answered")
    assert (two["from"], two["to"]) == ("10.42.1.5", "10.42.2.5")
    assert two["frames_in_clear"] == 0 and two["packets_into_tunnel"] == PACKETS
    assert 1 <= two["answers"] <= PACKETS, "it does not wait for the others when one has come"
    assert min(two["transport_messages"]) >= PACKETS
    assert report["wires"] == ["eth0"]

    status, report = verified(lab)
    found = {pair["peer"]: pair for pair in report["pairs"]}
    assert status == 1 and found["n2"]["verdict"] == "encrypted"
    assert (found["n3"]["verdict"], found["n3"]["why"]) == ("in clear", "clear: has no public key")

    one.run("ip", "rule", "add", "priority", "50", "lookup", "main")  # packets go past the tunnel: a leak
    status, report = verified(lab, "n2")
    assert (status, report["pairs"][0]["verdict"]) == (1, "in clear")
    assert report["pairs"][0]["frames_in_clear"] >= PACKETS
    one.run("ip", "rule", "del", "priority", "50")

    one.run("ip", "rule", "add", "priority", "50", "to", "10.42.2.5", "blackhole")
    status, report = verified(lab, "n2")
    assert (status, report["pairs"][0]["verdict"]) == (1, "nothing seen")

    one.run("ip", "rule", "add", "priority", "49", "to", "10.42.2.5", "prohibit")
    status, report = verified(lab, "n2")
    assert (status, report["pairs"][0]["verdict"]) == (0, "refused")

    status, report = verified(lab, "n77")
    assert status == 2 and "not n77" in report["said"]

    drop = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    status, report = verified(lab, "n2", before=drop)
    assert status == 2 and "CAP_NET_RAW" in report["said"]


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2")
def test_with_host_encryption_it_looks_at_the_wire_and_not_into_the_tunnel(tmp_path: Path) -> None:
    with make_lab(tmp_path, []) as lab:
        lab.felix(wireguardHostEncryptionEnabled=True)
        for number in (1, 2):
            lab.add_node(number)
            lab.add_pod(number)
            lab.put(with_pod(number), f"block-{number}.yaml")
        for number in (1, 2):
            lab.nodes[number].start_agent("--resync", "1")
        lab.until_settled(1, 2)
        lab.until(lambda: f"dev {WG4}" in lab.nodes[1].run("ip", "route", "get", "192.0.2.2"), "nodes talk through the tunnel")

        status, report = verified(lab, "n2")

        assert (status, report["pairs"][0]["verdict"], report["wires"]) == (0, "encrypted", ["eth0"])
