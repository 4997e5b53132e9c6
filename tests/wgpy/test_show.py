"""What show prints. The judge is `wg` itself, where it is installed: it reads the same socket and must print the same."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.interface import Interface
from tests.wgpy.strategies import device_snapshots, peer_configs
from wgpy.client import SOCKET_DIRECTORY
from wgpy.config import NO_KEY, DeviceSnapshot, Endpoint, PeerConfig, PeerSnapshot
from wgpy.show import FIELDS, as_json, lines, pretty
from wgpy.uapi import NANOSECONDS

NOW = 1_700_000_000
KEY = bytes(range(32))
PRIVATE_KEY = bytes([0, *range(1, 31), 0x5F])
KEY64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def peer(**statistics: int) -> PeerSnapshot:
    return PeerSnapshot(PeerConfig(KEY), **statistics)


def shown(peer: PeerSnapshot) -> str:
    return pretty("wg0", DeviceSnapshot(peers=(peer,)), NOW)


def test_a_device_with_nothing_is_one_line() -> None:
    assert pretty("wg0", DeviceSnapshot(), NOW) == "interface: wg0\n"


def test_a_device_with_everything() -> None:
    snapshot = DeviceSnapshot(
        PRIVATE_KEY,
        51820,
        0x20,
        (
            PeerSnapshot(
                PeerConfig(KEY, KEY, Endpoint("2001:db8::1", 5), 25, (ip_network("10.0.0.0/8"), ip_network("fd00::/64"))),
                last_handshake=(NOW - 3661) * NANOSECONDS,
                tx_bytes=1536,
                rx_bytes=5,
            ),
        ),
    )
    public_key = next(lines(snapshot, "public-key"))

    assert pretty("wg0", snapshot, NOW) == (
        "interface: wg0\n"
        f"  public key: {public_key}\n"
        "  private key: (hidden)\n"
        "  listening port: 51820\n"
        "  fwmark: 0x20\n"
        "\n"
        f"peer: {KEY64}\n"
        "  preshared key: (hidden)\n"
        "  endpoint: [2001:db8::1]:5\n"
        "  allowed ips: 10.0.0.0/8, fd00::/64\n"
        "  latest handshake: 1 hour, 1 minute, 1 second ago\n"
        "  transfer: 5 B received, 1.50 KiB sent\n"
        "  persistent keepalive: every 25 seconds\n"
    )


def test_keys_are_shown_only_on_demand() -> None:
    snapshot = DeviceSnapshot(PRIVATE_KEY, peers=(PeerSnapshot(PeerConfig(KEY, preshared_key=KEY)),))

    assert f"preshared key: {KEY64}" in pretty("wg0", snapshot, NOW, hide_keys=False)
    assert "hidden" not in pretty("wg0", snapshot, NOW, hide_keys=False)
    assert as_json(snapshot)["privateKey"] == "(hidden)"
    assert KEY64 in json.dumps(as_json(snapshot, hide_keys=False)["peers"])


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (0, "Now"),
        (1, "1 second ago"),
        (60, "1 minute ago"),
        (7322, "2 hours, 2 minutes, 2 seconds ago"),
        (366 * 86400, "1 year, 1 day ago"),
        (-1, "(System clock wound backward; connection problems may ensue.)"),
    ],
)
def test_the_age_of_a_handshake_is_in_words(ago: int, text: str) -> None:
    assert f"latest handshake: {text}\n" in shown(peer(last_handshake=(NOW - ago) * NANOSECONDS))


@pytest.mark.parametrize(
    ("count", "text"),
    [(1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (2**20, "1.00 MiB"), (2**30, "1.00 GiB"), (2**50, "1024.00 TiB")],
)
def test_amounts_are_in_powers_of_1024(count: int, text: str) -> None:
    assert f"transfer: {text} received, 0 B sent\n" in shown(peer(rx_bytes=count))


def test_peers_who_shook_hands_last_come_first() -> None:
    first, second, never = (PeerSnapshot(PeerConfig(bytes([i] * 32)), last_handshake=at) for i, at in ((1, 5), (2, 9), (3, 0)))

    text = pretty("wg0", DeviceSnapshot(peers=(never, first, second)), NOW)

    assert [line[6:8] for line in text.splitlines() if line.startswith("peer")] == ["Ag", "AQ", "Aw"]


def test_the_dump_has_all_fields_in_columns() -> None:
    snapshot = DeviceSnapshot(
        listen_port=5,
        peers=(
            PeerSnapshot(PeerConfig(KEY, allowed_ips=(ip_network("10.0.0.0/8"), ip_network("fd00::/64"))), 7 * NANOSECONDS, 1, 2),
        ),
    )

    assert list(lines(snapshot, "dump")) == [
        "(none)\t(none)\t5\toff",
        f"{KEY64}\t(none)\t(none)\t10.0.0.0/8,fd00::/64\t7\t2\t1\toff",
    ]


def test_a_field_nobody_has_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        list(lines(DeviceSnapshot(peers=(peer(),)), "nonsense"))


def test_json_has_the_names_of_wg_json() -> None:
    snapshot = DeviceSnapshot(
        PRIVATE_KEY,
        51820,
        0x20,
        (
            PeerSnapshot(PeerConfig(KEY, KEY, Endpoint("192.0.2.1", 5), 25, (ip_network("10.0.0.0/8"),)), 7 * NANOSECONDS, 1, 2),
            peer(),
        ),
    )

    assert set(as_json(snapshot)) == {"privateKey", "publicKey", "listenPort", "fwmark", "peers"}
    assert as_json(DeviceSnapshot(peers=snapshot.peers[:1])) == {
        "peers": {
            KEY64: {
                "presharedKey": "(hidden)",
                "endpoint": "192.0.2.1:5",
                "latestHandshake": 7,
                "transferRx": 2,
                "transferTx": 1,
                "persistentKeepalive": 25,
                "allowedIps": ["10.0.0.0/8"],
            }
        }
    }
    assert as_json(DeviceSnapshot(peers=(peer(),))) == {"peers": {KEY64: {"allowedIps": []}}}


# --- wg is the judge -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interface() -> Iterator[Interface]:
    """An interface where `wg` looks for it."""
    if shutil.which("wg") is None:
        pytest.skip("wg is not installed: run make setup")
    try:
        SOCKET_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        interface = Interface(f"wgs{os.getpid()}"[:15], SOCKET_DIRECTORY)
    except PermissionError:
        pytest.skip(f"only root may write to {SOCKET_DIRECTORY}")
    with interface:
        yield interface


def wg_show(interface: Interface, *words: str, colour: bool = False, hide_keys: bool = True) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "WG_COLOR_MODE": "always" if colour else "never",
        "WG_HIDE_KEYS": "always" if hide_keys else "never",
    }
    command = ["wg", "show", interface.name, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=10).stdout


ages = st.sampled_from([0, 1, 59, 60, 61, 3600, 86400, 90061, 400 * 86400, -50])
amounts = st.sampled_from([0, 1, 1023, 1024, 1025, 2**20 - 1, 2**20, 2**30, 2**40, 2**50 + 3])


def in_one_spelling(config: PeerConfig) -> bool:
    """`wg` writes zones by name, and with a dotted end those IPv6 addresses that could hold an IPv4 address."""
    endpoint = config.endpoint
    dotted = any(prefix.version == 6 and int(prefix.network_address) < 1 << 48 for prefix in config.allowed_ips)
    return config.public_key != NO_KEY and not dotted and (endpoint is None or not endpoint.is_ipv6)


recent_peers = st.builds(
    lambda config, ago, tx, rx: PeerSnapshot(config, (int(time.time()) - ago) * NANOSECONDS + 7, tx, rx),
    peer_configs.filter(in_one_spelling),
    ages,
    amounts,
    amounts,
)
recent_snapshots = st.builds(
    DeviceSnapshot,
    st.sampled_from([NO_KEY, PRIVATE_KEY]),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.lists(recent_peers, max_size=3, unique_by=lambda peer: peer.config.public_key).map(tuple),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(snapshot=recent_snapshots, colour=st.booleans(), hide_keys=st.booleans())
def test_it_is_printed_as_wg_prints_it(interface: Interface, snapshot: DeviceSnapshot, colour: bool, hide_keys: bool) -> None:
    interface.snapshot = snapshot

    for _ in range(30):  # the second may change between the two looks at the clock, often where wg has to wait for a core
        # time(2), which wg looks at, is behind time.time() by a tick of the kernel: 10 ms at the most.
        before = pretty(interface.name, snapshot, int(time.time() - 0.02), colour, hide_keys)
        printed = wg_show(interface, colour=colour, hide_keys=hide_keys)
        if before == pretty(interface.name, snapshot, int(time.time()), colour, hide_keys):
            break

    assert printed == before


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(snapshot=recent_snapshots)
def test_every_field_is_printed_as_wg_prints_it(interface: Interface, snapshot: DeviceSnapshot) -> None:
    interface.snapshot = snapshot

    for field in FIELDS:
        assert [*lines(snapshot, field)] == wg_show(interface, field).splitlines()


@given(device_snapshots)
def test_any_device_can_be_printed(snapshot: DeviceSnapshot) -> None:
    for colour in (True, False):
        assert pretty("wg0", snapshot, NOW, colour).startswith("\x1b" if colour else "interface: wg0\n")
    for field in FIELDS:
        list(lines(snapshot, field))
    json.dumps(as_json(snapshot))
