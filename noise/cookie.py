"""mac1, mac2 and cookies (paper sections 5.3, 5.4.4 and 5.4.7).

A handshake message ends in two MACs over what is before them. mac1 says "I know your public key": who cannot make it
gets no answer and no X25519 operation. mac2 says "I received your cookie at the address I send from", and is demanded only while
the receiver is *under load*: then a message without it is answered with a cookie reply instead of being worked on.

Each side plays both parts. :class:`CookieChecker` is the receiver's, one for each device; :class:`CookieHolder` the
sender's, one for each peer. A cookie is a MAC of the sender's address under a secret that changes, so the receiver stores
nothing for anybody.
"""

from dataclasses import dataclass, field
from math import inf

from noise import crypto
from noise.constants import COOKIE_LENGTH, COOKIE_SECRET_LATENCY, COOKIE_SECRET_MAX_AGE, KEY_LENGTH, MAC_LENGTH
from noise.handshake import LocalStatic, RemoteStatic
from noise.messages import NO_MAC, CookieReply

_MAC1 = slice(-2 * MAC_LENGTH, -MAC_LENGTH)
_MAC2 = slice(-MAC_LENGTH, None)
_BEFORE_MAC1 = slice(None, -2 * MAC_LENGTH)
_BEFORE_MAC2 = slice(None, -MAC_LENGTH)
_SENDER_INDEX = slice(4, 8)


@dataclass(slots=True)
class CookieChecker:
    """Whether a handshake message deserves work. Messages are initiations and responses of their right length.

    ``address`` is where the message came from, packed: IP address and port, in any encoding that keeps all of them apart. It
    never leaves this host.
    """

    local: LocalStatic
    _secret: bytes = field(default=bytes(KEY_LENGTH), repr=False)
    _secret_created_at: float = -inf

    def mac1_is_valid(self, message: bytes) -> bool:
        """The first check of all, and always made. False: drop in silence."""
        return crypto.equal(message[_MAC1], crypto.mac(self.local.mac1_key, message[_BEFORE_MAC1]))

    def mac2_is_valid(self, message: bytes, address: bytes, now: float) -> bool:
        """Asked under load only. False (no cookie, an old one, or another address): answer with a cookie reply."""
        if self._secret_is_old(now):
            return False
        return crypto.equal(message[_MAC2], crypto.mac(self._cookie(address), message[_BEFORE_MAC2]))

    def create_cookie_reply(self, message: bytes, address: bytes, nonce: bytes, fresh_secret: bytes, now: float) -> bytes:
        """The answer, 64 bytes, to a message whose mac1 was right and whose mac2 was not.

        ``nonce`` is 24 random bytes. ``fresh_secret`` is 32, and becomes our secret if the one we have is 120 s old.
        """
        if self._secret_is_old(now):
            self._secret = fresh_secret
            self._secret_created_at = now
        encrypted_cookie = crypto.xaead_seal(self.local.cookie_key, nonce, self._cookie(address), message[_MAC1])
        return CookieReply(int.from_bytes(message[_SENDER_INDEX], "little"), nonce, encrypted_cookie).pack()

    def _cookie(self, address: bytes) -> bytes:
        return crypto.mac(self._secret, address)

    def _secret_is_old(self, now: float) -> bool:
        return now >= self._secret_created_at + COOKIE_SECRET_MAX_AGE


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
