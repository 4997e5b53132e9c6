from hypothesis import given
from hypothesis import strategies as st

from noise import tai64n

moments = st.integers(0, 2**62)


def test_a_moment_is_written_as_the_known_answer(vectors: dict[str, bytes]) -> None:
    unix_seconds = 0x6592008 * 16 - 10  # 0x40000000_65920080 less the epoch's 0x40000000_0000000a

    assert tai64n.timestamp(unix_seconds * 10**9 + 0x01000000) == vectors["timestamp"]


def test_the_epoch_is_ten_seconds_into_tai64() -> None:
    assert tai64n.timestamp(0).hex() == "400000000000000a00000000"


def test_the_clock_is_whitened_to_steps_of_16_8_ms() -> None:
    assert tai64n.timestamp(2**24 - 1) == tai64n.timestamp(0)
    assert tai64n.timestamp(2**24) > tai64n.timestamp(0)
    assert tai64n.timestamp(10**9 - 1)[8:] == (59 * 2**24).to_bytes(4, "big")


@given(moments, moments)
def test_timestamps_compare_as_moments_do(one: int, other: int) -> None:
    earlier, later = sorted((one, other))

    assert tai64n.timestamp(earlier) <= tai64n.timestamp(later)
    assert len(tai64n.timestamp(later)) == 12


@given(moments)
def test_a_fiftieth_of_a_second_later_is_always_a_greater_timestamp(moment: int) -> None:
    assert tai64n.timestamp(moment + 20_000_000) > tai64n.timestamp(moment)
