"""Cost against peers and prefixes: the crowd is what it is said to be, and the limits are held to."""

import os
from itertools import pairwise

import pytest

from benchmarks.planes import planes
from benchmarks.results import OURS, Report
from benchmarks.scale import (
    FEW,
    MANY,
    NEVER_SEEN,
    PACKETS,
    PREFIXES_PER_PEER,
    Crowd,
    judge,
    measure_lookups,
    measure_tunnels,
    prefixes,
    rows,
)


def report_of(setconf: float, few: float, many: float, memory: float) -> Report:
    report = Report()
    for size, kind, value in (
        (MANY, "setconf", setconf),
        (MANY, "memory", memory),
        (FEW, "packet", few),
        (MANY, "packet", many),
    ):
        report.at(rows(size)[kind], OURS).values.append(value)
    return report


def test_five_thousand_peers_have_fifty_thousand_prefixes_and_none_is_anothers() -> None:
    all_of_them = [prefix for peer in range(MANY) for prefix in prefixes(peer)]

    assert len(set(all_of_them)) == MANY * PREFIXES_PER_PEER == 50_000
    for version in (4, 6):
        ranges = sorted((int(each[0]), int(each[-1])) for each in [*all_of_them, NEVER_SEEN] if each.version == version)
        assert all(end < start for (_, end), (start, _) in pairwise(ranges))


def test_packets_of_a_crowd_are_sealed_for_the_one_peer_with_a_session() -> None:
    crowd = Crowd(20)
    peer, *others = crowd.device.peers.values()
    assert len(others) == 19 and len(crowd.device.allowed_ips) >= 20 * PREFIXES_PER_PEER
    before = peer.tx_bytes

    assert crowd.packet() > 0
    assert crowd.search() > 0

    assert peer.tx_bytes - before == PACKETS * (96 + 32)
    assert not any(other.tx_bytes for other in others)


def test_lookups_are_measured_for_every_size() -> None:
    report = Report()
    assert len(list(measure_lookups(report, (1, 10), 2))) == 2

    for size in (1, 10):
        for kind in ("packet", "search"):
            found = report.find(rows(size)[kind].name, OURS)
            assert found is not None and len(found.values) == 2 and min(found.values) > 0


def test_the_limits_hold_or_do_not() -> None:
    assert [verdict.holds for verdict in judge(report_of(7.9, 5.0, 7.4, 249.0))] == [True, True, True]
    assert [verdict.holds for verdict in judge(report_of(8.1, 5.0, 7.6, 251.0))] == [False, False, False]


def test_what_was_not_measured_does_not_hold() -> None:
    verdicts = judge(Report())

    assert not any(verdict.holds for verdict in verdicts)
    assert all("DOES NOT HOLD" in str(verdict) and "not measured" in str(verdict) for verdict in verdicts)


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_a_data_plane_is_configured_and_still_carries_pings() -> None:
    report = Report()
    list(measure_tunnels(report, [planes()["wgpy"]], [10], 1))

    for kind in ("setconf", "memory", "ping"):
        found = report.find(rows(10)[kind].name, OURS)
        assert found is not None and not found.failures and found.values[0] > 0, kind
