"""When to publish this node's public key, and when to take it back. Pure.

To publish is to promise: from then on peers encrypt to us. So the key is published once the data plane can receive, and it
stays published when the agent ends.

Others write the same annotation. Felix clears it at each of its starts on a node whose kernel has no WireGuard, and Calico's
tunnel-address allocator then releases our interface address. Publishing again at once meets an allocator that is still busy
with that, and in five of eight measured cases ended with a key but no address for good (calico.md 16). Hence the three rules
of :class:`Publication`.
"""

from dataclasses import dataclass
from enum import Enum, auto
from math import inf

RELEASE_SECONDS = 0.25
"""How long a cleared key stays away if the allocator does not show, by releasing the address, that it has taken notice."""

ECHO_SECONDS = 1.0
"""How long what we have written may take until the source shows it to us."""

ADDRESS_SECONDS = 5.0
"""How long a key that was published again may go without an address before it is taken back and published once more."""


class Action(Enum):
    KEEP = auto()
    PUBLISH = auto()
    WITHDRAW = auto()


@dataclass(slots=True)
class Publication:
    """One family's key, in the face of others who write it.

    1. A key that is not there, although the interface address is, was cleared just now: wait until the address is gone too,
       or RELEASE_SECONDS.
    2. If after such a clearing no address comes within ADDRESS_SECONDS, withdraw the key once and publish it again.
    3. In all other cases a key that is missing, or not ours, is published at once.

    ``wake_at`` says when to ask again even if nothing happens, inf for never.
    """

    wake_at: float = inf
    _asked_at: float = -inf
    _was_published: bool = False
    _cleared_at: float | None = None
    _address_due: float | None = None
    _has_tried_again: bool = False

    def decide(self, stored: bytes | None, own: bytes, has_address: bool, now: float) -> Action:
        """``stored`` is what the annotation says, ``own`` what it ought to say. ``now`` is of a monotonic clock."""
        self.wake_at = inf
        if stored == own:
            return self._published(has_address, now)
        if now < self._asked_at + ECHO_SECONDS:
            self.wake_at = self._asked_at + ECHO_SECONDS
            return Action.KEEP
        is_cleared = stored is None and (has_address or self._was_published)
        action = self._cleared(has_address, now) if is_cleared else Action.PUBLISH
        if action is Action.PUBLISH:
            self._asked_at = now
        return action

    def _cleared(self, has_address: bool, now: float) -> Action:
        if self._cleared_at is None:
            self._cleared_at = now
        if has_address and now < self._cleared_at + RELEASE_SECONDS:
            self.wake_at = self._cleared_at + RELEASE_SECONDS
            return Action.KEEP
        self._address_due = now + ADDRESS_SECONDS
        return Action.PUBLISH

    def _published(self, has_address: bool, now: float) -> Action:
        self._was_published, self._cleared_at, self._asked_at = True, None, -inf
        if has_address or self._address_due is None:
            self._address_due, self._has_tried_again = None, False
            return Action.KEEP
        if now < self._address_due:
            self.wake_at = self._address_due
            return Action.KEEP
        self._address_due = None
        if self._has_tried_again:
            return Action.KEEP
        self._has_tried_again = True
        return Action.WITHDRAW
