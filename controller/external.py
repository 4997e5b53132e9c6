"""External peers: WireGuard peers that are no nodes of the cluster, from a file that an operator keeps (a mounted Secret, say).

The file is one of ``wg(8)`` with ``[Peer]`` sections only. It is looked at on every pass, so a changed one counts from the next
resync on; one that has gone bad while we look on counts as what it held when it was last good.
"""

import logging
import os
from pathlib import Path

from wgpy.config import PeerConfig
from wgpy.wgconf import WgConfError, parse

log = logging.getLogger(__name__)

_LONGEST_FILE = 1 << 20


class ExternalPeersError(Exception):
    """The file cannot be used. The message is one line and holds no key."""


class ExternalPeers:
    """The peers in the file ``path``; None for no file, and no peers."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._signature: tuple[int, int, int] | None = None
        self._peers: tuple[PeerConfig, ...] = ()
        self._said = ""

    def load(self) -> tuple[PeerConfig, ...]:
        """The peers as they are now. Raises ExternalPeersError."""
        if self._path is None:
            return ()
        try:
            status = os.stat(self._path)
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            if signature != self._signature:
                self._peers = self._read(self._path)
                self._signature = signature
        except OSError as error:
            raise ExternalPeersError(f"cannot read the external peers {self._path}: {error.strerror}") from None
        return self._peers

    def current(self) -> tuple[PeerConfig, ...]:
        """The peers as they are now, or as they were when the file was last good; never raises."""
        try:
            self._peers, self._said = self.load(), ""
        except ExternalPeersError as error:
            if str(error) != self._said:
                log.warning("%s; the peers it held before stay", error)
            self._said = str(error)
        return self._peers

    def _read(self, path: Path) -> tuple[PeerConfig, ...]:
        with open(path, "rb") as file:
            data = file.read(_LONGEST_FILE + 1)
        if len(data) > _LONGEST_FILE:
            raise ExternalPeersError(f"{path}: longer than {_LONGEST_FILE} bytes")
        try:
            config = parse(data.decode())
        except UnicodeDecodeError:
            raise ExternalPeersError(f"{path}: not UTF-8") from None
        except WgConfError as error:
            raise ExternalPeersError(f"{path}:{error.line}: {error.reason}") from None
        if config.private_key != bytes(32) or config.listen_port or config.fwmark:
            raise ExternalPeersError(f"{path}: only [Peer] sections belong here: key, port and mark are the mesh's")
        return config.peers
