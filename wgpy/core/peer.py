"""One peer: everything the device knows about the other side. Only the device and its data path change it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from noise.constants import MAX_STAGED_PACKETS
from noise.cookie import CookieHolder
from noise.handshake import InitiatorHandshake, LatestInitiation, LocalStatic, RemoteStatic
from noise.keypair import Keypairs
from noise.timers import PeerTimers
from wgpy.config import NO_KEY, Endpoint


@dataclass(slots=True, eq=False)
class Peer:
    """The state of one peer. Times are the device's ``now`` in seconds, ``last_handshake`` is wall-clock nanoseconds."""

    public_key: bytes
    timers: PeerTimers
    preshared_key: bytes = field(default=NO_KEY, repr=False)
    endpoint: Endpoint | None = None
    arrival: bytes = b""
    """Where its last authenticated datagram came in: the address of ours and the interface, as the outputs write it."""
    source: bytes = b""
    """``arrival``, if datagrams to this peer are to leave from that address (sticky source); b"": from any."""
    egress: int = 0
    """The index of the interface by which they leave, when last asked."""
    keypairs: Keypairs = field(default_factory=Keypairs)
    handshake: InitiatorHandshake | None = field(default=None, repr=False)
    """Our initiation under way, and its index in the device's table."""
    handshake_index: int = 0
    cookies: CookieHolder | None = field(default=None, repr=False)
    staged: deque[bytes] = field(default_factory=deque, repr=False)
    latest_initiation: LatestInitiation = field(default_factory=LatestInitiation)
    """Survives a change of keys, not the removal of the peer (protocol 1.3)."""
    last_handshake: int = 0
    tx_bytes: int = 0
    rx_bytes: int = 0
    wake_at: float = float("inf")
    """The earliest entry for this peer in the device's schedule; the last of ``wakes``, or infinity."""
    wakes: list[float] = field(default_factory=list, repr=False)
    _remote: RemoteStatic | None = field(default=None, repr=False)

    def remote(self, local: LocalStatic) -> RemoteStatic:
        """What is computed once for this peer's static key. Made at first use: a thousand peers are configured at once."""
        if self._remote is None:
            self._remote = RemoteStatic(local, self.public_key)
        return self._remote

    def forget_remote(self) -> None:
        """Our own static key has changed: nothing computed with the old one may be used again."""
        self._remote = None
        self.cookies = None

    def forget_source(self) -> None:
        """Send from any address, until something arrives."""
        self.arrival = self.source = b""

    def can_send(self, now: float) -> bool:
        """Whether there is a keypair to seal data with."""
        current = self.keypairs.current
        return current is not None and current.can_send(now)

    def stage(self, packet: bytes) -> bool:
        """Keep ``packet`` until there is a session (protocol 1.9). False if the oldest had to make room."""
        self.staged.append(packet)
        if len(self.staged) > MAX_STAGED_PACKETS:
            self.staged.popleft()
            return False
        return True
