"""Serving the page: NiceGUI's server, with the gate in front of everything and the gatherer beside it."""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nicegui import Client, app, ui
from starlette.middleware import Middleware

from controller.dashboard import look
from controller.dashboard.gate import Gate
from controller.dashboard.gather import Gatherer
from controller.dashboard.page import Page
from controller.status_api import read_token


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Address:
    """Where the page is served, and the file with the token that it takes, if it takes one."""

    host: str
    port: int
    token: Path | None = None
    tls: Tls | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def serve(gatherer: Gatherer, address: Address) -> int:
    """Serve the page until interrupted; the exit status."""
    gathering: list[asyncio.Task[None]] = []
    token = address.token
    app.user_middleware.insert(0, Middleware(Gate, host=address.host, token=None if token is None else lambda: read_token(token)))

    async def begin() -> None:
        gathering.append(asyncio.create_task(gatherer.run()))
        print(f"wgpy dashboard: {address.url}", file=sys.stderr, flush=True)

    async def end() -> None:
        for task in gathering:
            task.cancel()
        await asyncio.gather(*gathering, return_exceptions=True)

    async def page(client: Client) -> None:
        Page(gatherer).build()
        await client.connected()
        ui.run_javascript(look.WATCH_SCHEME)

    app.on_startup(begin)
    app.on_shutdown(end)
    ui.page("/")(page)
    tls: dict[str, Any] = (
        {"ssl_certfile": str(address.tls.certificate), "ssl_keyfile": str(address.tls.key)} if address.tls else {}
    )
    try:
        ui.run(
            host=address.host,
            port=address.port,
            title="wgpy dashboard",
            language="en-US",
            dark=None,
            tailwind=False,
            reload=False,
            show=False,
            show_welcome_message=False,
            cache_control_directives="private, no-cache",  # else a refusal of the gate's would be kept for good
            binding_refresh_interval=None,
            reconnect_timeout=10.0,
            access_log=False,
            **tls,
        )
    except KeyboardInterrupt:
        return 130
    return 0
