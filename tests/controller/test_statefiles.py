"""What is on disk outlives the agent and is nobody else's business."""

import logging
from pathlib import Path

import pytest

from controller.model import Family
from controller.statefiles import Assigned, StateError, StateFiles, clamp, public_key
from wgpy.config import Endpoint
from wgpy.wgconf import format_key

PRIVATE = bytes.fromhex("0002030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f60")
PUBLIC = bytes.fromhex("07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c")


def test_a_private_key_is_made_once_and_kept(tmp_path: Path) -> None:
    first = StateFiles(tmp_path / "state").private_key(Family.IPV4)

    assert StateFiles(tmp_path / "state").private_key(Family.IPV4) == first
    assert StateFiles(tmp_path / "state").private_key(Family.IPV6) != first
    assert clamp(first) == first


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    StateFiles(tmp_path).private_key(Family.IPV4)

    assert (tmp_path / "ipv4.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["ipv4.key"]  # nothing written aside is left


def test_a_key_that_others_could_read_is_closed_to_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = StateFiles(tmp_path)
    key = files.private_key(Family.IPV4)
    (tmp_path / "ipv4.key").chmod(0o644)

    assert files.private_key(Family.IPV4) == key
    assert (tmp_path / "ipv4.key").stat().st_mode & 0o777 == 0o600
    assert "readable by others" in caplog.text


def test_a_key_file_in_wgs_own_format_is_taken(tmp_path: Path) -> None:
    (tmp_path / "ipv4.key").write_text(format_key(PRIVATE) + "\n")
    (tmp_path / "ipv4.key").chmod(0o600)

    assert StateFiles(tmp_path).private_key(Family.IPV4) == clamp(PRIVATE)


@pytest.mark.parametrize("content", [b"", b"not a key\n", b"\xff\xfe", b"A" * 1000])
def test_a_garbled_key_is_an_error_that_does_not_show_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ipv4.key").write_bytes(content)
    (tmp_path / "ipv4.key").chmod(0o600)

    with pytest.raises(StateError, match=r"^.*ipv4\.key holds no private key: remove it to have a new one made$"):
        StateFiles(tmp_path).private_key(Family.IPV4)


def test_no_key_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        key = StateFiles(tmp_path).private_key(Family.IPV4)

    assert format_key(key) not in caplog.text and key.hex() not in caplog.text


def test_the_public_key_is_the_one_peers_know() -> None:
    assert public_key(PRIVATE) == PUBLIC


def test_what_was_assigned_is_remembered(tmp_path: Path) -> None:
    assigned = Assigned(
        "wireguard.caliu", {bytes([1]) * 32: Endpoint("192.0.2.1", 51820), bytes([2]) * 32: Endpoint("2001:db8::1", 1)}
    )

    StateFiles(tmp_path).save_assigned(Family.IPV4, assigned)

    assert StateFiles(tmp_path).assigned(Family.IPV4) == assigned
    assert StateFiles(tmp_path).assigned(Family.IPV6) == Assigned()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"interface": 1}', '{"interface": null, "endpoints": {"x": "y"}}'])
def test_a_garbled_memory_is_no_memory(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ipv4.json").write_text(content)

    assert StateFiles(tmp_path).assigned(Family.IPV4) == Assigned()
    assert "starting without it" in caplog.text


def test_there_is_one_agent_for_each_state_directory(tmp_path: Path) -> None:
    first, second = StateFiles(tmp_path), StateFiles(tmp_path)
    first.lock()

    with pytest.raises(StateError, match=r"an agent \(process \d+\) is using"):
        second.lock()
    first.close()
    second.lock()
    second.close()


def test_a_state_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StateError, match=r"^cannot make the state directory .*file/state: Not a directory$"):
        StateFiles(tmp_path / "file" / "state")
