"""What is shipped: a wheel with the four packages and nothing else, that works away from the checkout.

``noise`` and ``controller`` are also names in other distributions. pip overwrites their files without a word, so this is
where a dependency that brings one of those names is found out.
"""

import json
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("controller", "noise", "tun", "wgpy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout; without the network, with the setuptools that is here."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(target), str(source))
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh virtual environment with the wheel in it; the dependencies are those that are here."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    (own,) = environment.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    return python


def run(*command: str) -> str:
    """Run from ``/``: what is imported there does not come from the checkout."""
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_wheel_has_the_four_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_packages_say_that_they_are_typed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_the_names_belong_to_wgpy_alone(python: Path) -> None:
    """Among all distributions of this environment, those of the extras too."""
    program = "import json; from importlib.metadata import packages_distributions as p; print(json.dumps(p()))"

    owners = json.loads(run(str(python), "-c", program))

    for package in PACKAGES:
        assert set(owners[package]) == {"wgpy"}, f"{owners[package]} all install {package}"


def test_the_packages_are_imported_from_where_they_are_installed(python: Path) -> None:
    program = f"import {', '.join(PACKAGES)}; print({', '.join(f'{package}.__file__' for package in PACKAGES)}, sep=chr(10))"

    for path in run(str(python), "-c", program).splitlines():
        assert Path(path).is_relative_to(python.parents[1])


def test_the_command_is_installed(python: Path) -> None:
    assert run(str(python.parent / "wgpy"), "--version").startswith("wgpy ")
    assert "wgpy COMMAND" in run(str(python), "-m", "wgpy", "--help")


def test_the_verbs_of_the_extras_are_found(python: Path) -> None:
    program = (
        "from importlib.metadata import entry_points\n"
        "for point in entry_points(group='wgpy.commands'): assert callable(point.load()), point\n"
        "print(*sorted(set(point.name for point in entry_points(group='wgpy.commands'))))\n"
    )

    assert run(str(python), "-c", program) == "agent completion dashboard demo doctor leave mesh report top verify\n"


def test_the_pure_ring_loads_no_device_and_no_loop(python: Path) -> None:
    """`import tun.offload` runs tun/__init__.py, which no import contract sees through."""
    program = (
        "import sys\n"
        "import noise.handshake, tun.offload, wgpy.core.device, wgpy.uapi, wgpy.wgconf\n"
        "print(*sorted({'asyncio', 'kubernetes', 'pyroute2', 'pytun', 'tun.linux', 'uvloop'} & set(sys.modules)))\n"
    )

    assert run(str(python), "-c", program) == "\n"
