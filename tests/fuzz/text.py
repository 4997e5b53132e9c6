"""Targets: what people and programs write to us, which is the UAPI both ways, configuration files, and single values.

Each reads, expects the one exception that the reader promises, and reads back what it writes of what it read.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from tests.fuzz.reader import Reader
from tun.linux import _wrong_with_name
from wgpy import wgconf
from wgpy.client import _is_interface_name, _receive_reply
from wgpy.config import Endpoint, parse_endpoint, parse_prefix, parse_unsigned
from wgpy.uapi import UapiError, format_get, format_set, parse_get, parse_set, parse_set_reply
from wgpy.wgconf import WgConfError

LONGEST_REASON = 1000
"""Characters. A reason is a line of a log, whatever was sent to us."""
LATEST_HANDSHAKE = (1 << 64) * 1_000_000_000
"""Nanoseconds: what a reply can say of later ones, in 64 bits of seconds and as many of nanoseconds, is written in more
digits."""
SECRETS = ("private_key", "preshared_key", "privatekey", "presharedkey")
SHORTEST_SECRET = 40
"""Characters: what is shorter is no key, and may be quoted."""


def _zone_index(zone: str) -> int:
    """As socket.if_nametoindex, on a machine with one interface."""
    if zone == "eth0":
        return 2
    raise OSError(errno.ENODEV, "No such device")


def _resolve(host: str, port: int) -> Endpoint:
    """As a resolver that knows one name."""
    if host == "example.com":
        return Endpoint("192.0.2.1", port)
    raise ValueError(f"no address of {host[:60]!r}")


def _must_be_a_reason(reason: str, text: str, is_well_numbered: bool) -> None:
    """One line of bounded length, in which no value of a secret stands, with an errno or a line number that can be."""
    assert is_well_numbered
    assert reason.isprintable(), reason
    assert 0 < len(reason) <= LONGEST_REASON, reason
    for line in text.split("\n"):
        key, _, value = line.partition("=")
        secret = value.strip()
        if key.strip().lower() in SECRETS and len(secret) >= SHORTEST_SECRET:
            assert secret not in reason, reason


def uapi_set(data: bytes) -> None:
    """The body of a set. Refused with UapiError of EINVAL or EPROTO."""
    text = data.decode("latin-1")
    try:
        changes = parse_set(text, _zone_index)
    except UapiError as error:
        _must_be_a_reason(error.reason, text, error.errno in (errno.EINVAL, errno.EPROTO))
        return
    assert parse_set(format_set(changes)) == changes


class _Pieces:
    """A connection that gives what it has in pieces of some size."""

    def __init__(self, data: bytes, size: int) -> None:
        self._left = Reader(data)
        self._size = size

    def recv(self, size: int) -> bytes:
        return self._left.take(min(self._size, size))


def uapi_reply(data: bytes) -> None:
    """What answers the client, in pieces as the first byte says. Refused with UapiError, of the reply's own errno or EPROTO."""
    connection = _Pieces(data[1:], 1 + (data[0] if data else 0))
    text = _receive_reply(cast(Any, connection))
    said = data[1:].decode(errors="replace")
    assert said.startswith(text)
    assert "\n\n" in text or text == said
    with suppress(UapiError):
        parse_set_reply(text)
    try:
        snapshot = parse_get(text, _zone_index)
    except UapiError as error:
        _must_be_a_reason(error.reason, text, 0 < error.errno < 1 << 31)
        return
    if all(peer.last_handshake < LATEST_HANDSHAKE for peer in snapshot.peers):
        assert parse_get(format_get(snapshot)) == snapshot


def wg_config(data: bytes) -> None:
    """A file of wg(8). Refused with WgConfError, which names a line that is there."""
    text = data.decode(errors="replace")
    try:
        config = wgconf.parse(text, _resolve)
    except WgConfError as error:
        _must_be_a_reason(error.reason, text, 1 <= error.line <= text.count("\n") + 1)
        return
    assert wgconf.parse(wgconf.format(config)) == config


def values(data: bytes) -> None:
    """One value, as every reader of values sees it. Refused with ValueError."""
    text = data.decode("utf-8", "surrogateescape")
    readers: tuple[tuple[Callable[[str], Any], Callable[[Any], str]], ...] = (
        (parse_endpoint, str),
        (lambda text: wgconf.parse_host_port(text, _resolve), str),
        (parse_prefix, str),
        (wgconf.parse_allowed_ip, str),
        (wgconf.parse_mark, str),
        (wgconf.parse_keepalive, str),
        (wgconf.parse_key, wgconf.format_key),
        (lambda text: parse_unsigned(text, 32), str),
    )
    for parse, write in readers:
        try:
            value = parse(text)
        except ValueError:
            continue
        assert parse(write(value)) == value
    _interface_name(data)


def _interface_name(data: bytes) -> None:
    """Both judges of names agree with each other, but that a TUN device refuses ``%`` (it would be a template), and take
    nothing that the kernel's dev_valid_name would refuse."""
    name = os.fsdecode(data)
    fits = 0 < len(data) < 16 and data not in (b".", b"..") and not set(data) & set(b"/: \t\n\v\f\r")
    assert fits or not _is_interface_name(name)
    assert (_wrong_with_name(name) is None) == (_is_interface_name(name) and b"%" not in data and b"\0" not in data)
