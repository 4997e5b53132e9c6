"""States are compared: their parts have one order, and no secret in their looks."""

from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.state import TWIN_METRIC, Device, Route, RouteKind, Rule, State, sorted_prefixes


@settings(deadline=None)
@given(st.permutations([ip_network(text) for text in ("10.0.0.0/8", "10.0.0.0/26", "10.0.0.1/32", "fd00::/64", "::/0")]))
def test_prefixes_have_one_order_whichever_way_they_come(shuffled: list[object]) -> None:
    assert [str(prefix) for prefix in sorted_prefixes(set(shuffled))] == [  # type: ignore[arg-type]
        "10.0.0.0/8",
        "10.0.0.0/26",
        "10.0.0.1/32",
        "::/0",
        "fd00::/64",
    ]


def test_a_state_promises_by_its_rule() -> None:
    assert State(rules=frozenset({Rule(99, 1, 1)})).is_promised
    assert not State().is_promised


def test_a_private_key_does_not_show() -> None:
    assert "private" not in repr(Device(private_key=bytes(32)))


def test_a_twin_is_a_refusal_behind_the_route_it_belongs_to() -> None:
    route = Route(ip_network("fd00::/64"), RouteKind.DEVICE, metric=1024, protocol=80)

    assert route.twin == Route(ip_network("fd00::/64"), RouteKind.PROHIBIT, TWIN_METRIC, protocol=80)
    assert route.twin.metric > route.metric
