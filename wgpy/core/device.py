"""The device: its peers, their handshakes and deadlines, and the two halves of the data path.

How to think about it: four kinds of things happen to a device. It is *configured* (:meth:`Device.apply`), *packets*
come from the TUN (``outbound``), *datagrams* come from the network (``inbound``), and *time* passes
(:meth:`Device.expire`). Each call says when it happens; what must leave goes to :class:`Outputs` at once. Handshake
messages are queued on arrival and worked on by :meth:`Device.handle_messages`, so that they never hold up data; the
length of that queue is what "under load" means (paper 5.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple, Protocol

from noise import constants, tai64n
from noise.cookie import CookieChecker, CookieHolder
from noise.crypto import clamp
from noise.handshake import (
    HandshakeError,
    HandshakeFailure,
    LocalStatic,
    RemoteStatic,
    consume_initiation,
    consume_response,
    create_initiation,
    create_response,
)
from noise.keypair import Keypair
from noise.ratelimiter import RateLimiter
from noise.timers import Action, PeerTimers
from wgpy.config import (
    DEFAULT_MTU,
    KEY_LENGTH,
    NO_KEY,
    Change,
    DeviceSnapshot,
    Endpoint,
    PeerConfig,
    PeerSnapshot,
    SetDevice,
    SetPeer,
)
from wgpy.core.allowedips import AllowedIPs
from wgpy.core.arena import OVERHEAD
from wgpy.core.drops import Drop
from wgpy.core.handshakes import Handshake
from wgpy.core.inbound import Inbound
from wgpy.core.outbound import Outbound
from wgpy.core.peer import Peer

HANDSHAKE_DS = 0x88
"""Outer DS byte of handshake initiations and responses: AF41 (protocol 1.10)."""

MAX_QUEUED_MESSAGES = 4096
UNDER_LOAD_MESSAGES = 512
"""The kernel's figures, an eighth of the queue. A node of a mesh of 500 that starts gets as many at once, and that is no load.

As many as the whole queue holds within a second are load, too, even if they are worked on so soon that they never wait: a
stranger's initiation costs 45 µs, so that 20,000 a second take a core, and there is other work. Honest peers are fewer: a
handshake that succeeds costs 280 µs. And since nobody waits for long where all are refused, an eighth of that is enough for
load to go on."""
REFUSALS = 16
"""So many messages are refused, with a cookie, in the time that one is worked on: 20 µs and 300 µs."""

_HANDSHAKE_DROPS = {
    HandshakeFailure.REPLAYED: Drop.REPLAYED_INITIATION,
    HandshakeFailure.FLOODED: Drop.INITIATION_FLOOD,
}


class Outputs(Protocol):
    """Where a device's output goes. Buffers are reused when the call returns: whoever wants to keep them copies them."""

    def send(self, datagrams: bytes | memoryview, segment: int, endpoint: Endpoint, source: bytes, ds: int) -> bool:
        """Send a train of datagrams of ``segment`` bytes each (the last may be shorter) to ``endpoint``.

        ``source`` is :attr:`Peer.source`, ``ds`` the outer DS byte. False if nothing was sent.
        """

    def send_each(self, datagrams: Sequence[tuple[bytes, Endpoint, bytes]]) -> None:
        """Send datagrams, each to its own endpoint and from its own source, with a DS byte of 0. What is not sent is lost.

        One by one, where whoever takes them knows no better way.
        """
        for datagram, endpoint, source in datagrams:
            self.send(datagram, len(datagram), endpoint, source, 0)

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Hand one packet or superpacket to the TUN, virtio header first."""


class Way(NamedTuple):
    """How datagrams to an endpoint go: see the fields of :class:`Peer` of the same names."""

    source: bytes
    egress: int = 0


def as_it_came(endpoint: Endpoint, arrival: bytes) -> Way:
    """The way where nobody knows of routes: from the address that the peer spoke to."""
    return Way(arrival)


def in_silence(packet: memoryview, now: float) -> None:
    """What is done about a packet that nobody takes, where nothing is."""


class Device:
    """A WireGuard interface without its sockets.

    ``random_bytes(n)``, ``jitter()`` (0 to 0.333 s) and ``wall_clock()`` (nanoseconds since 1970) are the caller's. The
    device starts *down*: it is configured, but sends nothing until :meth:`up`.

    ``way(endpoint, arrival)`` is asked whenever one of them changes for a peer. ``unreachable(packet, now)`` is told of each
    packet that has no peer, or whose peer has no endpoint; the packet's buffer is reused.
    """

    def __init__(
        self,
        outputs: Outputs,
        *,
        random_bytes: Callable[[int], bytes],
        jitter: Callable[[], float],
        wall_clock: Callable[[], int],
        mtu: int = DEFAULT_MTU,
        way: Callable[[Endpoint, bytes], Way] = as_it_came,
        unreachable: Callable[[memoryview, float], None] = in_silence,
    ) -> None:
        self.outputs = outputs
        self.mtu = mtu
        self.is_up = False
        self.listen_port = 0
        """What is configured and bound; the daemon binds before it tells us."""
        self.fwmark = 0
        self.local: LocalStatic | None = None
        self.peers: dict[bytes, Peer] = {}
        """By public key, in the order they were added."""
        self.allowed_ips: AllowedIPs[Peer] = AllowedIPs()
        self.indices: dict[int, tuple[Peer, Keypair | None]] = {}
        """Receiver index -> its peer and keypair; None stands for our initiation under way."""
        self.drops = dict.fromkeys(Drop, 0)
        self.handshakes = dict.fromkeys(Handshake, 0)
        self.rekeys = 0
        """Handshakes that gave a session the place of one that was still good."""
        self._random_bytes = random_bytes
        self._jitter = jitter
        self._wall_clock = wall_clock
        self._way = way
        self._unreachable = unreachable
        self._private_key = NO_KEY
        self._checker: CookieChecker | None = None
        self._rate_limiter = RateLimiter()
        self._messages: deque[tuple[bytes, Endpoint, bytes]] = deque()
        self._under_load_until = -inf
        self._second_until, self._in_second = -inf, 0
        """How many messages have come in the second that ends then."""
        self._schedule: list[tuple[float, int, Peer]] = []
        self._scheduled = 0
        self.outbound = Outbound(self)
        self.inbound = Inbound(self)

    # -- configuration -------------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change], now: float) -> None:
        """Carry out ``changes`` in order. They are well-formed, so this cannot fail half-way."""
        for change in changes:
            if isinstance(change, SetDevice):
                self._set_device(change, now)
            else:
                self._set_peer(change, now)

    def _set_device(self, change: SetDevice, now: float) -> None:
        if change.replace_peers:  # first: who is to be gone must not be greeted with the new key
            for peer in list(self.peers.values()):
                self._remove_peer(peer)
        if change.private_key is not None:
            self._set_private_key(change.private_key, now)
        if change.listen_port is not None and change.listen_port != self.listen_port:
            self.listen_port = change.listen_port
            self.forget_sources()
        if change.fwmark is not None and change.fwmark != self.fwmark:
            self.fwmark = change.fwmark
            self.forget_sources()

    def _set_private_key(self, private_key: bytes, now: float) -> None:
        if private_key != NO_KEY:
            private_key = clamp(private_key)
        if private_key == self._private_key:
            return
        had_identity = self.local is not None
        self.count_drop(Drop.BAD_MAC1, len(self._messages))  # what waits was for the key we had
        self._messages.clear()
        self._private_key = private_key
        self.local = None if private_key == NO_KEY else LocalStatic(private_key)
        self._checker = None if self.local is None else CookieChecker(self.local)
        if self.local is not None and (ourselves := self.peers.get(self.local.public)) is not None:
            self._remove_peer(ourselves)
        for peer in self.peers.values():
            peer.forget_remote()
            self._forget_handshake(peer)
            peer.keypairs.invalidate_sending()
            peer.timers.forget_last_handshake()
        if not had_identity and self.local is not None and self.is_up:
            for peer in list(self.peers.values()):
                self._kick(peer, now)

    def _set_peer(self, change: SetPeer, now: float) -> None:
        peer = self.peers.get(change.public_key)
        if change.remove:
            if peer is not None:
                self._remove_peer(peer)
            return
        if self.local is not None and change.public_key == self.local.public:
            return  # a peer with our own key is ignored, not refused (protocol 1.13)
        if peer is None:
            if change.update_only:
                return
            peer = self.peers[change.public_key] = Peer(change.public_key, PeerTimers(self._jitter))
        if change.preshared_key is not None:
            peer.preshared_key = change.preshared_key
        if change.endpoint is not None:
            self._lead(peer, change.endpoint, b"")
        keepalive_now = False
        if change.persistent_keepalive is not None:
            keepalive_now = not peer.timers.persistent_keepalive and change.persistent_keepalive > 0 and self.is_up
            peer.timers.persistent_keepalive = change.persistent_keepalive
        if change.replace_allowed_ips:
            self.allowed_ips.remove_owner(peer)
        for prefix in change.allowed_ips:
            self.allowed_ips.insert(prefix, peer)
        for prefix in change.removed_allowed_ips:
            self.allowed_ips.remove(prefix, peer)
        if self.is_up:
            if keepalive_now:
                self.send_keepalive(peer, now)
            elif peer.staged:
                self.flush_staged(peer, now)

    def _remove_peer(self, peer: Peer) -> None:
        self._end_sessions(peer)
        peer.staged.clear()
        peer.timers.stop()
        self.allowed_ips.remove_owner(peer)
        del self.peers[peer.public_key]

    def forget_sources(self) -> None:
        """Drop every cached source address: port or mark changed, or addresses did (protocol 1.11)."""
        for peer in self.peers.values():
            peer.forget_source()

    def routes_changed(self, peer: Peer) -> None:
        """Ask again for the way to ``peer``. If datagrams leave by another interface now, they leave from any address until
        something arrives: the address they had belongs to the old way."""
        if peer.endpoint is None:
            return
        before = peer.egress
        self._lead(peer, peer.endpoint, peer.arrival)
        if peer.egress != before:
            peer.forget_source()

    def _lead(self, peer: Peer, endpoint: Endpoint, arrival: bytes) -> None:
        """From now on ``peer`` is at ``endpoint``; ``arrival`` says where it reached us, b"" if it has not."""
        peer.endpoint, peer.arrival = endpoint, arrival
        peer.source, peer.egress = self._way(endpoint, arrival)

    def snapshot(self, peers: Iterable[Peer] | None = None) -> DeviceSnapshot:
        """The device as it is, for metrics and the state file; with those of its ``peers`` alone, if given."""
        return DeviceSnapshot(
            private_key=self._private_key,
            listen_port=self.listen_port,
            fwmark=self.fwmark,
            peers=tuple(self.peer_snapshot(peer) for peer in (self.peers.values() if peers is None else peers)),
        )

    def peer_snapshot(self, peer: Peer) -> PeerSnapshot:
        config = PeerConfig(
            public_key=peer.public_key,
            preshared_key=peer.preshared_key,
            endpoint=peer.endpoint,
            persistent_keepalive=int(peer.timers.persistent_keepalive),
            allowed_ips=tuple(self.allowed_ips.prefixes(peer)),
        )
        return PeerSnapshot(config, peer.last_handshake, peer.tx_bytes, peer.rx_bytes)

    # -- link state ----------------------------------------------------------------------------------------------

    def up(self, now: float) -> None:
        """The interface came up and the sockets are bound: send what waits, greet who wants keepalives."""
        if self.is_up:
            return
        self.is_up = True
        for peer in list(self.peers.values()):
            self._kick(peer, now)

    def down(self) -> None:
        """The interface went down: sessions, handshakes, timers and staged packets end."""
        self.is_up = False
        self._messages.clear()
        for peer in self.peers.values():
            self._end_sessions(peer)
            peer.staged.clear()
            peer.timers.stop()
            peer.timers.forget_last_handshake()

    def mtu_changed(self, mtu: int, now: float) -> None:
        self.mtu = mtu
        self.outbound.mtu_changed(now)

    def _kick(self, peer: Peer, now: float) -> None:
        if peer.timers.persistent_keepalive:
            self.send_keepalive(peer, now)
        elif peer.staged:
            self.flush_staged(peer, now)

    # -- the data path's questions and reports ------------------------------------------------------------------------

    def count_drop(self, reason: Drop, count: int = 1) -> None:
        self.drops[reason] += count

    def refuse(self, reason: Drop, packet: memoryview, now: float) -> None:
        """There is nobody who takes ``packet``."""
        self.count_drop(reason)
        self._unreachable(packet, now)

    def stage(self, peer: Peer, packet: bytes, now: float) -> None:
        """There is no session for ``packet``: keep it and ask for one."""
        if not self.is_up:
            self.count_drop(Drop.INTERFACE_DOWN)
            return
        if not peer.stage(packet):
            self.count_drop(Drop.STAGED_FULL)
        self.send_initiation(peer, now)

    def data_sealed(self, peer: Peer, datagrams: memoryview, segment: int, count: int, ecn: int, now: float) -> None:
        """A run was sealed: send it, and do what sending data entails (protocol 1.7)."""
        endpoint = peer.endpoint
        if endpoint is None:
            self.count_drop(Drop.NO_ENDPOINT, count)
            return
        timers = peer.timers
        if timers.persistent_keepalive:
            timers.any_authenticated_packet_traversal(now)
        timers.any_authenticated_packet_sent()
        if self.outputs.send(datagrams, segment, endpoint, peer.source, ecn):
            peer.tx_bytes += len(datagrams)
            if segment > OVERHEAD:
                timers.data_sent(now)
        else:
            self.count_drop(Drop.SEND_FAILED, count)
        keypair = peer.keypairs.current
        if keypair is not None and keypair.needs_rekey_on_send(now):
            self.send_initiation(peer, now)
        if timers.armed_earliest < peer.wake_at:
            self._wake(peer)

    def data_opened(
        self, peer: Peer, keypair: Keypair, endpoint: Endpoint, source: bytes, size: int, has_data: bool, now: float
    ) -> None:
        """A run of authenticated, fresh transport data came: roam, confirm, and do what receiving entails (protocol 1.6, 1.7)."""
        if endpoint is not peer.endpoint or source is not peer.arrival:
            self._lead(peer, endpoint, source)
        peer.rx_bytes += size
        timers = peer.timers
        keypairs = peer.keypairs
        confirmed = keypair is keypairs.next
        if confirmed:
            self._forget_handshake(peer)  # an initiation of ours that crossed with theirs is not needed any more
            self._forget_keypairs(keypairs.confirmed())
            self._handshake_complete(peer, now)
        current = keypairs.current
        if current is not None and not timers.sent_lastminute_handshake and current.needs_rekey_on_receive(now):
            timers.sent_lastminute_handshake = True
            self.send_initiation(peer, now)
        timers.any_authenticated_packet_received()
        if timers.persistent_keepalive:
            timers.any_authenticated_packet_traversal(now)
        if has_data:
            timers.data_received(now)
        if confirmed:  # behind the timers: what came in is no answer to what goes out only now
            self.flush_staged(peer, now)
        if timers.armed_earliest < peer.wake_at:
            self._wake(peer)

    def message_received(self, message: bytes, endpoint: Endpoint, source: bytes, now: float) -> None:
        """A datagram that is not transport data. What can be seen to be wrong at once is dropped; the rest is queued."""
        checker = self._checker
        kind = int.from_bytes(message[:4], "little")
        if constants.MESSAGE_LENGTHS.get(kind) != len(message):
            self.count_drop(Drop.UNKNOWN_MESSAGE)
        elif not self.is_up:
            self.count_drop(Drop.INTERFACE_DOWN)
        elif checker is None:
            self.count_drop(Drop.NO_PRIVATE_KEY)
        elif len(self._messages) >= MAX_QUEUED_MESSAGES:
            self.count_drop(Drop.HANDSHAKE_QUEUE_FULL)
        elif kind == constants.MESSAGE_COOKIE_REPLY:
            if int.from_bytes(message[4:8], "little") in self.indices:
                self._queue(message, endpoint, source, now)
            else:
                self.count_drop(Drop.BAD_COOKIE_REPLY)  # has no mac1: anybody could fill the queue with them
        elif checker.mac1_is_valid(message):
            self._queue(message, endpoint, source, now)
        else:
            self.count_drop(Drop.BAD_MAC1)

    def _queue(self, message: bytes, endpoint: Endpoint, source: bytes, now: float) -> None:
        """Keep a message for :meth:`handle_messages`, and see whether there are too many."""
        self._messages.append((message, endpoint, source))
        if now >= self._second_until:
            self._second_until, self._in_second = now + 1, 0
        self._in_second += 1
        many = UNDER_LOAD_MESSAGES if now < self._under_load_until else MAX_QUEUED_MESSAGES
        if self._in_second >= many or len(self._messages) >= UNDER_LOAD_MESSAGES:
            self._under_load_until = now + constants.UNDER_LOAD_TIME

    # -- handshakes ----------------------------------------------------------------------------------------------

    @property
    def has_messages(self) -> bool:
        """Whether handshake messages wait for :meth:`handle_messages`."""
        return bool(self._messages)

    @property
    def queued_messages(self) -> int:
        """How many do."""
        return len(self._messages)

    def is_under_load(self, now: float) -> bool:
        """Whether so many messages came lately that their senders are asked for cookies."""
        return now < self._under_load_until

    def handle_messages(self, budget: int, now: float) -> None:
        """Work on up to ``budget`` queued handshake messages, of which :data:`REFUSALS` refused ones count as one."""
        left = budget * REFUSALS
        refusals: list[tuple[bytes, Endpoint, bytes]] = []
        while left > 0 and self._messages:
            message, endpoint, source = self._messages.popleft()
            left -= 1
            kind = message[0]
            if kind == constants.MESSAGE_COOKIE_REPLY:
                self._cookie_reply(message, now)
            elif self._admitted(message, endpoint, source, now, refusals):
                left -= REFUSALS - 1
                if kind == constants.MESSAGE_INITIATION:
                    self._initiation(message, endpoint, source, now)
                else:
                    self._response(message, endpoint, source, now)
        if refusals:
            self.outputs.send_each(refusals)
            self.count_drop(Drop.UNDER_LOAD, len(refusals))

    def _admitted(
        self, message: bytes, endpoint: Endpoint, source: bytes, now: float, refusals: list[tuple[bytes, Endpoint, bytes]]
    ) -> bool:
        """Under load, only senders that proved their address go on; the others get a cookie (paper 5.4.7)."""
        if not self.is_under_load(now):
            return True
        checker = self._checker
        assert checker is not None
        address = endpoint.packed
        if not checker.mac2_is_valid(message, address, now):
            if checker.secret_is_old(now):
                checker.renew_secret(self._random_bytes(KEY_LENGTH), self._random_bytes(constants.COOKIE_NONCE_LENGTH), now)
            refusals.append((checker.create_cookie_reply(message, address), endpoint, source))
            return False
        if not self._rate_limiter.allow(endpoint.address, now):
            self.count_drop(Drop.RATE_LIMITED)
            return False
        return True

    def _initiation(self, message: bytes, endpoint: Endpoint, source: bytes, now: float) -> None:
        local = self.local
        if local is None:
            self.count_drop(Drop.NO_PRIVATE_KEY)
            return

        def remote_of(public_key: bytes) -> RemoteStatic | None:
            known = self.peers.get(public_key)
            return None if known is None else known.remote(local)

        try:
            handshake = consume_initiation(local, message, remote_of)
        except HandshakeError:
            self.count_drop(Drop.BAD_HANDSHAKE)
            return
        peer = self.peers[handshake.remote_static]
        index = self._new_index()
        try:
            peer.latest_initiation.accept(handshake.timestamp, now)
            response, keys = create_response(
                peer.remote(local), handshake, peer.preshared_key, self._random_bytes(KEY_LENGTH), index
            )
        except HandshakeError as error:
            self.count_drop(_HANDSHAKE_DROPS.get(error.reason, Drop.BAD_HANDSHAKE))
            return
        self._lead(peer, endpoint, source)
        keypair = Keypair.derived(keys, now)
        self.indices[index] = (peer, keypair)
        self._forget_keypairs(peer.keypairs.responder_derived(keypair))
        peer.timers.session_derived(now)
        peer.timers.handshake_sent(now)
        self._send_message(peer, response, now)
        peer.rx_bytes += len(message)
        peer.timers.any_authenticated_packet_received()
        peer.timers.any_authenticated_packet_traversal(now)
        self._wake(peer)

    def _response(self, message: bytes, endpoint: Endpoint, source: bytes, now: float) -> None:
        local = self.local
        index = int.from_bytes(message[8:12], "little")
        peer, keypair = self.indices.get(index, (None, None))
        if local is None or peer is None or keypair is not None or peer.handshake is None:
            self.count_drop(Drop.UNKNOWN_INDEX)
            return
        try:
            keys = consume_response(local, peer.remote(local), peer.handshake, peer.preshared_key, message)
        except HandshakeError:
            self.count_drop(Drop.BAD_HANDSHAKE)
            return
        self._lead(peer, endpoint, source)
        new = Keypair.derived(keys, now)
        # The index goes on: it named the handshake, now it names the session.
        self.indices[index] = (peer, new)
        peer.handshake, peer.handshake_index = None, 0
        # Initiations that cross make two sessions: each end keeps its own initiation, since the kernel's WireGuard forgets its
        # own. Both ends must settle on one session, or both would rekey it and lose a round trip of packets each time. So the
        # higher key leaves the lower one's as ``next``, and goes over to it when data comes under it.
        keypairs = peer.keypairs
        theirs = keypairs.next if local.public > peer.public_key else None
        if theirs is not None:
            keypairs.next = None
        self._forget_keypairs(keypairs.initiator_derived(new))
        keypairs.next = theirs
        peer.timers.session_derived(now)
        self._handshake_complete(peer, now)
        peer.rx_bytes += len(message)
        peer.timers.any_authenticated_packet_received()
        peer.timers.any_authenticated_packet_traversal(now)
        if not self.flush_staged(peer, now):
            self.send_keepalive(peer, now)
        self._wake(peer)

    def _cookie_reply(self, message: bytes, now: float) -> None:
        peer, _ = self.indices.get(int.from_bytes(message[4:8], "little"), (None, None))
        if peer is None or peer.cookies is None or not peer.cookies.consume_cookie_reply(message, now):
            self.count_drop(Drop.BAD_COOKIE_REPLY)

    def send_initiation(self, peer: Peer, now: float, *, retry: bool = False) -> None:
        """Begin a handshake, unless one was begun or answered less than 5 s ago."""
        timers = peer.timers
        if not timers.may_initiate(now, is_retry=retry) or self.local is None or not self.is_up or peer.endpoint is None:
            return
        remote = peer.remote(self.local)
        index = self._new_index()
        try:
            message, handshake = create_initiation(
                self.local, remote, self._random_bytes(KEY_LENGTH), index, tai64n.timestamp(self._wall_clock())
            )
        except HandshakeError:
            return  # a static key of low order: no session is possible with this peer (protocol 1.3)
        self._forget_handshake(peer)
        peer.handshake, peer.handshake_index = handshake, index
        self.indices[index] = (peer, None)
        timers.handshake_sent(now)
        self._send_message(peer, message, now)
        self.handshakes[Handshake.BEGUN] += 1
        timers.handshake_initiated(now)
        self._wake(peer)

    def _send_message(self, peer: Peer, message: bytes, now: float) -> None:
        assert self.local is not None and peer.endpoint is not None
        if peer.cookies is None:
            peer.cookies = CookieHolder(peer.remote(self.local))
        message = peer.cookies.add_macs(message, now)
        peer.timers.any_authenticated_packet_traversal(now)
        peer.timers.any_authenticated_packet_sent()
        if self.outputs.send(message, len(message), peer.endpoint, peer.source, HANDSHAKE_DS):
            peer.tx_bytes += len(message)
        else:
            self.count_drop(Drop.SEND_FAILED)

    def _handshake_complete(self, peer: Peer, now: float) -> None:
        peer.timers.handshake_complete()
        peer.last_handshake = self._wall_clock()
        current, previous = peer.keypairs.current, peer.keypairs.previous
        self.handshakes[Handshake.INITIATED if current is not None and current.is_initiator else Handshake.ANSWERED] += 1
        self.rekeys += previous is not None and previous.can_send(now)

    def send_keepalive(self, peer: Peer, now: float) -> None:
        """Send an empty packet; where packets wait, they say as much."""
        if not peer.staged:
            if peer.can_send(now):
                self.outbound.keepalive(peer, now)
                return
            peer.stage(b"")
        self.flush_staged(peer, now)

    def flush_staged(self, peer: Peer, now: float) -> bool:
        """Send what waits for a session, or ask for one. False if nothing waited."""
        if not peer.staged:
            return False
        if not peer.can_send(now):
            self.send_initiation(peer, now)
            return True
        staged, peer.staged = peer.staged, deque()
        self.outbound.flush(now)
        for packet in staged:
            if packet:
                self.outbound.staged_packet(peer, packet, now)
            else:
                self.outbound.keepalive(peer, now)
        self.outbound.flush(now)
        return True

    # -- keys and indices ----------------------------------------------------------------------------------------

    def _new_index(self) -> int:
        while True:
            index = int.from_bytes(self._random_bytes(4), "little")
            if index not in self.indices:
                return index

    def _forget_keypairs(self, keypairs: Iterable[Keypair]) -> None:
        for keypair in keypairs:
            self.indices.pop(keypair.local_index, None)

    def _forget_handshake(self, peer: Peer) -> None:
        if peer.handshake is not None:
            self.indices.pop(peer.handshake_index, None)
            peer.handshake, peer.handshake_index = None, 0

    def _end_sessions(self, peer: Peer) -> None:
        self._forget_handshake(peer)
        self._forget_keypairs(peer.keypairs.clear())

    # -- time ----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When :meth:`expire` should be called next; infinity if nothing is due ever. It may find nothing to do."""
        return self._schedule[0][0] if self._schedule else inf

    def _wake(self, peer: Peer) -> None:
        """A timer of ``peer`` was armed: see that it is woken in time.

        A peer is only ever scheduled *earlier* than it already is; who is woken too early looks again. So arming a
        timer later than another one costs a compare, and cancelling one costs nothing.
        """
        deadline = peer.timers.next_deadline()
        peer.timers.armed_earliest = inf
        if deadline < peer.wake_at:
            peer.wakes.append(deadline)
            peer.wake_at = deadline
            self._scheduled += 1
            heappush(self._schedule, (deadline, self._scheduled, peer))

    def expire(self, now: float) -> None:
        """Do what is due at ``now``."""
        while self._schedule and self._schedule[0][0] <= now:
            _, _, peer = heappop(self._schedule)
            peer.wakes.pop()
            peer.wake_at = peer.wakes[-1] if peer.wakes else inf
            if self.peers.get(peer.public_key) is not peer:
                continue
            for action in peer.timers.expire(now):
                self._act(peer, action, now)
            self._wake(peer)

    def _act(self, peer: Peer, action: Action, now: float) -> None:
        match action:
            case Action.RETRY_INITIATION:
                self.handshakes[Handshake.UNANSWERED] += 1
                peer.forget_source()
                self.send_initiation(peer, now, retry=True)
            case Action.SEND_INITIATION:
                peer.forget_source()
                self.send_initiation(peer, now)
            case Action.SEND_KEEPALIVE:
                self.send_keepalive(peer, now)
            case Action.DROP_STAGED_PACKETS:
                self.handshakes[Handshake.GIVEN_UP] += 1
                self.count_drop(Drop.NO_SESSION, len(peer.staged))
                peer.staged.clear()
            case Action.ZERO_KEY_MATERIAL:
                self._end_sessions(peer)
