"""What an operator sees of the mesh."""

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from controller import mesh_table
from controller.findings import Finding
from controller.graph import Pods
from controller.mesh_table import (
    IMPERFECT,
    NothingKnown,
    World,
    ago,
    complaints,
    document,
    looks,
    pods_by_node,
    rate,
    rates,
    show,
    size,
    table,
    up_to_date,
    world,
)
from controller.meshes.calico import observe
from controller.model import Family
from controller.status import NOT_ENABLED, AgentStatus, FamilyStatus, PeerStatus, SourceStatus, Traffic, to_json
from tests.controller.cluster import keyed, node, objects
from tests.controller.lab import WG4, make_lab, may_make_namespaces
from tests.controller.test_status import KEYS
from wgpy.config import DeviceSnapshot, PeerConfig, PeerSnapshot
from wgpy.wgconf import format_key

NOW = 1_700_000_000.0
N2 = PeerStatus(
    "n2",
    Traffic.ENCRYPTED,
    public_key=format_key(KEYS["n2"]),
    endpoint="192.0.2.2:51820",
    ranges=("10.0.2.0/24",),
    last_handshake=NOW - 9,
    rx_bytes=1_500_000,
    tx_bytes=900,
)
FAMILY = FamilyStatus(
    Family.IPV4,
    public_key="K1",
    announced="K1",
    interface="wireguard.caliu",
    interface_address="10.0.1.9",
    mtu=1440,
    has_data_plane=True,
    peers=(N2,),
)
PODS: Pods = {
    "n2": [(f"10.0.2.{number}", f"default/web-{number}") for number in range(2, 7)] + [("fd00::2", "default/web-2")],
    "n1": [("10.0.1.7", "shop/db")],
}
AROUND = World(PODS, ("n1", "n2", "n3"), {Family.IPV4: {"n3": "has no public key"}, Family.IPV6: {}})


def status(*peers: PeerStatus, **fields: Any) -> AgentStatus:
    family = replace(FAMILY, peers=peers or (N2,))
    values = {"at": NOW - 3, "source": SourceStatus("kubernetes", is_synced=True), "passes": 1, "passed_at": NOW - 3}
    return AgentStatus(**{"node": "n1", "mesh": "calico", "version": "1", "families": (family,), **values, **fields})


def shown(one: AgentStatus, is_wide: bool = False) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(one, AROUND, NOW, is_wide, {(Family.IPV4, "n2"): (1500.0, 20.0)}))
    return console.export_text()


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(name))


def test_a_peer_with_the_pods_behind_it() -> None:
    text = shown(status())

    assert "n1  calico, not strict, as of 3 s ago" in text
    assert "IPv4  wireguard.caliu  10.0.1.9  MTU 1440  key K1  published" in text
    assert " ".join(row(text, "n2").split()) == (
        "n2 encrypted 192.0.2.2:51820 9 s ago 1.5 MB 900 B 1.5 kB/s in, 20 B/s out 1 of 2, not n3 10.0.2.2 default/web-2"
    )
    own = next(line for line in text.splitlines() if "this node" in line)
    assert " ".join(own.split()) == "n1 this node 1 of 2, not n3 10.0.1.7 shop/db"
    assert "10.0.2.4 default/web-4" in text and "web-5" not in text
    assert "and 2 more (--output wide)" in text
    assert "fd00::2" not in text, "which is of the other family"


def test_wide_has_all_of_it() -> None:
    text = shown(status(), is_wide=True)

    assert all(f"10.0.2.{number} default/web-{number}" in text for number in range(2, 7))
    assert format_key(KEYS["n2"]) in text and "10.0.2.0/24" in text


def test_what_is_not_encrypted_says_why() -> None:
    text = shown(status(PeerStatus("n3", Traffic.CLEAR, "has no public key"), PeerStatus("n4", Traffic.REFUSED, "no address")))

    assert "in clear: has no public key" in row(text, "n3") and "none: has no public key" in row(text, "n3")
    assert "refused: no address" in row(text, "n4")


def test_one_that_does_not_answer_says_so() -> None:
    text = shown(status(replace(N2, is_silent=True, last_handshake=None, has_roamed=True)))

    assert "encrypted, does not answer" in row(text, "n2")
    assert "192.0.2.2:51820 (roamed)" in row(text, "n2")
    assert "never" in row(text, "n2")


def test_a_family_that_rests_is_one_line() -> None:
    text = shown(status(families=(FamilyStatus(Family.IPV6, rest="not enabled [x]", peers=(N2,)),)))

    assert "IPv6  not part of the mesh: not enabled [x]" in text
    assert "192.0.2.2" not in text


@pytest.mark.parametrize(
    ("one", "complaint"),
    [
        (status(at=NOW - 1000), "this is from 17 min ago, and nobody keeps it up to date: is the agent running?"),
        (
            status(source=SourceStatus("kubernetes", failure="connection refused")),
            "the cluster is out of reach, and shown as it was last: connection refused",
        ),
        (status(families=(replace(FAMILY, announced=None),)), "IPv4: the key is not published"),
        (status(families=(replace(FAMILY, has_data_plane=False),)), "IPv4: waiting for a data plane"),
        (status(N2, PeerStatus("n3", Traffic.CLEAR, "has no public key")), "IPv4: 1 of 2 peers in clear: n3"),
        (status(N2, PeerStatus("n3", Traffic.REFUSED, "has no public key")), "IPv4: 1 of 2 peers refused: n3"),
        (status(replace(N2, is_silent=True)), "IPv4: 1 of 1 peers without an answer: n2"),
        (
            status(*(PeerStatus(f"m{number}", Traffic.CLEAR) for number in range(7))),
            "IPv4: 7 of 7 peers in clear: m0, m1, m2, m3, m4 and others",
        ),
        (status(findings=(Finding("DuplicateKey", "n8", "remove one"),)), "DuplicateKey: n8: remove one"),
    ],
)
def test_what_is_complained_of(one: AgentStatus, complaint: str) -> None:
    assert complaints(one, NOW) == [complaint]
    assert f"! {complaint}" in shown(one)


def test_where_all_is_well_nothing_is_complained_of() -> None:
    resting = FamilyStatus(Family.IPV6, rest="not enabled", peers=(PeerStatus("n2", Traffic.CLEAR, "this node: not enabled"),))
    idle = replace(N2, last_handshake=NOW - 9000)

    assert complaints(status(families=(replace(FAMILY, peers=(idle,)), resting)), NOW) == []
    off = replace(FAMILY, rest=NOT_ENABLED, peers=())
    assert complaints(status(families=(replace(FAMILY, peers=(idle,)), off)), NOW) == []
    assert complaints(status(families=(off, off)), NOW) == [f"nothing is encrypted: {NOT_ENABLED}"]
    assert complaints(status(findings=(Finding("PlainNodes", "n8", "as wished", is_warning=False),)), NOW) == []


def test_counters_are_those_of_the_device_now() -> None:
    device = DeviceSnapshot(peers=(PeerSnapshot(PeerConfig(KEYS["n2"]), last_handshake=int(NOW * 1e9), tx_bytes=5),))
    asked = []

    def snapshot(interface: str) -> DeviceSnapshot | None:
        asked.append(interface)
        return device

    one = up_to_date(status(families=(FAMILY, FamilyStatus(Family.IPV6, rest="off", interface="wg-v6.caliu"))), snapshot, NOW)

    assert asked == ["wireguard.caliu"]
    assert one.families[0].peers[0] == replace(N2, endpoint=None, last_handshake=NOW, rx_bytes=0, tx_bytes=5)


# -- rates and pairs ---------------------------------------------------------------------------------------------------


def test_rates_are_between_two_looks() -> None:
    later = replace(N2, rx_bytes=N2.rx_bytes + 4000, tx_bytes=N2.tx_bytes + 10)

    assert rates(status(), status(later), 2.0) == {(Family.IPV4, "n2"): (2000.0, 5.0)}
    assert rates(status(), status(later), 0.1) == {}, "too short to say"
    assert rates(status(later), status(), 2.0) == {}, "the counters have begun anew"
    assert rates(status(), status(replace(later, public_key="K9")), 2.0) == {}, "another key is another peer"
    assert rates(status(), status(replace(later, name="n7")), 2.0) == {}
    assert rate(None) == "" and rate((2000.0, 5.4)) == "2.0 kB/s in, 5 B/s out"


def test_which_pairs_are_meant_to_be_encrypted() -> None:
    names = tuple(f"n{number}" for number in range(9))
    refusals = {name: "has no public key" for name in names[2:]}

    assert World(nodes=names, unusable={Family.IPV4: {}}).meant("n1", Family.IPV4) == "all 8"
    assert World(nodes=names, unusable={Family.IPV4: refusals}).meant("n0", Family.IPV4) == "1 of 8, not n2, n3, n4, n5, n6, ..."
    assert World(nodes=names, unusable={Family.IPV4: refusals}).meant("n2", Family.IPV4) == "none: has no public key"
    assert World(nodes=names).meant("n1", Family.IPV4) == World().meant("n1", Family.IPV4) == ""


def test_the_world_is_read_from_the_cluster() -> None:
    cluster = observe(objects(keyed("n1", "192.0.2.1/24"), keyed("n2", "192.0.2.2/24"), node("n3", "192.0.2.3/24")), "n1").cluster

    found = world(cluster, PODS)

    assert found.nodes == ("n1", "n2", "n3") and found.pods == PODS
    assert found.unusable[Family.IPV4] == {"n3": "has no public key"}
    assert world(None, PODS) == World(PODS)


# -- pods ------------------------------------------------------------------------------------------------------------


def test_pods_are_read_from_blocks() -> None:
    block = {
        "spec": {
            "cidr": "10.0.2.0/29",
            "allocations": [None, 0, 1, 2, None, 0, 9, None],
            "attributes": [
                {"handle_id": "a", "secondary": {"namespace": "default", "node": "n2", "pod": "web-0"}},
                {"handle_id": "b", "secondary": {"namespace": "shop", "node": "n3", "pod": "db"}},
                {"handle_id": "c", "secondary": {"node": "n2", "type": "wireguardTunnelAddress"}},
            ],
        }
    }

    assert pods_by_node([block]) == {
        "n2": [("10.0.2.1", "default/web-0"), ("10.0.2.5", "default/web-0")],
        "n3": [("10.0.2.2", "shop/db")],
    }


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"spec": None},
        {"spec": {"cidr": "x", "allocations": [], "attributes": []}},
        {"spec": {"cidr": "10.0.0.0/29", "allocations": [0, "x", True], "attributes": ["x"]}},
        {"spec": {"cidr": "10.0.0.0/29", "allocations": 7, "attributes": []}},
        {"spec": {"cidr": "10.0.0.0/29", "allocations": [0], "attributes": [{"secondary": {"pod": "a"}}]}},
    ],
)
def test_blocks_that_cannot_be_read_have_no_pods(block: dict[str, Any]) -> None:
    assert pods_by_node([block]) == {}


# -- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "now"),
        (0.9, "now"),
        (7, "7 s ago"),
        (119, "119 s ago"),
        (120, "2 min ago"),
        (7200, "2 h ago"),
        (200_000, "2 days ago"),
    ],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert ago(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_140_000, "3.1 MB"), (10**9, "1.0 GB"), (10**15, "1000.0 TB")],
)
def test_sizes_in_words(count: int, text: str) -> None:
    assert size(count) == text


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory; the clock stands still, and no data plane answers but that of the status."""
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setattr(mesh_table, "_device", lambda interface: DeviceSnapshot(peers=(PeerSnapshot(PeerConfig(KEYS["n2"])),)))
    (tmp_path / "status.json").write_text(to_json(status()))
    return tmp_path


def test_all_is_well(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(directory, lambda: AROUND) == 0

    assert "10.0.2.2 default/web-2" in capsys.readouterr().out


@pytest.mark.parametrize(("output", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_everything_for_a_program(directory: Path, capsys: pytest.CaptureFixture[str], output: str, read: Any) -> None:
    (directory / "status.json").write_text(to_json(status(N2, PeerStatus("n3", Traffic.CLEAR, "has no public key"))))

    assert show(directory, lambda: AROUND, output) == IMPERFECT

    found = read(capsys.readouterr().out)
    n2, n3 = found["families"][0]["peers"]
    assert (n2["name"], n2["traffic"], n2["pods"][0]) == ("n2", "encrypted", {"address": "10.0.2.2", "name": "default/web-2"})
    assert (n3["traffic"], n3["why"], n3["pods"]) == ("clear", "has no public key", [])
    assert found["complaints"] == ["IPv4: 1 of 2 peers in clear: n3"]
    assert found["families"][0]["pods"] == [{"address": "10.0.1.7", "name": "shop/db"}]
    assert found["families"][0]["not_encrypted_to"] == {"n3": "has no public key"} and found["nodes"] == ["n1", "n2", "n3"]
    assert found == {**document(status(), AROUND, NOW), **found}


@pytest.mark.parametrize("content", [None, "", "{}"])
def test_where_nothing_is_known_it_is_one_line(directory: Path, capsys: pytest.CaptureFixture[str], content: str | None) -> None:
    (directory / "status.json").unlink()
    if content is not None:
        (directory / "status.json").write_text(content)

    assert show(directory, World) == 1

    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("wgpy mesh: ") and said.err.count("\n") == 1


def test_looking_again_and_again(directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each look has a document of its own, with the rate since the one before; the first since the status was written, none here,
    as the device has counted anew since then."""
    counts, clock, slept = iter(range(0, 9000, 1000)), iter(range(0, 100, 2)), []
    monkeypatch.setattr(time, "time", lambda: NOW + next(clock))
    monkeypatch.setattr(
        mesh_table,
        "_device",
        lambda interface: DeviceSnapshot(
            peers=(PeerSnapshot(PeerConfig(KEYS["n2"]), last_handshake=int(NOW * 1e9), tx_bytes=next(counts)),)
        ),
    )

    def sleep(pause: float) -> None:
        slept.append(pause)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)

    assert show(directory, lambda: AROUND, "json", watch=0.5) == 0

    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert slept == [0.5] * 3
    assert [one["families"][0]["peers"][0]["tx_rate"] for one in documents] == [None, 500.0, 500.0]


def test_a_look_at_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NothingKnown, match="is not there"):
        next(looks(tmp_path))


# -- on a wire -------------------------------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2")
def test_it_says_what_wg_says(tmp_path: Path) -> None:
    """``wgpy mesh``, ``top`` and ``mesh graph`` against ``wg show`` and the traffic, in a mesh of two nodes and a plain one."""
    with make_lab(tmp_path, []) as lab:
        for number in (1, 2, 3):
            lab.add_node(number)
        for number in (1, 2):
            lab.nodes[number].start_agent("--resync", "1")
        lab.until_settled(1, 2)
        one, two = lab.nodes[1], lab.nodes[2]
        lab.until(lambda: one.ping("10.42.2.0"), "they talk")
        lab.until(lambda: "192.0.2.2:51820" in (one.state / "status.json").read_text(), "the agent has told of it")

        def asked(verb: str, *options: str) -> tuple[int, str]:
            done = one.run_agent(*options, verb=verb)
            return done.returncode, done.stdout

        def dumped() -> tuple[str, str, list[int]]:
            """Of the one peer: key, endpoint; handshake, received, sent."""
            (line,) = one.run("wg", "show", WG4, "dump").splitlines()[1:]
            key, _psk, endpoint, _allowed, *numbers, _ = line.split("\t")
            return key, endpoint, list(map(int, numbers))

        key, endpoint, before = dumped()
        code, printed = asked("mesh", "--output", "json")
        *_, after = dumped()
        found = json.loads(printed)
        n2, n3 = found["families"][0]["peers"]
        assert code == IMPERFECT
        assert (n2["name"], n2["public_key"], n2["endpoint"]) == ("n2", key, endpoint)
        said = [int(n2[name]) for name in ("last_handshake", "rx_bytes", "tx_bytes")]
        assert all(low <= number <= high for low, number, high in zip(before, said, after)), "a keepalive may come in between"
        assert min(said) > 0
        assert (n3["name"], n3["traffic"], n3["why"]) == ("n3", "clear", "has no public key")
        assert found["nodes"] == ["n1", "n2", "n3"] and found["families"][0]["not_encrypted_to"] == {"n3": "has no public key"}
        assert two.key() == key

        words = [*one.agent_words(verb="mesh")[:4], "graph", "--format", "dot", *one.agent_words(verb="mesh")[4:]]
        drawn = one.run(*words)
        assert drawn.count(" -- ") == 3 and '"n1" -- "n2" [color="#2e7d32", style=solid' in drawn
        assert '"n2" -- "n3" [color="#c77700", style=dashed, tooltip="n2 - n3: in clear: n3 has no public key"]' in drawn

        ping = one.start("ping", "-i0.02", "-s1000", "10.42.2.0")
        code, printed = asked("top", "--once", "--output", "json", "--interval", "1")
        ping.terminate()
        (peer,) = json.loads(printed)["peers"]
        assert code == 0 and 30_000 < peer["tx_rate"] < 80_000, "some 50 packets a second of 1,028 bytes and what encryption adds"
