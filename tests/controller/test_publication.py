"""When the key is published, with an allocator that takes its time and a Felix that clears keys (calico.md 16)."""

from dataclasses import dataclass
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.publication import ADDRESS_SECONDS, ECHO_SECONDS, RELEASE_SECONDS, Action, Publication

KEY, OTHER = bytes([1]) * 32, bytes([2]) * 32


def published(publication: Publication, now: float = 0.0) -> Publication:
    """After our key has been seen in its place."""
    assert publication.decide(KEY, KEY, True, now) is Action.KEEP
    return publication


def test_the_first_key_is_published_at_once() -> None:
    assert Publication().decide(None, KEY, False, 0.0) is Action.PUBLISH


def test_a_key_just_published_is_given_time_to_show() -> None:
    publication = Publication()
    publication.decide(None, KEY, False, 0.0)

    assert publication.decide(None, KEY, False, 0.1) is Action.KEEP
    assert publication.wake_at == ECHO_SECONDS
    assert publication.decide(None, KEY, False, 1.0) is Action.PUBLISH


def test_somebody_elses_key_is_replaced_at_once() -> None:
    assert published(Publication()).decide(OTHER, KEY, True, 1.0) is Action.PUBLISH


def test_a_cleared_key_waits_until_the_allocator_has_taken_notice() -> None:
    publication = published(Publication())

    assert publication.decide(None, KEY, True, 10.0) is Action.KEEP
    assert publication.wake_at == 10.0 + RELEASE_SECONDS
    assert publication.decide(None, KEY, False, 10.1) is Action.PUBLISH


def test_a_cleared_key_does_not_wait_for_an_allocator_that_does_nothing() -> None:
    publication = published(Publication())

    assert publication.decide(None, KEY, True, 10.0) is Action.KEEP
    assert publication.decide(None, KEY, True, 10.0 + RELEASE_SECONDS) is Action.PUBLISH


def test_a_key_that_brings_no_address_after_a_clearing_is_published_anew_once() -> None:
    publication = published(Publication())
    publication.decide(None, KEY, False, 10.0)

    assert publication.decide(KEY, KEY, False, 10.1) is Action.KEEP
    assert publication.wake_at == 10.0 + ADDRESS_SECONDS
    assert publication.decide(KEY, KEY, False, 15.0) is Action.WITHDRAW
    assert publication.decide(None, KEY, False, 15.1) is Action.PUBLISH
    assert publication.decide(KEY, KEY, False, 60.0) is Action.KEEP


def test_where_there_is_no_allocator_a_key_is_never_taken_back() -> None:
    publication = Publication()
    publication.decide(None, KEY, False, 0.0)

    assert publication.decide(KEY, KEY, False, 1000.0) is Action.KEEP
    assert publication.wake_at == inf


@dataclass
class World:
    """The annotations, and an allocator that follows the key after a while."""

    lag: float
    stored: bytes | None = None
    has_address: bool = False
    due: float | None = None

    def advance(self, now: float) -> None:
        wanted = self.stored is not None
        if wanted == self.has_address:
            self.due = None
        elif self.due is None:
            self.due = now + self.lag
        elif now >= self.due:
            self.has_address, self.due = wanted, None


@settings(deadline=None)
@given(st.floats(0.0, 2.0), st.lists(st.floats(1.0, 30.0), max_size=4))
def test_however_often_it_is_cleared_it_ends_published_with_an_address(lag: float, clearings: list[float]) -> None:
    world, publication = World(lag), Publication()
    now, writes, sleeps = 0.0, 0, 0
    pending = sorted(clearings)
    while now < 60.0:
        if pending and now >= pending[0]:
            world.stored = None
            pending.pop(0)
        world.advance(now)
        action = publication.decide(world.stored, KEY, world.has_address, now)
        if action is not Action.KEEP:
            writes += 1
            world.stored = KEY if action is Action.PUBLISH else None
        sleeps += publication.wake_at <= now
        now += 0.05

    assert world.stored == KEY and world.has_address
    assert writes <= 1 + 3 * len(clearings)
    assert sleeps == 0, "a time that has passed is not waited for"
