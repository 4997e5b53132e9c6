"""§6.2 and §6.3: how long a keypair may be used, and how three of them take each other's place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from noise.handshake import TransportKeys
from noise.keypair import Keypair, Keypairs

REJECT = 2**64 - 8130


def keypair(index: int = 0, *, is_initiator: bool = True, created_at: float = 0.0) -> Keypair:
    return Keypair.derived(TransportKeys(index, index + 1, is_initiator, b"s" * 32, b"r" * 32), created_at)


# --- One keypair ---


def test_a_new_keypair_starts_at_zero_and_can_be_used() -> None:
    new = keypair(7, created_at=50.0)

    assert (new.local_index, new.remote_index, new.is_initiator, new.created_at) == (7, 8, True, 50.0)
    assert new.send_counter == 0
    assert new.replay_window.greatest == -1
    assert new.can_send(50.0)
    assert new.can_receive(50.0)


def test_a_keypair_is_dead_after_180_seconds() -> None:
    old = keypair(created_at=50.0)

    assert old.can_send(229.99)
    assert old.can_receive(229.99)
    assert not old.can_send(230.0)
    assert not old.can_receive(230.0)


def test_a_keypair_without_counters_cannot_send() -> None:
    worn = keypair()

    worn.send_counter = REJECT - 1
    assert worn.can_send(0.0)
    worn.send_counter = REJECT
    assert not worn.can_send(0.0)


def test_a_keypair_that_received_the_last_counter_cannot_receive() -> None:
    worn = keypair()

    worn.replay_window.accept(REJECT - 2)
    assert worn.can_receive(0.0)
    worn.replay_window.accept(REJECT - 1)
    assert not worn.can_receive(0.0)


@pytest.mark.parametrize(("is_initiator", "age", "is_due"), [(True, 119.9, False), (True, 120.0, True), (False, 179.0, False)])
def test_only_the_initiator_rekeys_by_age_when_it_sends(is_initiator: bool, age: float, is_due: bool) -> None:
    assert keypair(is_initiator=is_initiator).needs_rekey_on_send(age) is is_due


@pytest.mark.parametrize("is_initiator", [True, False])
def test_either_end_rekeys_after_2_to_the_60_messages(is_initiator: bool) -> None:
    worn = keypair(is_initiator=is_initiator)

    worn.send_counter = 2**60
    assert not worn.needs_rekey_on_send(0.0)
    worn.send_counter = 2**60 + 1
    assert worn.needs_rekey_on_send(0.0)


@pytest.mark.parametrize(("is_initiator", "age", "is_due"), [(True, 164.9, False), (True, 165.0, True), (False, 170.0, False)])
def test_only_the_initiator_rekeys_at_the_last_minute_when_it_receives(is_initiator: bool, age: float, is_due: bool) -> None:
    assert keypair(is_initiator=is_initiator).needs_rekey_on_receive(age) is is_due


def test_an_invalidated_keypair_receives_but_neither_sends_nor_rekeys() -> None:
    invalid = keypair()
    invalid.invalidate_sending()

    assert not invalid.can_send(0.0)
    assert invalid.can_receive(0.0)
    assert not invalid.needs_rekey_on_send(150.0)
    assert not invalid.needs_rekey_on_receive(170.0)


def test_no_key_is_in_a_repr() -> None:
    assert "ssss" not in repr(keypair())
    assert "encrypt" not in repr(keypair())


# --- Three slots ---

OLD, NOW, NEXT, NEW = (keypair(index) for index in (10, 20, 30, 40))


def slots(keypairs: Keypairs) -> tuple[Keypair | None, Keypair | None, Keypair | None]:
    return keypairs.previous, keypairs.current, keypairs.next


def test_the_initiator_uses_new_keys_at_once() -> None:
    keypairs = Keypairs(OLD, NOW, None)

    assert keypairs.initiator_derived(NEW) == [OLD]
    assert slots(keypairs) == (NOW, NEW, None)


def test_the_initiator_keeps_an_unconfirmed_next_rather_than_the_older_current() -> None:
    keypairs = Keypairs(OLD, NOW, NEXT)

    assert keypairs.initiator_derived(NEW) == [OLD, NOW]
    assert slots(keypairs) == (NEXT, NEW, None)


def test_the_responder_goes_on_sending_under_current() -> None:
    keypairs = Keypairs(OLD, NOW, NEXT)

    assert keypairs.responder_derived(NEW) == [NEXT, OLD]
    assert slots(keypairs) == (None, NOW, NEW)


def test_the_first_message_under_next_makes_it_current() -> None:
    keypairs = Keypairs(OLD, NOW, NEXT)

    assert keypairs.confirmed() == [OLD]
    assert slots(keypairs) == (NOW, NEXT, None)


def test_the_first_session_has_nothing_to_replace() -> None:
    initiator, responder = Keypairs(), Keypairs()

    assert initiator.initiator_derived(NEW) == []
    assert slots(initiator) == (None, NEW, None)
    assert responder.responder_derived(NEW) == []
    assert slots(responder) == (None, None, NEW)
    assert responder.confirmed() == []
    assert slots(responder) == (None, NEW, None)


def test_clear_leaves_nothing() -> None:
    keypairs = Keypairs(OLD, NOW, NEXT)

    assert keypairs.clear() == [OLD, NOW, NEXT]
    assert slots(keypairs) == (None, None, None)
    assert keypairs.clear() == []


def test_a_new_private_key_stops_sending_under_current_and_next() -> None:
    keypairs = Keypairs(keypair(1), keypair(2), keypair(3))
    keypairs.invalidate_sending()

    assert [k.can_send(0.0) for k in slots(keypairs) if k] == [True, False, False]
    assert all(k.can_receive(0.0) for k in slots(keypairs) if k)


class Slots(RuleBasedStateMachine):
    """Against an index table that is told only what fell out: it must always hold exactly the three slots."""

    def __init__(self) -> None:
        super().__init__()
        self.keypairs = Keypairs()
        self.table: dict[int, Keypair] = {}
        self.derived = 0

    def new(self, *, is_initiator: bool) -> Keypair:
        self.derived += 1
        new = keypair(self.derived, is_initiator=is_initiator)
        self.table[new.local_index] = new
        return new

    def forget(self, fallen: list[Keypair]) -> None:
        for gone in fallen:
            del self.table[gone.local_index]  # KeyError: it fell out twice

    @rule()
    def a_response_is_consumed(self) -> None:
        new = self.new(is_initiator=True)
        self.forget(self.keypairs.initiator_derived(new))
        assert self.keypairs.current is new

    @rule()
    def a_response_is_sent(self) -> None:
        sending = self.keypairs.current
        new = self.new(is_initiator=False)
        self.forget(self.keypairs.responder_derived(new))
        assert self.keypairs.next is new
        assert self.keypairs.current is sending

    @precondition(lambda self: self.keypairs.next is not None)
    @rule()
    def next_is_confirmed(self) -> None:
        sending, confirmed = self.keypairs.current, self.keypairs.next
        self.forget(self.keypairs.confirmed())
        assert self.keypairs.current is confirmed
        assert self.keypairs.previous is sending
        assert self.keypairs.next is None

    @rule()
    def all_is_cleared(self) -> None:
        self.forget(self.keypairs.clear())

    @invariant()
    def the_table_holds_the_slots(self) -> None:
        held = [keypair for keypair in slots(self.keypairs) if keypair is not None]
        assert sorted(self.table) == sorted(keypair.local_index for keypair in held)

    @invariant()
    def only_a_responder_has_a_next(self) -> None:
        assert self.keypairs.next is None or not self.keypairs.next.is_initiator


TestSlots = Slots.TestCase


@given(st.floats(0, 1e6), st.floats(0, 1000))
def test_what_cannot_receive_cannot_send_by_age_either(created_at: float, age: float) -> None:
    aged = keypair(created_at=created_at)

    assert aged.can_send(created_at + age) == aged.can_receive(created_at + age)
