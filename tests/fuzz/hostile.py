"""Target: datagrams from somebody who knows public keys and has heard every message, and no secret.

The device is that of tests/test_hostile.py: it has a session, and two handshakes under way. A script names true messages and
edits them, or is what is sent; mac1 can be put right, so that a message gets past it. Whatever it is, no session changes,
nothing is written, and every datagram is counted as dropped.
"""

from __future__ import annotations

from functools import cache

from noise import crypto
from tests.fuzz.reader import Reader
from tests.test_hostile import ELSEWHERE, Target

MOST = 8
LONGEST = 2000
HANDSHAKES = (1, 2)
MACS = 32


@cache
def target() -> Target:
    return Target()


def datagrams(data: bytes) -> None:
    """A byte of choices, then messages: see :func:`message`."""
    attacked = target()
    reader = Reader(data)
    is_burst = bool(reader.number() & 1)
    made: list[bytes] = []
    while reader and len(made) < MOST:
        datagram = message(reader)
        if datagram and not _is_true(datagram):
            made.append(datagram)
    if not made:
        return
    before = sum(attacked.host.device.drops.values())
    if is_burst:
        segment = len(made[0])
        burst = b"".join(datagram[:segment].ljust(segment, b"\0") for datagram in made)
        if any(_is_true(burst[at : at + segment]) for at in range(0, len(burst), segment)):
            return
        attacked.host.receive(burst, segment, ELSEWHERE)
    else:
        for datagram in made:
            attacked.host.receive(datagram, 0, ELSEWHERE)
    attacked.must_be_unchanged(before + len(made))


def message(reader: Reader) -> bytes:
    """A byte says whether the message is a piece or a true one, of which number, and whether it is cut and mac1 put right; then
    come up to three edits, each an offset and what is to be changed there."""
    choice = reader.number()
    templates = target().templates
    datagram = bytearray(reader.piece() if choice & 0x80 else templates[choice % 16 % len(templates)].message)
    edits = reader.number()
    for _ in range(edits & 3):
        at = reader.number(2)
        if datagram:
            datagram[at % len(datagram)] ^= reader.number()
    if edits & 4:
        del datagram[reader.number(2) :]
    if edits & 8 and len(datagram) >= MACS:
        datagram[-MACS : -MACS // 2] = crypto.mac(_mac1_key(), bytes(datagram[:-MACS]))
    return bytes(datagram[:LONGEST])


@cache
def _mac1_key() -> bytes:
    return crypto.hash_(b"mac1----" + target().host.public_key)


def _is_true(datagram: bytes) -> bool:
    """Whether it is one that may change something: a true message, mac2 or not, or the response that is waited for with another
    sender index, which nothing authenticates."""
    attacked = target()
    response = attacked.response
    return attacked.is_true(datagram) or (
        len(datagram) == len(response) and datagram[:4] == response[:4] and datagram[8:-MACS] == response[8:-MACS]
    )
