"""Cryptokey routing: which peer owns an address (paper section 2).

HOT (lookup); guarded by ``benchmarks/micro.py``.

A table for each prefix length maps the leading bits of an address to its owner, and a lookup tries the lengths in use
from the longest down. Real tables use a handful of lengths (Calico: blocks of /26 and single /32), so this is two or
three dictionary look-ups, whatever the number of prefixes; the answers for the last few thousand addresses are kept as
well.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

from wgpy.config import Prefix

Owner = TypeVar("Owner")

REMEMBERED_ADDRESSES = 4096


class AllowedIPs(Generic[Owner]):
    """Prefixes and their owners. A prefix has one owner at a time: inserting it again moves it."""

    def __init__(self) -> None:
        self._owners: dict[Prefix, Owner] = {}
        self._prefixes: dict[int, dict[Prefix, None]] = {}
        """id(owner) -> its prefixes, in the order they came to it."""
        self._tables: dict[int, list[tuple[int, dict[int, Owner]]]] = {4: [], 16: []}
        """Address length in bytes -> (bits to shift out, table of leading bits), longest prefixes first."""
        self._remembered: dict[bytes, Owner | None] = {}

    def lookup(self, address: bytes) -> Owner | None:
        """The owner of the longest prefix that holds ``address`` (4 or 16 bytes, network order), or None."""
        try:
            return self._remembered[address]
        except KeyError:
            return self._search(address)

    def _search(self, address: bytes) -> Owner | None:
        bits = int.from_bytes(address)
        owner = None
        for shift, table in self._tables[len(address)]:
            owner = table.get(bits >> shift)
            if owner is not None:
                break
        if len(self._remembered) >= REMEMBERED_ADDRESSES:
            self._remembered.clear()
        self._remembered[address] = owner
        return owner

    def insert(self, prefix: Prefix, owner: Owner) -> None:
        """Give ``prefix`` to ``owner``, as the last of its prefixes, taking it from whoever had it."""
        former = self._owners.get(prefix)
        if former is owner:
            return
        if former is not None:
            del self._prefixes[id(former)][prefix]
        self._owners[prefix] = owner
        self._prefixes.setdefault(id(owner), {})[prefix] = None
        self._table(prefix)[self._key(prefix)] = owner
        self._remembered.clear()

    def remove(self, prefix: Prefix, owner: Owner) -> None:
        """Take ``prefix`` from ``owner``; nothing happens if another owns it."""
        if self._owners.get(prefix) is not owner:
            return
        del self._owners[prefix]
        del self._prefixes[id(owner)][prefix]
        table = self._table(prefix)
        del table[self._key(prefix)]
        if not table:
            tables = self._tables[prefix.max_prefixlen // 8]
            tables[:] = [entry for entry in tables if entry[1]]
        self._remembered.clear()

    def remove_owner(self, owner: Owner) -> None:
        """Take every prefix from ``owner``."""
        for prefix in list(self.prefixes(owner)):
            self.remove(prefix, owner)
        self._prefixes.pop(id(owner), None)

    def prefixes(self, owner: Owner) -> Iterator[Prefix]:
        """The prefixes of ``owner`` in the order they came to it."""
        return iter(self._prefixes.get(id(owner), ()))

    def __len__(self) -> int:
        return len(self._owners)

    @staticmethod
    def _key(prefix: Prefix) -> int:
        return int(prefix.network_address) >> (prefix.max_prefixlen - prefix.prefixlen)

    def _table(self, prefix: Prefix) -> dict[int, Owner]:
        shift = prefix.max_prefixlen - prefix.prefixlen
        tables = self._tables[prefix.max_prefixlen // 8]
        for known_shift, table in tables:
            if known_shift == shift:
                return table
        new: dict[int, Owner] = {}
        tables.append((shift, new))
        tables.sort(key=lambda entry: entry[0])
        return new
