"""Transport keys, and how they take each other's place (paper sections 5.4.5, 6.2 and 6.3).

A peer has up to three keypairs at a time, because two ends cannot change keys at the same instant:

* ``current`` is what we send under.
* ``previous`` is what ``current`` replaced: datagrams sealed under it may still be on their way.
* ``next`` exists at the responder only: derived, but the initiator has not shown yet that it got our response. Sending
  under it could be sending into the void, so nothing is sent under it before something came in under it.

All three receive. Every move returns the keypairs that fell out; whoever keeps the index table removes their indices and
so forgets the keys. (Python cannot promise to erase them.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from noise import crypto
from noise.constants import (
    KEEPALIVE_TIMEOUT,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
)
from noise.handshake import TransportKeys
from noise.replay import ReplayWindow


@dataclass(slots=True, eq=False)
class Keypair:
    """Two keys, one for each direction, and how far each has been used. ``created_at`` is in seconds, as ``now`` is."""

    local_index: int
    remote_index: int
    is_initiator: bool
    created_at: float
    encrypt_into: Callable[..., int] = field(repr=False)
    decrypt_into: Callable[..., int] = field(repr=False)
    send_counter: int = 0
    """The counter the next message will have. REJECT_AFTER_MESSAGES when none may be sent any more."""
    replay_window: ReplayWindow = field(default_factory=ReplayWindow)

    @classmethod
    def derived(cls, keys: TransportKeys, created_at: float) -> Self:
        """The keypair at the end of a handshake."""
        return cls(
            local_index=keys.local_index,
            remote_index=keys.remote_index,
            is_initiator=keys.is_initiator,
            created_at=created_at,
            encrypt_into=crypto.transport_cipher(keys.send_key).encrypt_into,
            decrypt_into=crypto.transport_cipher(keys.receive_key).decrypt_into,
        )

    def can_send(self, now: float) -> bool:
        """6.2: whether anything may still be sealed under this."""
        return now < self.created_at + REJECT_AFTER_TIME and self.send_counter < REJECT_AFTER_MESSAGES

    def can_receive(self, now: float) -> bool:
        """6.2: whether a datagram for this is worth decrypting."""
        return now < self.created_at + REJECT_AFTER_TIME and self.replay_window.greatest < REJECT_AFTER_MESSAGES - 1

    def needs_rekey_on_send(self, now: float) -> bool:
        """6.2: asked of ``current`` after data was sent. Only the initiator goes by age, or both ends would initiate at once."""
        if self.send_counter >= REJECT_AFTER_MESSAGES:
            return False  # it cannot send at all: who has something to send initiates for that reason
        return self.send_counter > REKEY_AFTER_MESSAGES or (self.is_initiator and now >= self.created_at + REKEY_AFTER_TIME)

    def needs_rekey_on_receive(self, now: float) -> bool:
        """6.2: asked of ``current`` after something was received, once a session (``PeerTimers.sent_lastminute_handshake``).

        An initiator that only receives would never rekey on sending. It does so while there is still time for a handshake.
        """
        lastminute = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
        return self.is_initiator and now >= self.created_at + lastminute and self.send_counter < REJECT_AFTER_MESSAGES

    def invalidate_sending(self) -> None:
        """Never send under this again; receiving goes on."""
        self.send_counter = REJECT_AFTER_MESSAGES


@dataclass(slots=True)
class Keypairs:
    """A peer's three slots."""

    previous: Keypair | None = None
    current: Keypair | None = None
    next: Keypair | None = None

    def initiator_derived(self, new: Keypair) -> list[Keypair]:
        """We consumed a response. The responder waits for us, so ``new`` is used at once.

        An unconfirmed ``next`` is newer than ``current`` and its initiator may be sending under it already: it is the one to
        keep as ``previous``.
        """
        if self.next is not None:
            fallen = [self.previous, self.current]
            self.previous, self.next = self.next, None
        else:
            fallen = [self.previous]
            self.previous = self.current
        self.current = new
        return _existing(fallen)

    def responder_derived(self, new: Keypair) -> list[Keypair]:
        """We are about to send a response. ``current`` remains what we send under until ``new`` is confirmed."""
        fallen = [self.next, self.previous]
        self.next = new
        self.previous = None
        return _existing(fallen)

    def confirmed(self) -> list[Keypair]:
        """A message was authenticated under ``next``: the initiator has the keys too. Call it only when there is a ``next``."""
        assert self.next is not None
        fallen = [self.previous]
        self.previous, self.current, self.next = self.current, self.next, None
        return _existing(fallen)

    def invalidate_sending(self) -> None:
        """Our private key has changed: what we send now must be under keys that prove the new one."""
        for keypair in _existing([self.current, self.next]):
            keypair.invalidate_sending()

    def clear(self) -> list[Keypair]:
        """Forget all three."""
        fallen = [self.previous, self.current, self.next]
        self.previous = self.current = self.next = None
        return _existing(fallen)


def _existing(keypairs: list[Keypair | None]) -> list[Keypair]:
    return [keypair for keypair in keypairs if keypair is not None]
