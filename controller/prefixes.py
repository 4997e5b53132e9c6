"""Ranges of addresses as numbers: which of many holds an address, and which few say the same as many. Pure.

:mod:`ipaddress` finds a supernet in a microsecond and more, a dictionary of integers in a twentieth of that, and a large
cluster has tens of thousands of ranges.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Generic, TypeVar

from wgpy.config import Prefix

T = TypeVar("T")


@lru_cache(1 << 18)
def known(prefix: Prefix) -> Prefix:
    """The one object that stands for all that are equal to it. Two of them are compared in no time, and others slowly."""
    return prefix


class LongestMatch(Generic[T]):
    """The value of the longest prefix that holds all of a given one. All prefixes are of one family; of two values for one
    prefix the later counts."""

    def __init__(self, values: Iterable[tuple[Prefix, T]]) -> None:
        tables: defaultdict[int, dict[int, T]] = defaultdict(dict)
        for prefix, value in values:
            length = prefix.prefixlen
            tables[length][int(prefix.network_address) >> (prefix.max_prefixlen - length)] = value
        self._tables = sorted(tables.items(), reverse=True)

    def lookup(self, prefix: Prefix) -> T | None:
        address, bits, own_length = int(prefix.network_address), prefix.max_prefixlen, prefix.prefixlen
        for length, values in self._tables:
            if length <= own_length and (found := values.get(address >> (bits - length))) is not None:
                return found
        return None


def widest(prefixes: Iterable[Prefix]) -> frozenset[Prefix]:
    """The prefixes that do not lie in another of them: the same addresses, each of them once. All are of one family."""
    kept: dict[int, set[int]] = {}
    found = []
    for prefix in sorted(prefixes, key=_length):
        address, bits = int(prefix.network_address), prefix.max_prefixlen
        if not any(address >> (bits - length) in networks for length, networks in kept.items()):
            kept.setdefault(prefix.prefixlen, set()).add(address >> (bits - prefix.prefixlen))
            found.append(prefix)
    return frozenset(found)


def overlapping(prefix: Prefix, others: Iterable[Prefix]) -> Prefix | None:
    """One of ``others`` that holds some or all of the addresses of ``prefix``. All are of one family."""
    address, bits, length = int(prefix.network_address), prefix.max_prefixlen, prefix.prefixlen
    for other in others:
        shift = bits - min(length, other.prefixlen)
        if address >> shift == int(other.network_address) >> shift:
            return other
    return None


def _length(prefix: Prefix) -> int:
    return prefix.prefixlen
