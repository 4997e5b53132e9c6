"""Files that are whole, private and there."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from wgpy import private_file


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_what_is_kept_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "wg0.conf"
    path.write_text("old")
    path.chmod(0o644)
    before = os.umask(umask)
    try:
        private_file.replace(path, "new")
    finally:
        os.umask(before)

    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_kept_whole_or_not_at_all() -> None:
    """On a file system that is full: the old file stays, and nothing lies beside it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small file system")
    script = """
import sys
from pathlib import Path
from wgpy import private_file
path = Path(sys.argv[1]) / "wg0.conf"
private_file.replace(path, "old")
try:
    private_file.replace(path, "x" * 1_000_000)
except OSError as error:
    print(error.strerror, path.read_text(), [one.name for one in path.parent.iterdir()])
"""
    with tempfile.TemporaryDirectory() as name:
        mounted = f'mount -t tmpfs -o size=64k none {name} && exec {sys.executable} -c "$0" {name}'
        done = subprocess.run(["unshare", "--mount", "sh", "-c", mounted, script], capture_output=True, text=True)

    assert done.stdout == "No space left on device old ['wg0.conf']\n", done.stderr


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path) -> None:
    """The file is another one after each write: nobody reads half of it."""
    path = tmp_path / "wg0.conf"
    private_file.replace(path, "old")
    with path.open() as reader:
        private_file.replace(path, "new")

        assert reader.read() == "old"


def test_what_a_crash_has_left_is_cleared(tmp_path: Path) -> None:
    """Keys in it would outlive their rotation."""
    (tmp_path / ".wg0.conf.tmp").write_text("an old key")

    private_file.replace(tmp_path / "wg0.conf", "new")

    assert [one.name for one in tmp_path.iterdir()] == ["wg0.conf"]


def test_the_name_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that a power cut brings back the old file: a peer that was removed, and its removal confirmed, would be back."""
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), _names(tmp_path)))
    )

    private_file.replace(tmp_path / "wg0.conf", "new")

    assert synced == [(str(tmp_path / ".wg0.conf.tmp"), [".wg0.conf.tmp"]), (str(tmp_path), ["wg0.conf"])]


def _names(directory: Path) -> list[str]:
    return [one.name for one in directory.iterdir()]
