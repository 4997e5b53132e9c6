"""Rows, columns and sentences of the page."""

import re
from dataclasses import replace

import pytest

from controller.dashboard.look import head
from controller.dashboard.tables import (
    NODE_COLUMNS,
    PEER_COLUMNS,
    ages,
    caption,
    facts,
    node_rows,
    notice,
    peer_rows,
    told_line,
)
from controller.dashboard.view import MOST_LINKED, MeshView, Sighting, mesh_view
from controller.status import Traffic, as_document
from controller.summary import HANDSHAKE_AGES
from tests.controller.dashboard.sightings import NOW, peer, seen, status

PODS = {"b": [("10.0.0.5", "shop/web"), ("fd00::5", "shop/web")]}


def test_a_row_for_each_node_with_all_columns() -> None:
    view = mesh_view([seen("a", peer("b"), peer("c", Traffic.CLEAR, "no key"))], "calico")
    (row,) = node_rows(view, NOW)

    assert set(row) == {column["field"] for column in NODE_COLUMNS} | {"label"}
    assert row["id"] == "a" and row["label"] == "▲ in clear" and row["why"] == "c: no key"
    assert (row["encrypted"], row["clear"], row["oldest"], row["tx_rate"]) == (1, 1, 10, 250)


def test_what_is_not_known_of_a_node_is_not_shown_as_nothing() -> None:
    without_agent, resting = node_rows(mesh_view([Sighting("a"), seen("b", rest="off")], "calico"), NOW)

    assert [without_agent[name] for name in ("encrypted", "clear", "silent", "tx_rate", "leaks", "warnings")] == [None] * 6
    assert resting["clear"] is None and resting["warnings"] == 0


def test_a_row_for_each_peer_with_the_pods_behind_it() -> None:
    found = status("a", peer("b", endpoint="192.0.2.2:51820", ranges=("10.0.0.0/26",), rx_bytes=5000, public_key="K"))
    (row,) = peer_rows(as_document(found), None, PODS)

    assert set(row) == {column["field"] for column in PEER_COLUMNS} | {"id", "label"}
    assert row["pods"] == "10.0.0.5 shop/web", "only those of the family"
    assert (row["endpoint"], row["ranges"], row["age"], row["rx_bytes"]) == ("192.0.2.2:51820", "10.0.0.0/26", 10, 5000)
    assert row["rx_rate"] is None, "of one look alone there is no rate"


def test_rates_are_what_came_since_the_look_before() -> None:
    before = status("a", peer("b", rx_bytes=1000, tx_bytes=900))
    after = replace(status("a", peer("b", rx_bytes=3000, tx_bytes=100), peer("c")), at=NOW + 2)
    first, second = peer_rows(as_document(after), as_document(before), {})

    assert (first["rx_rate"], first["tx_rate"]) == (1000, 0), "a counter that began anew has no rate"
    assert second["rx_rate"] is None
    assert peer_rows(as_document(after), as_document(after), {})[0]["rx_rate"] is None, "the same moment"


def test_families_that_rest_have_no_peers() -> None:
    assert peer_rows(as_document(status("a", peer("b"), rest="off")), None, {}) == []


@pytest.mark.parametrize(
    ("view", "is_listed", "failure", "head"),
    [
        (MeshView(), False, None, "Waiting for the cluster"),
        (MeshView(), False, "refused", "The cluster is out of reach"),
        (MeshView(), True, None, "No nodes yet"),
        (mesh_view([Sighting("a", failure="nobody answers")], "calico"), True, None, "No agent answers"),
        (mesh_view([seen("a")], "calico"), True, "refused", "The cluster is out of reach; it is shown as it was last"),
        (mesh_view([seen("a")], "calico"), True, None, None),
    ],
)
def test_what_is_said_where_there_is_no_mesh_to_show(
    view: MeshView, is_listed: bool, failure: str | None, head: str | None
) -> None:
    said = notice(view, is_listed, failure)

    assert (said and said[0]) == head
    assert failure is None or (said is not None and said[1] == failure)


def test_the_caption_says_what_is_not_drawn() -> None:
    small, large = (mesh_view([seen(f"n{number}") for number in range(count)], "calico") for count in (3, MOST_LINKED + 1))

    assert caption(small) == "" and "Drawn are the links" in caption(large)
    assert "7 more links" in caption(replace(large, left_out=7))


def test_there_is_a_bar_for_each_count_of_a_summary() -> None:
    assert len(ages()) == len(HANDSHAKE_AGES) + 2
    assert [kind for _, kind in ages()] == [""] * len(HANDSHAKE_AGES) + ["late"] * 2


def test_facts_of_a_node() -> None:
    said = facts(as_document(status("a")))

    assert said[0] == "wgpy 1.2" and "not strict" in said
    assert "IPv4: wireguard.caliu, MTU 1440, key K" in said and "IPv6: not in the mesh: not enabled" in said


def test_an_entry_of_the_history_is_a_line() -> None:
    entry = {"time": "2026-01-01T00:00:00.000Z", "kind": "peer added", "peer": "b", "families": {"IPv4": {}}}

    assert told_line(entry) == "2026-01-01T00:00:00.000Z  peer added  peer b"


def test_every_formatter_is_a_function_of_the_page() -> None:
    functions = set(re.findall(r"^  (\w+)\(", head(), re.MULTILINE))
    used = {
        name
        for column in (*NODE_COLUMNS, *PEER_COLUMNS)
        for name in re.findall(r"wgpy\.(\w+)\(", column.get(":valueFormatter", ""))
    }

    assert used and used <= functions
