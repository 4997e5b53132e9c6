"""The site of docs/ and the manual pages: without a warning, whole, and with nothing of the machine that built them."""

import html
import re
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT
from wgpy import __version__, cli


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site")
    done = build(ROOT, path)
    assert done.returncode == 0, done.stderr
    return path


class Loads(HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "link" and values.get("rel") not in ("next", "prev", "canonical"):
            self.found.append(values.get("href") or "")
        self.found += [values[name] or "" for name in ("src", "srcset", "data") if name in values]


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        (loads := Loads()).feed(page.read_text())
        assert loads.found and [url for url in loads.found if re.match(r"(https?:)?//", url)] == [], page.name
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"url\(['\"]?(https?:)?//", styles) and "@import" not in styles


def copied(folder: Path) -> Path:
    """What the site is made of."""
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / ".ci").mkdir()
    for name in ("mkdocs.yml", ".ci/reference.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("target", ["nowhere.md", "install.md#no-such-part", "../deploy", "/install.md"])
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, target: str) -> None:
    with open(copied(tmp_path) / "docs" / "index.md", "a") as page:
        page.write(f"\n[text]({target})\n")

    done = build(tmp_path, tmp_path / "site")

    assert done.returncode != 0 and re.search(rf"WARNING.* link '{re.escape(target)}'", done.stderr)


def test_a_page_that_nobody_finds_fails_the_build(tmp_path: Path) -> None:
    (copied(tmp_path) / "docs" / "orphan.md").write_text("# Orphan\n")

    done = build(tmp_path, tmp_path / "site")

    assert done.returncode != 0 and "  - orphan.md" in done.stderr


def test_the_reference_has_every_command_and_every_subcommand(site: Path) -> None:
    page = (site / "commands.html").read_text()

    titles = set(re.findall(r'<h[23] id="[^"]*">([^<]*)', page))
    assert {f"wgpy {verb}" for verb in (*cli.VERBS, *cli.COMMANDS)} | {"wgpy IFNAME", "wgpy report verify"} <= titles
    assert "--yield-to-kernel" in page
    assert "default: this host's name" in html.unescape(page)
    assert f"default: {socket.gethostname().lower()}" not in page


def test_every_command_has_a_manual_page_that_groff_reads(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / ".ci" / "reference.py", tmp_path], cwd=ROOT, check=True, timeout=60)

    pages = {path.stem: path.read_text() for path in tmp_path.iterdir()}
    assert pages.keys() == {"wgpy", *(f"wgpy-{verb}" for verb in (*cli.VERBS, *cli.COMMANDS))}
    for name, page in pages.items():
        assert page.startswith(f'.TH {name.upper()} "1" ') and f'"wgpy {__version__}"' in page.partition("\n")[0]
        assert f"\n.SH NAME\n{name} \\- " in page
        assert "\n.SH SEE ALSO\n" in page
    if shutil.which("groff"):
        for name in pages:
            groff = ["groff", "-man", "-ww", "-Tutf8", str(tmp_path / f"{name}.1")]
            assert subprocess.run(groff, capture_output=True, text=True, check=True, timeout=20).stderr == ""
