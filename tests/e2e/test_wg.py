"""wg(8) against our socket, and beside it against wireguard-go's: the same words in, the same words out."""

import os
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from controller.demo.topology import Node
from noise.crypto import clamp, public_key
from tests.e2e.lab import PORT, DataPlane, Tunnel, ping

pytestmark = pytest.mark.usefixtures("need_wg")

OURS, THEIRS = "wgours", "wggo"
FIELDS = [
    "public-key",
    "private-key",
    "listen-port",
    "fwmark",
    "peers",
    "preshared-keys",
    "endpoints",
    "allowed-ips",
    "latest-handshakes",
    "persistent-keepalive",
    "transfer",
    "dump",
]


def new_key() -> str:
    return b64encode(clamp(os.urandom(32))).decode()


def public_of(private: str) -> str:
    from base64 import b64decode

    return b64encode(public_key(b64decode(private))).decode()


@dataclass
class Both:
    """A wgpy and a wireguard-go on one node, to be told the same things."""

    node: Node
    planes: tuple[DataPlane, DataPlane]
    directory: Path

    def wg(self, *words: str, name: str) -> subprocess.CompletedProcess[str]:
        """``wg`` with the word NAME replaced by the interface's name."""
        return self.node.run(["wg", *(name if word == "NAME" else word for word in words)], check=False)

    def wg_both(self, *words: str) -> str:
        """Tell both, see that they answer the same but for their names, and give the answer."""
        ours, theirs = (self.wg(*words, name=name) for name in (OURS, THEIRS))
        assert (ours.returncode, _lines(ours.stdout, OURS)) == (theirs.returncode, _lines(theirs.stdout, THEIRS))
        assert _lines(ours.stderr, OURS) == _lines(theirs.stderr, THEIRS)
        return ours.stdout or ours.stderr

    def file(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o600)
        return str(path)

    def speak(self, name: str, request: bytes) -> bytes:
        """One request on the UAPI socket itself."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.node.wireguard_directory / f"{name}.sock"))
            connection.sendall(request)
            reply = b""
            while not reply.endswith(b"\n\n") and (piece := connection.recv(1 << 16)):
                reply += piece
            return reply


def _lines(text: str, name: str) -> list[str]:
    """What was said, without the name. Sorted, for wireguard-go lists its peers in the order of a Go map: none."""
    return sorted(text.replace(name, "NAME").splitlines())
