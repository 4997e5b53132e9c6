"""Each node is asked one question, and the answer survives the disk."""

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.findings import Finding
from controller.model import Block, Cluster, Family, Node, NodeNetwork
from controller.status import (
    STALE_SECONDS,
    UNANSWERED_BYTES,
    AgentStatus,
    Direction,
    FamilyStatus,
    Leak,
    LeakStatus,
    PeerStatus,
    Seen,
    SourceStatus,
    Traffic,
    family_status,
    from_json,
    refreshed,
    to_json,
    unready,
    unstarted,
)
from wgpy.config import DeviceSnapshot, Endpoint, PeerConfig, PeerSnapshot, Prefix
from wgpy.wgconf import format_key

NOW = 1_700_000_000.0
OWN_KEY = b"\x01" * 32
KEYS = {name: bytes([number]) * 32 for number, name in enumerate(("n2", "n3", "n4"), start=2)}


def node(name: str, number: int, key: bytes | None) -> Node:
    address = ip_address(f"192.0.2.{number}")
    return Node(name, NodeNetwork(address=address, public_key=key, host_addresses=(address,)))


def cluster(**keys: bytes | None) -> Cluster:
    """n1, which is us, and others with their keys; node number N has 10.0.N.0/24."""
    nodes = [node("n1", 1, OWN_KEY), *(node(name, int(name[1:]), key) for name, key in keys.items())]
    return Cluster(
        nodes={one.name: one for one in nodes},
        blocks=tuple(Block(ip_network(f"10.0.{one.name[1:]}.0/24"), one.name) for one in nodes),
    )


def on_device(name: str, age: float | None = None, tx: int = 0, rx: int = 0, endpoint: str | None = None) -> PeerSnapshot:
    """The peer of that name, which shook hands ``age`` seconds before NOW."""
    config = PeerConfig(KEYS[name], endpoint=Endpoint(endpoint or f"192.0.2.{name[1:]}", 51820))
    return PeerSnapshot(config, last_handshake=0 if age is None else int((NOW - age) * 1e9), tx_bytes=tx, rx_bytes=rx)


def seen(*peers: PeerSnapshot, at: float = NOW) -> Seen:
    return Seen(at=at, public_key=OWN_KEY, interface="wireguard.caliu", mtu=1440, snapshot=DeviceSnapshot(peers=peers))


def status(cluster: Cluster, seen: Seen, before: FamilyStatus | None = None) -> FamilyStatus:
    return family_status(cluster, Family.IPV4, "n1", seen, before)


def agent(*families: FamilyStatus, passes: int = 1, passed_at: float | None = NOW) -> AgentStatus:
    source = SourceStatus("kubernetes", is_synced=True, heard_at=NOW)
    return AgentStatus(NOW, "n1", "calico", "1", source, passes=passes, passed_at=passed_at, families=families)


# -- one family ------------------------------------------------------------------------------------------------------


def test_what_becomes_of_packets_to_each_node() -> None:
    family = status(cluster(n2=KEYS["n2"], n3=None, n4=KEYS["n4"]), seen(on_device("n2", age=5, tx=7, rx=8)))

    n2, n3, n4 = family.peers
    assert n2 == PeerStatus(
        name="n2",
        traffic=Traffic.ENCRYPTED,
        public_key=format_key(KEYS["n2"]),
        endpoint="192.0.2.2:51820",
        ranges=("10.0.2.0/24",),
        last_handshake=NOW - 5,
        tx_bytes=7,
        rx_bytes=8,
    )
    assert (n3.name, n3.traffic, n3.why, n3.ranges) == ("n3", Traffic.CLEAR, "has no public key", ("10.0.3.0/24",))
    assert (n4.traffic, n4.why) == (Traffic.CLEAR, "not on the device yet")


def test_what_is_said_of_ourselves() -> None:
    own = replace(cluster(), nodes={"n1": Node("n1", NodeNetwork(public_key=OWN_KEY, interface_address=ip_address("10.0.1.9")))})

    family = status(own, seen())

    assert family.is_enabled and family.is_published and family.has_data_plane
    assert (family.public_key, family.announced) == (format_key(OWN_KEY), format_key(OWN_KEY))
    assert (family.interface, family.interface_address, family.mtu) == ("wireguard.caliu", "10.0.1.9", 1440)
    blocks = (Block(ip_network("10.0.1.64/26"), "n1"), Block(ip_network("10.0.1.0/26"), "n1"))
    assert status(replace(own, blocks=blocks), seen()).ranges == ("10.0.1.0/26", "10.0.1.64/26")


def test_what_cannot_be_encrypted_is_refused_where_that_is_the_rule() -> None:
    family = status(cluster(n2=None), replace(seen(), is_refusing=True))

    assert [(peer.traffic, peer.why) for peer in family.peers] == [(Traffic.REFUSED, "has no public key")]


def test_of_two_nodes_with_one_key_neither_is_a_peer_and_none_is_external() -> None:
    family = status(cluster(n2=KEYS["n2"], n3=KEYS["n2"]), seen(on_device("n2", age=1)))

    assert [(peer.name, peer.traffic) for peer in family.peers] == [("n2", Traffic.CLEAR), ("n3", Traffic.CLEAR)]
    assert "same public key as n3" in family.peers[0].why


def test_a_family_that_rests_sends_everything_in_clear_and_says_why() -> None:
    resting = replace(seen(), rest="not enabled in FelixConfiguration", snapshot=None, public_key=None)

    family = status(cluster(n2=KEYS["n2"]), resting)

    assert not family.is_enabled and not family.is_published
    assert [(peer.traffic, peer.why) for peer in family.peers] == [
        (Traffic.CLEAR, "this node: not enabled in FelixConfiguration")
    ]


def test_without_a_data_plane_what_was_encrypted_is_refused_and_the_rest_goes_in_clear() -> None:
    """The routes of what was promised stay. What is remembered of an earlier boot promises nothing."""
    both = cluster(n2=KEYS["n2"], n3=KEYS["n3"])
    before = status(both, seen(on_device("n2", age=1), on_device("n3", age=1)))
    promised = frozenset({ip_network("10.0.2.0/24")})
    lost = replace(seen(), snapshot=None, waits_for="a data plane for wireguard.caliu", promised=promised)

    family = status(both, lost, before)
    later = status(both, lost, family)

    for one in (family, later):
        assert not one.has_data_plane
        assert {peer.name: peer.traffic for peer in one.peers} == {"n2": Traffic.REFUSED, "n3": Traffic.CLEAR}
        assert {peer.why for peer in one.peers} == {"a data plane for wireguard.caliu"}
    booted = status(both, replace(lost, promised=None), before)
    assert {peer.name: peer.traffic for peer in booted.peers} == {"n2": Traffic.CLEAR, "n3": Traffic.CLEAR}


def test_of_a_family_that_felix_has_nothing_is_said_of_peers() -> None:
    """It encrypts by itself: to call them in clear, or refused, would be wrong."""
    resting = replace(seen(), rest="Felix has WireGuard itself here", is_felix=True, is_refusing=True, snapshot=None)

    family = status(cluster(n2=KEYS["n2"]), resting)

    assert family.is_felix and not family.is_enabled and family.peers == ()


@pytest.mark.parametrize(
    ("before", "promised", "expected"),
    [
        (Traffic.ENCRYPTED, frozenset(), Traffic.REFUSED),
        (Traffic.CLEAR, frozenset(), Traffic.CLEAR),
        (Traffic.ENCRYPTED, None, Traffic.CLEAR),
    ],
)
def test_of_a_node_without_pods_it_is_remembered_whether_it_was_promised(
    before: Traffic, promised: frozenset[Prefix] | None, expected: Traffic
) -> None:
    without = replace(cluster(n2=KEYS["n2"]), blocks=())
    last = FamilyStatus(Family.IPV4, peers=(PeerStatus("n2", before),))

    (peer,) = status(without, replace(seen(), snapshot=None, promised=promised), last).peers

    assert peer.traffic is expected


def test_a_peer_that_is_no_node_is_external() -> None:
    config = PeerConfig(b"\x07" * 32, endpoint=Endpoint("198.51.100.1", 7), allowed_ips=(ip_network("10.9.0.0/16"),))

    (peer,) = status(cluster(), seen(PeerSnapshot(config))).peers

    assert peer.is_external and peer.name == peer.public_key == format_key(b"\x07" * 32)
    assert (peer.endpoint, peer.ranges) == ("198.51.100.1:7", ("10.9.0.0/16",))


def test_a_peer_elsewhere_than_at_its_nodes_address_has_roamed() -> None:
    both = cluster(n2=KEYS["n2"], n3=KEYS["n3"])

    family = status(both, seen(on_device("n2"), on_device("n3", endpoint="198.51.100.3")))

    assert [peer.has_roamed for peer in family.peers] == [False, True]


def test_a_port_that_a_node_publishes_is_no_roaming() -> None:
    published = replace(cluster(n2=KEYS["n2"]))
    network = replace(published.nodes["n2"].ipv4, port=51871)
    published = replace(published, nodes={**published.nodes, "n2": replace(published.nodes["n2"], ipv4=network)})
    config = PeerConfig(KEYS["n2"], endpoint=Endpoint("192.0.2.2", 51871))

    assert not status(published, seen(PeerSnapshot(config))).peers[0].has_roamed


# -- silence ---------------------------------------------------------------------------------------------------------


def silent(age: float | None, tx: int, later_tx: int, later_age: float | None = None, seconds: float = 0.0) -> bool:
    """Whether a peer is silent the second time it is looked at, ``seconds`` after the first."""
    one = cluster(n2=KEYS["n2"])
    before = status(one, seen(on_device("n2", age, tx)))
    return status(one, seen(on_device("n2", later_age or age, later_tx), at=NOW + seconds), before).peers[0].is_silent


@pytest.mark.parametrize("age", [1.0, STALE_SECONDS, 10 * STALE_SECONDS])
def test_an_idle_peer_is_not_silent_however_old_its_handshake(age: float) -> None:
    assert not silent(age, tx=1000, later_tx=1000, seconds=1.0)


def test_one_with_an_old_handshake_that_is_sent_something_and_does_not_answer_is_silent() -> None:
    assert silent(STALE_SECONDS + 1, tx=1000, later_tx=1148)


def test_one_with_a_session_is_not_silent_whatever_it_is_sent() -> None:
    assert not silent(STALE_SECONDS - 1, tx=1000, later_tx=10**9)


def test_a_handshake_ends_the_silence_and_time_does_not() -> None:
    one = cluster(n2=KEYS["n2"])
    old = STALE_SECONDS + 10
    looks = [(old, 1), (old, 149), (old, 149), (0.0, 149)]
    last, found = None, []
    for age, tx in looks:
        last = status(one, seen(on_device("n2", age, tx)), last)
        found.append(last.peers[0].is_silent)

    assert found == [False, True, True, False]


def test_one_that_never_shook_hands_gets_three_initiations_before_it_is_called_silent() -> None:
    assert [silent(None, 0, tx) for tx in (0, 148, UNANSWERED_BYTES - 1, UNANSWERED_BYTES)] == [False, False, False, True]


def test_counters_are_refreshed_and_nothing_else() -> None:
    before = status(cluster(n2=KEYS["n2"], n3=None), seen(on_device("n2", age=300, tx=1)))

    after = refreshed(before, DeviceSnapshot(peers=(on_device("n2", age=300, tx=149, endpoint="198.51.100.9"),)), NOW)

    assert after.peers[0] == replace(before.peers[0], tx_bytes=149, endpoint="198.51.100.9:51820", is_silent=True)
    assert after.peers[1] == before.peers[1]
    assert refreshed(before, None, NOW) == replace(before, has_data_plane=False)


# -- readiness -------------------------------------------------------------------------------------------------------


def peer(name: str, age: float | None = None, is_silent: bool = False) -> PeerStatus:
    return PeerStatus(name, Traffic.ENCRYPTED, last_handshake=None if age is None else NOW - age, is_silent=is_silent)


def joined(*peers: PeerStatus) -> FamilyStatus:
    return FamilyStatus(Family.IPV4, public_key="k", announced="k", has_data_plane=True, peers=peers)


def test_before_the_first_pass_it_has_not_started() -> None:
    assert unstarted(None) == unstarted(agent(passes=0)) == "the first pass is not over"
    assert unready(None) == "the first pass is not over"
    assert unstarted(agent()) is None


def test_a_first_pass_that_fails_says_how() -> None:
    failing = agent(FamilyStatus(Family.IPV6, failure="UDP port 51821 is in use"), passes=3, passed_at=None)

    assert unstarted(failing) == unready(failing) == "IPv6: UDP port 51821 is in use"


def test_idle_peers_do_not_keep_a_node_from_being_ready() -> None:
    """A peer that nobody speaks to has no handshake, or an old one."""
    assert unready(agent(joined(peer("n2"), peer("n3", age=4000)))) is None


def test_a_node_whose_families_all_rest_is_ready() -> None:
    assert unready(agent(FamilyStatus(Family.IPV4, rest="not enabled"), FamilyStatus(Family.IPV6, rest="not enabled"))) is None


def test_an_api_server_that_is_away_keeps_nobody_from_being_ready() -> None:
    away = replace(agent(joined(peer("n2", age=1))), source=SourceStatus("kubernetes", is_synced=False, failure="refused"))

    assert unready(away) is None


@pytest.mark.parametrize(
    ("family", "lack"),
    [
        (replace(joined(), announced=None), "IPv4: the key is not published"),
        (replace(joined(), announced="another"), "IPv4: the key is not published"),
        (replace(joined(), announced=None, contest="Felix writes it, too"), "IPv4: Felix writes it, too"),
        (replace(joined(), has_data_plane=False), "IPv4: waiting for a data plane"),
        (replace(joined(), waits_for="a data plane for wg0"), "IPv4: waiting for a data plane for wg0"),
        (replace(joined(), failure="no such device"), "IPv4: no such device"),
        (joined(peer("n2", is_silent=True), peer("n3")), "IPv4: 1 of 1 peers in use do not answer"),
        (joined(peer("n2", is_silent=True), peer("n3", 1), peer("n4", 400, True)), "IPv4: 2 of 3 peers in use do not answer"),
    ],
)
def test_what_keeps_a_node_from_being_ready(family: FamilyStatus, lack: str) -> None:
    assert unready(agent(FamilyStatus(Family.IPV6, rest="not enabled"), family)) == lack


def test_how_many_have_to_answer_can_be_chosen() -> None:
    half = agent(joined(peer("n2", is_silent=True), peer("n3", age=1)))

    assert unready(half, enough=0.5) is None
    assert unready(half, enough=0.51) is not None
    assert unready(agent(joined(peer("n2", is_silent=True))), enough=0.0) is None


# -- on disk ---------------------------------------------------------------------------------------------------------

texts = st.text(max_size=8)
optional_texts = st.none() | texts
times = st.none() | st.floats(0, 2e9)
peers = st.builds(
    PeerStatus, texts, st.sampled_from(Traffic), ranges=st.lists(texts, max_size=2).map(tuple), last_handshake=times
)
families = st.builds(
    FamilyStatus,
    st.sampled_from(Family),
    rest=optional_texts,
    mtu=st.none() | st.integers(),
    ranges=st.lists(texts, max_size=2).map(tuple),
    peers=st.lists(peers, max_size=3, unique_by=lambda peer: peer.name).map(tuple),
)
leaks = st.builds(
    LeakStatus,
    interfaces=st.lists(texts, max_size=2).map(tuple),
    why=optional_texts,
    leaks=st.lists(
        st.builds(Leak, st.sampled_from(Family), texts, st.sampled_from(Direction), st.integers(1), st.floats(0, 2e9), texts),
        max_size=2,
        unique_by=lambda leak: (leak.family, leak.peer, leak.direction),
    ).map(tuple),
)
statuses = st.builds(
    AgentStatus,
    at=st.floats(0, 2e9),
    source=st.builds(SourceStatus, texts, heard_at=times),
    families=st.lists(families, max_size=2, unique_by=lambda family: family.family).map(tuple),
    findings=st.lists(st.builds(Finding, texts, texts, texts, st.booleans()), max_size=2).map(tuple),
    passed_at=times,
    pass_seconds=times,
    leaks=st.none() | leaks,
)


@given(statuses)
def test_what_is_written_is_read_back(one: AgentStatus) -> None:
    assert from_json(to_json(one)) == one


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '{"format": 1}',
        '{"format": 2}',
        '{"format": 1, "families": 7}',
        '{"format": 1, "families": [{}]}',
    ],
)
def test_anything_else_is_no_status(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)


def test_a_status_from_before_there_was_a_leak_detector_is_one_all_the_same() -> None:
    document = json.loads(to_json(agent(joined())))
    del document["leaks"], document["families"][0]["ranges"]

    assert from_json(json.dumps(document)) == agent(joined())


def test_a_status_of_a_version_with_other_fields_is_no_status() -> None:
    with pytest.raises(ValueError, match="not a status"):
        from_json(to_json(agent()).replace('"node":', '"nodes":'))
