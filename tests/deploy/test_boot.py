"""The systemd units under a systemd that really boots: this host's own, in a container with a network of its own.

Its root is this machine's file system with a layer above it that is thrown away. What a unit forbids itself (system calls,
devices, capabilities, places to write to) and wgpy needs is missing here, too.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.controller.cluster import felix, keyed, node
from tests.controller.lab import may_make_namespaces
from tests.deploy.test_units import INSTALLED, UNITS
from wgpy.wgconf import format_key

NSPAWN = "systemd-nspawn"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root and /dev/net/tun"),
    pytest.mark.skipif(shutil.which(NSPAWN) is None, reason=f"needs {NSPAWN} (Debian: systemd-container)"),
    pytest.mark.skipif(
        Path(sys.executable).is_relative_to("/tmp"), reason="the units have a /tmp of their own: no wgpy is there"
    ),
]

TARGET = """
[Unit]
Requires=basic.target
After=basic.target
Wants=wgpy@wg0.service wgpy-agent.service wgpy-guard.service check.service
AllowIsolate=yes
"""
CHECK = """
[Unit]
After=wgpy@wg0.service wgpy-agent.service
[Service]
Type=oneshot
ExecStart=/out/check
TimeoutStartSec=60
"""
SCRIPT = """#!/bin/sh
say() { "$@" >/out/$name 2>&1; }
ip link set lo up; ip address add 192.0.2.1/24 dev lo
for _ in $(seq 100); do
    wg=$(WGPY show wireguard.caliu peers 2>/dev/null) && [ -n "$wg" ] && [ -e /var/lib/wgpy/guard.nft ] && break
    sleep 0.2
done
name=peers say WGPY show wireguard.caliu peers
name=active say systemctl is-active wgpy@wg0 wgpy-agent wgpy@wireguard.caliu wgpy@wg-v6.caliu
name=guard say nft list tables
systemctl start nftables
name=flushed say nft list tables
name=reloaded say systemctl restart wgpy-guard
name=guard-again say nft list tables
systemctl stop wgpy-agent
name=nftables say systemctl restart nftables
for _ in $(seq 50); do nft list tables | grep -q wgpy-guard && break; sleep 0.1; done
name=guard-after-nftables say nft list tables
WGPY set wg0 listen-port 51999
systemctl stop wgpy@wg0
name=link say ip -br link show wg0
systemctl start wgpy@wg0
for _ in $(seq 50); do [ "$(WGPY show wg0 listen-port 2>/dev/null)" = 51999 ] && break; sleep 0.1; done
name=port say WGPY show wg0 listen-port
stat -c '%a %n' /var/lib/wgpy /var/lib/wgpy/* /run/wireguard/*.sock >/out/modes
journalctl --no-pager --boot >/out/journal
systemctl exit 0 --force --force
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """This machine, as far as it is not changed: with our units and no others of the administrator's."""
    merged = tmp_path / "root"
    for name in ("layer", "layer/up", "layer/work", "root", "out"):
        (tmp_path / name).mkdir(exist_ok=True)
    layer = tmp_path / "layer"
    options = f"lowerdir=/,upperdir={layer}/up,workdir={layer}/work"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", layer], check=True)
    try:
        for name in ("up", "work"):
            (layer / name).mkdir()
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
        try:
            yield merged
        finally:
            subprocess.run(["umount", merged], check=True)
    finally:
        subprocess.run(["umount", layer], check=True)


def install(root: Path, wgpy: str, out: Path) -> None:
    units = root / "etc" / "systemd" / "system"
    shutil.rmtree(units)
    units.mkdir()
    for unit in UNITS:
        (units / unit.name).write_text(unit.read_text().replace(INSTALLED, wgpy))
    (units / "check.target").write_text(TARGET)
    (units / "check.service").write_text(CHECK)
    (out / "check").write_text(SCRIPT.replace("WGPY", wgpy))
    (out / "check").chmod(0o755)
    (root / "etc" / "nftables.conf").write_text("flush ruleset\n")
    for stale in ("var/lib/wgpy", "etc/default/wgpy"):
        shutil.rmtree(root / stale, ignore_errors=True)
    cluster = root / "var" / "lib" / "wgpy" / "cluster"  # where the agent may write: the key goes into a Node
    cluster.mkdir(parents=True)
    objects = [node("n1", "192.0.2.1/24"), keyed("n2", "192.0.2.2/24"), node("n3", "192.0.2.3/24"), felix(wireguardEnabled=True)]
    for number, manifest in enumerate(objects):
        (cluster / f"{number}.yaml").write_text(yaml.safe_dump(manifest))
    options = "WGPY_AGENT_OPTIONS=--directory=/var/lib/wgpy/cluster --strict\nNODENAME=n1\n"
    (root / "etc" / "default" / "wgpy").write_text(options)


def test_the_units_do_their_work_within_what_they_allow_themselves(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    install(root, str(Path(sys.executable).parent / "wgpy"), out)
    words = [NSPAWN, "--quiet", "--register=no", "--keep-unit", f"--machine=h{os.getpid()}", f"--directory={root}"]
    words += ["--private-network", "--capability=CAP_NET_ADMIN", "--bind=/dev/net/tun", f"--bind={out}:/out"]

    booted = subprocess.run(
        [*words, "--console=pipe", "--boot", "systemd.unit=check.target"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    said = {path.name: path.read_text() for path in out.iterdir()}
    assert "journal" in said, booted.stdout + booted.stderr
    assert said["active"].split() == ["active"] * 4, said["journal"]
    assert said["peers"].strip() == format_key(bytes([2]) * 32)
    assert "wgpy-guard" not in said["flushed"]
    assert "wgpy-guard" in said["guard"] and said["reloaded"] == "" and "wgpy-guard" in said["guard-again"]
    assert said["nftables"] == "" and "wgpy-guard" in said["guard-after-nftables"], (
        "what the administrator's file flushes is back"
    )
    assert said["link"].startswith("wg0 "), "it is to outlive its service"
    assert said["port"].strip() == "51999", "its configuration was kept"
    modes = {path: mode for mode, path in (line.split() for line in said["modes"].splitlines())}
    assert modes.pop("/var/lib/wgpy") == "700"
    assert modes and {mode[1:] for path, mode in modes.items() if "key" in path or path.endswith(".sock")} == {"00"}
    ours = [line for line in said["journal"].splitlines() if "wgpy" in line]
    assert not [
        line for line in ours if any(word in line for word in ("Traceback", "not permitted", "denied", "Failed", "SIGSYS"))
    ]
