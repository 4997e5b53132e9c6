"""External peers come from a file, and a slip in it costs nothing that was there before."""

import logging
import os
from pathlib import Path

import pytest

from controller.external import ExternalPeers, ExternalPeersError

KEY = "A" * 42 + "E="
PEER = f"[Peer]\nPublicKey = {KEY}\nAllowedIPs = 203.0.113.0/24\nEndpoint = 198.51.100.1:51820\n"


def test_no_file_is_no_peer() -> None:
    assert ExternalPeers(None).current() == ()


def test_the_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "peers.conf"
    path.write_text(PEER)
    peers = ExternalPeers(path)
    (peer,) = peers.current()
    assert str(peer.allowed_ips[0]) == "203.0.113.0/24" and str(peer.endpoint) == "198.51.100.1:51820"

    path.write_text(PEER.replace("203.0.113.0/24", "203.0.113.128/25"))  # longer: its time need not be another yet

    assert str(peers.current()[0].allowed_ips[0]) == "203.0.113.128/25"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (PEER + "Frobnicate = 1\n", r":5: "),
        ("[Interface]\nListenPort = 1\n", "only \\[Peer\\] sections belong here"),
        (f"[Interface]\nPrivateKey = {KEY}\n", "only \\[Peer\\] sections belong here"),
        ("[Peer]\nPublicKey = secret\n", r":2: "),
        (PEER.replace("198.51.100.1", "example.org"), "not a numeric address"),
        ("#" * (1 << 20) + "#", "longer than"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "peers.conf"
    path.write_text(text)

    with pytest.raises(ExternalPeersError, match=complaint) as raised:
        ExternalPeers(path).load()

    assert "\n" not in str(raised.value) and KEY not in str(raised.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExternalPeersError, match="No such file"):
        ExternalPeers(tmp_path / "none").load()


def test_a_file_that_goes_bad_keeps_its_peers_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "peers.conf"
    path.write_text(PEER)
    peers = ExternalPeers(path)
    before = peers.current()

    path.write_text("nonsense")
    with caplog.at_level(logging.WARNING):
        assert peers.current() == peers.current() == before
    assert len(caplog.records) == 1

    os.unlink(path)
    assert peers.current() == before
