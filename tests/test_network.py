"""Three devices in a network that does its worst, for as long as hypothesis can think of something.

A moves about, B and C stay where they are; anybody may be restarted. Whatever happens, a packet is delivered at most once, to
nobody but whom it is for, and only if it was sent; and when the network is well again, everybody reaches everybody within 20 s
of traffic.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.sim import LATENCY, Host, Sim, packet
from tests.tun.packets import Stream
from wgpy.config import NO_KEY, Endpoint
from wgpy.core.peer import Peer

PAIRS = [(one, other) for one in "ABC" for other in "ABC" if one != other]
RECOVERY = 20.0
pairs = st.sampled_from(PAIRS)
names = st.sampled_from("ABC")


class Network(RuleBasedStateMachine):
    """``sent`` and ``delivered`` are by packet; each has its own payload."""

    @initialize(seed=st.integers(0, 10_000), gro=st.booleans(), preshared=st.booleans(), keepalive=st.sampled_from([0, 0, 5, 25]))
    def begin(self, seed: int, gro: bool, preshared: bool, keepalive: int) -> None:
        self.sim = Sim("A", "B", "C", seed=seed, gro=gro)
        self.homes = {name: host.endpoint for name, host in self.sim.hosts.items()}
        self.preshared_key = b"\x42" * 32 if preshared else NO_KEY
        self.keepalive = keepalive
        self.number = 0
        self.sent: dict[bytes, str] = {}
        self.delivered: set[bytes] = set()
        for name in "ABC":
            self.introduce(name)

    def introduce(self, name: str) -> None:
        """Tell a device its peers, and where they live."""
        for other in "ABC":
            if other != name:
                self.sim[name].peer(
                    self.sim[other],
                    endpoint=False,
                    preshared_key=self.preshared_key,
                    persistent_keepalive=self.keepalive,
                )
                self.sim[name].set_peer(self.sim[other], endpoint=self.homes[other])

    def payload(self, size: int) -> bytes:
        self.number += 1
        return self.number.to_bytes(4).ljust(max(size, 4), b".")

    # -- traffic

    @rule(pair=pairs, size=st.sampled_from([4, 20, 1392]))
    def send(self, pair: tuple[str, str], size: int) -> None:
        self.packet_sent(pair, size)

    def packet_sent(self, pair: tuple[str, str], size: int) -> bytes:
        one, other = self.sim[pair[0]], self.sim[pair[1]]
        data = packet(one.address, other.address, self.payload(size))
        self.sent[data] = pair[1]
        one.send_packet(data)
        return data

    @rule(pair=pairs, count=st.integers(2, 50), size=st.sampled_from([7, 500]))
    def send_a_superpacket(self, pair: tuple[str, str], count: int, size: int) -> None:
        one, other = self.sim[pair[0]], self.sim[pair[1]]
        flow = Stream(
            is_tcp=False,
            payload=b"".join(self.payload(size).ljust(size, b".") for _ in range(count)),
            size=size,
            source=bytes([10, 0, 0, "ABC".index(pair[0]) + 1]),
            destination=bytes([10, 0, 0, "ABC".index(pair[1]) + 1]),
            dont_fragment=False,
        )
        self.sent.update(dict.fromkeys(flow.packets(), pair[1]))
        one.send_packet(*reversed(flow.superpacket()))
        assert other.name == pair[1]

    # -- time

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.02, 0.3, 1, 5, 11]))
    def wait(self, seconds: float) -> None:
        self.sim.advance(seconds)

    @rule(seconds=st.sampled_from([121, 166, 181, 600]))
    def wait_long(self, seconds: float) -> None:
        """Long enough for a session to grow old."""
        self.sim.advance(seconds)

    @rule(pair=pairs, seconds=st.integers(100, 200))
    def chat(self, pair: tuple[str, str], seconds: int) -> None:
        """Traffic over the time of a rekey."""
        for _ in range(seconds // 3):
            self.packet_sent(pair, 20)
            self.sim.advance(3)

    # -- the network

    @rule(loss=st.sampled_from([0.05, 0.3]), copies=st.sampled_from([0, 0.3]), spread=st.sampled_from([0.0, 0.05, 2.0]))
    def be_bad(self, loss: float, copies: float, spread: float) -> None:
        """Lose, duplicate, reorder."""
        rng = self.sim.random

        def deliver(sender: Host, datagram: bytes) -> tuple[float, ...]:
            if rng.random() < loss:
                return ()
            return tuple(LATENCY + rng.uniform(0, spread) for _ in range(2 if rng.random() < copies else 1))

        self.sim.deliver = deliver

    @rule(senders=st.sets(names, min_size=1))
    def cut(self, senders: set[str]) -> None:
        self.sim.cut(*senders)

    @rule()
    def heal(self) -> None:
        self.sim.heal()

    # -- the devices

    @rule(number=st.integers(1, 200))
    def roam(self, number: int) -> None:
        """A is somewhere else. What is on its way to it is lost."""
        self.sim["A"].endpoint = Endpoint(f"198.51.100.{number}", 1000 + number)

    @rule(name=names)
    def restart(self, name: str) -> None:
        """A new process with the same key and configuration; it knows nothing of sessions."""
        self.sim[name].restart()
        self.introduce(name)

    @rule(name=names)
    def go_down_and_up(self, name: str) -> None:
        self.sim[name].device.down()
        self.sim[name].device.up(self.sim.now)

    @rule(pair=pairs)
    def rekey(self, pair: tuple[str, str]) -> None:
        one, other = self.sim[pair[0]], self.sim[pair[1]]
        one.device.send_initiation(one.peer_of(other), self.sim.now)

    # -- what must hold

    @precondition(lambda self: hasattr(self, "sim"))
    @invariant()
    def a_packet_is_delivered_once_and_only_to_whom_it_was_sent(self) -> None:
        for name, host in self.sim.hosts.items():
            for data in host.delivered():
                assert self.sent.get(data) == name
                assert data not in self.delivered
                self.delivered.add(data)

    @precondition(lambda self: hasattr(self, "sim"))
    @invariant()
    def nothing_grows(self) -> None:
        for host in self.sim.hosts.values():
            assert len(host.device.indices) <= 4 * len(host.device.peers)
            assert len(host.device._schedule) <= 5 * len(host.device.peers)
            for peer in host.device.peers.values():
                assert len(peer.staged) <= 128
                assert all(host.device.indices[index][0] is peer for index in indices_of(peer))

    @precondition(lambda self: hasattr(self, "sim"))
    @rule()
    def recover(self) -> None:
        """Everybody speaks to everybody, a little after one another; from then on nothing is lost any more."""
        self.sim.heal()
        for _ in range(int(RECOVERY)):
            for pair in PAIRS:
                self.packet_sent(pair, 4)
                self.sim.advance(1 / len(PAIRS))
        self.a_packet_is_delivered_once_and_only_to_whom_it_was_sent()
        last = [self.packet_sent(pair, 4) for pair in PAIRS]
        self.sim.advance(1)
        self.a_packet_is_delivered_once_and_only_to_whom_it_was_sent()
        assert self.delivered.issuperset(last)

    def teardown(self) -> None:
        if hasattr(self, "sim"):
            self.recover()


def indices_of(peer: Peer) -> list[int]:
    """The indices by which this peer may address us."""
    keypairs = (peer.keypairs.previous, peer.keypairs.current, peer.keypairs.next)
    handshake = [peer.handshake_index] if peer.handshake is not None else []
    return handshake + [keypair.local_index for keypair in keypairs if keypair is not None]


TestNetwork = Network.TestCase
TestNetwork.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
