"""The configuration socket, /var/run/wireguard/NAME.sock: wg(8), wgctrl and the agent speak to a device through it.

This module frames requests and nothing more; :mod:`wgpy.uapi` reads and writes them. Two things differ from wireguard-
go: a request is parsed whole and then applied, so that a bad line changes nothing; and a large one is applied in
portions between which packets go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from wgpy import uapi
from wgpy.config import Change, DeviceSnapshot

log = logging.getLogger(__name__)

DIRECTORY = Path("/var/run/wireguard")
LINE_LIMIT = 4096


class SocketInUse(Exception):
    """Another process serves this interface's socket."""


def listen(name: str, directory: Path = DIRECTORY) -> socket.socket:
    """Bind the socket of interface ``name``, 0700 in a directory of 0755, clearing away one that nobody serves any more.

    Raises SocketInUse, or OSError if the directory cannot be written.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = directory / f"{name}.sock"
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            pass
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        else:
            raise SocketInUse(f"{path} is served by another process")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o077)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    listener.listen(16)
    listener.setblocking(False)
    return listener


class UapiServer:
    """Serves one device. ``get`` and ``apply`` are called for each request, one ``apply`` at a time."""

    def __init__(
        self,
        listener: socket.socket,
        get: Callable[[], DeviceSnapshot],
        apply: Callable[[list[Change]], Awaitable[None]],
    ) -> None:
        self._listener = listener
        self._get = get
        self._apply = apply
        self._applying = asyncio.Lock()
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listener, limit=LINE_LIMIT)

    async def stop(self) -> None:
        """Stop listening and hang up."""
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while await self._request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass  # hung up in mid-request, or a line no configuration has
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when the connection is to be closed."""
        operation = await reader.readline()
        if operation == b"get=1\n":
            await self._reply_get(reader, writer)
        elif operation == b"set=1\n":
            await self._reply_set(reader, writer)
        else:
            return False
        await writer.drain()
        return True

    async def _reply_get(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() != b"\n":
            writer.write(uapi.reply_get(errno.EINVAL).encode())
            return
        for portion in uapi.format_get_chunks(self._get()):
            writer.write(portion.encode())
            await writer.drain()
            await asyncio.sleep(0)  # packets first

    async def _reply_set(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = []
        while (line := await reader.readline()) not in (b"\n", b""):
            lines.append(line)
        if line == b"":
            raise asyncio.IncompleteReadError(b"", None)
        status = 0
        async with self._applying:
            try:
                await self._apply(uapi.parse_set(b"".join(lines).decode(errors="replace"), _zone_index))
            except uapi.UapiError as error:
                status = error.errno
                log.warning("configuration refused: %s", error)
            except OSError as error:
                status = error.errno or errno.EIO
                log.warning("configuration failed: %s", error.strerror)
        writer.write(uapi.reply_set(status).encode())


def _zone_index(zone: str) -> int:
    """The index of the interface that a link-local endpoint names. Raises ValueError."""
    try:
        return socket.if_nametoindex(zone)
    except OSError:
        raise ValueError(f"there is no interface {zone[:20]!r}") from None


class Deletion:
    """Notices that the socket file is deleted: the sign for wireguard-go, and for us, to end. ``fileno`` is readable then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = path.lstat().st_ino
        self._fd = _inotify(path)

    def fileno(self) -> int:
        return self._fd

    def happened(self) -> bool:
        """Swallow events; whether the file is gone, or another one stands in its place."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 4096)
        try:
            return self._path.lstat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def close(self) -> None:
        os.close(self._fd)


IN_ATTRIB = 0x4
IN_DELETE_SELF = 0x400
IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


def _inotify(path: Path) -> int:
    """An inotify descriptor that watches ``path``. The standard library has no inotify; libc has."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.inotify_init1(IN_NONBLOCK_CLOEXEC)
    # An unlinked socket that is still bound only loses a link: that is a change of attributes.
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(path), IN_ATTRIB | IN_DELETE_SELF) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return fd
