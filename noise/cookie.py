"""mac1, mac2 and cookies (paper sections 5.3, 5.4.4 and 5.4.7).

A handshake message ends in two MACs over what is before them. mac1 says "I know your public key": who cannot make it
gets no answer and no X25519 operation. mac2 says "I received your cookie at the address I send from", and is demanded only while
the receiver is *under load*: then a message without it is answered with a cookie reply instead of being worked on.

Each side plays both parts. :class:`CookieChecker` is the receiver's, one for each device; :class:`CookieHolder` the
sender's, one for each peer. A cookie is a MAC of the sender's address under a secret that changes, so the receiver stores
nothing for anybody.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from noise import crypto
from noise.constants import (
    COOKIE_LENGTH,
    COOKIE_NONCE_LENGTH,
    COOKIE_SECRET_LATENCY,
    COOKIE_SECRET_MAX_AGE,
    KEY_LENGTH,
    MAC_LENGTH,
    MESSAGE_COOKIE_REPLY,
)
from noise.handshake import LocalStatic, RemoteStatic
from noise.messages import NO_MAC, CookieReply

_MAC1 = slice(-2 * MAC_LENGTH, -MAC_LENGTH)
_MAC2 = slice(-MAC_LENGTH, None)
_BEFORE_MAC1 = slice(None, -2 * MAC_LENGTH)
_BEFORE_MAC2 = slice(None, -MAC_LENGTH)
_SENDER_INDEX = slice(4, 8)
_NONCE_START = 16
"""Bytes of a nonce that go into the key; the other 8 are the nonce under it."""


@dataclass(slots=True)
class CookieChecker:
    """Whether a handshake message deserves work. Messages are initiations and responses of their right length.

    ``address`` is where the message came from, packed: IP address and port, in any encoding that keeps all of them apart. It
    never leaves this host.
    """

    local: LocalStatic
    _secret: bytes = field(default=bytes(KEY_LENGTH), repr=False)
    _secret_created_at: float = -inf
    _nonce_start: bytes = field(default=b"", repr=False)
    _nonce_end: int = 0
    _seal: Callable[[bytes, bytes, bytes], bytes] | None = field(default=None, repr=False)

    def mac1_is_valid(self, message: bytes) -> bool:
        """The first check of all, and always made. False: drop in silence."""
        return crypto.equal(message[_MAC1], crypto.mac(self.local.mac1_key, message[_BEFORE_MAC1]))

    def mac2_is_valid(self, message: bytes, address: bytes, now: float) -> bool:
        """Asked under load only. False (no cookie, an old one, or another address): answer with a cookie reply."""
        if message[_MAC2] == NO_MAC or self.secret_is_old(now):
            return False  # who has none has none: that is no secret, and in a flood the two hashes are a tenth of the work
        return crypto.equal(message[_MAC2], crypto.mac(self._cookie(address), message[_BEFORE_MAC2]))

    def secret_is_old(self, now: float) -> bool:
        """Whether it is time for :meth:`renew_secret`: no cookie made now would be taken for one."""
        return now >= self._secret_created_at + COOKIE_SECRET_MAX_AGE

    def renew_secret(self, secret: bytes, nonce: bytes, now: float) -> None:
        """From now on, and for 120 s, cookies are made with ``secret``, 32 random bytes, and the nonces of replies begin at
        ``nonce``, 24 of them.

        Each reply has the nonce that follows the last one's. The paper draws each by itself; what its AEAD needs is that no two
        are the same, and under a flood a random one, and the key that follows from its first 16 bytes, are a third of a reply's
        cost (5 µs of 15).
        """
        self._secret = secret
        self._secret_created_at = now
        self._nonce_start, self._nonce_end = nonce[:_NONCE_START], int.from_bytes(nonce[_NONCE_START:])
        self._seal = crypto.xaead_sealer(self.local.cookie_key, self._nonce_start)

    def create_cookie_reply(self, message: bytes, address: bytes) -> bytes:
        """The answer, 64 bytes, to a message whose mac1 was right and whose mac2 was not. The secret must not be old."""
        assert self._seal is not None
        end = self._nonce_end.to_bytes(COOKIE_NONCE_LENGTH - _NONCE_START)
        self._nonce_end = (self._nonce_end + 1) % 2**64
        encrypted_cookie = self._seal(bytes(4) + end, crypto.mac(self._secret, address), message[_MAC1])
        index = int.from_bytes(message[_SENDER_INDEX], "little")
        return CookieReply.LAYOUT.pack(MESSAGE_COOKIE_REPLY, index, self._nonce_start + end, encrypted_cookie)

    def _cookie(self, address: bytes) -> bytes:
        return crypto.mac(self._secret, address)


@dataclass(slots=True)
class CookieHolder:
    """What makes our handshake messages to a peer acceptable to it."""

    remote: RemoteStatic = field(repr=False)
    _cookie: bytes = field(default=bytes(COOKIE_LENGTH), repr=False)
    _cookie_received_at: float = -inf
    _last_mac1: bytes | None = field(default=None, repr=False)

    def add_macs(self, message: bytes, now: float) -> bytes:
        """The message as it is sent: mac1 always, mac2 if a cookie is at hand that the peer will still know."""
        body = message[_BEFORE_MAC1]
        mac1 = crypto.mac(self.remote.mac1_key, body)
        self._last_mac1 = mac1
        if now >= self._cookie_received_at + COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY:
            return body + mac1 + NO_MAC
        return body + mac1 + crypto.mac(self._cookie, body + mac1)

    def consume_cookie_reply(self, message: bytes, now: float) -> bool:
        """Keep the cookie of a reply to the last message we sent. False: not a true one, and nothing has changed.

        Each mac1 admits one reply, or a recorded one could be played back for ever to spoil the cookie we have. A reply is not a
        reason to send again: the next retransmission carries mac2 (6.6). Nor does it move the endpoint or touch a timer.
        """
        reply = CookieReply.unpack(message)
        if reply is None or self._last_mac1 is None:
            return False
        cookie = crypto.xaead_unseal(self.remote.cookie_key, reply.nonce, reply.encrypted_cookie, self._last_mac1)
        if cookie is None:
            return False
        self._cookie = cookie
        self._cookie_received_at = now
        self._last_mac1 = None
        return True
