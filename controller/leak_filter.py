"""Which packets on the underlay are between pods of two nodes, as a program that the kernel runs. Pure.

A :class:`Pairs` says what is looked for in one family: packets between a range of ours and a range of a peer, either way, by
themselves or inside IP-in-IP or VXLAN (to one of :data:`VXLAN_PORTS`). :func:`program` makes a classic BPF program of it, which
is handed every packet of a link from its IP header on, and takes those. What WireGuard sends, or anything else between nodes, is
let go after a few instructions: neither address is one of ours. Only what has one of ours is compared with the peers' ranges,
which may be a thousand.

A program has room for :data:`LONGEST` instructions. Where the ranges do not fit, wider ones stand for them, and the program takes
too much, never too little; it also takes what has a range of ours at both ends, in which single addresses may be a peer's. Who
reads what it takes looks at :func:`ends` again.

Sources: McCanne and Jacobson, "The BSD Packet Filter" (USENIX 1993), for the machine; RFC 791, 8200, 2003, 7348 for the headers.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, collapse_addresses

from controller.model import Address, Family
from controller.prefixes import widest
from wgpy.config import Prefix

LONGEST = 4096
"""Instructions that the kernel takes at most (BPF_MAXINSNS)."""

MOST_OWN = 16
"""Own ranges in a program, which has them several times."""

PER_RANGE = 3
"""Instructions that a range takes at least."""

FEW = 8
"""Ranges that are looked through one by one."""

STEP = 4
"""Bits by which ranges are made shorter at a time until they fit."""

SNAP = 192
"""Bytes of a packet that are kept: all headers down to those of the pods' packet."""

VXLAN_PORTS = (4789, 8472)
"""IANA's, which is Calico's, and Linux's own, which is Flannel's."""

IP_IN_IP, IPV6_IN_IP, UDP = 4, 41, 17
IPV4_HEADER, IPV6_HEADER, UDP_HEADER, VXLAN_HEADER, ETHERNET_HEADER = 20, 40, 8, 8, 14
_TO_INNER = UDP_HEADER + VXLAN_HEADER + ETHERNET_HEADER

_ADDRESSES = {Family.IPV4: (12, 16), Family.IPV6: (8, 24)}
"""Where source and destination stand in the header."""

_LOAD_BYTE, _LOAD_HALF = 0x30, 0x28  # from a place in the packet
_LOAD_WORD_X, _LOAD_HALF_X, _LOAD_BYTE_X = 0x40, 0x48, 0x50  # from a place behind X
_X_IS, _X_IS_HEADER_LENGTH = 0x01, 0xB1
_ADD, _AND, _SHIFT_RIGHT, _A_TO_X, _X_TO_A = 0x04, 0x54, 0x74, 0x07, 0x87
_JUMP, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT = 0x05, 0x15, 0x25, 0x35, 0x45
_RETURN = 0x06
_INSTRUCTION = struct.Struct("=HBBI")

_Entry = tuple[int, int, "list[Prefix] | None"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """What is looked for in one family: packets between ``own`` ranges and those of ``peers``."""

    own: frozenset[Prefix] = frozenset()
    peers: frozenset[Prefix] = frozenset()


def program(pairs: Mapping[Family, Pairs]) -> bytes:
    """The program: an array of ``struct sock_filter``, as SO_ATTACH_FILTER wants it, for a packet without its link header."""
    fitting = {family: Pairs(_few(one.own), _joined(one.peers)) for family, one in pairs.items()}
    bits = {family: 128 if family is Family.IPV6 else 32 for family in fitting}
    while True:
        if sum(len(one.peers) for one in fitting.values()) * PER_RANGE <= LONGEST:
            code = _Code()
            _write(code, fitting)
            if len(code) <= LONGEST:
                return code.assembled()
        most = max(fitting, key=lambda family: len(fitting[family].peers))
        bits[most] -= STEP
        fitting[most] = Pairs(fitting[most].own, _coarse(fitting[most].peers, bits[most]))


def ends(packet: bytes) -> Iterator[tuple[Address, Address]]:
    """Source and destination of a packet (from its IP header on), and then of the one that it carries, if it is a tunnel's."""
    start = 0
    for _ in range(2):
        found = _header(packet, start)
        if found is None:
            return
        source, destination, inner = found
        yield source, destination
        if inner is None:
            return
        start = inner


def _header(packet: bytes, start: int) -> tuple[Address, Address, int | None] | None:
    """The addresses of the header at ``start``, and where there is another one inside."""
    version = packet[start] >> 4 if len(packet) > start else 0
    if version == 4 and len(packet) >= start + IPV4_HEADER:
        header = (packet[start] & 15) * 4
        is_whole = not int.from_bytes(packet[start + 6 : start + 8]) & 0x1FFF
        inner = _inner(packet, packet[start + 9], start + header, is_whole)
        return IPv4Address(packet[start + 12 : start + 16]), IPv4Address(packet[start + 16 : start + 20]), inner
    if version == 6 and len(packet) >= start + IPV6_HEADER:
        inner = _inner(packet, packet[start + 6], start + IPV6_HEADER, is_whole=True)
        return IPv6Address(packet[start + 8 : start + 24]), IPv6Address(packet[start + 24 : start + 40]), inner
    return None


def _inner(packet: bytes, protocol: int, payload: int, is_whole: bool) -> int | None:
    if protocol in (IP_IN_IP, IPV6_IN_IP):
        return payload if is_whole else None  # what is in a later fragment only looks like a header
    port = int.from_bytes(packet[payload + 2 : payload + 4])
    return payload + _TO_INNER if protocol == UDP and is_whole and port in VXLAN_PORTS else None


def _coarse(prefixes: Iterable[Prefix], bits: int) -> frozenset[Prefix]:
    """The same addresses and perhaps more, in prefixes of ``bits`` bits at most."""
    return widest(prefix.supernet(new_prefix=bits) if prefix.prefixlen > bits else prefix for prefix in prefixes)


def _joined(prefixes: Iterable[Prefix]) -> frozenset[Prefix]:
    """The same addresses, each once, in as few prefixes as there can be. All are of one family."""
    return frozenset(collapse_addresses(prefixes))  # type: ignore[type-var]


def _few(prefixes: Iterable[Prefix]) -> frozenset[Prefix]:
    """The same addresses and perhaps more, in few prefixes."""
    few = widest(prefixes)
    while len(few) > MOST_OWN:
        few = _coarse(few, max(prefix.prefixlen for prefix in few) - 1)
    return few


# The program ----------------------------------------------------------------------------------------------------------


def _write(code: "_Code", pairs: Mapping[Family, Pairs]) -> None:
    """X is where the IP header is that is looked at; then, where the other end's address is."""
    code.add(_X_IS, 0)
    _by_version(code, "outer")
    for family in Family:
        code.place(f"outer{family.value}")
        _has_own(code, family, pairs.get(family, Pairs()), f"tunnel{family.value}", "outer")
    _enter_tunnels(code)
    code.place("inner")
    _by_version(code, "inner")
    for family in Family:
        code.place(f"inner{family.value}")
        _has_own(code, family, pairs.get(family, Pairs()), "no", "inner")
    for family in Family:
        code.place(f"other{family.value}")
        _holds(code, list(pairs.get(family, Pairs()).peers), 0, "yes", "no")
    code.place("yes")
    code.add(_RETURN, SNAP)
    code.place("no")
    code.add(_RETURN, 0)


def _by_version(code: "_Code", where: str) -> None:
    code.add(_LOAD_BYTE_X, 0)
    code.add(_SHIFT_RIGHT, 4)
    for family in Family:
        code.jump_if(_EQUAL, family.value, f"{where}{family.value}")
    code.jump("no")


def _has_own(code: "_Code", family: Family, pairs: Pairs, miss: str, where: str) -> None:
    """If one end is ours, look whose the other is."""
    if not (pairs.own and pairs.peers):
        code.jump(miss)
        return
    source, destination = _ADDRESSES[family]
    own = list(pairs.own)
    names = {name: f"{where}{family.value} {name}" for name in ("from us", "only from us", "not from us", "to us")}
    _holds(code, own, source, names["from us"], names["not from us"])
    code.place(names["from us"])
    _holds(
        code, own, destination, "yes", names["only from us"]
    )  # whose it is, a longer prefix says: that is the reader's to know
    code.place(names["only from us"])
    _move(code, destination)
    code.jump(f"other{family.value}")
    code.place(names["not from us"])
    _holds(code, own, destination, names["to us"], miss)
    code.place(names["to us"])
    _move(code, source)
    code.jump(f"other{family.value}")


def _enter_tunnels(code: "_Code") -> None:
    """Move X to the header inside, if the outer one is a tunnel's. It begins with the packet."""
    code.place("tunnel4")
    code.add(_LOAD_BYTE, 9)
    code.add(_X_IS_HEADER_LENGTH, 0)
    code.jump_if(_EQUAL, IP_IN_IP, "inner")
    code.jump_if(_EQUAL, IPV6_IN_IP, "inner")
    code.jump_unless(_EQUAL, UDP, "no")
    code.add(_LOAD_HALF, 6)
    code.jump_if(_ANY_BIT, 0x1FFF, "no")  # not the first fragment: no UDP header
    code.jump("udp")
    code.place("tunnel6")
    code.add(_LOAD_BYTE, 6)
    code.add(_X_IS, IPV6_HEADER)
    code.jump_if(_EQUAL, IP_IN_IP, "inner")
    code.jump_if(_EQUAL, IPV6_IN_IP, "inner")
    code.jump_unless(_EQUAL, UDP, "no")
    code.place("udp")
    code.add(_LOAD_HALF_X, 2)
    for port in VXLAN_PORTS:
        code.jump_if(_EQUAL, port, "vxlan")
    code.jump("no")
    code.place("vxlan")
    _move(code, _TO_INNER)


def _move(code: "_Code", by: int) -> None:
    code.add(_X_TO_A)
    code.add(_ADD, by)
    code.add(_A_TO_X)


def _holds(code: "_Code", prefixes: list[Prefix], at: int, hit: str, miss: str, word: int = 0) -> None:
    """Jump to ``hit`` if one of the prefixes holds the address ``at`` behind X, else to ``miss``. They agree in what is before
    ``word``, so that a word is enough to tell most of them apart."""
    if prefixes:
        code.add(_LOAD_WORD_X, at + 4 * word)
    _search(code, _entries(prefixes, word), at, hit, miss, word)


def _search(code: "_Code", entries: list[_Entry], at: int, hit: str, miss: str, word: int) -> None:
    """The same for a word that is loaded: halve the entries until they are few."""
    if len(entries) > FEW:
        middle, upper = len(entries) // 2, code.label()
        code.jump_if(_AT_LEAST, entries[middle][0], upper)
        _search(code, entries[:middle], at, hit, miss, word)
        code.place(upper)
        _search(code, entries[middle:], at, hit, miss, word)
        return
    for low, high, longer in entries:
        if longer is None:
            code.jump_if_within(low, high, hit)
        else:
            beyond = code.label()
            code.jump_unless(_EQUAL, low, beyond)
            _holds(code, longer, at, hit, miss, word + 1)
            code.place(beyond)
    code.jump(miss)


def _entries(prefixes: Iterable[Prefix], word: int) -> list[_Entry]:
    """Sorted intervals of one word of 32 bits that do not overlap: low and high end; for a single value that is the beginning of
    longer prefixes, these."""
    whole: list[tuple[int, int]] = []
    longer: dict[int, list[Prefix]] = {}
    for prefix in prefixes:
        bits = 32 * (word + 1)
        value = int(prefix.network_address) >> (prefix.max_prefixlen - bits) & 0xFFFFFFFF
        if prefix.prefixlen > bits:
            longer.setdefault(value, []).append(prefix)
        else:
            whole.append((value, value | (1 << (bits - prefix.prefixlen)) - 1))
    joined: list[_Entry] = []
    for low, high in sorted(whole):
        if joined and joined[-1][1] + 1 == low:
            joined[-1] = (joined[-1][0], high, None)
        else:
            joined.append((low, high, None))
    return sorted([*joined, *((value, value, some) for value, some in longer.items())], key=lambda entry: entry[0])


class _Code:
    """Instructions with names for places. A conditional jump reaches 255 instructions, so each skips one that reaches far."""

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int | str]] = []
        self._places: dict[str, int] = {}
        self._labels = 0

    def __len__(self) -> int:
        return len(self._instructions)

    def add(self, operation: int, value: int = 0) -> None:
        self._instructions.append((operation, 0, 0, value))

    def jump(self, place: str) -> None:
        self._instructions.append((_JUMP, 0, 0, place))

    def jump_if(self, comparison: int, value: int, place: str) -> None:
        self._instructions.append((comparison, 0, 1, value))
        self.jump(place)

    def jump_unless(self, comparison: int, value: int, place: str) -> None:
        self._instructions.append((comparison, 1, 0, value))
        self.jump(place)

    def jump_if_within(self, low: int, high: int, place: str) -> None:
        self._instructions += [(_AT_LEAST, 0, 2, low), (_GREATER, 1, 0, high)]
        self.jump(place)

    def label(self) -> str:
        """A name that nobody else has."""
        self._labels += 1
        return f"label {self._labels}"

    def place(self, name: str) -> None:
        """The next instruction is where jumps to ``name`` lead. They are all behind us: a program has no loops."""
        self._places[name] = len(self)

    def assembled(self) -> bytes:
        return b"".join(
            _INSTRUCTION.pack(operation, yes, no, self._places[value] - at - 1 if isinstance(value, str) else value)
            for at, (operation, yes, no, value) in enumerate(self._instructions)
        )
