"""WireGuard's cross-platform configuration protocol, as text in and values out.

A *request* is ``get=1`` or ``set=1``, then ``key=value`` lines, then a blank line; a *reply* ends with ``errno=N`` and a
blank line. This module knows what stands between: the body of a set (:func:`parse_set`, :func:`format_set`) and the
reply to a get (:func:`format_get`, :func:`parse_get`). Framing, sockets and time belong to the server and the client.

Keys, formats, order and errno are wireguard-go's (``device/uapi.go``; https://www.wireguard.com/xplatform/), with two
differences. wireguard-go applies a set line by line and stops at the first bad one, leaving what came before it in force;
here the whole body is parsed before anything is applied, so that a bad line changes nothing. And its errno is always
negative, where ``wg`` wants it negative after a set but positive after a get (see :func:`reply_get`).

Text is what the socket's bytes decode to as Latin-1 or UTF-8: no accepted line holds more than ASCII, save the name of a
zone.
"""

import errno as errnos
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from wgpy.config import (
    KEY_LENGTH,
    NO_KEY,
    Change,
    DeviceSnapshot,
    Endpoint,
    PeerConfig,
    PeerSnapshot,
    Prefix,
    SetDevice,
    SetPeer,
    no_zone,
    parse_endpoint,
    parse_prefix,
    parse_unsigned,
    quoted,
)

NANOSECONDS = 1_000_000_000
CHUNK_PREFIXES = 200
"""How many allowed IPs :func:`format_get_chunks` puts into one chunk at most: a third of a millisecond's work."""

ZoneIndex = Callable[[str], int]


class UapiError(Exception):
    """A request that cannot be carried out. ``errno`` is positive; ``reason`` is one line and never holds a key."""

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(errno, reason)
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def _clamped(private_key: bytes) -> bytes:
    """As :func:`noise.crypto.clamp`; said again so that ``wgpy show`` need not load the cryptography to read a reply."""
    return bytes([private_key[0] & 248, *private_key[1:31], private_key[31] & 127 | 64])


# A set: parse ------------------------------------------------------------------------------------------------------


def parse_set(text: str, zone_index: ZoneIndex = no_zone) -> list[Change]:
    """The changes a set asks for: at most one :class:`SetDevice`, first, then a :class:`SetPeer` for each ``public_key``.

    ``text`` is the body, without the line ``set=1``; it ends at its first blank line. A private key comes back clamped,
    unless it is NO_KEY. ``zone_index`` turns the zone of a link-local endpoint into an interface index; a server passes
    ``socket.if_nametoindex``. Raises UapiError: EPROTO for a line without ``=``, EINVAL for all else.
    """
    reader = SetReader(zone_index)
    for line in text.split("\n"):
        if not reader.read(line):
            break
    return list(reader.changes())


class SetReader:
    """Reads the body of a set line by line, for a server with packets to move; :func:`parse_set` reads it in one go."""

    def __init__(self, zone_index: ZoneIndex = no_zone) -> None:
        self._zone_index = zone_index
        self._number = 0
        self._device: _DeviceSection | None = None
        self._peers: list[_PeerSection] = []

    def read(self, line: str) -> bool:
        """Read the next line; False if it is the blank one that ends the body. Raises UapiError as :func:`parse_set` does."""
        self._number += 1
        line = line.removesuffix("\r")
        if not line:
            return False
        key, equals, value = line.partition("=")
        if not equals:
            raise UapiError(errnos.EPROTO, f"line {self._number}: no '=' in it: write KEY=VALUE")
        try:
            if key == "public_key":
                self._peers.append(_PeerSection(_parse_key(value)))
            elif self._peers:
                self._peers[-1].read(key, value, self._zone_index)
            else:
                self._device = self._device or _DeviceSection()
                self._device.read(key, value)
        except (ValueError, OSError) as error:
            raise UapiError(errnos.EINVAL, f"line {self._number}: {quoted(key)}: {error}") from None
        return True

    def changes(self) -> Iterator[Change]:
        """What the lines read so far ask for, in the order of :func:`parse_set`."""
        if self._device:
            yield self._device.change()
        for peer in self._peers:
            yield peer.change()


@dataclass(slots=True)
class _DeviceSection:
    """What the lines before the first ``public_key`` have said so far."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False

    def read(self, key: str, value: str) -> None:
        match key:
            case "private_key":
                private_key = _parse_key(value)
                self.private_key = NO_KEY if private_key == NO_KEY else _clamped(private_key)
            case "listen_port":
                self.listen_port = parse_unsigned(value, 16)
            case "fwmark":
                self.fwmark = parse_unsigned(value, 32)
            case "replace_peers":
                self.replace_peers = _parse_true(value)
            case _:
                raise ValueError("no such key before the first public_key")

    def change(self) -> SetDevice:
        return SetDevice(self.private_key, self.listen_port, self.fwmark, self.replace_peers)


@dataclass(slots=True)
class _PeerSection:
    """What the lines after a ``public_key`` have said so far; a later line wins over an earlier one."""

    public_key: bytes
    remove: bool = False
    update_only: bool = False
    preshared_key: bytes | None = field(default=None, repr=False)
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None
    replace_allowed_ips: bool = False
    allowed_ips: list[Prefix] = field(default_factory=list)
    removed_allowed_ips: dict[Prefix, None] = field(default_factory=dict)

    def read(self, key: str, value: str, zone_index: ZoneIndex) -> None:
        match key:
            case "allowed_ip":
                self._read_allowed_ip(value)
            case "endpoint":
                self.endpoint = parse_endpoint(value, zone_index)
            case "preshared_key":
                self.preshared_key = _parse_key(value)
            case "persistent_keepalive_interval":
                self.persistent_keepalive = parse_unsigned(value, 16)
            case "replace_allowed_ips":
                self.replace_allowed_ips = _parse_true(value)
                self.allowed_ips.clear()
                self.removed_allowed_ips.clear()
            case "remove":
                self.remove = _parse_true(value)
            case "update_only":
                self.update_only = _parse_true(value)
            case "protocol_version":
                if value != "1":
                    raise ValueError("only version 1 exists")
            case _:
                raise ValueError("no such key of a peer")

    def _read_allowed_ip(self, value: str) -> None:
        """A SetPeer adds first and removes afterwards, so what is removed and then added again is not removed at all."""
        if value.startswith("-"):
            self.removed_allowed_ips[parse_prefix(value[1:])] = None
            return
        prefix = parse_prefix(value)
        self.allowed_ips.append(prefix)
        if self.removed_allowed_ips:
            self.removed_allowed_ips.pop(prefix, None)

    def change(self) -> SetPeer:
        if self.remove:  # wireguard-go reads the other lines of such a peer, and forgets them
            return SetPeer(self.public_key, remove=True, update_only=self.update_only)
        return SetPeer(
            public_key=self.public_key,
            update_only=self.update_only,
            preshared_key=self.preshared_key,
            endpoint=self.endpoint,
            persistent_keepalive=self.persistent_keepalive,
            replace_allowed_ips=self.replace_allowed_ips,
            allowed_ips=tuple(self.allowed_ips),
            removed_allowed_ips=tuple(self.removed_allowed_ips),
        )


def _parse_key(value: str) -> bytes:
    """64 hex digits. The value stays out of the error: it may be a secret with a typing mistake in it."""
    try:
        key = bytes.fromhex(value) if len(value) == 2 * KEY_LENGTH else b""
    except ValueError:
        key = b""
    if len(key) != KEY_LENGTH:  # fromhex skips blanks, so 64 characters can still be too few digits
        raise ValueError(f"not a key: {2 * KEY_LENGTH} hex digits are needed")
    return key


def _parse_true(value: str) -> bool:
    if value != "true":
        raise ValueError("only 'true' is allowed: leave the line out to say no")
    return True


# A set: format and reply -------------------------------------------------------------------------------------------


def format_set(changes: Iterable[Change]) -> str:
    """The body of a set, as :func:`parse_set` reads it: without ``set=1``, each line ended. The order is ``wg``'s.

    All changes of the device must come before those of peers, as UAPI has no way to say it otherwise: ValueError if not.
    """
    lines: list[str] = []
    peer_seen = False
    for change in changes:
        if isinstance(change, SetPeer):
            peer_seen = True
            lines += _peer_lines(change)
        elif peer_seen:
            raise ValueError("a SetDevice after a SetPeer cannot be written in one set")
        else:
            lines += _device_lines(change)
    return "".join(f"{line}\n" for line in lines)


def _device_lines(change: SetDevice) -> Iterator[str]:
    if change.private_key is not None:
        yield f"private_key={change.private_key.hex()}"
    if change.listen_port is not None:
        yield f"listen_port={change.listen_port}"
    if change.fwmark is not None:
        yield f"fwmark={change.fwmark}"
    if change.replace_peers:
        yield "replace_peers=true"


def _peer_lines(change: SetPeer) -> Iterator[str]:
    yield f"public_key={change.public_key.hex()}"
    if change.update_only:
        yield "update_only=true"
    if change.remove:
        yield "remove=true"
        return
    if change.preshared_key is not None:
        yield f"preshared_key={change.preshared_key.hex()}"
    if change.endpoint is not None:
        yield f"endpoint={change.endpoint}"
    if change.persistent_keepalive is not None:
        yield f"persistent_keepalive_interval={change.persistent_keepalive}"
    if change.replace_allowed_ips:
        yield "replace_allowed_ips=true"
    for prefix in change.allowed_ips:
        yield f"allowed_ip={prefix}"
    for prefix in change.removed_allowed_ips:
        yield f"allowed_ip=-{prefix}"


def reply_set(errno: int = 0) -> str:
    """The whole reply to a set. ``errno`` is given positive and goes out negative: ``wg`` prints +98 as "Unknown error"."""
    return f"errno={-errno}\n\n"


def parse_set_reply(text: str) -> None:
    """Raises UapiError if the reply to a set says that it failed, or says nothing."""
    _raise_errno(dict(_reply_lines(text)).get("errno"))


# A get -------------------------------------------------------------------------------------------------------------


def format_get(snapshot: DeviceSnapshot) -> str:
    """The whole reply to a get that succeeds, in wireguard-go's order, up to the blank line after ``errno=0``."""
    return "".join(format_get_chunks(snapshot))


def format_get_chunks(snapshot: DeviceSnapshot, peers: Iterable[PeerSnapshot] | None = None) -> Iterator[str]:
    """What :func:`format_get` returns, in pieces of less than a millisecond's work, for a server with packets to move.

    ``peers`` stand for those of the snapshot where they are many: each is asked for when its turn comes. A private key,
    port or mark that is not set has no line: ``wg`` would take zeros for a key. A preshared key always has one.
    """
    if snapshot.private_key != NO_KEY:
        yield f"private_key={snapshot.private_key.hex()}\n"
    if snapshot.listen_port:
        yield f"listen_port={snapshot.listen_port}\n"
    if snapshot.fwmark:
        yield f"fwmark={snapshot.fwmark}\n"
    for peer in snapshot.peers if peers is None else peers:
        yield _peer_text(peer)
        prefixes = peer.config.allowed_ips
        for first in range(0, len(prefixes), CHUNK_PREFIXES):
            yield "".join([f"allowed_ip={prefix}\n" for prefix in prefixes[first : first + CHUNK_PREFIXES]])
    yield reply_get(0)


def _peer_text(peer: PeerSnapshot) -> str:
    config = peer.config
    endpoint = f"endpoint={config.endpoint}\n" if config.endpoint else ""
    seconds, nanoseconds = divmod(peer.last_handshake, NANOSECONDS)
    return (
        f"public_key={config.public_key.hex()}\n"
        f"preshared_key={config.preshared_key.hex()}\n"
        "protocol_version=1\n"
        f"{endpoint}"
        f"last_handshake_time_sec={seconds}\n"
        f"last_handshake_time_nsec={nanoseconds}\n"
        f"tx_bytes={peer.tx_bytes}\n"
        f"rx_bytes={peer.rx_bytes}\n"
        f"persistent_keepalive_interval={config.persistent_keepalive}\n"
    )


def reply_get(errno: int) -> str:
    """How the reply to a get ends, and all of it if ``errno`` is not 0. ``errno`` is positive here and on the wire: ``wg``
    prints a negative one as "Protocol error"."""
    return f"errno={errno}\n\n"


def parse_get(text: str, zone_index: ZoneIndex = no_zone) -> DeviceSnapshot:
    """Read the whole reply to a get. Keys this module does not know are skipped, as ``wg`` skips them.

    Raises UapiError with the reply's errno if it is not 0 (of either sign: wireguard-go's is negative), and with EPROTO
    if the reply has none or cannot be read.
    """
    device: dict[str, str] = {}
    peers: list[_PeerLines] = []
    for key, value in _reply_lines(text):
        if key == "public_key":
            peers.append(_PeerLines({key: value}))
        elif not peers or key == "errno":
            device[key] = value
        elif key == "allowed_ip":
            peers[-1].allowed_ips.append(value)
        else:
            peers[-1].values[key] = value
    _raise_errno(device.get("errno"))
    try:
        return DeviceSnapshot(
            private_key=_parse_key(device["private_key"]) if "private_key" in device else NO_KEY,
            listen_port=parse_unsigned(device.get("listen_port", "0"), 16),
            fwmark=parse_unsigned(device.get("fwmark", "0"), 32),
            peers=tuple(peer.snapshot(zone_index) for peer in peers),
        )
    except (ValueError, OSError) as error:
        raise UapiError(errnos.EPROTO, f"the reply cannot be read: {error}") from None


@dataclass(slots=True)
class _PeerLines:
    """One peer of a reply, as text."""

    values: dict[str, str] = field(repr=False)
    allowed_ips: list[str] = field(default_factory=list)

    def snapshot(self, zone_index: ZoneIndex) -> PeerSnapshot:
        values = self.values
        number = partial(parse_unsigned, bits=64)
        config = PeerConfig(
            public_key=_parse_key(values["public_key"]),
            preshared_key=_parse_key(values["preshared_key"]) if "preshared_key" in values else NO_KEY,
            endpoint=parse_endpoint(values["endpoint"], zone_index) if "endpoint" in values else None,
            persistent_keepalive=parse_unsigned(values.get("persistent_keepalive_interval", "0"), 16),
            allowed_ips=tuple(map(parse_prefix, self.allowed_ips)),
        )
        seconds = number(values.get("last_handshake_time_sec", "0"))
        nanoseconds = number(values.get("last_handshake_time_nsec", "0"))
        return PeerSnapshot(
            config,
            last_handshake=seconds * NANOSECONDS + nanoseconds,
            tx_bytes=number(values.get("tx_bytes", "0")),
            rx_bytes=number(values.get("rx_bytes", "0")),
        )


def _reply_lines(text: str) -> Iterator[tuple[str, str]]:
    """The lines of a reply up to its blank line, in pairs."""
    for line in text.split("\n"):
        if not line:
            return
        key, equals, value = line.partition("=")
        if not equals:
            raise UapiError(errnos.EPROTO, "the reply has a line without '='")
        yield key, value


def _raise_errno(value: str | None) -> None:
    if value is None:
        raise UapiError(errnos.EPROTO, "the reply ends without errno")
    try:
        errno = parse_unsigned(value.removeprefix("-"), 31)
    except ValueError:
        raise UapiError(errnos.EPROTO, "the reply's errno is not a number") from None
    if errno:
        raise UapiError(errno, f"the interface refused with errno {errno} ({errnos.errorcode.get(errno, 'unknown')})")
