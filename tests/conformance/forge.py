"""Handshake messages that no honest implementation would make: keys of low order, and DH results of zero.

:mod:`noise.handshake` refuses to make them, so the steps of paper section 5.4 are done here by hand, with no check at all. The
messages come without MACs: :meth:`tests.conformance.peer.Peer.with_macs` adds them.
"""

from __future__ import annotations

from noise.constants import CONSTRUCTION, IDENTIFIER
from noise.crypto import aead_seal, hash_, kdf1, kdf2, kdf3
from noise.handshake import ResponderHandshake
from noise.messages import HandshakeInitiation, HandshakeResponse

_P = 2**255 - 19
LOW_ORDER_POINTS = tuple(
    point.to_bytes(32, "little")
    for point in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P - 1,
        _P,
        _P + 1,
    )
)
"""Whatever the private key, X25519 with one of these gives zero (RFC 7748, section 7; https://cr.yp.to/ecdh.html)."""
ZERO = bytes(32)


def initiation(
    responder: bytes, ephemeral: bytes, static: bytes, *, es: bytes, ss: bytes, timestamp: bytes, index: int = 1
) -> bytes:
    """An initiation (5.4.2) to the public key ``responder``, of these public keys and DH results."""
    chaining_key = hash_(CONSTRUCTION)
    digest = hash_(hash_(hash_(chaining_key + IDENTIFIER) + responder) + ephemeral)
    chaining_key = kdf1(chaining_key, ephemeral)
    chaining_key, key = kdf2(chaining_key, es)
    encrypted_static = aead_seal(key, 0, static, digest)
    digest = hash_(digest + encrypted_static)
    _, key = kdf2(chaining_key, ss)
    return HandshakeInitiation(index, ephemeral, encrypted_static, aead_seal(key, 0, timestamp, digest)).pack()


def response(
    consumed: ResponderHandshake, ephemeral: bytes, *, ee: bytes, se: bytes, preshared: bytes = ZERO, index: int = 1
) -> bytes:
    """A response (5.4.3) to an initiation, of this public key and these DH results."""
    digest = hash_(consumed.hash + ephemeral)
    chaining_key = kdf1(kdf1(kdf1(consumed.chaining_key, ephemeral), ee), se)
    _, mixed, key = kdf3(chaining_key, preshared)
    return HandshakeResponse(index, consumed.sender_index, ephemeral, aead_seal(key, 0, b"", hash_(digest + mixed))).pack()
