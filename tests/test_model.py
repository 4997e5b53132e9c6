"""A model checker: two and three devices, and a network, clocks and administrators that do their worst.

Hypothesis looks for a history in which something happens that never may. Packets are lost, delayed, duplicated, reordered, forged
and played back; hosts roam, restart, sleep, go down, change their keys, forget peers and give their prefixes to one another;
wall clocks jump. tests/fuzz/witness.py says what must not happen at any time; what is added here is what must happen in the end:

* *Nothing that is not authentic changes anything*: a forged or repeated datagram leaves all sessions, counters, timers, endpoints
  and statistics as they are (``forge``, ``play_back``, ``mislead``).
* *Recovery*: as soon as the network is good, everybody knows everybody and clocks are right, whoever speaks is heard within
  RECOVERY seconds. A session that is dead at the other end is noticed 15 s after data (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT and its
  jitter); a handshake that falls into the other end's shut gate, or whose timestamp is not newer, is retried 5 s later
  (REKEY_TIMEOUT and jitter); and a message takes its time on the way.
* *Agreement*: then both ends of a pair send under the same session.

``make test`` runs a fixed choice of histories; ``python -m tests.test_model SECONDS`` looks for new ones, which is what
``make fuzz`` does.
"""

from __future__ import annotations

import itertools
import sys
import time

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from noise import crypto
from tests.fuzz.witness import FLOATING, Captured, WitnessedHost, WitnessedSim
from tests.sim import LATENCY, Host, packet
from tests.test_hostile import ELSEWHERE, put_under_load, state
from tests.test_network import indices_of
from tests.tun.packets import Stream
from wgpy.config import NO_KEY, Endpoint, Prefix, SetDevice, SetPeer

KEEPALIVE_TIMEOUT, REKEY_TIMEOUT, JITTER = 10.0, 5.0, 1 / 3
RECOVERY = (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + JITTER) + (REKEY_TIMEOUT + JITTER) + 10 * LATENCY
PACE = 0.25
"""Seconds between two packets of a pair while it recovers."""
TRANSPORT = 4
REPEATED = 30
NAMES = "ABC"
MACS = 32
SENDER_INDEX = range(4, 8)

names = st.sampled_from(NAMES)
pairs = st.sampled_from(list(itertools.permutations(NAMES, 2)))
some_kinds = st.sampled_from([(), ("initiation",), ("response",), ("cookie reply",), ("data", "keepalive")])
edits = st.lists(st.tuples(st.integers(0, 1500), st.integers(1, 255)), min_size=1, max_size=3)


class Model(RuleBasedStateMachine):
    """Hosts that know each other, or did. A rule that names a host which is not there (two hosts) does nothing."""

    @initialize(
        seed=st.integers(0, 10_000),
        count=st.sampled_from([2, 3, 3]),
        gro=st.booleans(),
        preshared=st.booleans(),
        keepalive=st.sampled_from([0, 0, 5, 25]),
    )
    def begin(self, seed: int, count: int, gro: bool, preshared: bool, keepalive: int) -> None:
        self.sim = WitnessedSim(*NAMES[:count], seed=seed, gro=gro)
        self.pairs = list(itertools.permutations(NAMES[:count], 2))
        self.homes = {name: host.endpoint for name, host in self.sim.hosts.items()}
        self.places = {endpoint: name for name, endpoint in self.homes.items()}
        self.preshared_key = b"\x42" * 32 if preshared else NO_KEY
        self.keepalive = keepalive
        self.fastest_clock = dict.fromkeys(NAMES, 0.0)
        self.number = 0
        for one, other in self.pairs:
            self.introduce(one, other)

    def host(self, name: str) -> WitnessedHost:
        """The host of that name, or of another where there are but two."""
        return self.sim.hosts.get(name) or self.sim["A"]

    def two(self, pair: tuple[str, str]) -> tuple[WitnessedHost, WitnessedHost]:
        one, other = self.host(pair[0]), self.host(pair[1])
        return (one, other) if one is not other else (one, self.sim["B"])

    def introduce(self, one: str, other: str, endpoint: Endpoint | None = None) -> None:
        """Tell one host the other as it is now, and where it lives, or really is."""
        told, about = self.sim[one], self.sim[other]
        told.configure(
            SetPeer(
                about.public_key,
                preshared_key=self.preshared_key,
                endpoint=endpoint or self.homes[other],
                persistent_keepalive=self.keepalive,
                allowed_ips=about.own_prefixes,
            )
        )

    # -- traffic

    def next_payload(self, size: int) -> bytes:
        self.number += 1
        return self.number.to_bytes(4).ljust(size, b".")

    def packet_sent(self, one: Host, other: Host, size: int = 4, source: str | None = None) -> bytes:
        data = packet(source or one.address, other.address, self.next_payload(size))
        one.send_packet(data)
        return data

    @rule(pair=pairs, size=st.sampled_from([4, 20, 1392]))
    def send(self, pair: tuple[str, str], size: int) -> None:
        self.packet_sent(*self.two(pair), size)

    @rule(pair=pairs, number=st.integers(1, 3) | st.just(200), floating=st.booleans())
    def send_from_another_address(self, pair: tuple[str, str], number: int, floating: bool) -> None:
        """A pod may say what it likes; it is delivered where that address belongs to its node."""
        self.packet_sent(*self.two(pair), source=f"10.9.0.{number}" if floating else f"10.0.0.{number}")

    @rule(pair=pairs, count=st.integers(2, 50), size=st.sampled_from([7, 500]), whose=names)
    def send_a_superpacket(self, pair: tuple[str, str], count: int, size: int, whose: str) -> None:
        """From an address of its own, or of somebody else."""
        one, other = self.two(pair)
        source = one if whose == one.name else self.host(whose)
        flow = Stream(
            is_tcp=False,
            payload=b"".join(self.next_payload(size) for _ in range(count)),
            size=size,
            source=packed_address(source),
            destination=packed_address(other),
            dont_fragment=False,
        )
        one.send_packet(*reversed(flow.superpacket()))

    @rule(pair=pairs, seconds=st.integers(100, 200))
    def chat(self, pair: tuple[str, str], seconds: int) -> None:
        """Traffic over the time of a rekey."""
        for _ in range(seconds // 5):
            self.packet_sent(*self.two(pair), 20)
            self.sim.advance(5)

    # -- time

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.02, 0.3, 1, 5, 11]))
    def wait(self, seconds: float) -> None:
        self.sim.advance(seconds)

    @rule(seconds=st.sampled_from([121, 166, 181, 600]))
    def wait_long(self, seconds: float) -> None:
        self.sim.advance(seconds)

    @rule(name=names, seconds=st.sampled_from([1, 20, 130, 700]))
    def sleep(self, name: str, seconds: float) -> None:
        """A laptop is closed: timers and arrivals are late, all at once."""
        self.sim.sleep(self.host(name).name, seconds)

    @rule(name=names, seconds=st.sampled_from([-3600.0, -10.0, -0.01, 0.5, 3600.0]))
    def wall_clock_jumps(self, name: str, seconds: float) -> None:
        host = self.host(name)
        host.wall_offset += seconds
        self.fastest_clock[host.name] = max(self.fastest_clock[host.name], host.wall_offset)

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

    @rule(number=st.integers(1, 200))
    def roam(self, number: int) -> None:
        """A is somewhere else. What is on its way to it is lost."""
        self.sim["A"].endpoint = Endpoint(f"198.51.100.{number}", 1000 + number)
        self.places[self.sim["A"].endpoint] = "A"

    # -- the attacker, who hears everything and knows all public keys

    def captured(self, number: int, *kinds: str) -> Captured | None:
        """What was heard ``number`` messages ago, of these kinds if there are any."""
        heard = [one for one in self.sim.captured[-300:] if not kinds or one.kind in kinds]
        return heard[-1 - number % len(heard)] if heard else None

    def addressee(self, heard: Captured) -> WitnessedHost | None:
        """Who lives there, or did."""
        name = self.places.get(heard.endpoint)
        return None if name is None else self.sim[name]

    def unmoved(self, host: WitnessedHost, datagram: bytes) -> None:
        """``host`` must not care for ``datagram`` at all."""
        before, written = state(host.device), len(host.writes)
        host.receive(datagram, 0, ELSEWHERE)
        assert state(host.device) == before
        assert len(host.writes) == written

    @rule(name=names, number=st.integers(0, 5) | st.integers(0, 300), kinds=some_kinds, edits=edits, mac1=st.booleans())
    def forge(self, name: str, number: int, kinds: tuple[str, ...], edits: list[tuple[int, int]], mac1: bool) -> None:
        """A true message is changed; mac1 is put right, or not. What no MAC is about, mac2 and the sender index, stays."""
        heard, host = self.captured(number, *kinds), self.host(name)
        if heard is None:
            return
        forged = bytearray(heard.datagram)
        end = len(forged) - (MACS if heard.kind in ("initiation", "response") else 0)
        for at, change in edits:
            if at % end not in SENDER_INDEX:
                forged[at % end] ^= change
        if forged == heard.datagram:
            return
        if mac1 and end != len(forged):
            forged[end : end + MACS // 2] = crypto.mac(crypto.hash_(b"mac1----" + host.public_key), bytes(forged[:end]))
        self.unmoved(host, bytes(forged))

    @rule(number=st.integers(0, 5) | st.integers(0, 300), kinds=some_kinds)
    def play_back(self, number: int, kinds: tuple[str, ...]) -> None:
        """Any message that was heard, once more and from where it came: it may have been lost the first time. One that was taken
        is nothing any more."""
        heard = self.captured(number, *kinds)
        host = self.addressee(heard) if heard else None
        if heard is None or host is None:
            return
        if heard.datagram in host.consumed:
            self.unmoved(host, heard.datagram)
        else:
            host.receive(heard.datagram, 0, heard.source)

    @rule(pair=pairs, seconds=st.sampled_from([0.5, 30, 110, 170, 181, 240]), speaks=st.booleans())
    def hold_back(self, pair: tuple[str, str], seconds: float, speaks: bool) -> None:
        """A packet is on its way for as long as somebody likes, while everything else goes on."""
        one, other = self.two(pair)
        self.packet_sent(one, other)
        self.sim.advance(0.5)
        before, deliver = len(self.sim.captured), self.sim.deliver
        self.sim.cut(one.name)
        self.packet_sent(one, other)
        held = self.sim.captured[before:]
        self.sim.deliver = deliver
        for _ in range(int(seconds / 5) if speaks else 0):
            self.packet_sent(other, one)
            self.sim.advance(5)
        self.sim.advance(seconds % 5 if speaks else seconds)
        for heard in held:
            if self.addressee(heard) is other:
                other.receive(heard.datagram, 0, heard.source)

    @rule(number=st.integers(0, 300), count=st.integers(2, 40), in_order=st.booleans())
    def splice(self, number: int, count: int, in_order: bool) -> None:
        """Data that was heard, new and old, arrives in one burst."""
        heard = self.captured(number)
        host = self.addressee(heard) if heard else None
        if heard is None or host is None or heard.kind != "data":
            return
        size = len(heard.datagram)
        alike = [one for one in self.sim.captured[-300:] if (one.endpoint, len(one.datagram)) == (heard.endpoint, size)][-count:]
        if not in_order:
            self.sim.random.shuffle(alike)
        host.receive(b"".join(one.datagram for one in alike), size, heard.source)

    @rule(number=st.integers(0, 300))
    def mislead(self, number: int) -> None:
        """A message reaches everybody for whom it is not meant. (Not so a cookie for the attacker's own address, which he gets by
        repeating somebody's initiation: it is as good as a true one to whoever made that.)"""
        heard = self.captured(number)
        if heard is None or (heard.kind == "cookie reply" and self.addressee(heard) is None):
            return
        for host in self.sim.hosts.values():
            if host is not self.addressee(heard):
                self.unmoved(host, heard.datagram)

    @rule(name=names)
    def flood(self, name: str) -> None:
        """Handshake messages that anybody can make: for a second the host answers honest ones with a cookie, too."""
        put_under_load(self.host(name))

    # -- the devices, and who administers them

    @rule(name=names)
    def restart(self, name: str) -> None:
        """A new process with the same key and configuration; it knows nothing of sessions."""
        host = self.host(name)
        host.restart()
        for one, other in self.pairs:
            if one == host.name:
                self.introduce(one, other)

    @rule(name=names, seconds=st.sampled_from([0, 0, 3]))
    def go_down_and_up(self, name: str, seconds: float) -> None:
        host = self.host(name)
        host.go_down()
        self.sim.advance(seconds)
        host.device.up(self.sim.now)

    @rule(pair=pairs)
    def rekey(self, pair: tuple[str, str]) -> None:
        one, other = self.two(pair)
        peer = one.device.peers.get(other.public_key)
        if peer is not None:
            one.device.send_initiation(peer, self.sim.now)

    @rule(name=names, seed=st.integers(0, 255))
    def change_key(self, name: str, seed: int) -> None:
        """Nobody is told: see ``learn``."""
        host = self.host(name)
        private_key = crypto.clamp(bytes([seed]) + host.private_key[1:])
        if private_key == host.private_key:
            return
        host.private_key = private_key
        host.public_key = crypto.public_key(host.private_key)
        host.configure(SetDevice(private_key=host.private_key))

    @rule(pair=pairs)
    def learn(self, pair: tuple[str, str]) -> None:
        """One host is told the other's key of today. The one of yesterday stays until ``forget``."""
        one, other = self.two(pair)
        self.introduce(one.name, other.name)

    @rule(pair=pairs)
    def forget(self, pair: tuple[str, str]) -> None:
        """One host knows the other no more, under any key."""
        one, other = self.two(pair)
        one.forget_peers(sorted(other.identities & one.device.peers.keys()))

    @rule(pair=pairs, prefix=st.sampled_from(FLOATING), whose=names, removed=st.booleans())
    def move_prefix(self, pair: tuple[str, str], prefix: Prefix, whose: str, removed: bool) -> None:
        """A prefix becomes a peer's, or is taken from it. ``whose`` names a host whose own address is moved instead."""
        one, other = self.two(pair)
        prefixes = (prefix,) if whose == other.name else self.host(whose).own_prefixes
        kwargs = {"removed_allowed_ips" if removed else "allowed_ips": prefixes}
        one.configure(SetPeer(other.public_key, update_only=True, **kwargs))  # type: ignore[arg-type]

    @rule(pair=pairs, seconds=st.sampled_from([0, 5, 25]))
    def set_keepalive(self, pair: tuple[str, str], seconds: int) -> None:
        one, other = self.two(pair)
        one.configure(SetPeer(other.public_key, update_only=True, persistent_keepalive=seconds))

    # -- what must hold

    @precondition(lambda self: hasattr(self, "sim"))
    @invariant()
    def nothing_grows(self) -> None:
        for host in self.sim.hosts.values():
            device = host.device
            assert len(device.indices) <= 4 * len(device.peers)
            assert len(device._schedule) <= 5 * (len(device.peers) + len(host.identities) + len(self.sim.resets))
            for peer in device.peers.values():
                assert len(peer.staged) <= 128
                assert all(device.indices[index][0] is peer for index in indices_of(peer))
            host.delivered()

    def make_good(self, *, roaming: bool = False) -> None:
        """The network heals, clocks are set right, and everybody is told what is true; with ``roaming`` all but where A is
        now."""
        self.sim.heal()
        for name, host in self.sim.hosts.items():
            host.wall_offset = self.fastest_clock[name]
            true = {other.public_key for other in self.sim.hosts.values() if other is not host}
            host.forget_peers(sorted(host.device.peers.keys() - true))
            for key in true:
                host.configure(SetPeer(key, replace_allowed_ips=True))
        for one, other in self.pairs:
            self.introduce(one, other, None if roaming else self.sim[other].endpoint)

    @precondition(lambda self: hasattr(self, "sim"))
    @rule()
    def recover(self) -> None:
        """Everybody speaks to everybody, a little after one another; RECOVERY seconds later nothing is lost any more."""
        self.make_good(roaming=True)
        end = self.sim.now + RECOVERY
        while self.sim.now < end:
            self.everybody_speaks()
        spoken = self.everybody_speaks()
        self.sim.advance(1)
        for data in spoken:
            assert self.sim.was_delivered(data), "a packet was lost though all is well"
        self.must_agree()
        self.must_ignore_what_was_taken()
        for one, other in self.pairs:
            self.must_tell_new_from_old(self.sim[one], self.sim[other])

    @rule(pair=pairs)
    def recover_unanswered(self, pair: tuple[str, str]) -> None:
        """One speaks and the other has nothing to say: what it must say by itself is enough."""
        self.make_good()
        end = self.sim.now + RECOVERY
        while self.sim.now < end:
            self.packet_sent(*self.two(pair))
            self.sim.advance(PACE)
        spoken = self.packet_sent(*self.two(pair))
        self.sim.advance(1)
        assert self.sim.was_delivered(spoken), "a packet was lost though all is well"

    @rule(pair=pairs, flooded=st.booleans())
    def recover_after_a_start(self, pair: tuple[str, str], flooded: bool) -> None:
        """One packet is all that a host has to say after its start. It waits for a session, and is not forgotten; not even if the
        other end is flooded all the while, for then there are cookies."""
        one, other = self.two(pair)
        self.restart(one.name)
        self.make_good()
        waiting = self.packet_sent(one, other)
        for _ in range(int(RECOVERY * 2) + 1):
            if flooded:
                put_under_load(other)
            self.sim.advance(0.5)
            self.must_ignore_what_was_taken()
        assert self.sim.was_delivered(waiting), "a packet was forgotten that waited for a session"

    def must_ignore_what_was_taken(self) -> None:
        """What hosts took lately, once more; and all the handshake messages."""
        for host in self.sim.hosts.values():
            taken = list(host.consumed)
            for datagram in [one for one in taken if one[0] != TRANSPORT] + taken[-REPEATED:]:
                self.unmoved(host, datagram)

    def must_tell_new_from_old(self, one: WitnessedHost, other: WitnessedHost) -> None:
        """Two packets that were delivered, and two that were not, in one burst. The witness sees to the old ones."""
        before = len(self.sim.captured)
        self.sim.cut()
        packets = [self.packet_sent(one, other) for _ in range(2)]
        self.sim.heal()
        new = [heard.datagram for heard in self.sim.captured[before:] if heard.kind == "data"]
        old = [taken for taken in other.consumed if taken[:8] == new[0][:8] and len(taken) == len(new[0])]
        other.receive(b"".join(old[-2:] + new), len(new[0]), one.endpoint)
        assert all(map(self.sim.was_delivered, packets))

    def everybody_speaks(self) -> list[bytes]:
        spoken = []
        for one, other in self.pairs:
            spoken.append(self.packet_sent(self.sim[one], self.sim[other]))
            self.sim.advance(PACE / len(self.pairs))
        return spoken

    def must_agree(self) -> None:
        for one, other in self.pairs:
            ours = self.sim[one].peer_of(self.sim[other]).keypairs.current
            theirs = self.sim[other].peer_of(self.sim[one]).keypairs.current
            assert ours is not None and theirs is not None
            assert (ours.local_index, ours.remote_index) == (theirs.remote_index, theirs.local_index), "two sessions"

    def teardown(self) -> None:
        if hasattr(self, "sim"):
            self.recover_unanswered(self.sim.random.choice(self.pairs))
            self.recover()


def packed_address(host: Host) -> bytes:
    return bytes(map(int, host.address.split(".")))


TestModel = pytest.mark.slow(Model.TestCase)
TestModel.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def search(seconds: float) -> int:
    """Look for new histories for so long, and give how many were tried. Raises what one of them comes to, made as small as can
    be."""
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        run_state_machine_as_test(
            Model,
            settings=settings(
                max_examples=20,
                stateful_step_count=50,
                deadline=None,
                database=InMemoryExampleDatabase(),
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
        tried += 20
    return tried


if __name__ == "__main__":
    print(f"{search(float(sys.argv[1]))} histories")
