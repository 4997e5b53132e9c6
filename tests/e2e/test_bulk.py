"""Much of it: 500 MB of TCP between pods arrives as it was sent, and a flood of pings loses nothing."""

from collections.abc import Callable

import pytest

from tests.e2e.lab import FAMILIES, Tunnel, flood
from tests.e2e.traffic import transfer

MEGABYTE = 1_000_000
FLOOD = 5000


@pytest.fixture(scope="module", params=[("wgpy", "wgpy"), ("wgpy", "wireguard-go")], ids=lambda kinds: f"{kinds[0]}:{kinds[1]}")
def tunnel(request: pytest.FixtureRequest, standing: Callable[..., Tunnel]) -> Tunnel:
    """In the two directions of the second pair wireguard-go is on either end."""
    return standing(request.param)


def carry(tunnel: Tunnel, size: int, version: int) -> None:
    for end, other in tunnel.directions():
        arrived = transfer(end.pod, end.pod.address(version), other.pod, other.pod.address(version), size)

        print(
            f"{end.kind} to {other.kind}, IPv{version}: {size // MEGABYTE} MB in {arrived.seconds:.2f} s, {arrived.gbps:.2f} Gb/s"
        )
        assert arrived.is_intact


@pytest.mark.parametrize("version", FAMILIES)
def test_50_megabytes_of_tcp_arrive_intact_in_both_directions(tunnel: Tunnel, version: int) -> None:
    carry(tunnel, 50 * MEGABYTE, version)


@pytest.mark.slow
def test_500_megabytes_of_tcp_arrive_intact_in_both_directions(tunnel: Tunnel) -> None:
    carry(tunnel, 500 * MEGABYTE, 4)


def test_a_flood_of_5000_pings_loses_nothing(tunnel: Tunnel) -> None:
    first, second = tunnel.ends

    assert flood(first.pod, second.pod.address(4), count=FLOOD) == FLOOD
