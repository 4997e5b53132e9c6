"""A history with known events gives exactly these sentences."""

import json
from pathlib import Path
from typing import Any

import pytest

from controller.compliance.model import FIPS, Outcome, duration, share, statement
from controller.compliance.requirements import FRAMEWORKS
from controller.entries import Kind
from tests.controller.compliance.histories import at, one, record, running, sampled, started, stood, stopped, traffic

HISTORY = (
    started(0),
    stood(0, "n2", "n3", keys={"n2": "K2", "n3": "K3"}),
    sampled(0, rx=1000, tx=500),
    traffic(0.5, "n2", "encrypted", "clear", "has no public key"),
    one(0.5, Kind.PEER_KEY, family="IPv4", peer="n2", before="K2", after="K2b"),
    sampled(0.5, 1, 1, rx=3000, tx=900),
    traffic(0.75, "n2", "clear", "encrypted"),
    one(0.75, Kind.KEY_MADE, family="IPv4", key="K1b", before="K1"),
    one(0.75, Kind.KEY_OVERWRITTEN, family="IPv4", key="K7", before="K1"),
    *running(1, 2, rx=4000, tx=1000),
    stopped(2),
    started(3, strict=False),
    stood(3, "n2", refused={"has no public key": ["n3"]}, key="K1b"),
    one(3, Kind.STRICT_OFF),
    one(3.25, Kind.MTU, family="IPv4", before=1440, after=1380),
)


def made(directory: Path, *history: Any, framework: str = "pci-dss", end: float = 3.25, begin: float = 0) -> dict[str, Any]:
    return statement(
        FRAMEWORKS[framework], [record(directory, *(history or HISTORY))], at(begin), at(end), 1.8e9, "wgpy 1", "calico"
    )


def said(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["topic"], one["outcome"], one["text"]) for one in document["statements"]]


def test_the_sentences(tmp_path: Path) -> None:
    meaning = "Strict mode refuses what ought to be encrypted and cannot be; without it such packets go in clear."
    assert said(made(tmp_path))[2:] == [
        (
            "record",
            "not known",
            "The agent on n1 kept a record of 69.2 % of the period. Of 1 h, in 1 gap, nothing is known, and no packet of that "
            "time is called encrypted.",
        ),
        (
            "encrypted",
            "for information",
            "IPv4: packets from n1 to the pods of 0 of 2 peers were encrypted whenever there is a record. At least 500 bytes "
            "left through the tunnel and 3,000 came in.",
        ),
        (
            "clear",
            "does not support",
            "IPv4: packets from n1 to the pods of n2 went in clear for 15 min (11.1 % of what is recorded): has no public key "
            "(15 min).",
        ),
        (
            "refused",
            "for information",
            "IPv4: packets from n1 to the pods of n3 were refused, that is dropped and not sent in clear, for 15 min: has no "
            "public key (15 min).",
        ),
        ("strict mode", "does not support", f"Strict mode was on at n1 for 2 h, and off for 15 min. {meaning}"),
        (
            "keys",
            "for information",
            "IPv4: n1 used 2 keys in the period and changed it once. The last one, K1b, is in use since "
            "2026-11-01T00:45:00.000Z: 2 h 30 min old at its end.",
        ),
        ("keys", "for information", "IPv4: n1 accepted the public keys of 2 peers, listed below; it changed for n2."),
        (
            "key incidents",
            "does not support",
            "The public key that the cluster shows for n1 was meddled with (key overwritten by another: once).",
        ),
        (
            "sessions",
            "for information",
            "Peers of n1 completed a first handshake never, fell silent never and answered again never. Packets to a silent peer "
            "wait or are dropped; they do not go in clear.",
        ),
        ("leaks", "not known", "The leak detector did not run on n1: that no leak was seen there means nothing."),
        ("configuration", "for information", "IPv4: n1 took part in the encrypted mesh for 2 h 15 min."),
        (
            "configuration",
            "for information",
            "The configuration of n1 changed 4 times in the period; each change is listed below.",
        ),
    ]


def test_a_good_record_supports_and_says_so(tmp_path: Path) -> None:
    history = (started(0), stood(0, "n2", "n3"), one(0, Kind.LEAK_DETECTOR_ON, interfaces=["eth0"]), *running(0, 2))
    document = made(tmp_path, *history, end=2)

    assert ("record", "supports", "The agent on n1 kept a record of the whole period (2 h, 9 samples).") in said(document)
    assert (
        "leaks",
        "supports",
        "The leak detector watched the wire of n1 for 100 % of the recorded time and saw no leak.",
    ) in said(document)
    assert {one["outcome"] for one in document["requirements"]} == {"supports"} and document["gaps"] == []


def test_a_detector_that_watched_not_all_it_was_to_proves_nothing(tmp_path: Path) -> None:
    on = one(0, Kind.LEAK_DETECTOR_ON, interfaces=["eth0"], why="there is no interface eth9")
    whole = one(0.5, Kind.LEAK_DETECTOR_ON, interfaces=["eth0", "eth9"])
    history = (started(0), stood(0, "n2", "n3"), on, *running(0, 0.5), whole, *running(0.75, 1))

    assert (
        "leaks",
        "not known",
        "The leak detector watched the wire of n1 for 100 % of the recorded time and saw no leak, but not all of it for 30 min: "
        "there is no interface eth9 (30 min).",
    ) in said(made(tmp_path, *history, end=1))


@pytest.mark.parametrize("end", [Kind.LEFT, Kind.AGENT_STOPPED, None])
def test_an_agent_that_does_not_say_that_it_watches_for_leaks_does_not(tmp_path: Path, end: Kind | None) -> None:
    """Whatever the agent before it did, and however that ended."""
    watched = (started(0), stood(0, "n2", "n3"), one(0, Kind.LEAK_DETECTOR_ON, interfaces=["eth0"]), *running(0, 0.75))
    last = () if end is None else (one(0.75, end),)
    document = made(tmp_path, *watched, *last, started(0.75), stood(0.75, "n2", "n3"), *running(0.75, 1.5), end=1.5)

    assert [(outcome, text) for topic, outcome, text in said(document) if topic == "leaks"] == [
        ("not known", "The leak detector watched the wire of n1 for 50.0 % of the recorded time and saw no leak.")
    ]


def test_of_what_felix_does_itself_there_is_no_record(tmp_path: Path) -> None:
    """It encrypts, most likely; but neither that nor the opposite is ours to say."""
    why = "this node's kernel has WireGuard, and Felix uses it"
    rests = (
        one(1, Kind.FAMILY_DISABLED, family="IPv4", why=why),
        *(one(1, Kind.PEER_REMOVED, family="IPv4", peer=peer) for peer in ("n2", "n3")),
        stood(1, enabled=False, why=why, felix=True),
    )
    history = (started(0), stood(0, "n2", "n3"), *running(0, 0.75), *rests, *running(1, 2, encrypted=0))
    sentences = said(made(tmp_path / "a", *history, end=2))

    (encrypted,) = [(outcome, text) for topic, outcome, text in sentences if topic == "encrypted"]
    assert encrypted[0] == "for information" and "the pods of 0 of 2 peers were encrypted whenever" in encrypted[1]
    assert [text for topic, outcome, text in sentences if (topic, outcome) == ("clear", "not known")] == [
        f"IPv4: what became of packets from n1 to the pods of {peer} is not known for 1 h though the agent was there: Felix has "
        "WireGuard itself on this node, and keeps no record of it (1 h)."
        for peer in ("n2", "n3")
    ]
    assert not [text for topic, outcome, text in sentences if topic in ("clear", "refused") and outcome == "does not support"]

    always = said(
        made(tmp_path / "b", started(0), stood(0, enabled=False, why=why, felix=True), *running(0, 1, encrypted=0), end=1)
    )
    assert (
        "encrypted",
        "not known",
        "No peer of n1 stands in the record of this period: nothing can be said of any traffic.",
    ) in (always)


@pytest.mark.parametrize("begin", [-1, 0])
def test_a_pair_of_which_nothing_is_known_while_there_is_a_record_is_not_called_encrypted(tmp_path: Path, begin: float) -> None:
    """A peer that came while entries were lost. Where the record begins later than the period, that gap has the same reason."""
    before = (started(0), stood(0, "n2"), *running(0, 1, encrypted=1))
    history = (*before, one(1.1, Kind.LOST), stood(1.1, "n2", "n3"), *running(1.25, 2))
    sentences = said(made(tmp_path, *history, begin=begin, end=2))

    (encrypted,) = [(outcome, text) for topic, outcome, text in sentences if topic == "encrypted"]
    assert encrypted[0] == "for information" and "1 of 2 peers were encrypted whenever there is a record: n2." in encrypted[1]
    assert (
        "clear",
        "not known",
        "IPv4: what became of packets from n1 to the pods of n3 is not known for 1 h though the agent was there: the record does "
        "not reach back so far (1 h).",
    ) in sentences


def test_a_leak_that_was_seen_counts_against(tmp_path: Path) -> None:
    leak = one(0.6, Kind.LEAK, family="IPv4", peer="n2", packets=3)
    history = (started(0), stood(0, "n2", "n3"), one(0, Kind.LEAK_DETECTOR_ON), *running(0, 0.5), leak, *running(0.75, 1))

    (encrypted,) = [text for topic, _, text in said(made(tmp_path / "a", *history, end=1)) if topic == "encrypted"]
    assert "1 of 2 peers were encrypted whenever there is a record: n3." in encrypted, "of n2 packets were seen in clear"
    assert [one["outcome"] for one in made(tmp_path, *history, end=1)["statements"] if one["topic"] == "leaks"] == [
        "does not support"
    ]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_sentence_bears_on_a_requirement_and_every_citation_can_be_looked_up(tmp_path: Path, framework: str) -> None:
    document = made(tmp_path, framework=framework)
    lines = {line["id"]: line for line in document["evidence"]["lines"]}
    cited = [number for one in document["statements"] for number in one["evidence"]]
    cited += [
        number
        for table in ("gaps", "keys", "strict_mode", "configuration")
        for row in document[table]
        for number in row["evidence"]
    ]
    cited += [number for row in document["pairs"] for span in row["spans"] for number in span["evidence"]]

    assert set(cited) == set(lines)
    assert all(one["requirements"] for one in document["statements"])
    outcomes = [one.value for one in Outcome]
    for requirement in document["requirements"]:
        found = [one["outcome"] for one in document["statements"] if requirement["id"] in one["requirements"]]
        assert requirement["outcome"] == max(found, key=outcomes.index)
    content = (tmp_path / "history.jsonl").read_bytes()
    for line in lines.values():
        text = content[line["offset"] : line["offset"] + line["length"]]
        assert json.loads(text)["kind"] == line["kind"] and text == content.split(b"\n")[line["line"] - 1]
    assert document["fips"] == FIPS and any(one["text"] == FIPS for one in document["statements"])


def test_a_node_without_a_record_of_its_own_is_named(tmp_path: Path) -> None:
    assert made(tmp_path)["limits"][-1].endswith("is not covered: n2, n3.")


def test_one_node_has_one_history(tmp_path: Path) -> None:
    found = record(tmp_path, *HISTORY)

    for records in ([], [found, found]):
        with pytest.raises(ValueError, match="of each only one"):
            statement(FRAMEWORKS["gdpr"], records, at(0), at(1), 0.0, "")


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0 s"), (250, "0.25 s"), (59_999, "59 s"), (125_000, "2 min 5 s"), (86_400_000, "1 d"), (89_999_999, "1 d")],
)
def test_durations_are_cut_and_not_rounded(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


def test_only_all_is_a_hundred_percent() -> None:
    assert (share(9_999_999, 10_000_000), share(1, 1), share(0, 0), share(1, 8)) == ("99.9 %", "100 %", "0 %", "12.5 %")
