"""An interface without a tunnel: it answers UAPI requests on a real socket, from values in memory.

Clients (ours, and ``wg`` itself) cannot tell it from a device: it shows ``snapshot``, and keeps what it was told in
``requests`` (text, without ``set=1``) and ``changes`` (values). Where ``errno`` is not 0, it refuses.
"""

import socket
import threading
from pathlib import Path
from types import TracebackType

from wgpy.config import Change, DeviceSnapshot
from wgpy.uapi import UapiError, format_get, parse_set, reply_get, reply_set


class Interface:
    """Listens from construction until ``close``, or the end of its ``with``."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.path = directory / f"{name}.sock"
        self.snapshot = DeviceSnapshot()
        self.requests: list[str] = []
        self.changes: list[Change] = []
        self.errno = 0
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(self.path))
        except OSError:
            self._listener.close()
            raise
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Interface":
        return self

    def __exit__(
        self, exception: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    self._answer(connection)
                except OSError:
                    pass  # hung up: `wg` looks whether somebody listens, and goes away again

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("r", newline="\n") as lines:
            while operation := lines.readline():
                body = "".join(iter(lines.readline, "\n"))
                reply = self._get() if operation == "get=1\n" else self._set(body)
                connection.sendall(reply.encode())

    def _get(self) -> str:
        return reply_get(self.errno) if self.errno else format_get(self.snapshot)

    def _set(self, body: str) -> str:
        self.requests.append(body)
        if self.errno:
            return reply_set(self.errno)
        try:
            self.changes += parse_set(body, socket.if_nametoindex)
        except UapiError as error:
            return reply_set(error.errno)
        return reply_set()
