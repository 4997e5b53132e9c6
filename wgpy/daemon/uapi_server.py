"""The configuration socket, /var/run/wireguard/NAME.sock: wg(8), wgctrl and the agent speak to a device through it.

This module frames requests and nothing more; :mod:`wgpy.uapi` reads and writes them. Two things differ from wireguard-
go: a request is parsed whole and then applied, so that a bad line changes nothing; and a large one is read, applied and
answered in portions between which packets go on.

How to think about it: a client may fall silent in the middle of anything, never read, or never stop. So what a client can
hold is bounded, in bytes, in time and in connections, and where there is no room for one more, whoever has kept us waiting
longest makes it. Work is done in *turns*: a fraction of a millisecond, for whoever has waited longest for it, and then it is
the packets' turn again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from wgpy import uapi
from wgpy.client import clear_abandoned
from wgpy.config import Change, quoted

log = logging.getLogger(__name__)

DIRECTORY = Path("/var/run/wireguard")

TURN = 0.5e-3
"""Seconds of work on requests before packets get their turn."""
MAX_CONNECTIONS = 64
GRACE = 0.03
"""Seconds that a client may keep us waiting though its place is wanted: what it says may be on its way. This also bounds what a
flood of connections takes of the processor: so often every place can change hands."""
REQUEST_LIMIT = 8 << 20
"""Bytes. 5,000 peers with ten allowed IPs each take 2 MB."""
PATIENCE = 10.0
"""Seconds that a client may be silent in the middle of a request, or may leave an answer unread. Between requests it may rest
for as long as nobody needs its place."""
BACKLOG = 256
"""Clients that may wait to be accepted. Those that do not block, as Go's, are refused when it is full."""

_RECEIVE_SIZE = 1 << 16
_OPERATIONS = (b"get=1\n", b"set=1\n")
_LOCK_ATTEMPTS, _LOCK_PAUSE = 100, 0.02

Step = TypeVar("Step")


class SocketInUse(Exception):
    """Another process serves this interface's socket."""


def listen(name: str, directory: Path = DIRECTORY) -> socket.socket:
    """Bind the socket of interface ``name``, 0700 in a directory of 0755, clearing away all that nobody serves any more.

    Others than our own are cleared, too: that of an interface that has got another name will never be bound again, and one such
    file is enough to keep some programs from seeing any interface. Raises SocketInUse, or OSError if the directory
    cannot be written.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = directory / f"{name}.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked(directory):
            for abandoned in clear_abandoned(directory):
                log.info("cleared away %s, which nobody served any more", directory / f"{abandoned}.sock")
            _bind(listener, path)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SocketInUse(f"{path} is served by another process") from None
        raise
    listener.setblocking(False)
    return listener


def _bind(listener: socket.socket, path: Path) -> None:
    umask = os.umask(0o077)
    try:
        listener.bind(str(path))
    finally:
        os.umask(umask)
    listener.listen(BACKLOG)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """While this lasts nobody else of us binds in ``directory``: one just bound would look like one that nobody serves.

    Anybody who may read the directory can hold the lock, so we wait for it only so long.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(fd)


class UapiServer:
    """Serves one device. ``get`` gives the pieces of the reply to a get, and ``apply`` carries out a set, one at a time."""

    def __init__(
        self,
        listener: socket.socket,
        get: Callable[[], Iterator[str]],
        apply: Callable[[list[Change]], Awaitable[None]],
    ) -> None:
        self._listener = listener
        self._get = get
        self._apply = apply
        self._applying = asyncio.Lock()
        self._turn = asyncio.Lock()  # whose waiters come in the order they asked
        self._loop = asyncio.get_running_loop()
        self._serving: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Task[None], float] = {}
        """Those of the tasks that wait for their client, and since when, beginning with who has waited longest."""
        self._is_crowded = False
        """Somebody wants a place, and nobody could be asked to give his up."""
        self._quiet_until = 0.0

    async def start(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    async def stop(self) -> None:
        """Stop listening and hang up."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    # -- connections ---------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """Take one client: one in each iteration of the loop, since they may be many."""
        if len(self._serving) >= MAX_CONNECTIONS:
            longest, since = next(iter(self._waiting.items()), (None, 0.0))
            if longest is None or self._loop.time() - since < GRACE:
                self._is_crowded = True
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(GRACE, self._accept_again)
                return
            del self._waiting[longest]
            longest.cancel()
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it is gone again, or there are no descriptors left
        connection.setblocking(False)
        task = self._loop.create_task(self._serve(connection))
        self._serving.add(task)
        task.add_done_callback(lambda task: self._served(task, connection))

    def _served(self, task: asyncio.Task[None], connection: socket.socket) -> None:
        connection.close()
        self._serving.discard(task)

    def _accept_again(self) -> None:
        self._is_crowded = False
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    async def _serve(self, connection: socket.socket) -> None:
        received = bytearray()
        with contextlib.suppress(OSError):  # it hung up, or took too long
            while (request := await self._request(connection, received)) is not None:
                operation, _, body = request.partition(b"\n")
                await (self._reply_get if operation == b"get=1" else self._reply_set)(connection, body)

    @contextlib.asynccontextmanager
    async def _patience(self, seconds: float | None) -> AsyncIterator[None]:
        """To be waiting for the client, at most so long. Raises TimeoutError."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting[task] = self._loop.time()
        try:
            async with asyncio.timeout(seconds):
                yield
        finally:
            self._waiting.pop(task, None)

    async def _send(self, connection: socket.socket, text: str) -> None:
        async with self._patience(PATIENCE):
            await self._loop.sock_sendall(connection, text.encode())

    # -- turns ---------------------------------------------------------------------------------------------------

    async def _take(self, steps: Iterator[Step]) -> list[Step]:
        """What ``steps`` give in one turn; nothing if they are through."""
        async with self._turn:
            until = time.monotonic() + TURN
            taken: list[Step] = []
            try:
                for step in steps:
                    taken.append(step)
                    if time.monotonic() >= until:
                        break
                return taken
            finally:
                await asyncio.sleep(0)  # packets first

    async def _take_all(self, steps: Iterable[Step]) -> list[Step]:
        """All that ``steps`` give, in as many turns as it takes."""
        steps = iter(steps)
        taken: list[Step] = []
        while portion := await self._take(steps):
            taken += portion
        return taken

    # -- requests ------------------------------------------------------------------------------------------------

    async def _request(self, connection: socket.socket, received: bytearray) -> bytes | None:
        """The next request without its blank line; None to hang up. ``received`` is what came and is not yet answered: who has
        sent several requests at once, and has one answer, gives way to who has none."""
        searched = 0
        is_new = False
        while any(operation.startswith(received[: len(operation)]) for operation in _OPERATIONS):
            if self._is_crowded and received and not is_new:
                break
            if (end := received.find(b"\n\n", searched)) >= 0:
                request = bytes(memoryview(received)[: end + 1])
                del received[: end + 2]
                return request
            if len(received) > REQUEST_LIMIT:
                self._complain(f"a request of more than {REQUEST_LIMIT >> 20} MB was hung up on: send it in parts")
                await self._send(connection, uapi.reply_set(errno.EMSGSIZE))
                break
            searched = max(0, len(received) - 1)
            async with self._patience(PATIENCE if received else None):
                data = await self._loop.sock_recv(connection, _RECEIVE_SIZE)
            if not data:
                break
            received += data
            is_new = True
            await self._take(iter(()))  # to receive was work, too
        return None

    async def _reply_get(self, connection: socket.socket, body: bytes) -> None:
        pieces = iter((uapi.reply_get(errno.EINVAL),)) if body else self._pieces()
        while portion := await self._take(pieces):
            await self._send(connection, "".join(portion))

    def _pieces(self) -> Iterator[str]:
        yield from self._get()  # called for the first piece, so that it is part of a turn

    async def _reply_set(self, connection: socket.socket, body: bytes) -> None:
        status = 0
        try:
            changes = await self._parse(body)
            async with self._applying:
                await self._apply(changes)
        except uapi.UapiError as error:
            status = error.errno
            self._complain(f"configuration refused: {error}")
        except OSError as error:
            status = error.errno or errno.EIO
            self._complain(f"configuration failed: {error.strerror}")
        await self._send(connection, uapi.reply_set(status))

    async def _parse(self, body: bytes) -> list[Change]:
        reader = uapi.SetReader(_zone_index)
        lines = (line.decode(errors="replace").removesuffix("\n") for line in BytesIO(body))
        await self._take_all(takewhile(reader.read, lines))
        return await self._take_all(reader.changes())

    def _complain(self, message: str) -> None:
        """Log what is wrong with a request; once a second, lest who floods us fill the log as well."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + 1
            log.warning("%s", message)


def _zone_index(zone: str) -> int:
    """The index of the interface that a link-local endpoint names. Raises ValueError."""
    try:
        return socket.if_nametoindex(zone)
    except OSError:
        raise ValueError(f"there is no interface {quoted(zone)}") from None


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
