"""A new session every two minutes, and no packet lost over it: on real time, so this takes as long.

The virtual clock has the other half (tests/test_paper.py); here are the sockets, the timers of the loop, and wireguard-go.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.lab import FAMILIES, Tunnel, ping
from tests.e2e.traffic import Stream, echoing

RATE = 1000
SECONDS = 128
REKEY_AFTER = 120
PAIRS = [(("wgpy", "wgpy"), 4), (("wgpy", "wireguard-go"), 4), (("wireguard-go", "wgpy"), FAMILIES[-1])]


def stream(tunnel: Tunnel) -> Stream:
    """From the first pod to the second one, whose echo comes back: a thousand packets a second either way."""
    first, second = tunnel.ends
    with echoing(second.pod, second.pod.address(4)) as echo:
        return Stream(RATE, 200).run(first.pod, first.pod.address(4), echo, SECONDS)


def handshakes(tunnel: Tunnel) -> list[float]:
    """When either end last shook hands, in seconds since 1970."""
    return [end.peer.last_handshake / 1e9 for end in tunnel.ends]


@pytest.mark.slow
def test_a_rekey_under_a_thousand_packets_a_second_loses_none(standing: Callable[..., Tunnel]) -> None:
    """All pairs at the same time, to save some. The first end of a pair is the one that began, and so the one that rekeys."""
    pairs = [standing(kinds, outer) for kinds, outer in PAIRS]
    for tunnel in pairs:
        assert ping(tunnel.ends[0].pod, tunnel.ends[1].pod.address(4), count=1) == 1
    before = [handshakes(tunnel) for tunnel in pairs]

    with ThreadPoolExecutor(len(pairs)) as pool:
        streams = list(pool.map(stream, pairs))

    for tunnel, done, then in zip(pairs, streams, before, strict=True):
        ages = [now - was for now, was in zip(handshakes(tunnel), then, strict=True)]
        print(f"{tunnel}: {done.sent} packets, {len(done.lost)} lost, {done.duplicates} twice; new session after {ages[0]:.2f} s")
        assert all(REKEY_AFTER - 1 < age < REKEY_AFTER + 6 for age in ages)
        assert done.sent >= RATE * SECONDS * 0.9
        assert done.lost == [], tunnel.losses()
        assert done.duplicates == 0
