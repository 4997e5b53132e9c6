"""The configuration file of ``wg(8)``, read and written.

A file is an ``[Interface]`` section and ``[Peer]`` sections of ``Key = Value`` lines; ``#`` starts a comment, blanks and
the case of keys do not matter. What it asks for depends on the command it is given to:

* ``setconf``: the device is to be exactly this: :func:`parse`, then :func:`wgpy.config.changes_to`;
* ``addconf``: what the file says is added, what it does not say stays: :func:`parse_changes`;
* ``syncconf``: exactly this, with as little disturbance as can be: :func:`parse`, then :func:`changes_between`.

This module is pure, and a file can hold host names and zones, which only a resolver can turn into endpoints: the
``resolve`` argument is that resolver. The words of the command line (``wg set``) are those of the file, so the functions
that read one value (:func:`parse_key`, :func:`parse_mark`, ...) are public.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import TypeVar

from wgpy.config import (
    KEY_LENGTH,
    NO_KEY,
    Change,
    DeviceConfig,
    Endpoint,
    PeerConfig,
    Prefix,
    SetDevice,
    SetPeer,
    parse_endpoint,
    parse_prefix,
    parse_unsigned,
    quoted,
)

Resolve = Callable[[str, int], Endpoint]
"""Makes an endpoint of a port and a host that is more than a number: a name, or an address with a zone. Raises
ValueError, with the host and the reason."""

WG_QUICK_KEYS = frozenset(("address", "dns", "mtu", "table", "preup", "postup", "predown", "postdown", "saveconfig"))
"""Keys that ``wg-quick`` takes out before ``wg`` sees the file (wg-quick(8)), in lower case."""


class WgConfError(ValueError):
    """A file that cannot be read. ``line`` counts from 1; the text is one line and never holds a private key."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


def no_resolver(host: str, port: int) -> Endpoint:
    """The resolver of those who take numeric addresses only."""
    raise ValueError(f"not a numeric address: {host!r}")


# One value ---------------------------------------------------------------------------------------------------------


def parse_key(text: str) -> bytes:
    """Read a key in base64. Raises ValueError, without the key: it may be a secret with a typing mistake in it."""
    try:
        key = b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) == KEY_LENGTH and format_key(key) == text:
        return key
    raise ValueError(f"not a key: {KEY_LENGTH} bytes in base64 are needed, 44 characters that end in '='")


def format_key(key: bytes) -> str:
    return b64encode(key).decode()


def parse_mark(text: str) -> int:
    """Read a firewall mark: decimal, hexadecimal with ``0x``, or ``off`` for 0."""
    if text.lower() == "off":
        return 0
    digits = text.lower().removeprefix("0x")
    if digits == text:
        return parse_unsigned(text, 32)
    if 1 <= len(digits) <= 8 and set(digits) <= set("0123456789abcdef"):
        return int(digits, 16)
    raise ValueError(f"not a mark from 0 to 0xffffffff: {quoted(text)}")


def parse_keepalive(text: str) -> int:
    """Read an interval in seconds, or ``off`` for 0."""
    return 0 if text.lower() == "off" else parse_unsigned(text, 16)


def parse_allowed_ip(text: str) -> Prefix:
    """Read ``address/length``, or an address alone for that address only."""
    if "/" in text:
        return parse_prefix(text)
    return parse_prefix(f"{text}/{128 if ':' in text else 32}")


def parse_allowed_ips(text: str) -> tuple[Prefix, ...]:
    """Read allowed IPs with commas between them. An empty text, or an empty place in it, raises ValueError."""
    return tuple(map(parse_allowed_ip, text.split(",")))


def parse_host_port(text: str, resolve: Resolve = no_resolver) -> Endpoint:
    """Read ``host:port``, the host being a number (IPv6 in brackets) or what ``resolve`` knows."""
    try:
        return parse_endpoint(text)
    except ValueError:
        host, _, port = text.rpartition(":")
    if not host or host.endswith(":") or text.endswith("]"):
        raise ValueError(f"not HOST:PORT: {quoted(text)}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return resolve(host, parse_unsigned(port, 16))


# A file ------------------------------------------------------------------------------------------------------------


def parse_changes(text: str, resolve: Resolve = no_resolver) -> list[Change]:
    """What ``addconf`` asks for: a :class:`SetDevice` if the file says anything of the device, and a :class:`SetPeer` for
    each ``[Peer]``, whose allowed IPs are replaced as ``wg`` does. Raises WgConfError."""
    device: _Interface | None = None
    peers: list[_Peer] = []
    section: _Interface | _Peer | None = None
    for number, line in _lines(text):
        try:
            match line.lower():
                case "[interface]":
                    section = device = device or _Interface()
                case "[peer]":
                    section = _Peer(number)
                    peers.append(section)
                case _:
                    _read(section, line, resolve)
        except ValueError as error:
            raise WgConfError(number, str(error)) from None
    changes: list[Change] = []
    if device and device.change() != SetDevice():
        changes.append(device.change())
    return changes + [peer.change() for peer in peers]


def parse(text: str, resolve: Resolve = no_resolver) -> DeviceConfig:
    """What ``setconf`` asks for. Two ``[Peer]`` sections of one key are one peer; the later one wins. Raises WgConfError."""
    device = DeviceConfig()
    peers: dict[bytes, PeerConfig] = {}
    for change in parse_changes(text, resolve):
        if isinstance(change, SetPeer):
            peer = peers.get(change.public_key, PeerConfig(change.public_key))
            peers[change.public_key] = PeerConfig(
                public_key=change.public_key,
                preshared_key=_either(change.preshared_key, peer.preshared_key),
                endpoint=change.endpoint or peer.endpoint,
                persistent_keepalive=_either(change.persistent_keepalive, peer.persistent_keepalive),
                allowed_ips=change.allowed_ips,
            )
        else:
            device = DeviceConfig(
                private_key=_either(change.private_key, NO_KEY),
                listen_port=_either(change.listen_port, 0),
                fwmark=_either(change.fwmark, 0),
            )
    return replaced(device, peers=tuple(peers.values()))


_Value = TypeVar("_Value")


def _either(value: _Value | None, otherwise: _Value) -> _Value:
    return otherwise if value is None else value


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, with their numbers, without comments and blanks."""
    for number, line in enumerate(text.split("\n"), start=1):
        line = "".join(line.partition("#")[0].split())
        if line:
            yield number, line


@dataclass(slots=True)
class _Interface:
    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None

    def read(self, key: str, value: str) -> bool:
        """Take one line in; False if there is no such key."""
        match key:
            case "privatekey":
                self.private_key = parse_key(value)
            case "listenport":
                self.listen_port = parse_unsigned(value, 16)
            case "fwmark":
                self.fwmark = parse_mark(value)
            case _:
                return False
        return True

    def change(self) -> SetDevice:
        return SetDevice(self.private_key, self.listen_port, self.fwmark)


@dataclass(slots=True)
class _Peer:
    line: int
    public_key: bytes | None = None
    preshared_key: bytes | None = field(default=None, repr=False)
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None
    allowed_ips: list[Prefix] = field(default_factory=list)

    def read(self, key: str, value: str, resolve: Resolve) -> bool:
        """Take one line in; False if there is no such key."""
        match key:
            case "publickey":
                self.public_key = parse_key(value)
            case "presharedkey":
                self.preshared_key = parse_key(value)
            case "endpoint":
                self.endpoint = parse_host_port(value, resolve)
            case "persistentkeepalive":
                self.persistent_keepalive = parse_keepalive(value)
            case "allowedips":
                self.allowed_ips += parse_allowed_ips(value)
            case _:
                return False
        return True

    def change(self) -> SetPeer:
        if self.public_key is None:
            raise WgConfError(self.line, "this [Peer] has no PublicKey: add one")
        return SetPeer(
            public_key=self.public_key,
            preshared_key=self.preshared_key,
            endpoint=self.endpoint,
            persistent_keepalive=self.persistent_keepalive,
            replace_allowed_ips=True,
            allowed_ips=tuple(self.allowed_ips),
        )


def _read(section: _Interface | _Peer | None, line: str, resolve: Resolve) -> None:
    key, equals, value = line.partition("=")
    name = quoted(key)
    if not equals:
        raise ValueError(f"neither [Interface], [Peer] nor KEY = VALUE: {name}")
    if key.lower() in WG_QUICK_KEYS:
        raise ValueError(f"{name} is a key of wg-quick, not of wg: leave it out (wg-quick strip prints a file without them)")
    if section is None:
        raise ValueError(f"{name} before any section: start with [Interface] or [Peer]")
    if not value:
        raise ValueError(f"{name} has no value: leave the line out")
    try:
        known = section.read(key.lower(), value, resolve) if isinstance(section, _Peer) else section.read(key.lower(), value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    if not known:
        raise ValueError(f"no such key in [{type(section).__name__[1:]}]: {name}")


def format(config: DeviceConfig) -> str:
    """The file that :func:`parse` reads back as ``config``, to the letter as ``wg showconf`` writes it."""
    peers = ["".join(f"{line}\n" for line in _peer_lines(peer)) for peer in config.peers]
    return "".join(f"{line}\n" for line in _interface_lines(config)) + "\n" + "\n".join(peers)


def _interface_lines(config: DeviceConfig) -> Iterator[str]:
    yield "[Interface]"
    if config.listen_port:
        yield f"ListenPort = {config.listen_port}"
    if config.fwmark:
        yield f"FwMark = {config.fwmark:#x}"
    if config.private_key != NO_KEY:
        yield f"PrivateKey = {format_key(config.private_key)}"


def _peer_lines(peer: PeerConfig) -> Iterator[str]:
    yield "[Peer]"
    yield f"PublicKey = {format_key(peer.public_key)}"
    if peer.preshared_key != NO_KEY:
        yield f"PresharedKey = {format_key(peer.preshared_key)}"
    if peer.allowed_ips:
        yield f"AllowedIPs = {', '.join(map(str, peer.allowed_ips))}"
    if peer.endpoint is not None:
        yield f"Endpoint = {peer.endpoint}"
    if peer.persistent_keepalive:
        yield f"PersistentKeepalive = {peer.persistent_keepalive}"


# syncconf ----------------------------------------------------------------------------------------------------------


def changes_between(actual: DeviceConfig, desired: DeviceConfig) -> list[Change]:
    """The changes that ``syncconf`` makes: removals first; what is as desired is not named, so its session goes on.

    A port or an endpoint that the file does not give stays as it is (``wg`` would move to a new random port): they are
    chosen by the system or learnt from the peer. Everything else that the file does not give is cleared.
    """
    device = SetDevice(
        private_key=desired.private_key if desired.private_key != actual.private_key else None,
        listen_port=desired.listen_port if desired.listen_port not in (0, actual.listen_port) else None,
        fwmark=desired.fwmark if desired.fwmark != actual.fwmark else None,
    )
    changes: list[Change] = [device] if device != SetDevice() else []
    actual_peers = {peer.public_key: peer for peer in actual.peers}
    wanted = {peer.public_key for peer in desired.peers}
    changes += [SetPeer(public_key, remove=True) for public_key in actual_peers if public_key not in wanted]
    # An allowed IP that two peers of the file claim belongs to the later one, as it would after setconf.
    owner = {prefix: peer.public_key for peer in desired.peers for prefix in peer.allowed_ips}
    for peer in desired.peers:
        own = tuple(prefix for prefix in peer.allowed_ips if owner[prefix] == peer.public_key)
        before = actual_peers.get(peer.public_key, PeerConfig(peer.public_key))
        change = _peer_change(before, replaced(peer, allowed_ips=own))
        if change != SetPeer(peer.public_key) or peer.public_key not in actual_peers:
            changes.append(change)
    return changes


def _peer_change(actual: PeerConfig, desired: PeerConfig) -> SetPeer:
    """What of ``desired`` differs from ``actual``; a SetPeer of the key alone if nothing does."""
    same_prefixes = set(actual.allowed_ips) == set(desired.allowed_ips)
    return SetPeer(
        public_key=desired.public_key,
        preshared_key=desired.preshared_key if desired.preshared_key != actual.preshared_key else None,
        endpoint=desired.endpoint if desired.endpoint != actual.endpoint else None,
        persistent_keepalive=(
            desired.persistent_keepalive if desired.persistent_keepalive != actual.persistent_keepalive else None
        ),
        replace_allowed_ips=not same_prefixes,
        allowed_ips=() if same_prefixes else desired.allowed_ips,
    )
