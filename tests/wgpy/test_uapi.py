"""The configuration protocol: what is said, what is refused and with which errno."""

import contextlib
import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peers import wireguard_go
from tests.wgpy.strategies import device_snapshots, endpoints, set_devices, set_peers
from wgpy.config import (
    NO_KEY,
    Change,
    DeviceSnapshot,
    Endpoint,
    PeerConfig,
    PeerSnapshot,
    SetDevice,
    SetPeer,
)
from wgpy.uapi import (
    UapiError,
    format_get,
    format_get_chunks,
    format_set,
    parse_get,
    parse_set,
    parse_set_reply,
    reply_get,
    reply_set,
)

KEY = bytes(range(32))
OTHER = bytes(range(100, 132))
PEER = f"public_key={KEY.hex()}\n"


# --- set, there and back -----------------------------------------------------------------------------------------------


@given(st.none() | set_devices, st.lists(set_peers, max_size=4))
def test_a_set_is_read_back_as_it_was_written(device: SetDevice | None, peers: list[SetPeer]) -> None:
    changes: list[Change] = [*([device] if device and device != SetDevice() else []), *peers]

    assert parse_set(format_set(changes)) == changes


def test_a_whole_request_as_wg_sends_it() -> None:
    text = (
        f"private_key={'ff' * 32}\n"
        "listen_port=51820\n"
        "fwmark=4096\n"
        "replace_peers=true\n"
        f"{PEER}"
        f"preshared_key={OTHER.hex().upper()}\n"
        "endpoint=[2001:db8::1]:7\n"
        "persistent_keepalive_interval=25\n"
        "replace_allowed_ips=true\n"
        "protocol_version=1\n"
        "allowed_ip=10.0.0.1/8\n"
        "allowed_ip=-fd00::/64\n"
        f"public_key={OTHER.hex()}\n"
        "remove=true\n"
    )

    assert parse_set(text) == [
        SetDevice(b"\xf8" + b"\xff" * 30 + b"\x7f", 51820, 4096, replace_peers=True),
        SetPeer(
            KEY,
            preshared_key=OTHER,
            endpoint=Endpoint("2001:db8::1", 7),
            persistent_keepalive=25,
            replace_allowed_ips=True,
            allowed_ips=(ip_network("10.0.0.0/8"),),
            removed_allowed_ips=(ip_network("fd00::/64"),),
        ),
        SetPeer(OTHER, remove=True),
    ]


def test_a_set_ends_at_its_blank_line() -> None:
    assert parse_set("listen_port=1\n\nnonsense") == [SetDevice(listen_port=1)]
    assert parse_set("") == parse_set("\n") == []


def test_a_line_may_end_in_carriage_return_and_line_feed() -> None:
    assert parse_set("listen_port=1\r\n\r\nnonsense") == [SetDevice(listen_port=1)]


def test_no_private_key_stays_no_private_key() -> None:
    assert parse_set(f"private_key={NO_KEY.hex()}\n") == [SetDevice(private_key=NO_KEY)]


def test_the_last_line_of_a_key_wins() -> None:
    assert parse_set("fwmark=1\nlisten_port=5\nfwmark=2\n") == [SetDevice(listen_port=5, fwmark=2)]


def test_one_peer_may_be_named_twice() -> None:
    assert parse_set(f"{PEER}remove=true\n{PEER}") == [SetPeer(KEY, remove=True), SetPeer(KEY)]


def test_what_is_said_before_the_allowed_ips_are_replaced_is_lost() -> None:
    (change,) = parse_set(f"{PEER}allowed_ip=10.0.0.0/8\nallowed_ip=-11.0.0.0/8\nreplace_allowed_ips=true\n")

    assert change == SetPeer(KEY, replace_allowed_ips=True)


def test_an_allowed_ip_removed_and_then_added_is_added() -> None:
    (change,) = parse_set(f"{PEER}allowed_ip=-10.0.0.0/8\nallowed_ip=10.0.0.0/8\n")

    assert change == SetPeer(KEY, allowed_ips=(ip_network("10.0.0.0/8"),))


def test_an_allowed_ip_added_and_then_removed_is_removed() -> None:
    (change,) = parse_set(f"{PEER}allowed_ip=10.0.0.0/8\nallowed_ip=-10.0.0.0/8\n")

    prefixes = (ip_network("10.0.0.0/8"),)
    assert change == SetPeer(KEY, allowed_ips=prefixes, removed_allowed_ips=prefixes)


def test_a_zone_is_looked_up_by_the_server() -> None:
    (change,) = parse_set(f"{PEER}endpoint=[fe80::1%eth0]:5\n", {"eth0": 3}.__getitem__)

    assert change == SetPeer(KEY, endpoint=Endpoint("fe80::1", 5, 3))


def test_a_zone_that_is_not_there_is_invalid() -> None:
    with pytest.raises(UapiError) as refusal:
        parse_set(f"{PEER}endpoint=[fe80::1%nosuch0]:5\n", socket.if_nametoindex)

    assert refusal.value.errno == errno.EINVAL


def test_a_change_of_the_device_cannot_follow_one_of_a_peer() -> None:
    with pytest.raises(ValueError, match="SetDevice after"):
        format_set([SetPeer(KEY), SetDevice(fwmark=1)])


# --- set, refused ------------------------------------------------------------------------------------------------------

# Every body here was given to wireguard-go too: see test_wireguard_go_gives_the_same_errno.
ACCEPTED = [
    "",
    f"private_key={'00' * 32}\n",
    f"private_key={'AB' * 32}\n",
    "listen_port=0\n",
    "listen_port=00000\n",
    "fwmark=4294967295\n",
    "replace_peers=true\n",
    PEER,
    f"{PEER}remove=true\n",
    f"{PEER}update_only=true\n",
    f"{PEER}protocol_version=1\n",
    f"{PEER}preshared_key={'00' * 32}\n",
    f"{PEER}persistent_keepalive_interval=65535\n",
    f"{PEER}replace_allowed_ips=true\n",
    f"{PEER}allowed_ip=10.1.2.3/8\n",
    f"{PEER}allowed_ip=-10.1.2.3/8\n",
    f"{PEER}allowed_ip=::/0\n",
    f"{PEER}allowed_ip=::ffff:1.2.3.4/128\n",
    f"{PEER}endpoint=192.0.2.1:0\n",
    f"{PEER}endpoint=[::ffff:1.2.3.4]:5\n",
    f"{PEER}endpoint=[fe80::1%1]:5\n",
    f"{PEER}remove=true\nallowed_ip=1.2.3.4/32\n",
    "fwmark=0\r\n",
]
INVALID = [
    "=\n",
    "=5\n",
    "nonsense=1\n",
    "errno=0\n",
    "Listen_port=1\n",
    " listen_port=1\n",
    "listen_port=\n",
    "listen_port= 1\n",
    "listen_port=65536\n",
    "listen_port=-1\n",
    "listen_port=+1\n",
    "listen_port=0x10\n",
    "listen_port=1_0\n",
    "fwmark=0x20\n",
    "fwmark=4294967296\n",
    "fwmark=off\n",
    "replace_peers=false\n",
    "replace_peers=True\n",
    "replace_peers=1\n",
    "replace_peers=\n",
    "private_key=\n",
    f"private_key={'ab' * 31}\n",
    f"private_key={'ab' * 33}\n",
    f"private_key={'ab' * 31}a\n",
    f"private_key={'ag' * 32}\n",
    f"private_key={'ab ' * 21}a\n",
    f"private_key=0x{'ab' * 31}\n",
    f"preshared_key={'ab' * 32}\n",
    "endpoint=192.0.2.1:1\n",
    "allowed_ip=10.0.0.0/8\n",
    "remove=true\n",
    "update_only=true\n",
    "persistent_keepalive_interval=1\n",
    "replace_allowed_ips=true\n",
    "protocol_version=1\n",
    "public_key=\n",
    f"public_key={'ab' * 31}\n",
    f"{PEER}private_key={'ab' * 32}\n",
    f"{PEER}listen_port=1\n",
    f"{PEER}fwmark=1\n",
    f"{PEER}replace_peers=true\n",
    f"{PEER}nonsense=1\n",
    f"{PEER}remove=false\n",
    f"{PEER}update_only=yes\n",
    f"{PEER}replace_allowed_ips=0\n",
    f"{PEER}protocol_version=2\n",
    f"{PEER}protocol_version=01\n",
    f"{PEER}preshared_key={'ab' * 31}\n",
    f"{PEER}persistent_keepalive_interval=65536\n",
    f"{PEER}persistent_keepalive_interval=off\n",
    f"{PEER}last_handshake_time_sec=1\n",
    f"{PEER}allowed_ip=\n",
    f"{PEER}allowed_ip=-\n",
    f"{PEER}allowed_ip=--10.0.0.0/8\n",
    f"{PEER}allowed_ip=+10.0.0.0/8\n",
    f"{PEER}allowed_ip=10.0.0.0\n",
    f"{PEER}allowed_ip=10.0.0.0/33\n",
    f"{PEER}allowed_ip=10.0.0.0/08\n",
    f"{PEER}allowed_ip=10.0.0.0/255.0.0.0\n",
    f"{PEER}allowed_ip=10.0.0/8\n",
    f"{PEER}allowed_ip=010.0.0.0/8\n",
    f"{PEER}allowed_ip=fd00::/129\n",
    f"{PEER}allowed_ip=fe80::1%1/64\n",
    f"{PEER}endpoint=\n",
    f"{PEER}endpoint=192.0.2.1\n",
    f"{PEER}endpoint=192.0.2.1:65536\n",
    f"{PEER}endpoint=[192.0.2.1]:1\n",
    f"{PEER}endpoint=2001:db8::1:1\n",
    f"{PEER}endpoint=[fe80::1%]:1\n",
    f"{PEER}endpoint=localhost:1\n",
    f"{PEER}remove=true\nallowed_ip=nonsense\n",
]
NO_PROTOCOL = ["nonsense\n", "listen_port\n", f"{PEER}remove\n", " \n", f"{PEER}\t\n"]
REFUSED = [(body, errno.EINVAL) for body in INVALID] + [(body, errno.EPROTO) for body in NO_PROTOCOL]


@pytest.mark.parametrize("body", ACCEPTED)
def test_a_good_line_is_accepted(body: str) -> None:
    parse_set(body)


@pytest.mark.parametrize(("body", "status"), REFUSED)
def test_a_bad_line_is_refused(body: str, status: int) -> None:
    with pytest.raises(UapiError) as refusal:
        parse_set(body)

    assert refusal.value.errno == status
    assert str(refusal.value).startswith("line ")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


@given(st.text(max_size=60), st.sampled_from(["", PEER]))
def test_any_text_gives_changes_or_an_error(text: str, before: str) -> None:
    with contextlib.suppress(UapiError):
        parse_set(f"{before}{text}\n")
    with contextlib.suppress(UapiError):
        parse_get(f"{before}{text}\n{reply_get(0)}")


@pytest.mark.parametrize("key", ["private_key", f"{PEER}preshared_key", "public_key"])
def test_a_mistyped_key_is_not_in_the_error(key: str) -> None:
    with pytest.raises(UapiError) as refusal:
        parse_set(f"{key}={'5ec4e7' * 11}\n")

    assert "5ec4e7" not in str(refusal.value)


# --- get ---------------------------------------------------------------------------------------------------------------


@given(device_snapshots)
def test_a_device_is_read_back_as_it_was_shown(snapshot: DeviceSnapshot) -> None:
    assert parse_get(format_get(snapshot)) == snapshot


def test_a_device_is_shown_in_the_order_of_wireguard_go() -> None:
    snapshot = DeviceSnapshot(
        private_key=KEY,
        listen_port=51820,
        fwmark=0x20,
        peers=(
            PeerSnapshot(
                PeerConfig(OTHER, KEY, Endpoint("fe80::1", 5, 3), 25, (ip_network("10.0.0.1/32"), ip_network("fd00::/64"))),
                last_handshake=1_700_000_000_000_000_005,
                tx_bytes=1,
                rx_bytes=2,
            ),
            PeerSnapshot(PeerConfig(KEY)),
        ),
    )

    assert format_get(snapshot) == (
        f"private_key={KEY.hex()}\n"
        "listen_port=51820\n"
        "fwmark=32\n"
        f"public_key={OTHER.hex()}\n"
        f"preshared_key={KEY.hex()}\n"
        "protocol_version=1\n"
        "endpoint=[fe80::1%3]:5\n"
        "last_handshake_time_sec=1700000000\n"
        "last_handshake_time_nsec=5\n"
        "tx_bytes=1\n"
        "rx_bytes=2\n"
        "persistent_keepalive_interval=25\n"
        "allowed_ip=10.0.0.1/32\n"
        "allowed_ip=fd00::/64\n"
        f"public_key={KEY.hex()}\n"
        f"preshared_key={'00' * 32}\n"
        "protocol_version=1\n"
        "last_handshake_time_sec=0\n"
        "last_handshake_time_nsec=0\n"
        "tx_bytes=0\n"
        "rx_bytes=0\n"
        "persistent_keepalive_interval=0\n"
        "errno=0\n\n"
    )


def test_what_is_not_set_has_no_line() -> None:
    assert format_get(DeviceSnapshot()) == "errno=0\n\n"


def test_a_long_reply_comes_in_pieces() -> None:
    prefixes = tuple(ip_network((number << 8, 24)) for number in range(2500))
    snapshot = DeviceSnapshot(peers=(PeerSnapshot(PeerConfig(KEY, allowed_ips=prefixes)),))

    chunks = list(format_get_chunks(snapshot))

    assert max(chunk.count("\n") for chunk in chunks) <= 1000
    assert parse_get("".join(chunks)) == snapshot


def test_keys_of_a_later_version_are_skipped() -> None:
    assert parse_get(f"colour=blue\n{PEER}weight=5\n{reply_get(0)}") == DeviceSnapshot(peers=(PeerSnapshot(PeerConfig(KEY)),))


@pytest.mark.parametrize("sign", ["", "-"])
def test_the_errno_of_a_reply_is_raised_whatever_its_sign(sign: str) -> None:
    with pytest.raises(UapiError) as refusal:
        parse_get(f"errno={sign}22\n\n")
    assert refusal.value.errno == errno.EINVAL

    with pytest.raises(UapiError) as refusal:
        parse_set_reply(f"errno={sign}98\n\n")
    assert refusal.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    "reply",
    ["", "\n", "errno\n\n", "errno=\n\n", "errno=x\n\n", "errno=--5\n\n", "listen_port=5\n\n", f"private_key=ab\n{reply_get(0)}"],
)
def test_a_reply_that_makes_no_sense_is_a_protocol_error(reply: str) -> None:
    with pytest.raises(UapiError) as refusal:
        parse_get(reply)

    assert refusal.value.errno == errno.EPROTO


def test_wg_wants_negative_after_a_set_and_positive_after_a_get() -> None:
    assert reply_set(0) == reply_get(0) == "errno=0\n\n"
    assert reply_set(errno.EADDRINUSE) == "errno=-98\n\n"
    assert reply_get(errno.EINVAL) == "errno=22\n\n"
    parse_set_reply(reply_set(0))


@given(endpoints)
def test_endpoints_survive_a_get(endpoint: Endpoint) -> None:
    snapshot = DeviceSnapshot(peers=(PeerSnapshot(PeerConfig(KEY, endpoint=endpoint)),))

    assert parse_get(format_get(snapshot)) == snapshot


# --- speed -------------------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def test_a_thousand_peers_with_ten_thousand_prefixes_are_read_quickly() -> None:
    """Measured: 0.1 s; `wg setconf` has 2 s for all of it. Who went through all for each would take minutes."""
    changes = [
        SetPeer(
            os.urandom(32),
            replace_allowed_ips=True,
            allowed_ips=tuple(ip_network((((10 << 24) + (number << 12) + (i << 8)), 24)) for i in range(10)),
        )
        for number in range(1000)
    ]
    body = format_set(changes)

    assert seconds(lambda: parse_set(body)) < 2


def test_130561_words_of_allowed_ips_are_written_quickly() -> None:
    """The big dump of the kernel's netns.sh. Measured: 0.65 s."""
    v4 = tuple(ip_network(((10 << 24) + i, 32)) for i in range(255 * 256))
    v6 = tuple(ip_network(((0xFD << 120) + i, 128)) for i in range(255 * 256))
    snapshot = DeviceSnapshot(peers=(PeerSnapshot(PeerConfig(KEY, allowed_ips=v4 + v6)),))

    assert seconds(lambda: format_get(snapshot)) < 3


# --- wireguard-go is the judge -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign_socket() -> Iterator[Path]:
    """The UAPI socket of a wireguard-go in a network namespace of its own."""
    program = wireguard_go()
    name = f"wgj{os.getpid()}"[:15]
    path = Path("/var/run/wireguard") / f"{name}.sock"
    process = subprocess.Popen(["unshare", "--net", program, "-f", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip("wireguard-go does not run here: root and /dev/net/tun are needed")
            time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait(10)


def ask(path: Path, request: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(request.encode())
        reply = b""
        while not reply.endswith(b"\n\n") and (piece := connection.recv(65536)):
            reply += piece
    return reply.decode()


@pytest.fixture(scope="module")
def foreign_year() -> int:
    """The year of the wireguard-go here: its first line of --version ends like v0.0.20250522."""
    line = subprocess.run([wireguard_go(), "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return int(line.rpartition(".")[2][:4])


@pytest.mark.e2e
@pytest.mark.parametrize(("body", "status"), [(body, 0) for body in ACCEPTED] + REFUSED)
def test_wireguard_go_gives_the_same_errno(foreign_socket: Path, foreign_year: int, body: str, status: int) -> None:
    if foreign_year < 2025 and body.endswith(("allowed_ip=-10.1.2.3/8\n", "allowed_ip=10.0.0.0/08\n")):
        pytest.skip("Debian's wireguard-go of 2022 took these the other way round")

    assert ask(foreign_socket, f"set=1\n{body}\n") == reply_set(status)


@pytest.mark.e2e
def test_a_get_of_wireguard_go_is_read_and_written_back_to_the_letter(foreign_socket: Path) -> None:
    changes: list[Change] = [
        SetDevice(OTHER, fwmark=5, replace_peers=True),
        SetPeer(
            KEY,
            preshared_key=OTHER,
            endpoint=Endpoint("2001:db8::1", 5),
            persistent_keepalive=25,
            allowed_ips=(ip_network("10.0.0.0/8"), ip_network("fd00::/64")),
        ),
    ]
    parse_set_reply(ask(foreign_socket, f"set=1\n{format_set(changes)}\n"))

    reply = ask(foreign_socket, "get=1\n\n")

    assert format_get(parse_get(reply)) == reply
    assert parse_get(reply).peers[0].config.allowed_ips == (ip_network("10.0.0.0/8"), ip_network("fd00::/64"))
