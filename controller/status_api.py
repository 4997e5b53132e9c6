"""A small read-only HTTP API by which others see what this agent sees: ``wgpy dashboard``, or a script with curl.

It is off unless asked for, and never open: whoever asks has to know a token (``Authorization: Bearer``), and the token never
crosses a wire in clear. So there are three places where it may listen (:func:`place`): at an address with a certificate (TLS), at
a loopback address, or *in the tunnel*: on sockets bound to its interface and to the loopback device. What comes in there was
encrypted by a peer that the cluster knows, or never left this host.

``/v1/summary`` is what a dashboard asks each agent for every second or two: its size follows what is wrong and not the number
of peers (:mod:`controller.summary`). ``/v1/status`` is the whole status, as the agent keeps it on disk, and ``/v1/history`` has
the last entries of the history. Nothing in them is secret: keys are public ones. Who may read them learns the layout of the mesh.

Token and certificate are files that are read again when they change, as a Secret's do: to rotate them takes no restart.

Whoever reaches the port has a connection before the token is asked for. So there are :data:`MOST_CONNECTIONS` of them, and where
there is no room, whoever has been there longest makes it (:class:`Door`): the agent keeps its descriptors for its own work.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import re
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aiohttp import web

from controller.entries import rfc3339
from controller.history import latest
from controller.model import Family
from controller.status import AgentStatus, as_document
from controller.summary import summary

log = logging.getLogger(__name__)

DEFAULT_PORT = 9590
SERVER_NAME = "wgpy-status"
"""The name that the agents' certificate is made out to: one for all of them, since they have the same Secret."""

TUNNEL, LOOPBACK = "tunnel", "lo"
SHORTEST_TOKEN = 16
LOOK_SECONDS = 1.0
"""How often the tunnel's interface is looked for, and the certificate's file."""

HISTORY_LIMIT, MOST_HISTORY = 50, 1000

MOST_CONNECTIONS = 64
"""At once, for each socket that is listened on."""

Statuses = Callable[[], Awaitable[AgentStatus | None]]


class StatusApiError(Exception):
    """It cannot be served so. The message is one line: what is wrong, and what to do."""


# What it says besides ------------------------------------------------------------------------------------------------


def history(directory: Path, limit: int) -> list[dict[str, Any]]:
    """The last entries, the newest first."""
    return [{"time": rfc3339(one.at), "kind": one.kind, **one.fields} for one in latest(directory, limit)]


# Where it listens, and for whom -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen. ``host`` None is the tunnel. ``certificate`` and ``key`` are PEM files; without them there is no TLS."""

    host: str | None
    port: int
    token: Path
    certificate: Path | None = None
    key: Path | None = None


def place(address: str, token: Path | None, certificate: Path | None, key: Path | None) -> Place:
    """From the command line: ``ADDRESS:PORT`` or ``tunnel:PORT``. Raises StatusApiError for what would be open, or in clear."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if token is None:
        raise StatusApiError("the status API is never open: give the file with its token, --status-token FILE")
    read_token(token)
    if (certificate is None) != (key is None):
        raise StatusApiError("TLS takes both, --status-certificate FILE and --status-key FILE")
    if not port.isascii() or not port.isdigit() or not 0 <= int(port) < 1 << 16:
        raise StatusApiError(f"not ADDRESS:PORT, such as 192.0.2.7:{DEFAULT_PORT} or {TUNNEL}:{DEFAULT_PORT}: {address!r}")
    if host == TUNNEL:
        return Place(None, int(port), token, certificate, key)
    try:
        is_loopback = ip_address(host).is_loopback
    except ValueError:
        raise StatusApiError(
            f"not an address to listen on: {host!r} (or {TUNNEL}:{port}, to listen in the tunnel only)"
        ) from None
    if certificate is None and not is_loopback:
        raise StatusApiError(
            f"the token would cross the wire in clear: give --status-certificate and --status-key, or listen on {TUNNEL}:{port}"
        )
    return Place(host, int(port), token, certificate, key)


def read_token(path: Path) -> bytes:
    """The token in a file, without the white space around it. Raises StatusApiError."""
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise StatusApiError(f"cannot read the token in {path}: {error.strerror}") from None
    if len(token) < SHORTEST_TOKEN:
        raise StatusApiError(f"the token in {path} is shorter than {SHORTEST_TOKEN} characters: openssl rand -hex 32 > {path}")
    return token


@dataclass(frozen=True, slots=True)
class Spot:
    """A device of the tunnel's, for one family. ``index`` is the interface's: one that is made anew has another."""

    device: str
    index: int
    family: Family


class Door(socket.socket):
    """A listening socket that lets in MOST_CONNECTIONS. The oldest is hung up on for the next: with TLS it may not even have
    shaken hands, so that no protocol knows of it yet."""

    def __init__(self, family: socket.AddressFamily) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._inside: deque[socket.socket] = deque()

    def accept(self) -> tuple[socket.socket, Any]:
        guest, address = super().accept()
        self._inside = deque(one for one in self._inside if one.fileno() >= 0)  # the others have left
        while len(self._inside) >= MOST_CONNECTIONS:
            with contextlib.suppress(OSError):  # it has gone by itself
                self._inside.popleft().shutdown(socket.SHUT_RDWR)
        self._inside.append(guest)
        return guest, address


class StatusApi:
    """Serves ``status`` (None before the first pass) and the history in ``directory`` at ``place``, until stopped."""

    def __init__(self, place: Place, status: Statuses, directory: Path) -> None:
        self._place = place
        self._status = status
        self._directory = directory
        self._tls: ssl.SSLContext | None = None
        self._stamp: tuple[int, ...] = ()
        self._sites: dict[Spot, web.SockSite] = {}
        self._follower: asyncio.Task[None] | None = None
        self.address: tuple[str, int] | None = None
        """Where it listens, unless in the tunnel."""

    async def start(self) -> None:
        """Raises StatusApiError if it cannot be served there."""
        application = web.Application(middlewares=[self._guard])
        application.add_routes(
            [
                web.get("/v1/summary", self._summary),
                web.get("/v1/status", self._whole),
                web.get("/v1/history", self._history),
            ]
        )
        self._load_certificate()
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1)
        await self._runner.setup()
        if self._place.host is not None:
            try:
                door = _listening(self._place.host, self._place.port)
                await web.SockSite(self._runner, door, ssl_context=self._tls).start()
            except OSError as error:
                await self._runner.cleanup()
                where = f"{self._place.host}:{self._place.port}"
                raise StatusApiError(f"cannot serve the status API on {where}: {error.strerror or error}") from None
            self.address = self._runner.addresses[0][:2]
        self._follower = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
            await self._runner.cleanup()

    # Requests

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        try:
            expected = read_token(self._place.token)
        except StatusApiError as error:
            log.warning("%s", error)
            raise web.HTTPServiceUnavailable(text="the agent has no token to compare with: see its log\n") from None
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, b"Bearer " + expected):
            raise web.HTTPUnauthorized(text="a token is needed\n", headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    async def _summary(self, _: web.Request) -> web.Response:
        return _json(summary(await self._known()))

    async def _whole(self, _: web.Request) -> web.Response:
        return _json(as_document(await self._known()))

    async def _history(self, request: web.Request) -> web.Response:
        limit = request.query.get("limit", str(HISTORY_LIMIT))
        if not (re.fullmatch("[0-9]{1,4}", limit) and 0 < int(limit) <= MOST_HISTORY):
            raise web.HTTPBadRequest(text=f"limit is a number from 1 to {MOST_HISTORY}\n")
        return _json(await asyncio.to_thread(history, self._directory, int(limit)))

    async def _known(self) -> AgentStatus:
        status = await self._status()
        if status is None:
            raise web.HTTPServiceUnavailable(text="the first pass is not over\n")
        return status

    # Places

    async def _follow(self) -> None:
        """Take a new certificate when there is one; in the tunnel, listen wherever the interface is by now."""
        said = ""
        while True:
            try:
                self._load_certificate()
                if self._place.host is None:
                    await self._listen(_spots(await self._status()))
                said = ""
            except Exception as error:  # whatever it is, the next look may go better
                if str(error) != said:
                    log.warning("the status API goes on as it was: %s", error)
                said = str(error)
            await asyncio.sleep(LOOK_SECONDS)

    async def _listen(self, wanted: Set[Spot]) -> None:
        """Be in these spots and in no others. Raises OSError for one that cannot be had just now."""
        for gone in self._sites.keys() - wanted:
            await self._sites.pop(gone).stop()
        for spot in wanted - self._sites.keys():
            site = web.SockSite(self._runner, _bound(spot, self._place.port), ssl_context=self._tls)
            await site.start()
            self._sites[spot] = site

    def _load_certificate(self) -> None:
        """Raises StatusApiError if the files are no certificate and its key. Does nothing where they have not changed."""
        certificate, key = self._place.certificate, self._place.key
        if certificate is None or key is None:
            return
        try:
            stamp = tuple(path.stat().st_mtime_ns for path in (certificate, key))
            if stamp == self._stamp:
                return
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)  # tried on another first
            self._tls = self._tls or ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(certificate, key)
            self._stamp = stamp
        except OSError as error:  # ssl.SSLError is one
            raise StatusApiError(f"{certificate} and {key} cannot serve: {error.strerror or error}") from None


def _json(document: Any) -> web.Response:
    text = json.dumps(document, separators=(",", ":"))
    return web.Response(text=text, content_type="application/json", headers={"Cache-Control": "no-store"})


def _spots(status: AgentStatus | None) -> frozenset[Spot]:
    """Where the tunnel is: on each interface, and for this host itself on the loopback device."""
    found = set()
    for family in status.families if status else ():
        if family.is_enabled and family.interface:
            with contextlib.suppress(OSError):  # there is no such interface just now
                index = socket.if_nametoindex(family.interface)
                found |= {Spot(device, index, family.family) for device in (family.interface, LOOPBACK)}
    return frozenset(found)


def _bound(spot: Spot, port: int) -> Door:
    """A socket that only takes what comes in by the spot's device, at any address. Raises OSError."""
    return _listening("0.0.0.0" if spot.family is Family.IPV4 else "::", port, spot.device)


def _listening(host: str, port: int, device: str | None = None) -> Door:
    """A socket at an address that only takes what comes in by ``device``, if one is given. Raises OSError."""
    made = Door(socket.AF_INET if ip_address(host).version == 4 else socket.AF_INET6)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if device is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if made.family is socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made
