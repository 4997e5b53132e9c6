"""§5.4.6: known answers, runs with forged rows, and the last counter."""

from struct import Struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from noise import crypto
from noise.handshake import TransportKeys
from noise.keypair import Keypair
from noise.messages import TransportData
from noise.transport import seal, seal_one, unseal, unseal_one

REJECT = 2**64 - 8130
HEADER = Struct("<IIQ")


def pair(key: bytes = b"k" * 32, back: bytes = b"b" * 32) -> tuple[Keypair, Keypair]:
    """Two ends of one session: what the first seals, the second unseals."""
    ours = Keypair.derived(TransportKeys(0x11223344, 0x55667788, True, key, back), 0.0)
    theirs = Keypair.derived(TransportKeys(0x55667788, 0x11223344, False, back, key), 0.0)
    return ours, theirs


class Arena:
    """Datagrams of one length after another in one buffer, as the data path keeps them."""

    def __init__(self, packets: list[bytes], rows: int | None = None) -> None:
        longest = max(map(len, packets), default=0)
        self.packets = [memoryview(bytearray(packet)) for packet in packets]
        self.matrix: NDArray[np.uint8] = np.zeros((rows or len(packets), longest + 32), dtype=np.uint8)
        self.matrix[:, 0] = 4
        self.receiver_indices = self.matrix[:, 4:8].view("<u4")[:, 0]
        self.counters = self.matrix[:, 8:16].view("<u8")[:, 0]
        rows_ = [memoryview(row) for row in self.matrix]
        self.sealed = [row[16 : 32 + len(packet)] for row, packet in zip(rows_, packets, strict=False)]

    def seal(self, keypair: Keypair) -> int:
        return seal(keypair, self.packets, self.sealed, self.receiver_indices, self.counters)

    def datagrams(self) -> list[bytes]:
        return [bytes(row[: 16 + len(sealed)]) for row, sealed in zip(self.matrix, self.sealed, strict=False)]


def sealed_alone(keypair: Keypair, packet: bytes) -> bytes | None:
    """The datagram that :func:`seal_one` makes; None if it made none."""
    message = memoryview(bytearray(len(packet) + 32))
    made = seal_one(keypair, memoryview(bytearray(packet)), message)
    assert made or not any(message)
    return bytes(message) if made else None


def unsealed(keypair: Keypair, datagrams: list[bytes]) -> tuple[list[int], list[bytes]]:
    headers = [HEADER.unpack_from(datagram) for datagram in datagrams]
    sealed = [memoryview(datagram)[16:] for datagram in datagrams]
    packets = [memoryview(bytearray(len(datagram) - 32)) for datagram in datagrams]
    rejected = unseal(keypair, [counter for _, _, counter in headers], sealed, packets)
    return rejected, [bytes(packet) for packet in packets]


packets_of_one_length = st.integers(0, 200).flatmap(
    lambda length: st.lists(st.binary(min_size=length, max_size=length), min_size=1, max_size=50)
)


def test_the_known_messages_come_out_byte_for_byte(vectors: dict[str, bytes]) -> None:
    initiator, responder = pair(vectors["initiator_send_key"], vectors["initiator_receive_key"])
    keepalive, data, answer = Arena([b""]), Arena([bytes(range(32))]), Arena([b"hello-wireguard!"])

    assert [keepalive.seal(initiator), data.seal(initiator), answer.seal(responder)] == [1, 1, 1]

    assert keepalive.datagrams() == [vectors["initiator_keepalive_counter_0"]]
    assert data.datagrams() == [vectors["initiator_data_counter_1"]]
    assert answer.datagrams() == [vectors["responder_data_counter_0"]]
    assert unsealed(responder, keepalive.datagrams()) == ([], [b""])
    assert unsealed(responder, data.datagrams()) == ([], [bytes(range(32))])
    assert unsealed(initiator, answer.datagrams()) == ([], [b"hello-wireguard!"])


@given(packets_of_one_length, st.integers(0, 2**64 - 9000))
def test_a_run_arrives_as_it_was_sent(packets: list[bytes], counter: int) -> None:
    ours, theirs = pair()
    ours.send_counter = counter
    arena = Arena(packets, rows=len(packets) + 2)

    assert arena.seal(ours) == len(packets)

    assert ours.send_counter == counter + len(packets)
    messages = [TransportData.unpack(datagram) for datagram in arena.datagrams()]
    assert [message and message.counter for message in messages] == list(range(counter, counter + len(packets)))
    assert {message and message.receiver_index for message in messages} == {0x55667788}
    assert unsealed(theirs, arena.datagrams()) == ([], packets)
    assert arena.counters[len(packets) :].tolist() == [0, 0], "rows beyond the run are not touched"


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=15))
def test_the_last_packet_of_a_run_may_be_shorter(packet: bytes, tail: bytes) -> None:
    ours, theirs = pair()
    arena = Arena([packet, packet, tail])

    assert arena.seal(ours) == 3

    assert unsealed(theirs, arena.datagrams()) == ([], [packet, packet, tail])


@given(packets_of_one_length)
def test_a_run_is_sealed_as_its_packets_one_by_one(packets: list[bytes]) -> None:
    together, alone = pair()[0], pair()[0]
    arena, singles = Arena(packets), [Arena([packet]) for packet in packets]

    arena.seal(together)
    for single in singles:
        single.seal(alone)

    assert arena.datagrams() == [single.datagrams()[0] for single in singles]


@settings(max_examples=60)
@given(packets_of_one_length, st.data())
def test_forged_rows_are_rejected_alone(packets: list[bytes], data: st.DataObject) -> None:
    ours, theirs = pair()
    arena = Arena(packets)
    arena.seal(ours)
    datagrams = [bytearray(datagram) for datagram in arena.datagrams()]
    forged = data.draw(st.sets(st.integers(0, len(packets) - 1)))
    for row in forged:  # anything but the receiver index, by which the keypair was found
        byte = data.draw(st.integers(8, len(datagrams[row]) - 1))
        datagrams[row][byte] ^= data.draw(st.integers(1, 255))

    rejected, received = unsealed(theirs, [bytes(datagram) for datagram in datagrams])

    assert rejected == sorted(forged)
    assert [received[row] for row in range(len(packets)) if row not in forged] == [
        packet for row, packet in enumerate(packets) if row not in forged
    ]


@given(st.lists(st.binary(min_size=32, max_size=100), max_size=10))
def test_arbitrary_bytes_are_rejected_without_an_exception(datagrams: list[bytes]) -> None:
    rejected, _ = unsealed(pair()[1], datagrams)

    assert rejected == list(range(len(datagrams)))


def test_unsealing_does_not_touch_the_replay_window() -> None:
    ours, theirs = pair()
    arena = Arena([b"packet"] * 3)
    arena.seal(ours)

    unsealed(theirs, arena.datagrams())

    assert theirs.replay_window.greatest == -1


def test_a_run_of_keepalives_is_a_run_like_any_other() -> None:
    ours, theirs = pair()
    arena = Arena([b""] * 3)

    assert arena.seal(ours) == 3
    assert unsealed(theirs, arena.datagrams()) == ([], [b"", b"", b""])


def test_an_empty_run_takes_no_counter() -> None:
    ours, theirs = pair()

    assert Arena([], rows=1).seal(ours) == 0
    assert ours.send_counter == 0
    assert unsealed(theirs, []) == ([], [])


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4])
def test_nothing_is_sealed_under_the_last_counters(left: int) -> None:
    ours, theirs = pair()
    ours.send_counter = REJECT - left
    arena = Arena([b"packet"] * 3)

    count = arena.seal(ours)

    assert count == min(left, 3)
    assert ours.send_counter == REJECT - left + count
    assert unsealed(theirs, arena.datagrams()[:count]) == ([], [b"packet"] * count)
    assert all(not any(sealed) for sealed in arena.sealed[count:])
    assert not ours.can_send(0.0) or left > 3


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_lone_packet_is_sealed_under_the_last_counter_and_none_beyond(left: int) -> None:
    ours, theirs = pair()
    ours.send_counter = REJECT - left

    datagrams = [sealed_alone(ours, b"packet") for _ in range(3)]

    assert [datagram is not None for datagram in datagrams] == [number < left for number in range(3)]
    assert unsealed(theirs, [datagram for datagram in datagrams if datagram]) == ([], [b"packet"] * left)
    assert ours.send_counter == REJECT


@given(packets_of_one_length)
def test_lone_packets_are_sealed_and_unsealed_as_a_run_of_them(packets: list[bytes]) -> None:
    (alone, theirs), together = pair(), pair()[0]
    arena = Arena(packets)
    arena.seal(together)

    datagrams = [sealed_alone(alone, packet) for packet in packets]

    assert datagrams == arena.datagrams()
    assert alone.send_counter == together.send_counter
    for counter, (datagram, packet) in enumerate(zip(arena.datagrams(), packets, strict=True)):
        opened = memoryview(bytearray(len(packet)))
        assert unseal_one(theirs, counter, memoryview(datagram)[16:], opened)
        assert opened == packet
        assert not unseal_one(theirs, counter + 1, memoryview(datagram)[16:], opened)


def test_an_invalidated_keypair_seals_nothing() -> None:
    ours, _ = pair()
    ours.invalidate_sending()
    arena = Arena([b"packet"])

    assert arena.seal(ours) == 0
    assert not any(arena.sealed[0])


def test_the_nonce_is_32_zero_bits_and_the_counter() -> None:
    ours, _ = pair(key=b"k" * 32)
    ours.send_counter = 0x0102030405060708
    arena = Arena([b"packet"])

    arena.seal(ours)

    assert bytes(arena.sealed[0]) == crypto.aead_seal(b"k" * 32, 0x0102030405060708, b"packet", b"")
