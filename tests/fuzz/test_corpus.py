"""Every input of the corpora, through its target, without atheris; and each target notices when what it looks at is broken."""

from __future__ import annotations

import random
from http import HTTPStatus
from typing import Any

import pytest

import tun.offload
import wgpy.core.inbound
import wgpy.daemon.uapi_server
from noise.cookie import CookieChecker
from noise.messages import HandshakeInitiation
from noise.timers import PeerTimers
from tests.fuzz import datapath, hostile, text
from tests.fuzz import netlink as fuzz_netlink
from tests.fuzz.reader import Reader, piece
from tests.fuzz.targets import CORPUS, TARGETS, inputs
from tun.offload import Superpacket
from wgpy import exposition, uapi, wgconf
from wgpy.core.outbound import Outbound
from wgpy.daemon import netlink

MUTANTS = 300
"""Of the inputs of a target, beside the inputs themselves."""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """``data`` with some of its bytes changed, left out, repeated or exchanged."""
    made = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(4):
            case 0:
                made[at : at + 1] = rng.randbytes(1)
            case 1:
                del made[at : at + rng.randrange(1, 9)]
            case 2:
                made[at:at] = made[at : at + rng.randrange(1, 17)]
            case _:
                made[at:at] = rng.choice([b"\0\0", b"\xff", b"\n", b"=", b"\x7f\xff", rng.randbytes(2)])
    return bytes(made)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_the_corpus_is_a_finding(name: str) -> None:
    files = inputs(name)
    assert files, "without a corpus nothing is tried"

    for file in files:
        TARGETS[name].check(file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_nor_is_what_is_like_it(name: str) -> None:
    rng = random.Random(1)
    known = [file.read_bytes() for file in inputs(name)]

    for _ in range(MUTANTS if name != "device" else MUTANTS // 10):
        TARGETS[name].check(mutated(rng.choice(known), rng)[: TARGETS[name].longest])


def test_every_corpus_has_its_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)


def test_a_corpus_is_small() -> None:
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < 1 << 20


def test_pieces_are_read_back() -> None:
    reader = Reader(piece(b"abc") + piece(b"") + b"\xff\xff" + b"rest")

    assert list(reader.pieces()) == [b"abc", b"", b"rest"]
    assert not reader
    assert (reader.number(2), reader.take(3), reader.piece()) == (0, b"", b"")


# The targets can fail -----------------------------------------------------------------------------------------------------


def _broken_flush(self: Outbound, now: float) -> None:
    self._count = 0


async def _not_found(self: exposition.Server, request: bytes) -> exposition.Answer:
    return exposition.Answer(b"", HTTPStatus.NOT_FOUND)


def _as_it_came(packet: memoryview, outer: int) -> None:
    """A decapsulation that forgets what the path said."""


BREAKAGES: dict[str, tuple[Any, str, Any]] = {
    "messages": (HandshakeInitiation, "pack", lambda self: b""),
    "datagrams": (CookieChecker, "mac1_is_valid", lambda self, message: message[8:16] == bytes(8)),
    "inner-packets": (wgpy.core.inbound, "decapsulate_ecn", _as_it_came),
    "tun-packets": (Outbound, "flush", _broken_flush),
    "refused-packets": (datapath, "unreachable", bytes),
    "superpackets": (Superpacket, "fill", lambda self, rows, first=0: min(len(rows), self.count - first)),
    "coalescing": (tun.offload, "_id_step", lambda packet, next_packet: 0),
    "uapi-set": (uapi, "_peer_lines", lambda change: [f"public_key={change.public_key.hex()}"]),
    "uapi-reply": (text, "_receive_reply", lambda connection: connection.recv(2).decode(errors="replace")),
    "uapi-server": (wgpy.daemon.uapi_server, "_OPERATIONS", (b"get=1\n",)),
    "wg-config": (wgconf, "_peer_lines", lambda peer: ["[Peer]"]),
    "values": (text, "parse_prefix", lambda text: text + "/0"),
    "http": (exposition.Server, "_answer", _not_found),
    "routes": (fuzz_netlink, "put_route", lambda table, route, index: b""),
    "netlink-answers": (netlink, "parse_attributes", lambda data: {0: data[:100]}),
    "device": (PeerTimers, "may_initiate", lambda self, now, *, is_retry: False),
}
"""For each target something that it uses, and what to put in its place so that some input of its corpus is a finding."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_notices_what_is_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, broken = BREAKAGES[name]
    monkeypatch.setattr(owner, attribute, broken)

    findings = 0
    for file in inputs(name):
        try:
            TARGETS[name].check(file.read_bytes())
        except Exception:
            findings += 1
    for made in (datapath.subjects, hostile.target):  # what was kept from input to input may be what is broken
        made.cache_clear()

    assert findings
