"""Noise_IKpsk2, the handshake (paper sections 5.4.2 to 5.4.5).

    <- s
    ...
    -> e, es, s, ss, {t}
    <- e, ee, se, psk, {}

The initiator knows the responder's static key beforehand (``<- s``). Each line is one message, each token one step, and
the only comments inside the four functions are those tokens: ``create_*`` and ``consume_*`` are mirror images. A token in
braces is a payload, the timestamp and nothing.

What the two ends have agreed on so far is a *chaining key* (C, everything secret) and a *hash* (H, everything said). Each
function works on a SymmetricState of its own and returns what came out. It never touches a peer, so a forged message, which
raises HandshakeError at some step, cannot half-change one: the owner of the peer commits the result, or there is none.

mac1 and mac2 are not part of Noise. :mod:`noise.cookie` checks mac1 *before* any of this is called (it is all that stands
between the network and four X25519 operations) and adds both to what ``create_*`` return.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from math import inf

from noise import crypto
from noise.constants import CONSTRUCTION, IDENTIFIER, INITIATION_INTERVAL, KEY_LENGTH, LABEL_COOKIE, LABEL_MAC1, TIMESTAMP_LENGTH
from noise.messages import HandshakeInitiation, HandshakeResponse

_ZERO = bytes(KEY_LENGTH)
_C0 = crypto.hash_(CONSTRUCTION)
_H0 = crypto.hash_(_C0 + IDENTIFIER)


class HandshakeFailure(Enum):
    """Why a handshake message was not consumed (or not created). The values are names for counters."""

    MALFORMED = "handshake_malformed"
    """Not of that type or length."""
    UNKNOWN_INDEX = "handshake_unknown_index"
    """A response to another initiation than this one."""
    UNKNOWN_PEER = "handshake_unknown_peer"
    """The initiator's static key is nobody's."""
    LOW_ORDER_KEY = "handshake_low_order_key"
    """A DH result was all zero."""
    BAD_TAG = "handshake_bad_tag"
    """Authentication failed: forged, for another key, or with another preshared key."""
    REPLAYED = "handshake_replayed"
    """The timestamp is not greater than the last one."""
    FLOODED = "handshake_flooded"
    """Less than 20 ms after the last initiation."""


class HandshakeError(Exception):
    """A handshake message was refused; ``reason`` says why. The caller counts and drops it: there is never an answer."""

    def __init__(self, reason: HandshakeFailure) -> None:
        super().__init__(reason.value)
        self.reason = reason


# --- Static keys: what can be computed before the first message ---


@dataclass(slots=True)
class LocalStatic:
    """Our own static key. Raises ValueError for the all-zero key, which stands for *none* and must never shake hands."""

    private: bytes = field(repr=False)
    public: bytes = field(init=False)
    responder_hash: bytes = field(init=False, repr=False)
    mac1_key: bytes = field(init=False, repr=False)
    cookie_key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if crypto.equal(self.private, _ZERO):
            raise ValueError("the all-zero private key is no identity")
        self.private = crypto.clamp(self.private)
        self.public = crypto.public_key(self.private)
        self.responder_hash, self.mac1_key, self.cookie_key = _public_hashes(self.public)


@dataclass(slots=True)
class RemoteStatic:
    """A peer's static key as seen from ours. When our private key changes, so does this.

    ``static_static`` is 32 zero bytes for a low-order public key: no handshake is then created for it, or consumed from it.
    """

    local: LocalStatic = field(repr=False)
    public: bytes
    static_static: bytes = field(init=False, repr=False)
    responder_hash: bytes = field(init=False, repr=False)
    mac1_key: bytes = field(init=False, repr=False)
    cookie_key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.static_static = crypto.dh(self.local.private, self.public)
        self.responder_hash, self.mac1_key, self.cookie_key = _public_hashes(self.public)


def _public_hashes(public: bytes) -> tuple[bytes, bytes, bytes]:
    """What everybody can compute of a public key: H as its owner's initiators begin with it, mac1 key, cookie key."""
    return crypto.hash_(_H0 + public), crypto.hash_(LABEL_MAC1 + public), crypto.hash_(LABEL_COOKIE + public)


# --- Between the two messages ---


@dataclass(frozen=True, slots=True)
class InitiatorHandshake:
    """What the initiator remembers until the response. A newer initiation replaces it; zeroing is forgetting it."""

    local_index: int
    ephemeral_private: bytes = field(repr=False)
    chaining_key: bytes = field(repr=False)
    hash: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ResponderHandshake:
    """An initiation that was consumed: who sent it (``remote_static``, ``sender_index``), and what the response needs.

    The owner must show ``timestamp`` to the peer's :class:`LatestInitiation` before it does anything with this.
    """

    remote_static: bytes
    sender_index: int
    timestamp: bytes
    remote_ephemeral: bytes = field(repr=False)
    chaining_key: bytes = field(repr=False)
    hash: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """5.4.5, the end of a handshake: two keys, one for each direction."""

    local_index: int
    remote_index: int
    is_initiator: bool
    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)


@dataclass(slots=True)
class LatestInitiation:
    """What a responder remembers of a peer's initiations, against replay and flood (5.1). It survives a change of keys."""

    timestamp: bytes = bytes(TIMESTAMP_LENGTH)
    consumed_at: float = -inf

    def accept(self, timestamp: bytes, now: float) -> None:
        """Take an authenticated initiation's timestamp, or raise HandshakeError and change nothing."""
        if timestamp <= self.timestamp:
            raise HandshakeError(HandshakeFailure.REPLAYED)
        if now < self.consumed_at + INITIATION_INTERVAL:
            raise HandshakeError(HandshakeFailure.FLOODED)
        self.timestamp = timestamp
        self.consumed_at = now


# --- The symmetric state: one line for each token ---


@dataclass(slots=True)
class SymmetricState:
    """C and H of a handshake under way."""

    chaining_key: bytes = field(repr=False)
    hash: bytes = field(repr=False)

    def mix_hash(self, data: bytes) -> None:
        """H := HASH(H ‖ data)."""
        self.hash = crypto.hash_(self.hash + data)

    def mix_ephemeral(self, public: bytes) -> None:
        """e. With a preshared key in the pattern an ephemeral goes into the hash *and* the chaining key."""
        self.mix_hash(public)
        self.chaining_key = crypto.kdf1(self.chaining_key, public)

    def mix_secret(self, secret: bytes) -> None:
        """A DH result into C, where no key is needed before the next one is mixed in."""
        _refuse_zero(secret)
        self.chaining_key = crypto.kdf1(self.chaining_key, secret)

    def mix_secret_for_key(self, secret: bytes) -> bytes:
        """A DH result into C, and a key for the next payload."""
        _refuse_zero(secret)
        self.chaining_key, key = crypto.kdf2(self.chaining_key, secret)
        return key

    def mix_preshared_key(self, preshared_key: bytes) -> bytes:
        """psk, always mixed in (32 zero bytes when there is none), and a key for the next payload."""
        self.chaining_key, hashed, key = crypto.kdf3(self.chaining_key, preshared_key)
        self.mix_hash(hashed)
        return key

    def seal(self, key: bytes, plaintext: bytes) -> bytes:
        """A payload, tied to all that was said before, and then part of it. Each key is used once: counter 0."""
        sealed = crypto.aead_seal(key, 0, plaintext, self.hash)
        self.mix_hash(sealed)
        return sealed

    def unseal(self, key: bytes, sealed: bytes) -> bytes:
        plaintext = crypto.aead_unseal(key, 0, sealed, self.hash)
        if plaintext is None:
            raise HandshakeError(HandshakeFailure.BAD_TAG)
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The key from initiator to responder, and the one back."""
        return crypto.kdf2(self.chaining_key, b"")


def _refuse_zero(secret: bytes) -> None:
    if crypto.equal(secret, _ZERO):
        raise HandshakeError(HandshakeFailure.LOW_ORDER_KEY)


# --- First message: initiator to responder ---


def create_initiation(
    local: LocalStatic, remote: RemoteStatic, ephemeral_private: bytes, sender_index: int, timestamp: bytes
) -> tuple[bytes, InitiatorHandshake]:
    """The initiator's message (148 bytes, both MACs zero) and what to remember of it.

    ``ephemeral_private`` is 32 fresh random bytes, ``sender_index`` a fresh random number unique in the device's index table,
    ``timestamp`` from :mod:`noise.tai64n`. Raises HandshakeError for a remote key of low order and for nothing else.
    """
    state = SymmetricState(_C0, remote.responder_hash)

    # e
    ephemeral_public = crypto.public_key(ephemeral_private)
    state.mix_ephemeral(ephemeral_public)

    # es
    key = state.mix_secret_for_key(crypto.dh(ephemeral_private, remote.public))

    # s
    encrypted_static = state.seal(key, local.public)

    # ss
    key = state.mix_secret_for_key(remote.static_static)

    # {t}
    encrypted_timestamp = state.seal(key, timestamp)

    message = HandshakeInitiation(sender_index, ephemeral_public, encrypted_static, encrypted_timestamp)
    return message.pack(), InitiatorHandshake(sender_index, ephemeral_private, state.chaining_key, state.hash)


def consume_initiation(local: LocalStatic, message: bytes, remotes: Callable[[bytes], RemoteStatic | None]) -> ResponderHandshake:
    """Read an initiation whose mac1 was right. ``remotes`` finds a peer by static public key, None if there is none.

    Raises HandshakeError: MALFORMED, LOW_ORDER_KEY, BAD_TAG or UNKNOWN_PEER.
    """
    initiation = HandshakeInitiation.unpack(message)
    if initiation is None:
        raise HandshakeError(HandshakeFailure.MALFORMED)
    state = SymmetricState(_C0, local.responder_hash)

    # e
    remote_ephemeral = initiation.unencrypted_ephemeral
    state.mix_ephemeral(remote_ephemeral)

    # es
    key = state.mix_secret_for_key(crypto.dh(local.private, remote_ephemeral))

    # s
    remote_static = state.unseal(key, initiation.encrypted_static)
    remote = remotes(remote_static)
    if remote is None:
        raise HandshakeError(HandshakeFailure.UNKNOWN_PEER)

    # ss
    key = state.mix_secret_for_key(remote.static_static)

    # {t}
    timestamp = state.unseal(key, initiation.encrypted_timestamp)

    return ResponderHandshake(remote_static, initiation.sender_index, timestamp, remote_ephemeral, state.chaining_key, state.hash)


# --- Second message: responder to initiator ---


def create_response(
    remote: RemoteStatic, handshake: ResponderHandshake, preshared_key: bytes, ephemeral_private: bytes, sender_index: int
) -> tuple[bytes, TransportKeys]:
    """The responder's message (92 bytes, both MACs zero) and the keys it leads to.

    ``remote`` is the peer whose key is ``handshake.remote_static``; the other arguments as for :func:`create_initiation`.
    ``preshared_key`` is 32 bytes, zero when there is none. Raises HandshakeError if the initiator's ephemeral is of low order.
    """
    state = SymmetricState(handshake.chaining_key, handshake.hash)

    # e
    ephemeral_public = crypto.public_key(ephemeral_private)
    state.mix_ephemeral(ephemeral_public)

    # ee
    state.mix_secret(crypto.dh(ephemeral_private, handshake.remote_ephemeral))

    # se
    state.mix_secret(crypto.dh(ephemeral_private, remote.public))

    # psk
    key = state.mix_preshared_key(preshared_key)

    # {}
    encrypted_nothing = state.seal(key, b"")

    message = HandshakeResponse(sender_index, handshake.sender_index, ephemeral_public, encrypted_nothing)
    to_responder, to_initiator = state.split()
    return message.pack(), TransportKeys(sender_index, handshake.sender_index, False, to_initiator, to_responder)


def consume_response(
    local: LocalStatic, remote: RemoteStatic, handshake: InitiatorHandshake, preshared_key: bytes, message: bytes
) -> TransportKeys:
    """Read the response to ``handshake``, whose mac1 was right, from the peer ``remote`` it was made for.

    The handshake stays good if this raises HandshakeError (MALFORMED, UNKNOWN_INDEX, LOW_ORDER_KEY, BAD_TAG): the true
    response may still come. When it returns, forget the handshake; its index now stands for the keypair.
    """
    response = HandshakeResponse.unpack(message)
    if response is None:
        raise HandshakeError(HandshakeFailure.MALFORMED)
    if response.receiver_index != handshake.local_index:
        raise HandshakeError(HandshakeFailure.UNKNOWN_INDEX)
    _refuse_zero(remote.static_static)  # no such initiation can have been created; nor is its response consumed
    state = SymmetricState(handshake.chaining_key, handshake.hash)

    # e
    remote_ephemeral = response.unencrypted_ephemeral
    state.mix_ephemeral(remote_ephemeral)

    # ee
    state.mix_secret(crypto.dh(handshake.ephemeral_private, remote_ephemeral))

    # se
    state.mix_secret(crypto.dh(local.private, remote_ephemeral))

    # psk
    key = state.mix_preshared_key(preshared_key)

    # {}
    state.unseal(key, response.encrypted_nothing)

    to_responder, to_initiator = state.split()
    return TransportKeys(handshake.local_index, response.sender_index, True, to_responder, to_initiator)
