"""The values a device is configured with, and the changes between them.

Everything here is frozen and pure. A *configuration* says what a device is to be; a *change* is one step towards it; a
*snapshot* is what a device was at one moment, with its statistics. The UAPI server, the ``wg`` file reader, the client,
the core and the agent all speak in these values and in nothing else.

Keys are 32 raw bytes here; hex (UAPI) and base64 (``wg``) live at the edges. Secrets are kept out of ``repr``.
Numbers, addresses and prefixes are read here, by rules as strict as those of Go's ``strconv`` and ``netip``, so that
whoever reads them (UAPI, configuration files, command lines) accepts the same.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import FrozenInstanceError, dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Never, Self

Prefix = IPv4Network | IPv6Network
"""An allowed IP: a network whose host bits are zero."""

KEY_LENGTH = 32
NO_KEY = bytes(KEY_LENGTH)
"""The all-zero key. It stands for *none*: no private key, no preshared key."""

_ALMOST_A_KEY = 40
"""Characters: a key has 44 in base64 and 64 in hex, and some may be missing."""

DEFAULT_MTU = 1420
"""Bytes. 1500 less 40 (IPv6), 8 (UDP) and 32 (transport data): protocol 1.1."""


class Endpoint:
    """A peer's UDP address. ``host`` is a numeric address, ``scope_id`` an interface index for link-local IPv6.

    It is frozen, and has its parts in three forms, of which each is made when it is first asked for: in a flood of handshakes
    every datagram has an endpoint of its own, and few are looked into.
    """

    __slots__ = ("address", "host", "packed", "port", "scope_id", "sockaddr")

    host: str
    port: int
    scope_id: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]
    """The address as :mod:`socket` takes it."""
    packed: bytes
    """The address as the kernel has it, struct sockaddr_in or sockaddr_in6: 16 or 28 bytes."""
    address: bytes
    """The host as an IP header has it: 4 or 16 bytes in network order."""

    def __init__(self, host: str, port: int, scope_id: int = 0) -> None:
        _set_host(self, host)
        _set_port(self, port)
        _set_scope_id(self, scope_id)

    @classmethod
    def unpacked(cls, packed: bytes) -> Self:
        """The endpoint that the kernel means by a struct sockaddr_in or sockaddr_in6, whose flow label is 0."""
        made = cls.__new__(cls)
        _set_packed(made, packed)
        return made

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """What was not asked for before."""
            make = _MAKERS.get(name)
            if make is None:
                raise AttributeError(name)
            value = make(self)
            Endpoint.__dict__[name].__set__(self, value)
            return value

    def __setattr__(self, name: str, value: object) -> Never:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> Never:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    @property
    def is_ipv6(self) -> bool:
        return len(self.sockaddr) == 4

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Endpoint):
            return NotImplemented
        return (self.host, self.port, self.scope_id) == (other.host, other.port, other.scope_id)

    def __hash__(self) -> int:
        return hash((self.host, self.port, self.scope_id))

    def __reduce__(self) -> tuple[type[Self], tuple[str, int, int]]:
        return type(self), (self.host, self.port, self.scope_id)

    def __repr__(self) -> str:
        return f"Endpoint(host={self.host!r}, port={self.port!r}, scope_id={self.scope_id!r})"

    def __str__(self) -> str:
        """``192.0.2.1:51820``, ``[2001:db8::1]:51820`` or ``[fe80::1%3]:51820``."""
        if not self.is_ipv6:
            return f"{self.host}:{self.port}"
        zone = f"%{self.scope_id}" if self.scope_id else ""
        return f"[{self.host}{zone}]:{self.port}"


_set_host = Endpoint.__dict__["host"].__set__
_set_port = Endpoint.__dict__["port"].__set__
_set_scope_id = Endpoint.__dict__["scope_id"].__set__
_set_packed = Endpoint.__dict__["packed"].__set__

# struct sockaddr_in and sockaddr_in6: the family and the scope are in the byte order of the host, the rest in that of the network
_AF_INET, _AF_INET6 = ((2).to_bytes(2, sys.byteorder), (10).to_bytes(2, sys.byteorder))
_IPV4_SIZE = 16


def _packed(endpoint: Endpoint) -> bytes:
    port = endpoint.port.to_bytes(2)
    if endpoint.is_ipv6:
        return _AF_INET6 + port + bytes(4) + endpoint.address + endpoint.scope_id.to_bytes(4, sys.byteorder)
    return _AF_INET + port + endpoint.address + bytes(8)


def _address(endpoint: Endpoint) -> bytes:
    """Out of whichever form there is."""
    try:
        packed: bytes = _packed_slot(endpoint)
    except AttributeError:
        return ip_address(endpoint.host).packed
    return packed[4:8] if len(packed) == _IPV4_SIZE else packed[8:24]


def _sockaddr(endpoint: Endpoint) -> tuple[str, int] | tuple[str, int, int, int]:
    host = endpoint.host
    return (host, endpoint.port, 0, endpoint.scope_id) if ":" in host else (host, endpoint.port)


def _scope_id(endpoint: Endpoint) -> int:
    packed = endpoint.packed
    return 0 if len(packed) == _IPV4_SIZE else int.from_bytes(packed[24:], sys.byteorder)


_packed_slot = Endpoint.__dict__["packed"].__get__
_MAKERS: dict[str, Callable[[Endpoint], object]] = {
    "packed": _packed,
    "address": _address,
    "host": lambda endpoint: str(ip_address(endpoint.address)),
    "port": lambda endpoint: int.from_bytes(endpoint.packed[2:4]),
    "scope_id": _scope_id,
    "sockaddr": _sockaddr,
}


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """What one peer is to be. ``persistent_keepalive`` is in seconds, 0 for off."""

    public_key: bytes
    preshared_key: bytes = field(default=NO_KEY, repr=False)
    endpoint: Endpoint | None = None
    persistent_keepalive: int = 0
    allowed_ips: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """What a device is to be. ``private_key`` is NO_KEY, ``listen_port`` and ``fwmark`` 0 where there is none."""

    private_key: bytes = field(default=NO_KEY, repr=False)
    listen_port: int = 0
    fwmark: int = 0
    peers: tuple[PeerConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class SetDevice:
    """A change of the device itself. ``None`` leaves a field as it is; 0 and NO_KEY clear it."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False


@dataclass(frozen=True, slots=True)
class SetPeer:
    """A change of one peer, created if it does not exist (unless ``update_only``). ``None`` leaves a field as it is.

    ``allowed_ips`` are moved to this peer, then ``removed_allowed_ips`` are taken from it where it owns them.
    """

    public_key: bytes
    remove: bool = False
    update_only: bool = False
    preshared_key: bytes | None = field(default=None, repr=False)
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None
    replace_allowed_ips: bool = False
    allowed_ips: tuple[Prefix, ...] = ()
    removed_allowed_ips: tuple[Prefix, ...] = ()


Change = SetDevice | SetPeer


@dataclass(frozen=True, slots=True)
class PeerSnapshot:
    """One peer at one moment. ``last_handshake`` is wall-clock nanoseconds since 1970, 0 for never."""

    config: PeerConfig
    last_handshake: int = 0
    tx_bytes: int = 0
    rx_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """A device at one moment. ``listen_port`` is the port really bound; peers are in the order they were added."""

    private_key: bytes = field(default=NO_KEY, repr=False)
    listen_port: int = 0
    fwmark: int = 0
    peers: tuple[PeerSnapshot, ...] = ()

    @property
    def config(self) -> DeviceConfig:
        return DeviceConfig(self.private_key, self.listen_port, self.fwmark, tuple(peer.config for peer in self.peers))


def changes_to(config: DeviceConfig) -> Iterable[Change]:
    """The changes that make any device into exactly ``config``."""
    yield SetDevice(config.private_key, config.listen_port, config.fwmark, replace_peers=True)
    for peer in config.peers:
        yield SetPeer(
            public_key=peer.public_key,
            preshared_key=peer.preshared_key,
            endpoint=peer.endpoint,
            persistent_keepalive=peer.persistent_keepalive,
            replace_allowed_ips=True,
            allowed_ips=peer.allowed_ips,
        )


def quoted(text: str) -> str:
    """``text`` as an error repeats it, unless it is as long as a key: then it may be one, mistyped or in the wrong place."""
    return ascii(text) if len(text) < _ALMOST_A_KEY else f"{len(text)} characters that are not shown, as they may hold a key"


def parse_unsigned(text: str, bits: int) -> int:
    """Read a decimal number of at most ``bits`` bits: digits only, no sign, space or underscore. Raises ValueError."""
    if not (text.isascii() and text.isdigit() and int(text) < 1 << bits):
        raise ValueError(f"not a number from 0 to {(1 << bits) - 1}: {quoted(text)}")
    return int(text)


_PREFIX_LENGTHS = {str(length): length for length in range(129)}


def parse_prefix(text: str) -> Prefix:
    """Read ``address/length``; host bits are masked off. A netmask, a zone or no length at all raise ValueError."""
    address, _, length = text.rpartition("/")
    if length not in _PREFIX_LENGTHS or "%" in address:
        raise ValueError(f"not an address/length: {quoted(text)}")
    network = IPv6Network if ":" in address else IPv4Network
    try:
        return network((address, _PREFIX_LENGTHS[length]), strict=False)
    except ValueError:
        raise ValueError(f"not an address/length: {quoted(text)}") from None


def no_zone(name: str) -> int:
    """The ``zone_index`` of those who take zones in numbers only."""
    raise ValueError(f"the zone is not a number: {quoted(name)}")


def parse_endpoint(text: str, zone_index: Callable[[str], int] = no_zone) -> Endpoint:
    """Read ``192.0.2.1:51820``, ``[2001:db8::1]:51820`` or ``[fe80::1%eth0]:51820``. Raises ValueError.

    Only a caller with a kernel at hand can tell the index of an interface from its name: it passes
    ``zone_index=socket.if_nametoindex``, whose OSError goes through. The address comes back in its canonical spelling.
    """
    host, _, port = text.rpartition(":")
    is_ipv6 = host.startswith("[") and host.endswith("]")
    host, percent, zone = (host[1:-1] if is_ipv6 else host).partition("%")
    if percent and not (is_ipv6 and zone):
        raise ValueError(f"not an address with a zone: {quoted(text)}")
    try:
        address = IPv6Address(host) if is_ipv6 else IPv4Address(host)
    except ValueError:
        raise ValueError(f"not an address: {quoted(host)}") from None
    scope_id = parse_unsigned(zone, 32) if zone.isdigit() else zone_index(zone) if zone else 0
    return Endpoint(str(address), parse_unsigned(port, 16), scope_id)
