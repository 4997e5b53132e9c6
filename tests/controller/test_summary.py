"""A node in few words: who is well is counted, who is not is named."""

import json
from dataclasses import replace

from controller.findings import Finding
from controller.model import Family
from controller.status import AgentStatus, Direction, FamilyStatus, Leak, LeakStatus, PeerStatus, SourceStatus, Traffic
from controller.summary import HANDSHAKE_AGES, MOST_LEAKS, MOST_TROUBLED, summary

NOW = 1_700_000_000.0

STATUS = AgentStatus(
    at=NOW,
    node="n1",
    mesh="calico",
    version="1.2",
    source=SourceStatus("kubernetes", is_synced=True),
    passes=7,
    passed_at=NOW - 1,
    families=(
        FamilyStatus(
            Family.IPV4,
            public_key="K",
            announced="K",
            interface="wireguard.caliu",
            interface_address="10.0.1.9",
            mtu=1440,
            has_data_plane=True,
            refused_inbound=3,
            refused_outbound=4,
            peers=(
                PeerStatus("n2", Traffic.ENCRYPTED, last_handshake=NOW - 10, rx_bytes=100, tx_bytes=1),
                PeerStatus("n3", Traffic.ENCRYPTED, last_handshake=NOW - 400, is_silent=True, rx_bytes=10, tx_bytes=2),
                PeerStatus("n4", Traffic.ENCRYPTED, last_handshake=NOW - 60),
                PeerStatus("n5", Traffic.REFUSED, "has no public key"),
                PeerStatus("n6", Traffic.ENCRYPTED),
            ),
        ),
        FamilyStatus(Family.IPV6, rest="not enabled", peers=(PeerStatus("n2", Traffic.CLEAR, "this node: not enabled"),)),
    ),
    findings=(Finding("DuplicateKey", "n8", "x"),),
)


def test_a_summary_counts_who_is_well_and_names_who_is_not() -> None:
    said = summary(STATUS)

    ipv4, ipv6 = said["families"]
    assert said["node"] == "n1" and said["is_synced"] and said["unready"] is None
    assert ipv4["peers"] == {"encrypted": 4, "clear": 0, "refused": 1} and ipv4["silent"] == 1
    assert [one["name"] for one in ipv4["troubled"]] == ["n5", "n3"], "the worst first"
    assert ipv4["troubled"][0] == {"name": "n5", "traffic": "refused", "why": "has no public key", "is_silent": False}
    assert ipv4["rx_bytes"] == 110 and ipv4["tx_bytes"] == 3 and ipv4["refused_packets"] == 7
    assert ipv6["rest"] == "not enabled" and ipv6["peers"]["clear"] == 1 and ipv6["troubled"] == []
    assert said["findings"][0]["reason"] == "DuplicateKey"


def test_handshakes_are_counted_by_age_and_a_bound_belongs_to_what_is_below() -> None:
    (ages, _) = (family["handshakes"] for family in summary(STATUS)["families"])

    # 10 s; 60 s, which is still "up to 60"; 400 s, which is over; and one that never was. Who is refused does not count.
    assert dict(zip([*HANDSHAKE_AGES, "over", "never"], ages)) == {30: 1, 60: 1, 120: 0, 180: 0, "over": 1, "never": 1}
    assert summary(STATUS)["families"][0]["oldest_handshake"] == NOW - 400


def test_the_size_of_a_summary_does_not_follow_the_number_of_peers() -> None:
    def size(peers: int, traffic: Traffic) -> int:
        found = tuple(PeerStatus(f"node-{number:05}", traffic, "no key", last_handshake=NOW) for number in range(peers))
        family = replace(STATUS.families[0], peers=found)
        return len(json.dumps(summary(replace(STATUS, families=(family,)))))

    assert size(5000, Traffic.ENCRYPTED) < size(50, Traffic.ENCRYPTED) + 100
    assert size(5000, Traffic.CLEAR) < size(MOST_TROUBLED, Traffic.CLEAR) + 100


def test_where_there_is_no_room_for_all_the_worst_are_named() -> None:
    quiet = [
        PeerStatus(f"a-{number:05}", Traffic.ENCRYPTED, last_handshake=NOW, is_silent=True) for number in range(MOST_TROUBLED)
    ]
    refused, clear = PeerStatus("b", Traffic.REFUSED, "no key"), PeerStatus("c", Traffic.CLEAR, "no key")
    family = replace(STATUS.families[0], peers=(*quiet, refused, clear))

    (said, *_) = summary(replace(STATUS, families=(family,)))["families"]

    assert [one["name"] for one in said["troubled"][:3]] == ["c", "b", "a-00000"] and len(said["troubled"]) == MOST_TROUBLED


def test_a_node_without_a_detector_does_not_say_that_nothing_leaks() -> None:
    assert summary(STATUS)["leaks"] is None
    assert summary(replace(STATUS, leaks=LeakStatus(why="needs CAP_NET_RAW")))["leaks"] is None
    assert summary(replace(STATUS, leaks=LeakStatus(("eth0",))))["leaks"] == {"packets": 0, "why": None, "latest": []}


def test_all_leaks_are_counted_and_the_latest_are_named() -> None:
    seen = tuple(Leak(Family.IPV4, f"n{number}", Direction.OUTBOUND, number, NOW + number, "x") for number in range(1, 10))

    said = summary(replace(STATUS, leaks=LeakStatus(("eth0",), leaks=seen)))["leaks"]

    assert said["packets"] == 45
    assert [leak["peer"] for leak in said["latest"]] == ["n9", "n8", "n7", "n6", "n5"] and MOST_LEAKS == 5
    assert said["latest"][0] == {"peer": "n9", "direction": "outbound", "packets": 9, "at": NOW + 9, "example": "x"}
