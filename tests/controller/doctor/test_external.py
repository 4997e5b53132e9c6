"""What the doctor takes an external peer to be, where it is not given the file."""

from ipaddress import ip_network

from controller.doctor.collect import _external_peers
from controller.model import Family
from controller.status import FamilyStatus, PeerStatus, Traffic
from wgpy.config import DeviceSnapshot, Endpoint, PeerConfig, PeerSnapshot
from wgpy.wgconf import format_key

KEY, OTHER, SHARED = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
RANGE = ip_network("10.9.0.0/16")


def status(key: bytes) -> FamilyStatus:
    name = format_key(key)
    peer = PeerStatus(
        name,
        Traffic.ENCRYPTED,
        public_key=name,
        endpoint="192.0.2.9:51820",
        ranges=("10.9.0.0/16",),
        is_external=True,
    )
    return FamilyStatus(Family.IPV4, peers=(peer,))


def test_what_the_agent_does_not_tell_is_as_the_device_has_it() -> None:
    """A preshared key and a keepalive are in no status, and so no difference."""
    config = PeerConfig(KEY, SHARED, Endpoint("192.0.2.9", 51820), 25, (RANGE,))

    assert _external_peers(status(KEY), DeviceSnapshot(peers=(PeerSnapshot(config),))) == (config,)


def test_one_that_the_device_lacks_is_a_difference() -> None:
    bare = PeerConfig(OTHER, endpoint=Endpoint("192.0.2.9", 51820), allowed_ips=(RANGE,))

    assert _external_peers(status(OTHER), DeviceSnapshot()) == (bare,)
    assert _external_peers(None, DeviceSnapshot()) == ()
