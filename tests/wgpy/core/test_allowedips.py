"""Cryptokey routing against the obvious implementation: a list that is looked through."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from wgpy.config import Prefix
from wgpy.core.allowedips import AllowedIPs


class Owner:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


OWNERS = [Owner(name) for name in "abc"]


class Naive:
    """Prefixes in the order they came; the longest that holds an address wins."""

    def __init__(self) -> None:
        self.entries: list[tuple[Prefix, Owner]] = []

    def insert(self, prefix: Prefix, owner: Owner) -> None:
        if (prefix, owner) not in self.entries:
            self.entries = [entry for entry in self.entries if entry[0] != prefix] + [(prefix, owner)]

    def remove(self, prefix: Prefix, owner: Owner) -> None:
        self.entries = [entry for entry in self.entries if entry != (prefix, owner)]

    def remove_owner(self, owner: Owner) -> None:
        self.entries = [entry for entry in self.entries if entry[1] is not owner]

    def lookup(self, address: bytes) -> Owner | None:
        parsed = ip_address(address)
        matches = [entry for entry in self.entries if entry[0].version == parsed.version and parsed in entry[0]]
        return max(matches, key=lambda entry: entry[0].prefixlen)[1] if matches else None


# few distinct bits, so that prefixes nest and collide
bits = st.integers(0, 7)
ipv4 = st.builds(lambda n, length: IPv4Network((n << 24 | n << 4, length), strict=False), bits, st.integers(0, 32))
ipv6 = st.builds(lambda n, length: IPv6Network((n << 120 | n << 3, length), strict=False), bits, st.integers(0, 128))
prefixes = ipv4 | ipv6
ipv4_addresses = st.builds(lambda n, low: (n << 24 | n << 4 | low).to_bytes(4), bits, st.integers(0, 3))
ipv6_addresses = st.builds(lambda n, low: (n << 120 | n << 3 | low).to_bytes(16), bits, st.integers(0, 3))
names = st.sampled_from(["insert", "insert", "insert", "remove", "remove_owner", "lookup"])
steps = st.tuples(names, prefixes, st.sampled_from(OWNERS), ipv4_addresses | ipv6_addresses)


@settings(max_examples=300)
@given(st.lists(steps, max_size=40))
def test_it_agrees_with_a_list_that_is_looked_through(script: list[tuple[str, Prefix, Owner, bytes]]) -> None:
    real: AllowedIPs[Owner] = AllowedIPs()
    naive = Naive()
    for step, prefix, owner, address in script:
        if step == "lookup":
            pass
        elif step == "remove_owner":
            real.remove_owner(owner)
            naive.remove_owner(owner)
        else:
            getattr(real, step)(prefix, owner)
            getattr(naive, step)(prefix, owner)
        assert real.lookup(address) is naive.lookup(address)
        assert len(real) == len(naive.entries)
        for each in OWNERS:
            assert list(real.prefixes(each)) == [entry[0] for entry in naive.entries if entry[1] is each]


def test_a_prefix_given_to_another_peer_moves_to_the_end_of_its_list() -> None:
    table: AllowedIPs[Owner] = AllowedIPs()
    a, b = OWNERS[:2]
    first, second = ip_network("10.0.0.0/24"), ip_network("10.0.1.0/24")
    table.insert(first, a)
    table.insert(second, b)

    table.insert(first, b)

    assert list(table.prefixes(a)) == []
    assert list(table.prefixes(b)) == [second, first]


@given(st.lists(st.tuples(prefixes, st.sampled_from(OWNERS)), max_size=20), st.lists(ipv4_addresses | ipv6_addresses, max_size=5))
def test_owners_that_are_gone_leave_nothing_behind(entries: list[tuple[Prefix, Owner]], addresses: list[bytes]) -> None:
    """Peers come and go for months; and a length that nobody has any more costs every look-up something."""
    table: AllowedIPs[Owner] = AllowedIPs()
    for prefix, owner in entries:
        table.insert(prefix, owner)
    for address in addresses:
        table.lookup(address)

    for owner in OWNERS:
        table.remove_owner(owner)

    if entries:
        assert vars(table) == vars(AllowedIPs())


def test_a_remembered_answer_is_forgotten_when_the_table_changes() -> None:
    table: AllowedIPs[Owner] = AllowedIPs()
    a, b = OWNERS[:2]
    address = ip_address("10.0.0.9").packed
    assert table.lookup(address) is None

    table.insert(ip_network("10.0.0.0/8"), a)
    assert table.lookup(address) is a
    table.insert(ip_network("10.0.0.9/32"), b)
    assert table.lookup(address) is b
    table.remove(ip_network("10.0.0.9/32"), a)  # not the owner
    assert table.lookup(address) is b
    table.remove(ip_network("10.0.0.9/32"), b)
    assert table.lookup(address) is a
