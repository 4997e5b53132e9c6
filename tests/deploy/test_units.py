"""The systemd units: systemd understands every line, they start commands that there are, and they allow themselves little."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
INSTALLED = "/opt/wgpy/bin/wgpy"
EXPOSURE = 3.0
"""Less than that, of 10, by the measure of `systemd-analyze security`: docs/hosts.md."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they would be installed, of a wgpy that is there; of the template, the instance wg0."""
    wgpy = Path(sys.executable).parent / "wgpy"
    for unit in UNITS:
        name = unit.name.replace("@", "@wg0")
        (tmp_path / name).write_text(unit.read_text().replace(INSTALLED, str(wgpy)))
    return tmp_path


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_systemd_finds_nothing_wrong(units: Path, unit: Path) -> None:
    done = analyze("verify", "--man=no", units / unit.name.replace("@", "@wg0"))

    # Only what is said of ours: it looks at whatever these units pull in, too.
    assert [line for line in done.stderr.splitlines() if "wgpy" in line] == []


@needs_systemd
def test_a_misspelt_line_would_be_found(units: Path) -> None:
    unit = units / "wgpy-agent.service"
    unit.write_text(unit.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))

    assert re.search("Unknown key.* 'NoNewPrivilege'", analyze("verify", "--man=no", unit).stderr)


@needs_systemd
@pytest.mark.parametrize("name", ["wgpy@.service", "wgpy-agent.service"])
def test_a_unit_is_exposed_no_more_than_the_page_says(units: Path, name: str) -> None:
    said = analyze("security", "--offline=true", units / name.replace("@", "@wg0")).stdout

    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found and float(found[1]) < EXPOSURE


@pytest.mark.parametrize("unit", [unit for unit in UNITS if "guard" not in unit.name], ids=lambda unit: str(unit.name))
def test_a_unit_starts_a_command_that_knows_its_options(unit: Path) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(unit)

    program, verb, *words = parser["Service"]["ExecStart"].split()
    assert program == INSTALLED
    said = subprocess.run([sys.executable, "-m", "wgpy", verb, "--help"], capture_output=True, text=True, check=True).stdout
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert options and all(re.search(rf"{option}\b", said) for option in options)
