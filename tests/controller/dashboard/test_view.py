"""What is made of the sightings: each node's state, each link's, the totals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.dashboard.view import (
    MOST_LINKED,
    MOST_LINKS,
    Link,
    Sighting,
    State,
    links,
    mesh_view,
    names,
    natural,
    node_view,
    rate,
    spoken,
    warnings,
)
from controller.findings import Finding
from controller.model import Family
from controller.status import Direction, Leak, LeakStatus, Traffic
from tests.controller.dashboard.sightings import NOW, peer, seen, silent

# Nodes


@pytest.mark.parametrize(
    ("sighting", "state", "why"),
    [
        (Sighting("a"), State.NO_AGENT, "not asked yet"),
        (Sighting("a", failure="nobody answers"), State.NO_AGENT, "nobody answers"),
        (seen("a", peer("b")), State.ENCRYPTED, ""),
        (seen("a"), State.ENCRYPTED, ""),
        (seen("a", peer("b"), failure="no answer within 5 s"), State.LOST, "no answer within 5 s"),
        (seen("a", rest="WireGuard is off"), State.RESTS, "WireGuard is off; not enabled"),
        (seen("a", peer("b"), peer("c", Traffic.CLEAR, "no key")), State.CLEAR, "c: no key"),
        (seen("a", peer("b"), peer("c", Traffic.REFUSED, "no key")), State.REFUSED, "c: no key"),
        (seen("a", peer("b"), peer("d"), silent("c")), State.SILENT, "1 of 3 peers do not answer"),
        (seen("a", silent("c")), State.WAITING, "IPv4: 1 of 1 peers in use do not answer"),
        (seen("a", peer("b"), failure=None, waits_for="a data plane"), State.WAITING, "IPv4: waiting for a data plane"),
        (seen("a", peer("b"), announced=None), State.WAITING, "IPv4: the key is not published"),
    ],
)
def test_the_state_of_a_node_and_why(sighting: Sighting, state: State, why: str) -> None:
    view = node_view(sighting)

    assert (view.state, view.why) == (state, why)


def test_a_node_counts_its_peers_and_only_in_families_that_take_part() -> None:
    view = node_view(seen("a", peer("b"), silent("c"), peer("d", Traffic.CLEAR, "x"), peer("e", Traffic.REFUSED, "x")))
    resting = node_view(seen("a", peer("b", Traffic.CLEAR, "this node: off"), rest="off"))

    assert (view.encrypted, view.silent, view.clear, view.refused) == (2, 1, 1, 1)
    assert view.oldest_handshake == NOW - 10 and view.version == "1.2" and (view.rx_rate, view.tx_rate) == (125.0, 250.0)
    assert (resting.encrypted, resting.clear) == (0, 0)


def test_only_warnings_count_as_warnings() -> None:
    found = (Finding("A", "x", "y"), Finding("B", "x", "y", is_warning=False))

    assert node_view(seen("a", findings=found)).warnings == 1


# Links


def link_of(*sightings: Sighting) -> list[tuple[str, str, State]]:
    return [(link.one, link.other, link.state) for link in links(sightings, None)[0]]


def test_the_worse_end_of_a_link_counts() -> None:
    one_way = link_of(seen("a", peer("b")), seen("b", peer("a", Traffic.CLEAR, "no key")))
    other_way = link_of(seen("a", peer("b", Traffic.CLEAR, "no key")), seen("b", silent("a")))

    assert one_way == other_way == [("a", "b", State.CLEAR)]


def test_an_end_without_an_agent_believes_the_other() -> None:
    assert link_of(seen("a", peer("b")), Sighting("b")) == [("a", "b", State.ENCRYPTED)]
    assert link_of(Sighting("a"), seen("b", peer("a", Traffic.REFUSED, "x"))) == [("a", "b", State.REFUSED)]


def test_of_two_ends_that_say_nothing_nothing_is_guessed() -> None:
    assert link_of(Sighting("a"), Sighting("b")) == []
    assert link_of(Sighting("a"), seen("b", rest="off")) == []


def test_of_whom_there_was_no_room_for_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.summary.MOST_TROUBLED", 2)
    many = seen("a", *(peer(name, Traffic.CLEAR, "no key") for name in ("b", "c", "d")), peer("e"))

    assert link_of(many, *map(Sighting, "bcde")) == [("a", "b", State.CLEAR), ("a", "c", State.CLEAR)]
    assert ("a", "d", State.SILENT) in link_of(many, *map(Sighting, "bc"), seen("d", silent("a")))
    monkeypatch.setattr("controller.summary.MOST_TROUBLED", 3)
    many = seen("a", *(peer(name, Traffic.CLEAR, "no key") for name in ("b", "c", "d")), peer("e"))
    assert ("a", "e", State.ENCRYPTED) in link_of(many, *map(Sighting, "bcde"))


def test_external_peers_are_no_links() -> None:
    assert link_of(seen("a", silent("KEY="))) == []


def test_in_a_large_mesh_only_what_is_wrong_is_linked_and_who_is_looked_at() -> None:
    many = [seen(f"n{number}") for number in range(MOST_LINKED + 1)]
    many[3] = seen("n3", peer("n5", Traffic.CLEAR, "x"))

    assert [(link.one, link.other) for link in links(many, None)[0]] == [("n3", "n5")]
    looked_at, _ = links(many, "n7")
    assert len(looked_at) == MOST_LINKED + 1 and looked_at[-1] == Link("n3", "n5", State.CLEAR, "x")
    assert len(links(many[:-1], None)[0]) == MOST_LINKED * (MOST_LINKED - 1) // 2


def test_the_best_links_are_left_out_first_and_that_is_said() -> None:
    count = 60
    many = [seen(f"n{a}", *(silent(f"n{b}") for b in range(count) if b != a)) for a in range(count)]
    many[7] = seen("n7", peer("n8", Traffic.CLEAR, "x"))

    found, left_out = links(many, None)

    assert len(found) == MOST_LINKS and left_out == count * (count - 1) // 2 - MOST_LINKS
    assert found[-1].state is State.CLEAR


@given(
    st.lists(st.lists(st.sampled_from(["well", "silent", "clear", "refused"]), min_size=5, max_size=5), min_size=5, max_size=5)
)
def test_a_link_is_as_bad_as_its_worse_end_and_has_no_direction(table: list[list[str]]) -> None:
    made = {
        "well": peer,
        "silent": silent,
        "clear": lambda n: peer(n, Traffic.CLEAR),
        "refused": lambda n: peer(n, Traffic.REFUSED),
    }
    severity = {"well": State.ENCRYPTED, "silent": State.SILENT, "clear": State.CLEAR, "refused": State.REFUSED}
    sightings = [seen(f"n{a}", *(made[table[a][b]](f"n{b}") for b in range(5) if b != a)) for a in range(5)]

    for link in links(sightings, None)[0]:
        one, other = int(link.one[1:]), int(link.other[1:])
        assert link.one < link.other
        assert link.state.severity == max(severity[table[one][other]].severity, severity[table[other][one]].severity)


# The whole mesh


def test_totals_are_sums_and_leaks_are_not_known_where_nobody_looks() -> None:
    view = mesh_view([seen("b", peer("a")), seen("a", silent("b")), Sighting("c")], "calico")

    assert [node.name for node in view.nodes] == ["a", "b", "c"]
    assert (view.totals.nodes, view.totals.answering, view.totals.encrypted, view.totals.silent) == (3, 2, 2, 1)
    assert view.totals.leaks is None and view.totals.tx_rate == 500.0
    assert view.totals.ages == (1, 0, 0, 0, 0, 1)


def test_leaks_are_counted_where_somebody_looks_and_lead_the_warnings() -> None:
    leak = Leak(Family.IPV4, "b", Direction.OUTBOUND, 3, NOW, "10.0.0.1 > 10.0.1.1")
    sightings = [
        seen("a", leaks=LeakStatus(("eth0",), leaks=(leak,))),
        seen("b", leaks=LeakStatus(("eth0",)), findings=(Finding("A", "x", "y"),)),
        seen("c"),
    ]

    view = mesh_view(sightings, "calico")

    assert (view.totals.leaks, view.totals.detectors) == (3, 2)
    assert [node.leaks for node in view.nodes] == [3, 0, None]
    assert view.warnings[0].reason == "Leak" and "10.0.0.1 > 10.0.1.1" in view.warnings[0].message


def test_a_lost_agent_counts_among_the_nodes_but_not_among_those_that_answer() -> None:
    totals = mesh_view([seen("a", peer("b"), failure="gone"), seen("b", peer("a"))], "calico").totals

    assert (totals.nodes, totals.answering) == (2, 1) and sum(totals.ages) == 1


def test_a_finding_of_many_nodes_is_one_warning_and_most_nodes_come_first() -> None:
    rare, common = Finding("Rare", "x", "y"), Finding("Common", "x", "y")
    found = list(warnings([seen("n10", findings=(rare, common)), seen("n2", findings=(common,))]))

    assert [(each.reason, each.nodes) for each in found] == [("Common", ("n2", "n10")), ("Rare", ("n10",))]


# As text


def test_numbers_in_names_count_as_numbers() -> None:
    assert sorted(["n10", "n2", "n1", "m", "n", "n2-b", "n2-a10", "n2-a9"], key=natural) == [
        "m", "n", "n1", "n2", "n2-a9", "n2-a10", "n2-b", "n10",
    ]  # fmt: skip


@given(st.lists(st.text(alphabet="ab-12²٣", max_size=8)))
def test_any_names_can_be_put_in_order(all_names: list[str]) -> None:
    assert sorted(sorted(all_names, key=natural), key=natural) == sorted(all_names, key=natural)


def test_few_names_of_many() -> None:
    assert names(["a", "b"]) == "a, b" and names(list("abcdefg")) == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 b/s"), (124, "992 b/s"), (125, "1.0 kb/s"), (1.5e8, "1.2 Gb/s"), (1e15, "8000.0 Tb/s")]
)
def test_rates_are_in_bits(value: float, text: str) -> None:
    assert rate(value) == text


def test_the_picture_in_words() -> None:
    well = mesh_view([seen("a", peer("b")), seen("b", peer("a"))], "calico")
    ill = mesh_view([seen("a", silent("b")), seen("b", peer("a", Traffic.CLEAR)), Sighting("c")], "calico")

    assert spoken(well) == "Picture of the mesh: 2 nodes: 2 encrypted. No link is wrong."
    assert spoken(ill) == "Picture of the mesh: 3 nodes: 1 no agent, 1 not ready, 1 in clear. 1 links in clear."


def test_states_go_from_the_best_to_the_worst() -> None:
    assert [state.severity for state in State] == list(range(len(State))) and max(
        State, key=lambda one: one.severity
    ) is State.CLEAR
