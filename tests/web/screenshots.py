"""The pictures of docs/dashboard.md: ``python -m tests.web.screenshots`` takes them anew."""

import io
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.web.browser import ROOT, Dashboard, free_port
from tests.web.mesh import FakeMesh, name

IMAGES = ROOT / "docs" / "images"


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for count, scheme, file in ((12, "light", "dashboard.png"), (500, "dark", "dashboard-500.png")):
            with tempfile.TemporaryDirectory() as directory:
                take(browser, Path(directory), count, scheme, IMAGES / file)
        with tempfile.TemporaryDirectory() as directory:
            take(browser, Path(directory), 12, "dark", IMAGES / "dashboard-node.png", name(2))
        browser.close()


def take(browser: Any, directory: Path, count: int, scheme: str, file: Path, node: str | None = None) -> None:
    """One picture: of the top of the page, or of what it shows of a node."""
    mesh = FakeMesh(directory, range(1, count + 1), free_port())
    mesh.spoil()
    dashboard = Dashboard(mesh, browser)
    try:
        page, _ = dashboard.open(color_scheme=scheme, viewport={"width": 1280, "height": 860})
        page.get_by_text(f"{count} of {count} nodes").wait_for()
        time.sleep(10)  # for some throughput
        if node is None:
            shrink(file, page.screenshot())
            return
        page.locator(f'[aria-label="Nodes"] [row-id="{node}"]').first.click()
        page.locator('[aria-label="Peers"] .ag-row').first.wait_for()
        time.sleep(3)
        shrink(file, page.locator("section", has=page.locator("#node-head")).screenshot())
    finally:
        dashboard.close()
        mesh.close()


def shrink(file: Path, png: bytes) -> None:
    """With few colours, which is half of it."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main()
