"""A change in steps comes to what it comes to at once, and no packet sees a third state on the way."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim import Sim
from wgpy.config import Change, Endpoint, SetDevice, SetPeer
from wgpy.core import gradual
from wgpy.core.device import Device

KEYS = [bytes([number]) * 32 for number in range(1, 4)]
ADDRESSES = [IPv4Address(number << 28 | number).packed for number in range(16)]

# few distinct bits, so that prefixes nest and collide
prefixes = st.builds(lambda n, length: IPv4Network((n << 28, length), strict=False), st.integers(0, 15), st.integers(0, 4))
some = st.lists(prefixes, max_size=6).map(tuple)
additions = st.builds(
    SetPeer, st.sampled_from(KEYS), update_only=st.booleans(), replace_allowed_ips=st.booleans(), allowed_ips=some
)
subtractions = st.builds(SetPeer, st.sampled_from(KEYS), update_only=st.booleans(), removed_allowed_ips=some)
removals = st.builds(SetPeer, st.sampled_from(KEYS), remove=st.just(True))
changes = st.lists(additions | additions | subtractions | removals | st.just(SetDevice(replace_peers=True)), max_size=6)


@pytest.fixture(scope="module", autouse=True)
def small_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradual, "STEP_PREFIXES", 1)
        yield


def new_device() -> Device:
    return Sim("A")["A"].device


def owners(device: Device) -> list[bytes | None]:
    """Whom a packet to each of the addresses would go to."""
    found = [device.allowed_ips.lookup(address) for address in ADDRESSES]
    return [None if peer is None else peer.public_key for peer in found]


def allowed(device: Device) -> dict[bytes, set[object]]:
    return {key: set(device.allowed_ips.prefixes(peer)) for key, peer in device.peers.items()}


@given(changes, changes)
def test_it_comes_to_the_same(before: list[Change], then: list[Change]) -> None:
    at_once, in_steps = new_device(), new_device()
    for device in (at_once, in_steps):
        device.apply(before, 0)

    at_once.apply(then, 0)
    for step in gradual.steps(in_steps, then):
        in_steps.apply([step], 0)

    assert allowed(in_steps) == allowed(at_once)
    assert list(in_steps.peers) == list(at_once.peers)
    assert owners(in_steps) == owners(at_once)


@given(changes, additions | subtractions | removals)
def test_an_address_finds_its_old_owner_or_its_new_one_and_nobody_else(before: list[Change], change: SetPeer) -> None:
    device, after = new_device(), new_device()
    device.apply(before, 0)
    after.apply([*before, change], 0)
    allowed_owners = list(zip(owners(device), owners(after), strict=True))

    for step in gradual.steps(device, [change]):
        device.apply([step], 0)
        assert all(owner in pair for owner, pair in zip(owners(device), allowed_owners, strict=True))


def test_no_step_is_large() -> None:
    device = new_device()
    many = tuple(ip_network((10 << 24 | number << 8, 24)) for number in range(1000))
    for change in (
        SetPeer(KEYS[0], allowed_ips=many),
        SetPeer(KEYS[0], replace_allowed_ips=True, allowed_ips=many[500:]),
        SetPeer(KEYS[0], removed_allowed_ips=many),
        SetPeer(KEYS[1], allowed_ips=many),
        SetPeer(KEYS[1], remove=True),
        SetPeer(KEYS[1], allowed_ips=many),
        SetDevice(replace_peers=True),
    ):
        for step in gradual.steps(device, [change]):
            if isinstance(step, SetDevice):
                assert not device.peers
            elif step.remove:
                assert len(list(device.allowed_ips.prefixes(device.peers[step.public_key]))) <= 1
            else:
                assert not step.replace_allowed_ips
                assert len(step.allowed_ips) + len(step.removed_allowed_ips) <= 1
            device.apply([step], 0)
    assert len(device.allowed_ips) == 0


def test_what_else_a_change_says_is_said_once_and_first() -> None:
    many = tuple(ip_network((10 << 24 | number << 8, 24)) for number in range(3))
    change = SetPeer(KEYS[0], preshared_key=KEYS[1], endpoint=Endpoint("192.0.2.1", 1), persistent_keepalive=5, allowed_ips=many)

    first, *rest = gradual.steps(new_device(), [change])

    assert first == SetPeer(KEYS[0], preshared_key=KEYS[1], endpoint=Endpoint("192.0.2.1", 1), persistent_keepalive=5)
    assert rest == [SetPeer(KEYS[0], update_only=True, allowed_ips=(prefix,)) for prefix in many]
