"""What has happened is found by comparison, and a reader who knows nothing of before is told where all stands."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from controller.entries import Kind, changes, line, parse, rfc3339, sample, standing
from controller.findings import Finding
from controller.model import Family
from controller.status import AgentStatus, Direction, FamilyStatus, Leak, LeakStatus, PeerStatus, SourceStatus, Traffic
from tests.controller.test_status import statuses

NOW = 1_700_000_000.0
PEER = PeerStatus("n2", Traffic.ENCRYPTED, public_key="K2", endpoint="192.0.2.2:51820", last_handshake=NOW - 9)
FAMILY = FamilyStatus(
    Family.IPV4,
    public_key="K1",
    announced="K1",
    interface="wireguard.caliu",
    interface_address="10.0.1.9",
    mtu=1440,
    has_data_plane=True,
    peers=(PEER,),
)


def status(family: FamilyStatus = FAMILY, **fields: Any) -> AgentStatus:
    source = SourceStatus("kubernetes", is_synced=True)
    return AgentStatus(
        **{"at": NOW, "node": "n1", "mesh": "calico", "version": "1", "source": source, "families": (family,), **fields}
    )


def told(before: AgentStatus | None, after: AgentStatus) -> list[tuple[str, dict[str, Any]]]:
    return [(one.kind, dict(one.fields)) for one in changes(before, after)]


def told_of_family(**fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """What is told when these fields of the family change; the family's name left out."""
    found = told(status(), status(replace(FAMILY, **fields)))
    assert all(entry.pop("family") == "IPv4" for _, entry in found)
    return found


def told_of_peer(before: PeerStatus = PEER, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    families = [replace(FAMILY, peers=(peer,)) for peer in (before, replace(before, **fields))]
    found = told(*map(status, families))
    assert all((entry.pop("family"), entry.pop("peer")) == ("IPv4", "n2") for _, entry in found)
    return found


# -- what has changed ------------------------------------------------------------------------------------------------


@given(statuses)
def test_nothing_has_happened_where_nothing_has_changed(one: AgentStatus) -> None:
    assert changes(one, one) == []


def test_counters_and_times_are_no_events() -> None:
    later = replace(PEER, last_handshake=NOW + 100, rx_bytes=7, tx_bytes=8)

    assert told(status(), status(replace(FAMILY, peers=(later,)), at=NOW + 110, passes=9, passed_at=NOW, pass_seconds=1.0)) == []


PARTLY = LeakStatus(("eth0",), why="there is no interface eth9")
ON, STARTING, ASKED_IN_VAIN = LeakStatus(("eth0",)), LeakStatus(), LeakStatus(why="no CAP_NET_RAW")


@pytest.mark.parametrize(
    ("before", "after", "entries"),
    [
        (None, None, []),
        (None, STARTING, []),
        (STARTING, ON, [("leak detector on", {"interfaces": ["eth0"]})]),
        (ON, LeakStatus(("eth0", "eth1")), [("leak detector on", {"interfaces": ["eth0", "eth1"]})]),
        (ON, PARTLY, [("leak detector on", {"interfaces": ["eth0"], "why": "there is no interface eth9"})]),
        (PARTLY, PARTLY, []),
        (PARTLY, ON, [("leak detector on", {"interfaces": ["eth0"]})]),
        (ON, STARTING, []),
        (STARTING, ASKED_IN_VAIN, [("leak detector off", {"why": "no CAP_NET_RAW"})]),
        (ASKED_IN_VAIN, ASKED_IN_VAIN, []),
        (ON, ASKED_IN_VAIN, [("leak detector off", {"why": "no CAP_NET_RAW"})]),
        (ON, None, [("leak detector off", {"why": "the agent was started without it"})]),
    ],
)
def test_whether_somebody_looks_for_leaks(
    before: LeakStatus | None, after: LeakStatus | None, entries: list[tuple[str, dict[str, Any]]]
) -> None:
    assert told(status(leaks=before), status(leaks=after)) == entries


def test_leaks_are_told_by_peer_and_how_many_are_new() -> None:
    def leaks(inbound: int, outbound: int, other: int) -> LeakStatus:
        return LeakStatus(
            ("eth0",),
            leaks=(
                Leak(Family.IPV4, "n2", Direction.INBOUND, inbound, NOW, "there > here"),
                Leak(Family.IPV4, "n2", Direction.OUTBOUND, outbound, NOW, "here > there"),
                Leak(Family.IPV6, "n3", Direction.OUTBOUND, other, NOW, "x"),
            ),
        )

    before = status(leaks=leaks(3, 5, 7))

    assert told(before, status(leaks=leaks(3, 5, 7))) == []
    new = [("leak seen", {"family": "IPv4", "peer": "n2", "packets": 3, "example": "there > here"})]
    assert told(before, status(leaks=leaks(4, 7, 7))) == new
    on, *whole = told(before, status(leaks=leaks(4, 7, 7), started_at=NOW))
    assert on == ("leak detector on", {"interfaces": ["eth0"]}), "each agent says for itself that it looks"
    assert [(fields["peer"], fields["packets"]) for _, fields in whole] == [("n2", 11), ("n3", 7)], "another agent counts anew"


def test_a_first_status_tells_all_there_is() -> None:
    kinds = [kind for kind, _ in told(None, status(is_strict=True))]

    assert kinds == [
        "source back",
        "strict mode on",
        "family enabled",
        "data plane found",
        "key made",
        "key published",
        "interface changed",
        "interface address changed",
        "MTU changed",
        "peer added",
        "first handshake",
    ]


def test_the_source_is_lost_and_back() -> None:
    away = status(source=SourceStatus("kubernetes", is_synced=False, failure="connection refused"))

    assert told(status(), away) == [("source lost", {"source": "kubernetes", "why": "connection refused"})]
    assert told(away, status()) == [("source back", {"source": "kubernetes"})]


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"rest": "not enabled"}, "family disabled", {"why": "not enabled"}),
        ({"is_refusing": True}, "refusal on", {}),
        ({"has_data_plane": False}, "data plane lost", {"interface": "wireguard.caliu"}),
        ({"failure": "no such device"}, "failure", {"why": "no such device"}),
        ({"public_key": "K9", "announced": "K9"}, "key made", {"key": "K9", "before": "K1"}),
        ({"announced": None}, "key cleared by another", {"key": "K1"}),
        ({"announced": None, "is_withdrawing": True}, "key withdrawn", {"key": "K1"}),
        ({"announced": None, "rest": "not enabled"}, "key withdrawn", {"key": "K1"}),
        ({"announced": "K7"}, "key overwritten by another", {"key": "K7", "before": "K1"}),
        ({"contest": "Felix writes it, too"}, "key contested", {"why": "Felix writes it, too"}),
        ({"interface": "wg9"}, "interface changed", {"before": "wireguard.caliu", "after": "wg9"}),
        ({"interface_address": None}, "interface address changed", {"before": "10.0.1.9", "after": None}),
        ({"mtu": 1380}, "MTU changed", {"before": 1440, "after": 1380}),
        ({"peers": ()}, "peer removed", {"peer": "n2", "key": "K2"}),
    ],
)
def test_what_happens_to_a_family(fields: dict[str, Any], kind: str, said: dict[str, Any]) -> None:
    assert (kind, said) in told_of_family(**fields)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"rest": "not enabled"}, "family enabled"),
        ({"is_refusing": True}, "refusal off"),
        ({"has_data_plane": False}, "data plane found"),
        ({"failure": "no such device"}, "recovery"),
        ({"announced": None}, "key published"),
        ({"contest": "Felix"}, "key no longer contested"),
        ({"peers": ()}, "peer added"),
    ],
)
def test_and_is_over_again(fields: dict[str, Any], kind: str) -> None:
    assert kind in [found for found, _ in told(status(replace(FAMILY, **fields)), status())]


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"public_key": "K8", "last_handshake": None}, "peer's key changed", {"before": "K2", "after": "K8"}),
        (
            {"traffic": Traffic.REFUSED, "why": "has no public key"},
            "peer's traffic changed",
            {"before": "encrypted", "after": "refused", "why": "has no public key"},
        ),
        ({"endpoint": "192.0.2.9:51820"}, "peer's endpoint changed", {"before": "192.0.2.2:51820", "after": "192.0.2.9:51820"}),
        (
            {"endpoint": "[2001:db8::1]:7", "has_roamed": True},
            "peer roamed",
            {"before": "192.0.2.2:51820", "after": "[2001:db8::1]:7"},
        ),
        ({"is_silent": True}, "handshake lost", {"handshake": rfc3339(NOW - 9)}),
    ],
)
def test_what_happens_to_a_peer(fields: dict[str, Any], kind: str, said: dict[str, Any]) -> None:
    assert told_of_peer(**fields) == [(kind, said)]


def test_a_first_handshake_and_one_after_silence() -> None:
    never = replace(PEER, last_handshake=None, is_silent=True)
    lost = replace(PEER, is_silent=True)

    assert told_of_peer(never, last_handshake=NOW, is_silent=False) == [("first handshake", {"handshake": rfc3339(NOW)})]
    assert told_of_peer(lost, last_handshake=NOW, is_silent=False) == [("handshake back", {})]
    assert [kind for kind, _ in told_of_peer(public_key="K8", last_handshake=NOW)] == ["peer's key changed", "first handshake"]


def test_a_family_that_is_switched_off_is_one_event_and_not_one_for_each_peer() -> None:
    clear = replace(PEER, traffic=Traffic.CLEAR, why="this node: not enabled")

    entries = told(status(), status(replace(FAMILY, rest="not enabled", peers=(clear,))))

    assert [kind for kind, _ in entries] == ["family disabled", "standing"]
    assert entries[1][1]["clear"] == {"this node: not enabled": ["n2"]}, "and one that says where all of them stand now"


def test_a_standing_says_of_each_peer_what_becomes_of_its_packets() -> None:
    others = [PeerStatus(f"n{number}", Traffic.REFUSED, "has no public key") for number in (3, 4)]
    family = replace(FAMILY, peers=(PEER, *others, PeerStatus("n5", Traffic.CLEAR, "not on the device yet", public_key="K5")))

    assert standing(NOW, family, with_keys=True).fields == {
        "family": "IPv4",
        "enabled": True,
        "key": "K1",
        "mtu": 1440,
        "interface": "wireguard.caliu",
        "encrypted": ["n2"],
        "clear": {"not on the device yet": ["n5"]},
        "refused": {"has no public key": ["n3", "n4"]},
        "keys": {"n2": "K2", "n5": "K5"},
    }
    assert "keys" not in standing(NOW, family).fields


def test_a_sample_counts_and_does_not_grow_with_the_mesh() -> None:
    stale = replace(PEER, name="n3", last_handshake=NOW - 181, is_silent=True, rx_bytes=5, tx_bytes=7)
    one = sample(status(replace(FAMILY, peers=(PEER, stale, PeerStatus("n4", Traffic.CLEAR, "no key")))))
    many = replace(FAMILY, peers=tuple(replace(PEER, name=f"n{number}") for number in range(1000)))

    assert one.fields == {
        "node": "n1",
        "mesh": "calico",
        "version": "1",
        "strict": False,
        "synced": True,
        "families": {
            "IPv4": {"encrypted": 2, "clear": 1, "refused": 0, "answering": 1, "silent": 1, "rx_bytes": 5, "tx_bytes": 7}
        },
    }
    assert len(json.dumps(sample(status(many)).fields)) < 300
    assert sample(status(replace(FAMILY, rest="not enabled"))).fields["families"] == {}


def test_warnings_are_raised_and_cleared_by_what_they_are_about() -> None:
    one = Finding("DuplicateKey", "n3", "n3 and n4 have the same key")
    reworded = replace(one, message="n3, n4 and n5 have the same key")

    assert told(status(), status(findings=(one,))) == [
        ("warning raised", {"reason": "DuplicateKey", "subject": "n3", "message": "n3 and n4 have the same key"})
    ]
    assert told(status(findings=(one,)), status(findings=(reworded,))) == []
    assert told(status(findings=(one,)), status()) == [("warning cleared", {"reason": "DuplicateKey", "subject": "n3"})]


def test_every_kind_has_words_of_its_own() -> None:
    assert len({kind.value for kind in Kind}) == len(Kind)


@given(statuses)
def test_every_entry_is_one_line_that_is_read_back(one: AgentStatus) -> None:
    for entry in changes(None, one):
        assert line(entry).count(b"\n") == 1
        again = parse(line(entry))
        assert again is not None and (again.kind, again.fields) == (entry.kind, entry.fields)
