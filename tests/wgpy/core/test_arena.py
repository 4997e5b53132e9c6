from hypothesis import given
from hypothesis import strategies as st

from wgpy.core.arena import HEADER, MAX_ROWS, MAX_TRAIN, OVERHEAD, TAG, column, padded_length

lengths = st.integers(0, 70000)
mtus = st.integers(0, 65535)


@given(lengths, mtus)
def test_a_padded_length_is_the_next_multiple_of_16_unless_that_exceeds_the_mtu(length: int, mtu: int) -> None:
    padded = padded_length(length, mtu)

    assert 0 <= padded - length < 16
    assert padded == length or (padded % 16 == 0 and padded <= mtu)
    if padded == length and length % 16:
        assert -(-length // 16) * 16 > mtu


@given(lengths, lengths, mtus)
def test_a_longer_packet_never_has_a_shorter_padded_length(one: int, other: int, mtu: int) -> None:
    """The data path takes a shorter padded length as the end of a run, whatever the lengths inside."""
    shorter, longer = sorted([one, other])

    assert padded_length(shorter, mtu) <= padded_length(longer, mtu)


def test_a_column_is_one_field_of_every_row() -> None:
    memory = bytearray(3 * 10)

    column(memory, 3, 10, 4, "<u4")[:] = [1, 2, 0x01020304]

    assert memory.hex(" ", 10) == "00000000010000000000 00000000020000000000 00000000040302010000"


def test_a_column_shows_what_is_written_later() -> None:
    memory = bytearray(2 * 7)
    view = column(memory, 2, 7, 1, ">u2")

    memory[8:10] = b"\x12\x34"

    assert view.tolist() == [0, 0x1234]


def test_what_surrounds_a_packet_is_32_bytes_and_a_train_is_one_datagram_of_ipv4_at_most() -> None:
    assert (HEADER, TAG, OVERHEAD) == (16, 16, 32)
    assert MAX_TRAIN == 65535 - 20 - 8
    assert MAX_ROWS >= 64
