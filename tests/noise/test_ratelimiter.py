"""§5.3: twenty a second and five at once, for each source."""

from hypothesis import given
from hypothesis import strategies as st

from noise.ratelimiter import RateLimiter

SOURCE = bytes([192, 0, 2, 1])
OTHER = bytes([192, 0, 2, 2])

TIMING_TABLE = [
    # (milliseconds to wait before, whether it passes)
    (0, True),
    (0, True),
    (0, True),
    (0, True),
    (0, True),
    (0, False),
    (50, True),
    (0, False),
    (100, True),
    (0, True),
    (0, False),
]


@given(st.integers(0, 10**9), st.sampled_from([SOURCE, bytes(range(16))]))
def test_the_kernels_timing_table_holds_whenever_it_begins(milliseconds: int, source: bytes) -> None:
    """To the nanosecond: no rounding of seconds may refuse who is exactly on time."""
    limiter = RateLimiter()

    for wait, passes in TIMING_TABLE:
        milliseconds += wait
        assert limiter.allow(source, milliseconds / 1000) is passes


def test_one_every_50_ms_passes_for_ever() -> None:
    limiter = RateLimiter()

    assert all(limiter.allow(SOURCE, message * 0.05) for message in range(1000))


def test_a_refused_message_costs_nothing() -> None:
    limiter = RateLimiter()
    for _ in range(100):
        limiter.allow(SOURCE, 0.0)

    assert limiter.allow(SOURCE, 0.05)


def test_sources_do_not_share_a_bucket() -> None:
    limiter = RateLimiter()
    for _ in range(6):
        limiter.allow(SOURCE, 0.0)

    assert not limiter.allow(SOURCE, 0.0)
    assert limiter.allow(OTHER, 0.0)


def test_the_addresses_of_an_ipv6_64_share_a_bucket() -> None:
    limiter = RateLimiter()
    prefix = bytes(range(8))
    for host in range(5):
        assert limiter.allow(prefix + bytes([host] * 8), 0.0)

    assert not limiter.allow(prefix + b"\xff" * 8, 0.0)
    assert limiter.allow(bytes(range(1, 9)) + b"\xff" * 8, 0.0)


def test_a_full_table_refuses_new_sources_until_old_ones_fall_silent() -> None:
    limiter = RateLimiter(max_sources=2)
    third = bytes([192, 0, 2, 3])

    assert limiter.allow(SOURCE, 0.0)
    assert limiter.allow(OTHER, 0.5)
    assert not limiter.allow(third, 0.9)
    assert limiter.allow(SOURCE, 0.9), "known sources go on"
    assert not limiter.allow(third, 1.4), "it looks, and nobody has been silent for a second"
    assert limiter.allow(third, 2.4), "a second later it looks again, and both have"


def test_the_table_holds_the_kernels_number_of_sources() -> None:
    assert RateLimiter().max_sources == 65536


@given(st.lists(st.tuples(st.floats(0, 0.2), st.sampled_from([SOURCE, OTHER])), max_size=200))
def test_never_more_than_five_and_twenty_a_second(arrivals: list[tuple[float, bytes]]) -> None:
    limiter = RateLimiter()
    now = 1000.0
    passed: dict[bytes, list[float]] = {SOURCE: [], OTHER: []}

    for wait, source in arrivals:
        now += wait
        if limiter.allow(source, now):
            passed[source].append(now)

    for times in passed.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                assert last - first + 1 <= 5 + 20 * (times[last] - times[first]) + 1e-6
