"""Numbers against :mod:`ipaddress`, which is slow and right."""

from ipaddress import IPv4Network, IPv6Network, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.prefixes import LongestMatch, known, overlapping, widest
from wgpy.config import Prefix

ipv4 = st.builds(
    lambda length, offset: IPv4Network((0x0A000000 + offset, length), strict=False), st.integers(0, 32), st.integers(0, 31)
)
ipv6 = st.builds(
    lambda length, offset: IPv6Network((0xFD << 120 | offset, length), strict=False), st.integers(0, 128), st.integers(0, 31)
)
several: st.SearchStrategy[tuple[Prefix, set[Prefix]]] = st.sampled_from([ipv4, ipv6]).flatmap(
    lambda family: st.tuples(family, st.sets(family, max_size=6))
)


def holds(wide: Prefix, prefix: Prefix) -> bool:
    return prefix.subnet_of(wide)  # type: ignore[arg-type]


@settings(deadline=None)
@given(several)
def test_the_longest_prefix_that_holds_another_is_found(drawn: tuple[Prefix, set[Prefix]]) -> None:
    prefix, others = drawn
    holders = [other for other in others if holds(other, prefix)]

    found = LongestMatch((other, str(other)) for other in others).lookup(prefix)

    assert found == (str(max(holders, key=lambda holder: holder.prefixlen)) if holders else None)


@settings(deadline=None)
@given(several)
def test_the_widest_say_the_same_and_nothing_twice(drawn: tuple[Prefix, set[Prefix]]) -> None:
    _, prefixes = drawn
    kept = widest(prefixes)

    assert kept <= prefixes
    assert all(sum(holds(wide, prefix) for wide in kept) == 1 for prefix in prefixes)


@settings(deadline=None)
@given(several)
def test_an_overlap_is_found_either_way(drawn: tuple[Prefix, set[Prefix]]) -> None:
    prefix, others = drawn
    found = overlapping(prefix, others)

    assert found is None or (found in others and found.overlaps(prefix))
    assert (found is not None) == any(other.overlaps(prefix) for other in others)


def test_of_two_values_the_later_counts() -> None:
    assert LongestMatch([(ip_network("10.0.0.0/8"), 1), (ip_network("10.0.0.0/8"), 2)]).lookup(ip_network("10.1.0.0/16")) == 2


def test_all_that_are_equal_have_one_object() -> None:
    assert known(IPv4Network("10.3.0.0/16")) is known(IPv4Network((0x0A030000, 16)))


def test_nothing_holds_nothing() -> None:
    assert LongestMatch([]).lookup(ip_network("10.0.0.0/8")) is None
    assert widest([]) == frozenset()
