"""When a peer must act if nothing else happens (paper sections 6.2, 6.4 and 6.5; the kernel's timers.c).

How to think about it: there are five timers, each a deadline in one table, infinity when it is not running. The owner
reports what happened (``data_sent(now)``), sleeps until ``next_deadline()``, calls ``expire(now)`` and carries out the
actions it returns. Waking early is harmless; waking late makes things late and nothing else. No deadline survives being
expired, so a loop that sleeps exactly until the deadline cannot spin.

* retransmit handshake: an initiation was sent 5 s ago and no session came of it. Try again, 20 initiations in all.
* send keepalive: data came in 10 s ago and nothing went out since. Tell the other side that we are there.
* new handshake: data went out 15 s ago and nothing came in since. The session may be dead at the other end.
* zero key material: no new session for 540 s. Forget all keys.
* persistent keepalive: nothing went either way for as long as was configured. Keep the path open.

Rekeying by age or count is no timer: it is looked at when something is sent or received (``Keypair.needs_rekey_*``).

The data path reports every batch, so its four events are a compare and a store. Cancelling leaves no trace. Arming lowers
``armed_earliest``; an owner that is going to wake before that anyway need do nothing, and looks at the table only when it wakes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from math import inf

from noise.constants import (
    KEEPALIVE_TIMEOUT,
    MAX_TIMER_HANDSHAKES,
    REKEY_TIMEOUT,
    ZERO_KEY_MATERIAL_AFTER_TIME,
)


class Timer(IntEnum):
    """An index of the table, in the order in which timers due at the same time expire.

    Zeroing comes first: after a long sleep it must not wipe the handshake that another timer has just begun.
    """

    ZERO_KEY_MATERIAL = 0
    RETRANSMIT_HANDSHAKE = 1
    NEW_HANDSHAKE = 2
    SEND_KEEPALIVE = 3
    PERSISTENT_KEEPALIVE = 4


# An attribute of an Enum class costs 100 ns: more than an event of the data path may.
_ZERO_KEY_MATERIAL, _RETRANSMIT_HANDSHAKE, _NEW_HANDSHAKE, _SEND_KEEPALIVE, _PERSISTENT_KEEPALIVE = Timer


class Action(Enum):
    """What the owner is to do. Either initiation forgets the cached source address first: it may be why nobody answers."""

    SEND_INITIATION = "send initiation"
    """A first attempt, through the gate: ``may_initiate(now, is_retry=False)``."""
    RETRY_INITIATION = "retry initiation"
    """A further attempt, through the gate: ``may_initiate(now, is_retry=True)``."""
    SEND_KEEPALIVE = "send keepalive"
    """An empty packet, or what is staged."""
    DROP_STAGED_PACKETS = "drop staged packets"
    """Nobody answers: give up until there is something new to send."""
    ZERO_KEY_MATERIAL = "zero key material"
    """Forget the handshake under way and all keypairs."""


@dataclass(slots=True)
class PeerTimers:
    """The timers of one peer, while the device is up. ``jitter()`` gives 0 to REKEY_TIMEOUT_JITTER seconds."""

    jitter: Callable[[], float] = field(repr=False)
    persistent_keepalive: float = 0.0
    """Seconds; 0 is off. Set it at any time."""
    handshake_attempts: int = 0
    """Retransmissions since the last initiation that was not one."""
    last_sent_handshake: float = -inf
    """When an initiation or response was last sent."""
    sent_lastminute_handshake: bool = False
    """Whether ``Keypair.needs_rekey_on_receive`` was obeyed in this session. The owner sets it, a handshake clears it."""
    need_another_keepalive: bool = False
    """Data came in while a keepalive was already due."""
    armed_earliest: float = inf
    """The earliest deadline armed since the owner last set this to infinity."""
    deadlines: list[float] = field(default_factory=lambda: [inf] * len(Timer))

    # --- What the owner waits for ---

    def next_deadline(self) -> float:
        """When :meth:`expire` has something to do; infinity if never."""
        return min(self.deadlines)

    def expire(self, now: float) -> list[Action]:
        """What is due at ``now``, to be done in this order. Afterwards ``next_deadline() > now``."""
        actions: list[Action] = []
        for timer in Timer:
            if self.deadlines[timer] <= now:
                self.deadlines[timer] = inf
                actions += self._expired(timer, now)
        return actions

    def _expired(self, timer: Timer, now: float) -> list[Action]:
        match timer:
            case Timer.ZERO_KEY_MATERIAL:
                return [Action.ZERO_KEY_MATERIAL]
            case Timer.RETRANSMIT_HANDSHAKE if self.handshake_attempts > MAX_TIMER_HANDSHAKES:
                self.deadlines[_SEND_KEEPALIVE] = inf
                if self.deadlines[_ZERO_KEY_MATERIAL] == inf:
                    self._arm(_ZERO_KEY_MATERIAL, now + ZERO_KEY_MATERIAL_AFTER_TIME)
                return [Action.DROP_STAGED_PACKETS]
            case Timer.RETRANSMIT_HANDSHAKE:
                self.handshake_attempts += 1
                return [Action.RETRY_INITIATION]
            case Timer.NEW_HANDSHAKE:
                return [Action.SEND_INITIATION]
            case Timer.SEND_KEEPALIVE:
                if self.need_another_keepalive:
                    self.need_another_keepalive = False
                    self._arm(_SEND_KEEPALIVE, now + KEEPALIVE_TIMEOUT)
                return [Action.SEND_KEEPALIVE]
            case Timer.PERSISTENT_KEEPALIVE:
                return [Action.SEND_KEEPALIVE] if self.persistent_keepalive else []

    def _arm(self, timer: Timer, deadline: float) -> None:
        """Every deadline is set here."""
        self.deadlines[timer] = deadline
        if deadline < self.armed_earliest:
            self.armed_earliest = deadline

    def stop(self) -> None:
        """The device goes down or the peer away: nothing is due any more, and the gate is open for when it comes back."""
        self.deadlines = [inf] * len(Timer)
        self.forget_last_handshake()

    # --- Transport data and everything else that is authenticated: reported once for each batch ---

    def data_sent(self, now: float) -> None:
        """After packets that are not empty were really sent."""
        if self.deadlines[_NEW_HANDSHAKE] == inf:
            self._arm(_NEW_HANDSHAKE, now + (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + self.jitter()))

    def data_received(self, now: float) -> None:
        """After packets that are not empty were authenticated."""
        if self.deadlines[_SEND_KEEPALIVE] == inf:
            self._arm(_SEND_KEEPALIVE, now + KEEPALIVE_TIMEOUT)
        else:
            self.need_another_keepalive = True

    def any_authenticated_packet_sent(self) -> None:
        """Before an initiation, response, keepalive or data is sent."""
        self.deadlines[_SEND_KEEPALIVE] = inf

    def any_authenticated_packet_received(self) -> None:
        """After an initiation or response was consumed, or a keepalive or data authenticated."""
        self.deadlines[_NEW_HANDSHAKE] = inf

    def any_authenticated_packet_traversal(self, now: float) -> None:
        """Before any such packet is sent, and after any is received."""
        if self.persistent_keepalive:
            self._arm(_PERSISTENT_KEEPALIVE, now + self.persistent_keepalive)

    # --- Handshakes ---

    def may_initiate(self, now: float, *, is_retry: bool) -> bool:
        """The gate before every initiation: False within 5 s of the last handshake message we sent.

        Whatever the answer, being asked for anything but a retry begins a new count of attempts.
        """
        if not is_retry:
            self.handshake_attempts = 0
        return now >= self.last_sent_handshake + REKEY_TIMEOUT

    def handshake_sent(self, now: float) -> None:
        """Before an initiation or a response is made: shuts the gate. (A response counts, lest both ends initiate in turn.)"""
        self.last_sent_handshake = now

    def forget_last_handshake(self) -> None:
        """The private key changed: the gate is open, so that traffic can shake hands at once."""
        self.last_sent_handshake = -inf

    def handshake_initiated(self, now: float) -> None:
        """After an initiation was sent."""
        self._arm(_RETRANSMIT_HANDSHAKE, now + (REKEY_TIMEOUT + self.jitter()))

    def session_derived(self, now: float) -> None:
        """Keys were derived, in either role; the responder reports it before it sends the response."""
        self._arm(_ZERO_KEY_MATERIAL, now + ZERO_KEY_MATERIAL_AFTER_TIME)

    def handshake_complete(self) -> None:
        """The initiator consumed a response, or the responder got the first message under the new keys."""
        self.deadlines[_RETRANSMIT_HANDSHAKE] = inf
        self.handshake_attempts = 0
        self.sent_lastminute_handshake = False
