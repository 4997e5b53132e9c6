"""The functions of paper section 5.4.1. This module is the data plane's only door to ``cryptography``, ``nacl``
and ``hashlib``.

Everything takes and returns bytes. Two libraries stand behind it because each lacks something: libsodium (PyNaCl) has
XChaCha20-Poly1305 and the faster X25519 (23 and 33 µs against OpenSSL's 42 and 40, which moreover computes the public key of
whatever private key it loads); ``cryptography`` can encrypt into a buffer, and costs a quarter of PyNaCl per packet.
"""

import hmac
from collections.abc import Callable
from hashlib import blake2s
from struct import Struct

import nacl.bindings as sodium
from cryptography.exceptions import InvalidTag as InvalidTag  # what an AEAD raises when authentication fails
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from nacl.exceptions import CryptoError

from noise.constants import KEY_LENGTH, MAC_LENGTH

# --- DH: X25519 (RFC 7748) ---


def clamp(private: bytes) -> bytes:
    """The private key as X25519 will use it: a multiple of the cofactor, with its highest bit set."""
    return bytes([private[0] & 248, *private[1:31], (private[31] & 127) | 64])


def public_key(private: bytes) -> bytes:
    """The public key of ``private``, clamped or not."""
    return sodium.crypto_scalarmult_base(private)


def dh(private: bytes, public: bytes) -> bytes:
    """DH(private, public). A low-order ``public`` gives 32 zero bytes, which every caller must refuse."""
    try:
        return sodium.crypto_scalarmult(private, public)
    except CryptoError:  # libsodium's word for an all-zero result
        return bytes(KEY_LENGTH)


# --- HASH, MAC, HMAC, KDF: BLAKE2s (RFC 7693, RFC 2104, RFC 5869) ---


def hash_(data: bytes) -> bytes:
    """HASH: unkeyed BLAKE2s, 32 bytes."""
    return blake2s(data).digest()


def mac(key: bytes, data: bytes) -> bytes:
    """MAC: *keyed* BLAKE2s with a digest of 16 bytes, which is not a longer digest cut short, nor HMAC."""
    return blake2s(data, key=key, digest_size=MAC_LENGTH).digest()


equal = hmac.compare_digest
"""``equal(a, b)``: compare MACs, or other secrets, in time that does not depend on where they differ."""


def hmac_(key: bytes, data: bytes) -> bytes:
    """HMAC over BLAKE2s; of use to the KDF only."""
    return hmac.digest(key, data, blake2s)


def kdf1(key: bytes, data: bytes) -> bytes:
    """KDF1(key, data) -> T1."""
    t0 = hmac_(key, data)
    return hmac_(t0, b"\x01")


def kdf2(key: bytes, data: bytes) -> tuple[bytes, bytes]:
    """KDF2(key, data) -> T1, T2."""
    t0 = hmac_(key, data)
    t1 = hmac_(t0, b"\x01")
    t2 = hmac_(t0, t1 + b"\x02")
    return t1, t2


def kdf3(key: bytes, data: bytes) -> tuple[bytes, bytes, bytes]:
    """KDF3(key, data) -> T1, T2, T3."""
    t0 = hmac_(key, data)
    t1 = hmac_(t0, b"\x01")
    t2 = hmac_(t0, t1 + b"\x02")
    t3 = hmac_(t0, t2 + b"\x03")
    return t1, t2, t3


# --- AEAD: ChaCha20-Poly1305 (RFC 8439); XAEAD: with a nonce of 24 bytes (draft-irtf-cfrg-xchacha) ---

TransportCipher = ChaCha20Poly1305


def transport_cipher(key: bytes) -> TransportCipher:
    """A cipher for many messages; its bound ``encrypt_into`` and ``decrypt_into`` are what the data path calls.

    ``encrypt_into(nonce, packet, None, sealed)`` fills ``len(packet) + 16`` bytes, ``decrypt_into(nonce, sealed, None,
    packet)`` fills ``len(sealed) - 16`` (none of them is fine), or raises InvalidTag *after* it has written there.
    """
    return ChaCha20Poly1305(key)


def aead_seal(key: bytes, counter: int, plaintext: bytes, authenticated: bytes) -> bytes:
    """AEAD(key, counter, plaintext, authenticated): ciphertext and tag. The nonce is 32 zero bits, then the counter."""
    return ChaCha20Poly1305(key).encrypt(_nonce(counter), plaintext, authenticated)


def aead_unseal(key: bytes, counter: int, sealed: bytes, authenticated: bytes) -> bytes | None:
    """The plaintext of :func:`aead_seal`, or None if anything was changed on the way."""
    try:
        return ChaCha20Poly1305(key).decrypt(_nonce(counter), sealed, authenticated)
    except InvalidTag:
        return None


def _nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")


def xaead_seal(key: bytes, nonce: bytes, plaintext: bytes, authenticated: bytes) -> bytes:
    """XAEAD(key, nonce, plaintext, authenticated) with a random nonce of 24 bytes: ciphertext and tag."""
    return sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, authenticated, nonce, key)


def xaead_unseal(key: bytes, nonce: bytes, sealed: bytes, authenticated: bytes) -> bytes | None:
    """The plaintext of :func:`xaead_seal` (``sealed`` has at least 16 bytes), or None if anything was changed on the way."""
    try:
        return sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, authenticated, nonce, key)
    except CryptoError:
        return None


def xaead_sealer(key: bytes, start: bytes) -> Callable[[bytes, bytes, bytes], bytes]:
    """:func:`xaead_seal` for many messages, whose nonces all begin with the 16 bytes of ``start``, at a fifth of its cost.

    The function returned takes 4 zero bytes and the 8 of the nonce that follow; then plaintext and authenticated.
    """
    return ChaCha20Poly1305(_hchacha20(key, start)).encrypt


_WORDS = Struct("<16I")
_CHACHA20_CONSTANT = b"expand 32-byte k"


def _hchacha20(key: bytes, start: bytes) -> bytes:
    """HChaCha20 (draft-irtf-cfrg-xchacha, 2.2): words of ChaCha20's state after its rounds, but without what its block adds last.

    Neither library has it by itself; so take the block, and take away what was added: the state before the rounds.
    """
    block = Cipher(ChaCha20(key, start), None).encryptor().update(bytes(64))
    before = _CHACHA20_CONSTANT + key + start
    after = [(word - added) % 2**32 for word, added in zip(_WORDS.unpack(block), _WORDS.unpack(before), strict=True)]
    return Struct("<8I").pack(*after[:4], *after[12:])
