"""The bad wire: as bad as it was asked to be, the same with the same seed, and never worse."""

from collections import Counter

from tests.conformance.forwarder import HOLD_SECONDS, MOST_OVERTAKE, Badness, Way

PACKETS = [number.to_bytes(4) for number in range(5000)]


def carried(badness: Badness, name: str = "there") -> tuple[list[bytes], Way]:
    """What comes out of a way when a packet goes in every millisecond, and then nothing for a while."""
    way = Way(badness, name)
    out: list[bytes] = []
    for number, packet in enumerate(PACKETS):
        way.take(packet, number / 1000)
        out += way.leaving(number / 1000)
    out += way.leaving(len(PACKETS) / 1000 + HOLD_SECONDS)
    return out, way


def test_a_good_wire_changes_nothing() -> None:
    assert carried(Badness())[0] == PACKETS


def test_the_seed_and_the_direction_decide() -> None:
    bad = Badness(lose=0.05, swap=0.05, double=0.05)
    assert carried(bad)[0] == carried(bad)[0]
    assert carried(bad)[0] != carried(bad, "back")[0]
    assert carried(bad)[0] != carried(Badness(lose=0.05, swap=0.05, double=0.05, seed=2))[0]


def test_what_is_lost_is_counted_and_no_more_is() -> None:
    out, way = carried(Badness(lose=0.01))
    assert len(out) == len(set(out)) == len(PACKETS) - way.count.lost
    assert 25 < way.count.lost < 100


def test_what_is_doubled_comes_twice() -> None:
    out, way = carried(Badness(double=0.1))
    times = Counter(Counter(out).values())
    assert times == {1: len(PACKETS) - way.count.doubled, 2: way.count.doubled}
    assert 400 < way.count.doubled < 600


def test_what_is_swapped_is_overtaken_by_a_few_and_everything_comes() -> None:
    out, way = carried(Badness(swap=0.1))
    assert sorted(out) == PACKETS != out
    late = [int.from_bytes(packet) for at, packet in enumerate(out) if any(later < packet for later in out[at + 1 : at + 20])]
    assert late, "some are before one that was sent earlier"
    assert max(abs(at - int.from_bytes(packet)) for at, packet in enumerate(out)) <= 2 * MOST_OVERTAKE
    assert 400 < way.count.swapped < 600


def test_a_packet_that_nobody_overtakes_is_not_held_for_ever() -> None:
    way = Way(Badness(swap=1.0), "there")
    way.take(b"alone", 10.0)
    assert list(way.leaving(10.0 + HOLD_SECONDS / 2)) == []
    assert way.due == 10.0 + HOLD_SECONDS
    assert list(way.leaving(10.0 + HOLD_SECONDS)) == [b"alone"]
    assert way.due is None


def test_everything_is_late_by_the_delay_and_in_order() -> None:
    way = Way(Badness(delay=0.02), "there")
    for number in range(3):
        way.take(bytes([number]), number / 100)
    assert way.due == 0.02
    assert list(way.leaving(0.0199)) == []
    assert list(way.leaving(0.031)) == [b"\0", b"\1"]
    assert list(way.leaving(0.041)) == [b"\2"]


def test_what_is_too_large_is_gone() -> None:
    way = Way(Badness(largest=100), "there")
    way.take(bytes(100), 0.0)
    way.take(bytes(101), 0.0)
    assert [len(packet) for packet in way.leaving(0.0)] == [100]
    assert way.count.too_large == 1
