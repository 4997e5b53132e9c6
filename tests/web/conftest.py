"""A browser, a mesh, a dashboard in between.

What is needed beyond `make setup` comes from .ci/setup-web. Where it is missing these tests are skipped, unless
WGPY_REQUIRE_WEB says that it must not be.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.web.browser import Dashboard, free_port, missing
from tests.web.mesh import FakeMesh


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacks = missing()
    if lacks is None:
        return
    if os.environ.get("WGPY_REQUIRE_WEB"):
        pytest.exit(f"WGPY_REQUIRE_WEB is set, and there is no {lacks}: bash .ci/setup-web", 1)
    for item in items:
        if item.get_closest_marker("web"):
            item.add_marker(pytest.mark.skip(reason=f"there is no {lacks}: bash .ci/setup-web"))


@pytest.fixture(scope="module")  # while it stands its loop counts as the running one: no asyncio beside it
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root there is no sandbox; what is loaded is our own.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def make_mesh(tmp_path: Path) -> Iterator[Callable[[int], FakeMesh]]:
    made = []

    def make(count: int) -> FakeMesh:
        made.append(FakeMesh(tmp_path, range(1, count + 1), free_port()))
        return made[-1]

    yield make
    for mesh in made:
        mesh.close()


@pytest.fixture
def mesh(make_mesh: Callable[[int], FakeMesh]) -> FakeMesh:
    """Six nodes."""
    return make_mesh(6)


@pytest.fixture
def show(chromium: Any) -> Iterator[Callable[..., Dashboard]]:
    """Starts a dashboard of a mesh."""
    made = []

    def start(mesh: FakeMesh, *options: str, **more: str) -> Dashboard:
        made.append(Dashboard(mesh, chromium, *options, **more))
        return made[-1]

    yield start
    for dashboard in made:
        dashboard.close()
