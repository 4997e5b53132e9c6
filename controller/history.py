"""What happened on this node, one JSON object a line: keys, peers, modes, handshakes, warnings. Reports are made from it.

:class:`History` writes entries down (:mod:`controller.entries` says which there are), and :func:`read` reads them back.

The file is only ever appended to. When it is full it becomes ``history.1.jsonl`` and a new one begins, so that there are two at
most. A line that a crash cut short is ended by the next one written, and skipped by who reads. What cannot be written
is lost, and said once in the log, and in the file as soon as it can be written again: a full disk is no reason to stop
encrypting. Lines are not forced to the disk one by one, so a machine that loses its power may lose the last ones.
"""

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from controller.entries import Entry, Kind, entry, line, parse, rfc3339

log = logging.getLogger(__name__)

FILE, OLD_FILE = "history.jsonl", "history.1.jsonl"
BLOCK = 64 << 10
"""Bytes that are read at once from the end."""

LIMIT = 8 << 20
"""Bytes of each of the two files: some 40,000 entries. Samples and standings alone fill one in most of a year."""


class History:
    """The files in ``directory``. ``limit``: bytes of each. ``opening`` is asked for what every file begins with, and for what
    follows where entries have been lost. One process writes them."""

    def __init__(self, directory: Path, limit: int = LIMIT, opening: Callable[[], Iterable[Entry]] = tuple) -> None:
        self._path = directory / FILE
        self._old_path = directory / OLD_FILE
        self._limit = limit
        self._opening = opening
        self._failing_since: float | None = None

    def write(self, entries: Iterable[Entry]) -> None:
        """Append the entries. Never raises OSError: the first time it fails the log says so, and again after it has worked."""
        entries = list(entries)
        if not entries:
            return
        at = entries[0].at
        if self._failing_since is not None:
            entries = [entry(at, Kind.LOST, since=rfc3339(self._failing_since)), *self._opening(), *entries]
        try:
            self._append(b"".join(map(line, entries)))
        except OSError as error:
            if self._failing_since is None:
                log.warning("%s cannot be written, so what happens is not recorded: %s", self._path, error.strerror)
                self._failing_since = at
        else:
            self._failing_since = None

    def _append(self, text: bytes) -> None:
        is_new = not self._path.exists()
        if not is_new and self._path.stat().st_size + len(text) > self._limit:
            os.replace(self._path, self._old_path)
            is_new = True
        if is_new:
            text = b"".join(map(line, self._opening())) + text
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text  # the last one was cut short
            while text:
                text = text[os.write(descriptor, text) :]
        finally:
            os.close(descriptor)


def read(directory: Path, since: float | None = None) -> Iterator[Entry]:
    """All entries there are, oldest first; only those from ``since`` on (seconds since 1970) if that is given.

    Lines that are no entries are skipped. Raises OSError if a file is there and cannot be read.
    """
    for _, content in contents(directory):
        for text in content.splitlines():
            found = parse(text)
            if found is not None and (since is None or found.at >= since):
                yield found


def latest(directory: Path, limit: int) -> list[Entry]:
    """The last entries there are, up to ``limit``, the newest first. What is before them is not read: it may be 16 MB, and is
    asked for every second or two by who looks at a page. Raises OSError as :func:`read` does."""
    found: list[Entry] = []
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(file) for file in _open(directory)]
        for text in itertools.chain.from_iterable(map(_backwards, reversed(files))):
            if len(found) == limit:
                break
            if (one := parse(text)) is not None:
                found.append(one)
    return found


def _backwards(file: Any) -> Iterator[bytes]:
    """The lines of a file, the last one first."""
    position, rest = file.seek(0, os.SEEK_END), b""
    while position:
        begin = max(0, position - BLOCK)
        file.seek(begin)
        rest, *lines = (file.read(position - begin) + rest).split(b"\n")
        yield from reversed(lines)
        position = begin
    yield rest


def contents(directory: Path) -> list[tuple[str, bytes]]:
    """The name and the bytes of each file that is there, the older one first. Raises OSError."""
    found = []
    for file in _open(directory):
        with file:
            found.append((os.path.basename(file.name), file.read()))
    return found


def _open(directory: Path) -> list[Any]:
    """The old and the new file, those that are there. If the new one has become the old one meanwhile, they are opened again."""
    while True:
        new, old = _open_one(directory / FILE), _open_one(directory / OLD_FILE)
        files = [file for file in (old, new) if file is not None]
        if _is_current(directory / FILE, new):
            return files
        for file in files:
            file.close()


def _is_current(path: Path, file: Any) -> bool:
    """Whether the path still leads to this file; to none, if it is None."""
    try:
        now = os.stat(path)
        return file is not None and os.path.samestat(now, os.fstat(file.fileno()))
    except FileNotFoundError:
        return file is None


def _open_one(path: Path) -> Any:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None
