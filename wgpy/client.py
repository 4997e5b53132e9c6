"""A blocking client of the UAPI socket, for the command line and the agent.

It talks to any userspace WireGuard, wgpy or wireguard-go, through ``/var/run/wireguard/NAME.sock``; the kernel's own
interfaces have no such socket. Each call is one connection. Whatever goes wrong comes out as one :class:`ClientError` of
one line, which is for a person to read and holds no key.
"""

import contextlib
import errno as errnos
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from wgpy.config import Change, DeviceSnapshot
from wgpy.uapi import UapiError, format_set, parse_get, parse_set_reply

SOCKET_DIRECTORY = Path("/var/run/wireguard")
TIMEOUT = 10.0
"""Seconds without a sign of life from the other end before a call gives up."""

_RECEIVE_SIZE = 1 << 18


class ClientError(Exception):
    """A call that failed. ``errno`` is the interface's answer, or that of the socket."""

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(errno, reason)
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class NoSuchInterface(ClientError):
    """Nobody listens on the interface's socket."""


class Client:
    """The interface ``name``. Making one connects to nothing yet."""

    def __init__(self, name: str, directory: Path = SOCKET_DIRECTORY, timeout: float = TIMEOUT) -> None:
        if not _is_interface_name(name):
            raise ClientError(errnos.EINVAL, f"not the name of an interface: {name!r} (1 to 15 characters, no '/' or blank)")
        self.name = name
        self.path = directory / f"{name}.sock"
        self.timeout = timeout

    def get(self) -> DeviceSnapshot:
        """The device as it is now."""
        reply = self._request("get=1\n\n")
        try:
            return parse_get(reply, _zone_index)
        except UapiError as error:
            raise self._refusal("show itself", error) from None

    def set(self, changes: Iterable[Change]) -> None:
        """Make the changes, in this order. Returns when they are in force."""
        reply = self._request(f"set=1\n{format_set(changes)}\n")
        try:
            parse_set_reply(reply)
        except UapiError as error:
            raise self._refusal("be changed", error) from None

    def _request(self, request: str) -> str:
        """Send the request and return the reply, up to its blank line."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                _connect(connection, self.path, self.timeout)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(request.encode())
                reply = _receive_reply(connection)  # who hangs up in the middle of a request may have said why
        except (FileNotFoundError, ConnectionRefusedError) as error:
            reason = f"no interface {self.name!r} here: nobody listens on {self.path} (start one with: wgpy {self.name})"
            raise NoSuchInterface(error.errno or errnos.ENOENT, reason) from None
        except PermissionError as error:
            reason = f"interface {self.name!r}: no permission to use {self.path}: run as root"
            raise ClientError(error.errno or errnos.EACCES, reason) from None
        except (TimeoutError, BlockingIOError):
            reason = f"interface {self.name!r} did not answer within {self.timeout:g} s: is its process stopped or overloaded?"
            raise ClientError(errnos.ETIMEDOUT, reason) from None
        except OSError as error:
            raise ClientError(error.errno or errnos.EIO, f"interface {self.name!r}: {error.strerror or error}") from None
        if not reply:
            raise ClientError(errnos.EPROTO, f"interface {self.name!r} hung up without an answer")
        return reply

    def _refusal(self, what: str, error: UapiError) -> ClientError:
        return ClientError(error.errno, f"interface {self.name!r} refused to {what}: {os.strerror(error.errno)}")


def interfaces(directory: Path = SOCKET_DIRECTORY) -> list[str]:
    """The names of the interfaces that somebody answers for, sorted. A socket left behind by a dead process is not one."""
    return sorted(
        path.stem for path in directory.glob("*.sock") if _is_interface_name(path.stem) and _knock(path) in (0, errnos.EAGAIN)
    )


def clear_abandoned(directory: Path = SOCKET_DIRECTORY) -> list[str]:
    """Remove the socket files that processes left behind when they were killed, and give the names of their interfaces.

    ``wg`` does so, too, when it comes across one. Some programs (Felix) see no interface at all as long as there is one.
    """
    cleared = []
    for path in sorted(directory.glob("*.sock")):
        if _knock(path) == errnos.ECONNREFUSED:
            with contextlib.suppress(OSError):
                path.unlink()
                cleared.append(path.stem)
    return cleared


def _is_interface_name(name: str) -> bool:
    """What the kernel takes as a name (dev_valid_name)."""
    short = 0 < len(name.encode(errors="surrogateescape")) < 16
    return short and name not in (".", "..") and "/" not in name and ":" not in name and not any(map(str.isspace, name))


def _connect(connection: socket.socket, path: Path, timeout: float) -> None:
    """Connect and set the timeout. Raises BlockingIOError if the other end does not take us in time.

    A Unix socket that does not block is refused at once where others wait to be taken; one that blocks waits its turn.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *divmod(int(timeout * 1e6), 1_000_000)))
    connection.connect(str(path))
    connection.settimeout(timeout)


def _knock(path: Path) -> int:
    """The errno of connecting: 0 if somebody is there, EAGAIN if many wait for them already, ECONNREFUSED if nobody is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        return connection.connect_ex(str(path))


def _receive_reply(connection: socket.socket) -> str:
    """Everything up to the blank line, or what came before the other end closed."""
    received: list[bytes] = []
    tail = b""
    while not tail.endswith(b"\n\n") and (piece := connection.recv(_RECEIVE_SIZE)):
        received.append(piece)
        tail = (tail + piece)[-2:]
    return b"".join(received).decode(errors="replace")


def _zone_index(zone: str) -> int:
    """The index of a zone, or 0 where the interface is not in this namespace: better an endpoint than an error."""
    try:
        return socket.if_nametoindex(zone)
    except OSError:
        return 0
