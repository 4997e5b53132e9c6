"""The values a device is configured with, and the changes between them.

Everything here is frozen and pure. A *configuration* says what a device is to be; a *change* is one step towards it; a
*snapshot* is what a device was at one moment, with its statistics. The UAPI server, the ``wg`` file reader, the client,
the core and the agent all speak in these values and in nothing else.

Keys are 32 raw bytes here; hex (UAPI) and base64 (``wg``) live at the edges. Secrets are kept out of ``repr``.
Numbers, addresses and prefixes are read here, by rules as strict as those of Go's ``strconv`` and ``netip``, so that
whoever reads them (UAPI, configuration files, command lines) accepts the same.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Prefix = IPv4Network | IPv6Network
"""An allowed IP: a network whose host bits are zero."""

KEY_LENGTH = 32
NO_KEY = bytes(KEY_LENGTH)
"""The all-zero key. It stands for *none*: no private key, no preshared key."""

_ALMOST_A_KEY = 40
"""Characters: a key has 44 in base64 and 64 in hex, and some may be missing."""

DEFAULT_MTU = 1420
"""Bytes. 1500 less 40 (IPv6), 8 (UDP) and 32 (transport data): protocol 1.1."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A peer's UDP address. ``host`` is a numeric address, ``scope_id`` an interface index for link-local IPv6."""

    host: str
    port: int
    scope_id: int = 0
    sockaddr: tuple[str, int] | tuple[str, int, int, int] = field(init=False, repr=False, compare=False)
    """The address as :mod:`socket` takes it. Made once: every send wants it."""
    address: bytes = field(init=False, repr=False, compare=False)
    """The host as an IP header has it: 4 or 16 bytes in network order."""

    def __post_init__(self) -> None:
        ipv6 = ":" in self.host
        sockaddr = (self.host, self.port, 0, self.scope_id) if ipv6 else (self.host, self.port)
        object.__setattr__(self, "sockaddr", sockaddr)
        object.__setattr__(self, "address", ip_address(self.host).packed)

    @property
    def is_ipv6(self) -> bool:
        return len(self.sockaddr) == 4

    @property
    def packed(self) -> bytes:
        """Address (4 or 16 bytes) and port (2 bytes) in network order: what a cookie is bound to."""
        return self.address + self.port.to_bytes(2)

    def __str__(self) -> str:
        """``192.0.2.1:51820``, ``[2001:db8::1]:51820`` or ``[fe80::1%3]:51820``."""
        if not self.is_ipv6:
            return f"{self.host}:{self.port}"
        zone = f"%{self.scope_id}" if self.scope_id else ""
        return f"[{self.host}{zone}]:{self.port}"


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
