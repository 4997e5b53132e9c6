"""When to publish this node's public key, and when to take it back. Pure.

To publish is to promise: from then on peers encrypt to us. So the key is published once the data plane can receive, and it
stays published when the agent ends.

Others write the same annotation, and one has to know them to get along with them.

* *Felix*, on a node whose kernel has no WireGuard, clears the key at each of its starts, once or twice, and then leaves it alone.
* *The tunnel-address allocator* releases our interface address when the key goes, and assigns one, mostly another, when it
  comes. It misses what happens while it is busy, and what it writes is the Node as it was when it began: a key published
  meanwhile is deleted again, or stands there without an address for good (calico.md 16).
* *A rival* writes again whatever we write: a Felix whose kernel has the module by now, another node of our name, a webhook.

To the first two the answer is patience, of less than three seconds altogether: let the allocator finish before the key is
published again, then see whether an address comes, and if none does, take the key back and publish it once more. The third
shows in the number of our own writes, and the answer is to give way.
"""

from dataclasses import dataclass
from enum import Enum, auto
from math import inf

from controller.model import Cluster, Family, NodeNetwork
from wgpy.wgconf import format_key

PASS_SECONDS = 0.55
"""How long the allocator may be busy, and deaf, after it was told that a key has changed. Measured: up to 0.4."""

SETTLE_SECONDS = 0.25
"""How long after its work is seen, which is a change of an address and of no key. Nearly always it is done by then.

Both grow by a quarter with each write of ours that is not yet forgotten (BUDGET_SECONDS): it may have gone wrong because the
allocator is slower than we think.
"""

ECHO_SECONDS = 0.5
"""How long what we have written may take until the source shows it to us. Twice as long after each time it did not."""

LONGEST_ECHO_SECONDS = 30.0

ADDRESS_SECONDS = 0.7
"""How long a key may go without an address before it is taken back and published anew. Twice as long after each time."""

MOST_RENEWALS = 4
"""How often that is done before we accept that no address comes."""

BUDGET = 10.0
"""How many writes may be made in a row. One comes back every BUDGET_SECONDS. A Felix that crashes every 30 s stays below."""

BUDGET_SECONDS = 5.0

REPLACING_COSTS = 3.0
"""What a write over somebody else's key counts for: who clears a key may mean well, who sets another one is a rival."""

MOST_UNSEEN = 5
"""How many writes in a row may come to nothing that is ever seen."""

FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 300.0
"""The pause after a write in a contest, and its bounds: each is twice as long as the one before."""

QUIET_SECONDS = 60.0
"""A contest is over when the key has stood for so long."""


class Action(Enum):
    KEEP = auto()
    PUBLISH = auto()
    WITHDRAW = auto()


def expects_address(cluster: Cluster, node: str, family: Family) -> bool:
    """Whether an allocator may be expected to give ``node`` an interface address.

    It does not where no pool may be used for tunnels, nor, and that cannot be read anywhere, where calico-node's environment
    has host encryption or host-local IPAM. Then no other node with a key has an address either. (Where all nodes publish at
    once and the allocator of each one misses it, nobody expects an address: rare, and to take keys back in a cluster that gives
    no addresses would open it for a moment at each start.)
    """
    if not any(pool.allows_tunnels and pool.cidr.version == family.value for pool in cluster.pools):
        return False
    others = [other.of(family) for name, other in cluster.nodes.items() if name != node]
    keyed = [network for network in others if network.public_key is not None]
    return not keyed or any(network.interface_address is not None for network in keyed)


@dataclass(slots=True)
class Publication:
    """One family's key, in the face of others who write it.

    1. A key that is missing because it was cleared is published again as soon as the allocator is idle: PASS_SECONDS after a key
       of the node has changed, or SETTLE_SECONDS after just an address has. One that never was there, or is not ours, is
       published at once.
    2. A key that brings no address within ADDRESS_SECONDS is withdrawn and then falls under rule 1, at most MOST_RENEWALS times
       until an address comes.
    3. When BUDGET is used up there is a contest. From then on every write is followed by a pause that doubles, until the key
       has stood for QUIET_SECONDS.

    ``wake_at`` says when to ask again even if nothing happens, inf for never; it always lies ahead. ``contest`` and
    ``lacks_address`` are None, or say in a sentence that stays the same what is wrong and what to do about it.
    """

    wake_at: float = inf
    contest: str | None = None
    lacks_address: str | None = None
    _own: bytes = b""
    _asked: Action = Action.KEEP
    _echo_due: float = -inf
    _unseen: int = 0
    _was_published: bool = False
    _held_since: float | None = None
    _renewals: int = 0
    _seen: tuple[tuple[bytes | None, ...], tuple[object, ...]] | None = None
    _keys_since: float = -inf
    _idle_at: float = -inf
    _spent: float = 0.0
    _spent_at: float = -inf
    _pauses: int = 0
    _pause_ends: float = -inf

    def decide(
        self,
        stored: bytes | None,
        own: bytes,
        has_address: bool,
        now: float,
        expects_address: bool = True,
        other: NodeNetwork = NodeNetwork(),
    ) -> Action:
        """``stored`` is what the annotation says, ``own`` what it ought to say. ``now`` is of a monotonic clock. ``other`` is
        what the node says of itself in the other family: the allocator does both in one pass.

        Whoever cannot carry out the action says so with :meth:`failed`.
        """
        self.wake_at = inf
        self._look(stored, has_address, other, now)
        if own != self._own:
            self._own, self._asked, self._unseen = own, Action.KEEP, 0
        if stored != own:
            return self._missing(stored, has_address, now)
        if self._asked is Action.WITHDRAW and self._waits(self._echo_due, now):
            return Action.KEEP
        return self._held(has_address, expects_address, now)

    @property
    def is_withdrawing(self) -> bool:
        """It is we who have taken the key back, to publish it once more."""
        return self._asked is Action.WITHDRAW

    def failed(self) -> None:
        """The last action came to nothing, and the one who asked knows: it was no rival's doing."""
        self._asked = Action.KEEP
        self._unseen = max(0, self._unseen - 1)
        self._spent = max(0.0, self._spent - 1.0)

    def _look(self, stored: bytes | None, has_address: bool, other: NodeNetwork, now: float) -> None:
        """Work out from what has changed until when the allocator is busy."""
        patience = 1.0 + self._spent_by(now) / 4.0
        seen = (stored, other.public_key), (has_address, other.interface_address)
        if self._seen is None or seen[0] != self._seen[0]:
            self._keys_since, self._idle_at = now, now + PASS_SECONDS * patience
        elif seen[1] != self._seen[1]:
            self._idle_at = now + SETTLE_SECONDS * patience
        self._seen = seen

    # The key is there

    def _held(self, has_address: bool, expects_address: bool, now: float) -> Action:
        self._asked, self._unseen, self._was_published = Action.KEEP, 0, True
        if self._held_since is None:
            self._held_since = now
        if self.contest is not None and not self._waits(self._held_since + QUIET_SECONDS, now):
            self.contest, self._pauses, self._pause_ends, self._spent = None, 0, -inf, 0.0
        if has_address or not expects_address:
            self._renewals, self.lacks_address = 0, None
            return Action.KEEP
        return self._without_address(now)

    def _without_address(self, now: float) -> Action:
        if self._renewals >= MOST_RENEWALS or self.contest is not None:
            self.lacks_address = NO_ADDRESS
            return Action.KEEP
        if self._waits(self._keys_since + ADDRESS_SECONDS * 2.0**self._renewals, now):
            return Action.KEEP
        self._renewals += 1
        return self._write(Action.WITHDRAW, 1.0, now)

    # The key is not there

    def _missing(self, stored: bytes | None, has_address: bool, now: float) -> Action:
        self._held_since = None
        if self._asked is Action.PUBLISH and self._waits(self._echo_due, now):
            return Action.KEEP
        if stored is None and (has_address or self._was_published) and self._waits(self._idle_at, now):
            return Action.KEEP
        if self._waits(self._pause_ends, now):
            return Action.KEEP
        cost = 1.0 if stored is None else REPLACING_COSTS
        if self.contest is None and (self._spent_by(now) + cost > BUDGET or self._unseen >= MOST_UNSEEN):
            self.contest = DELETED if stored is None else REPLACED.format(format_key(stored))
            self._pause(now)
            return Action.KEEP
        if self.contest is not None:
            self._pause(now)
        return self._write(Action.PUBLISH, cost, now)

    def _pause(self, now: float) -> None:
        self._pause_ends = now + min(FIRST_PAUSE_SECONDS * 2.0**self._pauses, LONGEST_PAUSE_SECONDS)
        self._pauses = min(self._pauses + 1, 16)
        self._waits(self._pause_ends, now)

    # Both

    def _waits(self, due: float, now: float) -> bool:
        """Whether ``due`` is still to come. If so, it is woken for."""
        if now < due:
            self.wake_at = min(self.wake_at, due)
        return now < due

    def _write(self, action: Action, cost: float, now: float) -> Action:
        self._asked = action
        self._echo_due = now + min(ECHO_SECONDS * 2.0**self._unseen, LONGEST_ECHO_SECONDS)
        if action is Action.PUBLISH:
            self._unseen += 1
        self._spent, self._spent_at = self._spent_by(now) + cost, now
        self.wake_at = self._echo_due
        return action

    def _spent_by(self, now: float) -> float:
        return max(0.0, self._spent - (now - self._spent_at) / BUDGET_SECONDS) if self._spent else 0.0


# What an operator reads

DELETED = (
    "something keeps deleting this node's WireGuard key: writing it less and less often now. Find out who else writes the"
    " annotation, or what removes it (a webhook, a Felix that restarts all the time)"
)
REPLACED = (
    "something keeps replacing this node's WireGuard key, by {} just now: writing it less and less often now. If the kernel has"
    " WireGuard by now, Felix needs no agent on this node; otherwise look for a second agent with this node's name"
)
NO_ADDRESS = (
    "the key has brought no interface address: what this node itself sends to pods has the wrong source. See what calico-node's"
    " tunnel-ip-allocator logs, and whether an enabled IPPool of this family allows tunnels"
)
