"""A dashboard, pages that look at it, and what there has to be for that."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.web.mesh import FakeMesh

ROOT = Path(__file__).parents[2]
AXE = ROOT / ".cache" / "web" / "node_modules" / "axe-core" / "axe.min.js"
SECONDS = 15.0
DASHBOARD = "import sys; from controller.dashboard.command import main; sys.exit(main(sys.argv[1:]))"


def missing() -> str | None:
    """What there is not, None if all is there."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "Playwright"
    if shutil.which("chromium") is None:
        return "Chromium"
    return None if AXE.exists() else "axe-core"


class Watched:
    """What a page does that it ought not to: requests and WebSockets that leave its origin, and errors."""

    def __init__(self, page: Any, origin: str) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._origin = origin
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda opened: self.requests.append(opened.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    @property
    def strays(self) -> list[str]:
        own = (f"http://{self._origin}/", f"ws://{self._origin}/", "data:", "blob:")
        return [url for url in self.requests if not url.startswith(own)]


class Dashboard:
    """``wgpy dashboard`` of a mesh, as a process of its own, and pages that look at it."""

    def __init__(self, mesh: FakeMesh, chromium: Any, *options: str, host: str = "127.0.0.1") -> None:
        self.origin = f"{host}:{free_port()}"
        self.url = f"http://{self.origin}/"
        self._chromium = chromium
        self._contexts: list[Any] = []
        self._words = ["--directory", str(mesh.directory), "--agents-token", str(mesh.token), "--agents-port", str(mesh.port)]
        self._words += ["--listen", self.origin, *options]
        self.log = mesh.path / "dashboard.log"
        self.start()

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NICEGUI"))}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DASHBOARD, *self._words], cwd=ROOT, env=environment, stderr=log
            )
        self._wait()

    def open(self, **options: Any) -> tuple[Any, Watched]:
        """A page in a browser that knows nothing yet."""
        context = self._chromium.new_context(**({"viewport": {"width": 1360, "height": 1000}} | options))
        context.set_default_timeout(SECONDS * 1000)
        self._contexts.append(context)
        page = context.new_page()
        watched = Watched(page, self.origin)
        page.goto(self.url)
        return page, watched

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def close(self) -> None:
        for context in self._contexts:
            context.close()
        self.stop()

    def _wait(self) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=2).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
                return  # it asks for a token
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
