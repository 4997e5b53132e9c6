"""§6.2, §6.4 and §6.5 on a virtual clock: each rule of the five timers, and the laws of the table."""

import random
from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise.timers import Action, PeerTimers, Timer

NO_JITTER: Callable[[], float] = lambda: 0.0  # noqa: E731
JITTER = 1 / 3


def seeded_jitter(seed: int) -> Callable[[], float]:
    generator = random.Random(seed)
    return lambda: generator.uniform(0, JITTER)


class Owner:
    """A peer's owner on a virtual clock: reports what it does as the device would, and moves by deadlines alone."""

    def __init__(self, jitter: Callable[[], float] = NO_JITTER, now: float = 1000.0) -> None:
        self.timers = PeerTimers(jitter)
        self.now = now
        self.log: list[tuple[float, Action]] = []
        self.initiations: list[float] = []
        self.staged_dropped = 0

    def advance(self, seconds: float) -> None:
        self.advance_to(self.now + seconds)

    def advance_to(self, until: float) -> None:
        """Let time pass, waking exactly when told to. Bounded: a deadline that survives would spin."""
        for _ in range(10_000):
            deadline = self.timers.next_deadline()
            if deadline > until:
                break
            self.now = deadline
            self.wake()
            assert self.timers.next_deadline() > self.now
        else:
            raise AssertionError("it spins")
        self.now = until

    def wake(self) -> None:
        for action in self.timers.expire(self.now):
            self.log.append((self.now, action))
            match action:
                case Action.SEND_INITIATION:
                    self.initiate(is_retry=False)
                case Action.RETRY_INITIATION:
                    self.initiate(is_retry=True)
                case Action.SEND_KEEPALIVE:
                    self.send(has_data=False)
                case Action.DROP_STAGED_PACKETS:
                    self.staged_dropped += 1
                case Action.ZERO_KEY_MATERIAL:
                    pass

    def initiate(self, *, is_retry: bool = False) -> None:
        if self.timers.may_initiate(self.now, is_retry=is_retry):
            self.timers.handshake_sent(self.now)
            self.timers.any_authenticated_packet_traversal(self.now)
            self.timers.any_authenticated_packet_sent()
            self.initiations.append(self.now)
            self.timers.handshake_initiated(self.now)

    def send(self, *, has_data: bool = True) -> None:
        self.timers.any_authenticated_packet_traversal(self.now)
        self.timers.any_authenticated_packet_sent()
        if has_data:
            self.timers.data_sent(self.now)

    def receive(self, *, has_data: bool = True) -> None:
        self.timers.any_authenticated_packet_received()
        self.timers.any_authenticated_packet_traversal(self.now)
        if has_data:
            self.timers.data_received(self.now)

    def consume_response(self) -> None:
        self.timers.session_derived(self.now)
        self.timers.handshake_complete()
        self.receive(has_data=False)

    def respond(self) -> None:
        self.timers.handshake_sent(self.now)
        self.timers.session_derived(self.now)
        self.timers.any_authenticated_packet_traversal(self.now)
        self.timers.any_authenticated_packet_sent()

    def actions(self, *kinds: Action) -> list[float]:
        return [at for at, action in self.log if action in kinds]


def test_new_timers_have_nothing_to_do() -> None:
    timers = PeerTimers(NO_JITTER)

    assert timers.next_deadline() == inf
    assert timers.armed_earliest == inf
    assert timers.expire(1e9) == []


# --- §6.4: retransmission ---


def test_nobody_answers_twenty_initiations_and_then_there_is_silence() -> None:
    owner = Owner()
    owner.initiate()
    owner.advance(3600)

    assert owner.initiations == [1000.0 + 5.0 * attempt for attempt in range(20)]
    assert owner.staged_dropped == 1
    assert owner.actions(Action.DROP_STAGED_PACKETS) == [1100.0]
    assert owner.actions(Action.ZERO_KEY_MATERIAL) == [1640.0]
    assert owner.timers.next_deadline() == inf


@given(st.integers())
def test_initiations_are_5_to_5_and_a_third_seconds_apart(seed: int) -> None:
    owner = Owner(seeded_jitter(seed))
    owner.initiate()
    owner.advance(3600)

    assert len(owner.initiations) == 20
    apart = [later - earlier for earlier, later in zip(owner.initiations, owner.initiations[1:], strict=False)]
    assert all(4.999 < gap < 5.334 for gap in apart)
    assert len(set(apart)) > 1, "two ends must not go on initiating at the same time"


def test_giving_up_cancels_the_keepalive_that_was_due() -> None:
    owner = Owner()
    owner.initiate()
    owner.advance(99)
    owner.receive()
    owner.advance(3600)

    assert owner.staged_dropped == 1
    assert Action.SEND_KEEPALIVE not in {action for _, action in owner.log}


def test_giving_up_leaves_a_zeroing_that_is_already_due_where_it_is() -> None:
    owner = Owner()
    owner.respond()
    owner.advance(10)
    owner.initiate()
    owner.advance(3600)

    assert owner.actions(Action.ZERO_KEY_MATERIAL) == [1540.0]


def test_new_traffic_begins_a_new_count_of_attempts() -> None:
    owner = Owner()
    owner.initiate()
    owner.advance(52)
    assert len(owner.initiations) == 11

    owner.initiate()  # traffic asks again, less than 5 s after the last attempt
    assert len(owner.initiations) == 11, "the gate is shut"
    owner.advance(3600)

    assert len(owner.initiations) == 11 + 19, "but the count began anew"


def test_a_response_ends_the_retransmissions() -> None:
    owner = Owner()
    owner.initiate()
    owner.advance(7)
    owner.consume_response()
    owner.advance(100)

    assert owner.initiations == [1000.0, 1005.0]
    assert owner.timers.handshake_attempts == 0


def test_after_giving_up_traffic_starts_over() -> None:
    owner = Owner()
    owner.initiate()
    owner.advance(200)
    owner.initiate()
    owner.advance(200)

    assert len(owner.initiations) == 40


# --- The gate ---


def test_there_are_five_seconds_between_two_initiations() -> None:
    timers = PeerTimers(NO_JITTER)
    assert timers.may_initiate(0.0, is_retry=False)
    timers.handshake_sent(100.0)

    assert not timers.may_initiate(104.999, is_retry=False)
    assert not timers.may_initiate(104.999, is_retry=True)
    assert timers.may_initiate(105.0, is_retry=False)


def test_a_response_shuts_the_gate_too() -> None:
    owner = Owner()
    owner.respond()
    owner.advance(4.9)
    owner.initiate()
    assert owner.initiations == []

    owner.advance(0.1)
    owner.initiate()
    assert owner.initiations == [owner.now]


def test_a_new_private_key_opens_the_gate() -> None:
    timers = PeerTimers(NO_JITTER)
    timers.handshake_sent(100.0)
    timers.forget_last_handshake()

    assert timers.may_initiate(100.0, is_retry=False)


def test_only_a_retry_keeps_the_count_of_attempts() -> None:
    timers = PeerTimers(NO_JITTER, handshake_attempts=7)

    timers.may_initiate(0.0, is_retry=True)
    assert timers.handshake_attempts == 7
    timers.may_initiate(0.0, is_retry=False)
    assert timers.handshake_attempts == 0


# --- §6.5: passive keepalive, and a session that died at the other end ---


def test_received_data_is_acknowledged_after_10_seconds_of_sending_nothing() -> None:
    owner = Owner()
    owner.receive()
    owner.advance(3)
    owner.receive()
    owner.advance(100)

    assert owner.actions(Action.SEND_KEEPALIVE) == [1010.0], "counted from the first, and once"


def test_a_keepalive_is_not_answered_with_a_keepalive() -> None:
    owner = Owner()
    owner.receive(has_data=False)
    owner.advance(100)

    assert owner.log == []


@pytest.mark.parametrize("has_data", [True, False])
def test_sending_anything_makes_the_keepalive_needless(has_data: bool) -> None:
    owner = Owner()
    owner.receive()
    owner.advance(9)
    owner.send(has_data=has_data)
    owner.advance(5)

    assert owner.actions(Action.SEND_KEEPALIVE) == []


def test_more_data_while_a_keepalive_is_due_asks_for_another_one() -> None:
    """In a table whose owner could not send the first: the second comes 10 s after it."""
    timers = PeerTimers(NO_JITTER)
    timers.data_received(0.0)
    timers.data_received(1.0)

    assert timers.expire(10.0) == [Action.SEND_KEEPALIVE]
    assert timers.next_deadline() == 20.0
    assert timers.expire(20.0) == [Action.SEND_KEEPALIVE]
    assert timers.next_deadline() == inf


@given(st.integers())
def test_unanswered_data_starts_a_new_handshake_after_15_seconds(seed: int) -> None:
    owner = Owner(seeded_jitter(seed))
    owner.send()
    owner.advance(2)
    owner.send()
    owner.advance(15)

    assert len(owner.initiations) == 1
    assert 1015.0 <= owner.initiations[0] <= 1015.0 + JITTER
    assert owner.actions(Action.SEND_INITIATION) == owner.initiations


@pytest.mark.parametrize("jitter", [0.0, 0.2, JITTER])
def test_what_both_ends_would_do_at_once_is_spread_by_the_jitter(jitter: float) -> None:
    """6.1: or two ends that lost each other's packets would initiate at the same instant, again and again."""
    owner = Owner(lambda: jitter)
    owner.send()
    owner.advance(29)

    assert owner.initiations == pytest.approx([1015 + jitter, 1020 + 2 * jitter, 1025 + 3 * jitter])


@pytest.mark.parametrize("has_data", [True, False])
def test_anything_received_shows_that_the_session_lives(has_data: bool) -> None:
    owner = Owner()
    owner.send()
    owner.advance(14)
    owner.receive(has_data=has_data)
    owner.advance(5)

    assert owner.initiations == []


def test_a_keepalive_sent_expects_no_answer() -> None:
    owner = Owner()
    owner.send(has_data=False)
    owner.advance(3600)

    assert owner.log == []


# --- Zeroing ---


def test_keys_are_zeroed_540_seconds_after_the_last_session() -> None:
    owner = Owner()
    owner.consume_response()
    owner.advance(100)
    owner.respond()
    owner.advance(3600)

    assert owner.log == [(1640.0, Action.ZERO_KEY_MATERIAL)]


def test_after_a_long_sleep_keys_are_zeroed_before_a_handshake_begins() -> None:
    owner = Owner()
    owner.respond()
    owner.send()
    owner.now += 100_000
    owner.wake()

    assert [action for _, action in owner.log] == [Action.ZERO_KEY_MATERIAL, Action.SEND_INITIATION]


# --- Persistent keepalive ---


def test_silence_for_the_interval_brings_a_persistent_keepalive_again_and_again() -> None:
    owner = Owner()
    owner.timers.persistent_keepalive = 25
    owner.send(has_data=False)
    owner.advance(100)

    assert owner.actions(Action.SEND_KEEPALIVE) == [1025.0, 1050.0, 1075.0, 1100.0]


def test_traffic_either_way_puts_the_persistent_keepalive_off() -> None:
    owner = Owner()
    owner.timers.persistent_keepalive = 25
    owner.send(has_data=False)
    for _ in range(5):
        owner.advance(20)
        owner.receive(has_data=False)
    owner.advance(24.9)
    assert owner.log == []

    owner.advance(0.1)
    assert owner.actions(Action.SEND_KEEPALIVE) == [1125.0]


def test_switched_off_there_is_no_persistent_keepalive_any_more() -> None:
    owner = Owner()
    owner.timers.persistent_keepalive = 25
    owner.send(has_data=False)
    owner.timers.persistent_keepalive = 0
    owner.advance(100)

    assert owner.log == []
    assert owner.timers.next_deadline() == inf


def test_initiations_put_the_persistent_keepalive_off_too() -> None:
    owner = Owner()
    owner.timers.persistent_keepalive = 25
    owner.initiate()
    owner.advance(99)

    assert owner.actions(Action.SEND_KEEPALIVE) == []


# --- Flags and stopping ---


def test_a_handshake_allows_the_next_last_minute_one() -> None:
    timers = PeerTimers(NO_JITTER)
    timers.sent_lastminute_handshake = True
    timers.handshake_complete()

    assert not timers.sent_lastminute_handshake


def test_stopped_timers_have_nothing_to_do_and_leave_the_gate_open() -> None:
    owner = Owner()
    owner.timers.persistent_keepalive = 25
    owner.initiate()
    owner.respond()
    owner.send()
    owner.receive()
    owner.timers.stop()

    assert owner.timers.next_deadline() == inf
    assert owner.timers.may_initiate(owner.now, is_retry=False)


# --- Laws ---

EVENTS: dict[str, Callable[[Owner], None]] = {
    "initiate": Owner.initiate,
    "send": Owner.send,
    "receive": Owner.receive,
    "send keepalive": lambda owner: owner.send(has_data=False),
    "receive keepalive": lambda owner: owner.receive(has_data=False),
    "consume response": Owner.consume_response,
    "respond": Owner.respond,
    "persistent keepalive on": lambda owner: setattr(owner.timers, "persistent_keepalive", 7.5),
    "persistent keepalive off": lambda owner: setattr(owner.timers, "persistent_keepalive", 0),
    "stop": lambda owner: owner.timers.stop(),
}

histories = st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.floats(0, 200)), max_size=40)


def lived(owner: Owner, history: list[tuple[str, float]]) -> Owner:
    for event, seconds in history:
        EVENTS[event](owner)
        owner.advance(seconds)
    owner.advance(1000)
    return owner


@given(histories, st.integers())
def test_no_deadline_survives_being_expired(history: list[tuple[str, float]], seed: int) -> None:
    """advance() checks it at every deadline."""
    lived(Owner(seeded_jitter(seed)), history)


@given(histories, st.integers())
def test_before_its_deadline_nothing_happens(history: list[tuple[str, float]], seed: int) -> None:
    owner = Owner(seeded_jitter(seed))
    for event, seconds in history:
        EVENTS[event](owner)
        deadline = owner.timers.next_deadline()
        if deadline != inf:
            before = list(owner.timers.deadlines)
            assert owner.timers.expire(deadline - 0.001) == []
            assert owner.timers.deadlines == before
        owner.advance(seconds)


@given(histories, st.integers())
def test_the_same_seed_gives_the_same_schedule(history: list[tuple[str, float]], seed: int) -> None:
    one, other = lived(Owner(seeded_jitter(seed)), history), lived(Owner(seeded_jitter(seed)), history)

    assert one.log == other.log
    assert one.initiations == other.initiations


class FussyOwner(Owner):
    """Wakes far too often."""

    def advance(self, seconds: float) -> None:
        start = self.now
        for sevenths in range(1, 8):
            self.advance_to(start + seconds * (sevenths / 7))
            self.wake()


@given(histories, st.integers())
def test_who_wakes_too_often_sees_the_same(history: list[tuple[str, float]], seed: int) -> None:
    calm, fussy = lived(Owner(seeded_jitter(seed)), history), lived(FussyOwner(seeded_jitter(seed)), history)

    assert fussy.log == calm.log


class LazyOwner(Owner):
    """Looks at the table only when it wakes; on every event it compares one number, as the data path does."""

    wake_at = inf

    def reported(self) -> None:
        if self.timers.armed_earliest < self.wake_at:
            self.wake_at = self.timers.armed_earliest
        self.timers.armed_earliest = inf

    def advance_to(self, until: float) -> None:
        self.reported()
        for _ in range(10_000):
            if self.wake_at > until:
                break
            self.now = self.wake_at
            self.wake()
            self.wake_at = self.timers.next_deadline()
            self.timers.armed_earliest = inf
        else:
            raise AssertionError("it spins")
        self.now = until


@settings(max_examples=200)
@given(histories, st.integers())
def test_an_owner_that_only_watches_armed_earliest_misses_nothing(history: list[tuple[str, float]], seed: int) -> None:
    eager, lazy = lived(Owner(seeded_jitter(seed)), history), lived(LazyOwner(seeded_jitter(seed)), history)

    assert lazy.log == eager.log


def test_every_timer_has_a_deadline_in_the_table() -> None:
    timers = PeerTimers(NO_JITTER, persistent_keepalive=30)
    timers.session_derived(0.0)
    timers.handshake_initiated(0.0)
    timers.data_sent(0.0)
    timers.data_received(0.0)
    timers.any_authenticated_packet_traversal(0.0)

    assert {timer.name: timers.deadlines[timer] for timer in Timer} == {
        "ZERO_KEY_MATERIAL": 540.0,
        "RETRANSMIT_HANDSHAKE": 5.0,
        "NEW_HANDSHAKE": 15.0,
        "SEND_KEEPALIVE": 10.0,
        "PERSISTENT_KEEPALIVE": 30.0,
    }
    assert timers.armed_earliest == 5.0
