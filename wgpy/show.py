"""What ``show`` prints, to the letter as ``wg(8)`` prints it.

Three forms: :func:`pretty` for people, :func:`lines` for scripts (one field of every peer, or ``dump``, with tabs), and
:func:`as_json` for programs, with the names that wireguard-tools' ``wg-json`` uses. All are pure: snapshots in, text out.
"""

from collections.abc import Callable, Iterator

from noise.crypto import public_key
from wgpy.config import NO_KEY, DeviceSnapshot, PeerSnapshot
from wgpy.uapi import NANOSECONDS
from wgpy.wgconf import format_key

NONE = "(none)"
HIDDEN = "(hidden)"

_RESET, _BOLD, _RED, _GREEN, _YELLOW, _CYAN = "\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m"

_SECONDS = {"year": 365 * 86400, "day": 86400, "hour": 3600, "minute": 60, "second": 1}


# For scripts -------------------------------------------------------------------------------------------------------


def lines(snapshot: DeviceSnapshot, field: str) -> Iterator[str]:
    """The lines of one field, or of ``dump``. Peers keep the device's order. Raises KeyError for an unknown field."""
    if field == "dump":
        yield "\t".join(value(snapshot) for value in DEVICE_FIELDS.values())
        for peer in snapshot.peers:
            yield "\t".join((_public_key(peer), *(_DUMP.get(name, value)(peer) for name, value in PEER_FIELDS.items())))
    elif field == "peers":
        yield from map(_public_key, snapshot.peers)
    elif field in DEVICE_FIELDS:
        yield DEVICE_FIELDS[field](snapshot)
    else:
        value = PEER_FIELDS[field]
        for peer in snapshot.peers:
            yield f"{_public_key(peer)}\t{value(peer)}"


def _public_key(peer: PeerSnapshot) -> str:
    return format_key(peer.config.public_key)


def _key_or_none(key: bytes) -> str:
    return NONE if key == NO_KEY else format_key(key)


def _own_public_key(snapshot: DeviceSnapshot) -> str:
    return NONE if snapshot.private_key == NO_KEY else format_key(public_key(snapshot.private_key))


def _allowed_ips(peer: PeerSnapshot, separator: str) -> str:
    return separator.join(map(str, peer.config.allowed_ips)) or NONE


DEVICE_FIELDS: dict[str, Callable[[DeviceSnapshot], str]] = {
    "private-key": lambda snapshot: _key_or_none(snapshot.private_key),
    "public-key": _own_public_key,
    "listen-port": lambda snapshot: str(snapshot.listen_port),
    "fwmark": lambda snapshot: f"{snapshot.fwmark:#x}" if snapshot.fwmark else "off",
}
"""The fields of a device, in the order of ``dump``."""

PEER_FIELDS: dict[str, Callable[[PeerSnapshot], str]] = {
    "preshared-keys": lambda peer: _key_or_none(peer.config.preshared_key),
    "endpoints": lambda peer: str(peer.config.endpoint or NONE),
    "allowed-ips": lambda peer: _allowed_ips(peer, " "),
    "latest-handshakes": lambda peer: str(peer.last_handshake // NANOSECONDS),
    "transfer": lambda peer: f"{peer.rx_bytes}\t{peer.tx_bytes}",
    "persistent-keepalive": lambda peer: str(peer.config.persistent_keepalive or "off"),
}
"""The fields of a peer, in the order of ``dump``."""

_DUMP: dict[str, Callable[[PeerSnapshot], str]] = {"allowed-ips": lambda peer: _allowed_ips(peer, ",")}

FIELDS = (*DEVICE_FIELDS, "peers", *PEER_FIELDS, "dump")
"""Every word that may follow the name of the interface."""


# For people --------------------------------------------------------------------------------------------------------


def pretty(name: str, snapshot: DeviceSnapshot, now: int, colour: bool = False, hide_keys: bool = True) -> str:
    """The device and its peers, those that shook hands last on top. ``now`` is in seconds since 1970."""
    text = "\n".join(_pretty_lines(name, snapshot, now, hide_keys)) + "\n"
    return text if colour else _plain(text)


def _plain(text: str) -> str:
    for style in (_RESET, _BOLD, _RED, _GREEN, _YELLOW, _CYAN):
        text = text.replace(style, "")
    return text


def _pretty_lines(name: str, snapshot: DeviceSnapshot, now: int, hide_keys: bool) -> Iterator[str]:
    yield f"{_RESET}{_GREEN}{_BOLD}interface{_RESET}: {_GREEN}{name}{_RESET}"
    if snapshot.private_key != NO_KEY:
        yield _item("public key", _own_public_key(snapshot))
        yield _item("private key", _secret(snapshot.private_key, hide_keys))
    if snapshot.listen_port:
        yield _item("listening port", str(snapshot.listen_port))
    if snapshot.fwmark:
        yield _item("fwmark", f"{snapshot.fwmark:#x}")
    for peer in sorted(snapshot.peers, key=lambda peer: -peer.last_handshake):
        yield ""
        yield from _pretty_peer(peer, now, hide_keys)


def _pretty_peer(peer: PeerSnapshot, now: int, hide_keys: bool) -> Iterator[str]:
    config = peer.config
    yield f"{_YELLOW}{_BOLD}peer{_RESET}: {_YELLOW}{_public_key(peer)}{_RESET}"
    if config.preshared_key != NO_KEY:
        yield _item("preshared key", _secret(config.preshared_key, hide_keys))
    if config.endpoint:
        yield _item("endpoint", str(config.endpoint))
    yield _item("allowed ips", _allowed_ips(peer, ", ").replace("/", _unit("/")))
    if peer.last_handshake:
        yield _item("latest handshake", _ago(now - peer.last_handshake // NANOSECONDS))
    if peer.rx_bytes or peer.tx_bytes:
        yield _item("transfer", f"{_amount(peer.rx_bytes)} received, {_amount(peer.tx_bytes)} sent")
    if config.persistent_keepalive:
        yield _item("persistent keepalive", f"every {_duration(config.persistent_keepalive)}")


def _item(name: str, value: str) -> str:
    return f"  {_BOLD}{name}{_RESET}: {value}"


def _unit(text: str) -> str:
    return f"{_CYAN}{text}{_RESET}"


def _secret(key: bytes, hide: bool) -> str:
    return HIDDEN if hide else format_key(key)


def _duration(seconds: int) -> str:
    """``1 hour, 2 minutes, 5 seconds``."""
    parts = []
    for name, length in _SECONDS.items():
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count} {_unit(name if count == 1 else name + 's')}")
    return ", ".join(parts)


def _ago(seconds: int) -> str:
    if seconds < 0:
        return f"({_RED}System clock wound backward; connection problems may ensue.{_RESET})"
    return f"{_duration(seconds)} ago" if seconds else "Now"


def _amount(count: int) -> str:
    """``512 B``, ``1.50 KiB`` and so on, up to TiB."""
    if count < 1024:
        return f"{count} {_unit('B')}"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.2f} {_unit(unit)}"
        size /= 1024
    return f"{size:.2f} {_unit('TiB')}"


# For programs ------------------------------------------------------------------------------------------------------


def as_json(snapshot: DeviceSnapshot, hide_keys: bool = True) -> dict[str, object]:
    """The device as JSON has it. What is not set is left out, as in ``wg-json``."""
    device: dict[str, object] = {}
    if snapshot.private_key != NO_KEY:
        device["privateKey"] = _secret(snapshot.private_key, hide_keys)
        device["publicKey"] = _own_public_key(snapshot)
    if snapshot.listen_port:
        device["listenPort"] = snapshot.listen_port
    if snapshot.fwmark:
        device["fwmark"] = snapshot.fwmark
    device["peers"] = {_public_key(peer): _peer_json(peer, hide_keys) for peer in snapshot.peers}
    return device


def _peer_json(snapshot: PeerSnapshot, hide_keys: bool) -> dict[str, object]:
    config = snapshot.config
    peer: dict[str, object] = {}
    if config.preshared_key != NO_KEY:
        peer["presharedKey"] = _secret(config.preshared_key, hide_keys)
    if config.endpoint:
        peer["endpoint"] = str(config.endpoint)
    if snapshot.last_handshake:
        peer["latestHandshake"] = snapshot.last_handshake // NANOSECONDS
    if snapshot.rx_bytes or snapshot.tx_bytes:
        peer["transferRx"] = snapshot.rx_bytes
        peer["transferTx"] = snapshot.tx_bytes
    if config.persistent_keepalive:
        peer["persistentKeepalive"] = config.persistent_keepalive
    peer["allowedIps"] = list(map(str, config.allowed_ips))
    return peer
