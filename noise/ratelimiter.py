"""How many handshake messages one address may make us work on while we are under load (paper section 5.3).

A token bucket for each source: a message costs 50 ms, and a source saves up at most 250 ms of them. That is 20 a second,
and 5 at once. It is asked only after mac2 has shown that the address is the sender's, so nobody can use up another's tokens.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Final

PACKETS_PER_SECOND: Final = 20
PACKETS_BURSTABLE: Final = 5

# Nanoseconds, as integers: a message that is exactly on time must not fail by a rounding error.
_SECOND: Final = 10**9
_COST: Final = _SECOND // PACKETS_PER_SECOND
_CAPACITY: Final = _COST * PACKETS_BURSTABLE
_IDLE_AFTER: Final = _SECOND


@dataclass(slots=True)
class _Bucket:
    tokens: int
    filled_at: int


@dataclass(slots=True)
class RateLimiter:
    """Buckets by source. It needs no timer: forgetting idle sources rides along, at most once a second."""

    max_sources: int = 65536
    """So many sources are remembered (the kernel's number); while there are that many, new ones are refused."""
    _buckets: dict[bytes, _Bucket] = field(default_factory=dict, repr=False)
    _collected_at: float = -inf

    def allow(self, address: bytes, now: float) -> bool:
        """Whether a message from ``address`` (4 or 16 bytes, without the port) may be worked on.

        An IPv6 source is its /64, for whoever has one address of it can have them all.
        """
        nanoseconds = round(now * _SECOND)
        if nanoseconds >= self._collected_at + _SECOND:
            self._collect(nanoseconds)
        source = address[:8]
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= self.max_sources:
                return False
            self._buckets[source] = _Bucket(_CAPACITY - _COST, nanoseconds)
            return True
        tokens = min(_CAPACITY, bucket.tokens + nanoseconds - bucket.filled_at)
        bucket.filled_at = nanoseconds
        is_allowed = tokens >= _COST
        bucket.tokens = tokens - _COST if is_allowed else tokens
        return is_allowed

    def _collect(self, nanoseconds: int) -> None:
        """Forget the sources that were silent for more than a second: their buckets are full anyway."""
        self._collected_at = nanoseconds
        self._buckets = {s: b for s, b in self._buckets.items() if nanoseconds - b.filled_at <= _IDLE_AFTER}
