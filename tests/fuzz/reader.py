"""Choices, read off the bytes that a fuzzer makes up.

A script for a device, or a list of packets, has to be *some* bytes, so that a fuzzer can mutate it and a file can keep it. A
:class:`Reader` never refuses: at the end of its input numbers are zero and pieces are empty, so every input means something.
"""

from __future__ import annotations

from collections.abc import Iterator


class Reader:
    """Reads ``data`` once, from its start. True while something is left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, or what there is."""
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int = 1) -> int:
        """The next ``size`` bytes as a number, little-endian."""
        return int.from_bytes(self.take(size), "little")

    def piece(self) -> bytes:
        """A piece that begins with its length in two bytes."""
        return self.take(self.number(2))

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def pieces(self) -> Iterator[bytes]:
        """All that is left, as pieces."""
        while self:
            yield self.piece()


def piece(data: bytes) -> bytes:
    """What :meth:`Reader.piece` reads back as ``data``."""
    return len(data).to_bytes(2, "little") + data
