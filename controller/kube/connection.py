"""HTTP to one API server: credentials, requests, and what can go wrong, said in one line.

The `kubernetes` package brings what is hard to get right and of no interest here: kubeconfig files with everything they may hold
(certificates, token files, exec plugins, proxies), the in-cluster configuration, and an HTTP session (aiohttp) that is set up
accordingly. Its generated API classes are not used: each object would become a tree of models, of which we look at five fields.

**Credentials** expire. A token in a pod is read again each minute (by the package); and whenever the API server answers 401, or
its certificate is not trusted, everything is read again, an exec plugin is run again, and the request is made once more.

**Three kinds of failure** are told apart, since they are mended by different people. :class:`Refused`: the API server says no
(403, 404, 422 ...), and will go on saying so. :class:`~controller.source.SourceUnavailable`: nobody answers, or it says that it
cannot just now (429, 5xx). Plain :class:`~controller.source.SourceError`: our own configuration is wrong.

**A dead connection** is noticed by the kernel (TCP keepalive, some 20 s) and not by a timer of ours, so that a watch at rest
costs nothing; a living server that says nothing is noticed by the deadlines of those who ask it.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from controller.source import SourceError, SourceUnavailable

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.5
"""TCP and TLS: a second and a half after the third SYN."""

ANSWER_SECONDS = 10.0
"""Until an answer begins."""

CLOSING_SECONDS = 0.5
"""Some turns of the loop are enough to close a socket whose both directions are shut down."""

LONGEST_MESSAGE = 400

KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 3), (socket.TCP_KEEPCNT, 3))
"""A connection whose other end is gone is broken after 10 + 3 * 3 seconds."""


class Refused(SourceError):
    """The API server says no. ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Troubled(SourceUnavailable):
    """The API server says that it cannot just now (429, 5xx), and maybe when to ask again."""

    def __init__(self, status: int, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Connection:
    """Requests to the API server of a kubeconfig, or of the pod we are in. Made without a loop; nothing happens until it is used.

    ``kubeconfig``: None is the in-cluster configuration where there is one, else ``KUBECONFIG`` or ``~/.kube/config``.
    """

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None) -> None:
        self._path = kubeconfig
        if kubeconfig is None and not is_in_cluster():
            self._path = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
        self._context = context
        self._client: _Client | None = None
        self._loading = asyncio.Lock()
        self._is_stale = False
        self.heard_at: float | None = None
        """When the API server last gave a sign of life, in seconds since 1970."""

    async def close(self) -> None:
        """Break all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def heard(self) -> None:
        """There was a sign of life."""
        self.heard_at = time.time()

    async def request(
        self,
        verb: str,
        resource: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """Ask for ``path``; the answer's JSON. ``verb`` and ``resource`` are RBAC's, for messages. Raises SourceError."""
        query = query or {}
        async with self.open(verb, resource, path, query, method=method, body=body, content_type=content_type) as response:
            async with asyncio.timeout(ANSWER_SECONDS):
                text = await response.read()
        try:
            return json.loads(text)
        except ValueError:
            raise SourceUnavailable(f"cannot {verb} {resource}: the API server's answer is no JSON") from None

    @contextlib.asynccontextmanager
    async def open(
        self,
        verb: str,
        resource: str,
        path: str,
        query: Mapping[str, str],
        *,
        method: str = "GET",
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The same, but the answer's body is for the caller to read, and to limit in time. What goes wrong while it is read is
        a SourceError, too."""
        what = f"cannot {verb} {resource}"
        url = f"{path}?{urlencode(query)}" if query else path
        response: aiohttp.ClientResponse | None = None
        used: list[_Client] = []
        try:
            for is_last in (False, True):
                client = await self._ready()
                client.users += 1
                used.append(client)
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        response = await client.send(method, url, body, content_type)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientConnectionResetError):
                    # A connection that was kept, and closed in the same moment. What we ask for can be asked for twice.
                    if is_last:
                        raise
                    continue
                self.heard()
                if response.status != 401 or is_last:
                    break
                _drop(response)
                self._is_stale = True
            assert response is not None
            if response.status >= 400:
                async with asyncio.timeout(ANSWER_SECONDS):
                    raise _refusal(verb, resource, response, await response.read())
            yield response
        except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
            self._is_stale = True
            cause = getattr(error, "certificate_error", error)
            reason = _one_line(getattr(cause, "verify_message", None) or cause)
            raise SourceError(f"{what}: the certificate of the API server{self._at()} is not trusted: {reason}") from None
        except TimeoutError:
            raise SourceUnavailable(f"{what}: the API server{self._at()} does not answer in time") from None
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise SourceUnavailable(f"{what}: the API server{self._at()} cannot be reached: {_reason(error)}") from None
        finally:
            if response is not None:
                _drop(response)
            for client in used:
                await client.release()

    def _at(self) -> str:
        return f" at {self._client.host}" if self._client is not None else ""

    async def _ready(self) -> "_Client":
        """A client with credentials that are good as far as we know."""
        async with self._loading:
            if self._client is None or self._is_stale:
                before, configuration = self._client, await self._load()
                try:
                    self._client = _Client(configuration)
                except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                    raise SourceError(f"the certificates of {self.origin} cannot be used: {_reason(error)}") from None
                self._is_stale = False
                if before is not None:
                    await before.retire()
            return self._client

    @property
    def origin(self) -> str:
        """Where the configuration comes from."""
        return "this cluster" if self._path is None else str(self._path)

    async def _load(self) -> Configuration:
        """Read the configuration anew. Raises SourceError."""
        configuration = Configuration()
        configuration.retries = None
        path = self._path
        try:
            if path is None:
                load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
                return configuration
            if os.pathsep not in str(path) and not path.is_file():
                raise SourceError(f"there is no kubeconfig {path}: say with --kubeconfig which one to use")
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(path), context=self._context, client_configuration=configuration, persist_config=False
            )
        except SourceError:
            raise
        except (ConfigException, OSError) as error:
            raise SourceError(f"{self.origin}: {_one_line(error)}") from None
        except Exception as error:
            # The package reads it trustingly, and what has not the expected shape raises anything. The text may quote the file.
            raise SourceError(f"{self.origin} is no kubeconfig that can be read ({type(error).__name__})") from None
        return configuration


class _Client(RESTClientObject):
    """A session with the credentials of one configuration. A retired one is closed when its last request, which may be a watch,
    has ended."""

    users = 0
    is_retired = False

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(configuration)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    async def retire(self) -> None:
        self.is_retired = True
        if self.users == 0:
            await self.close()

    async def release(self) -> None:
        self.users -= 1
        if self.is_retired and self.users == 0:
            await self.close()

    @property
    def host(self) -> str:
        return str(self.configuration.host)

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(ssl=self.ssl_context, socket_factory=self._socket)

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        made = _socket(address)
        self._sockets.add(made)
        return made

    async def close(self) -> None:
        """Close the session, and see to it that all sockets are closed.

        The session says goodbye to a request that was given up, and TLS then waits half a minute for the other side to say it,
        too: which may be what has gone silent.
        """
        await super().close()
        for each in self._sockets:
            with contextlib.suppress(OSError):  # closed already, or its other end has
                each.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                while any(each.fileno() >= 0 for each in self._sockets):
                    await asyncio.sleep(0)

    async def send(self, method: str, url: str, body: Mapping[str, Any] | None, content_type: str) -> aiohttp.ClientResponse:
        """The answer, as soon as its headers are there."""
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        try:
            authorization = await self.configuration.get_api_key_with_prefix("BearerToken")
        except (ConfigException, OSError) as error:
            raise SourceError(f"the token of this pod cannot be read: {_one_line(error)}") from None
        if authorization:
            headers["Authorization"] = authorization.strip()
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS)
        answer = await self.request(method, self.host + url, headers=headers, body=body, _request_timeout=timeout)  # type: ignore[no-untyped-call]
        response: aiohttp.ClientResponse = answer.response
        return response


def is_in_cluster() -> bool:
    """Whether this process runs in a pod that has been given access to the API server."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _drop(response: aiohttp.ClientResponse) -> None:
    """Let go of an answer. If it has been read to its end, its connection is kept for others; if not, it is cut: TLS would wait
    for the other side to say goodbye, and that may be what has gone silent."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


def _refusal(verb: str, resource: str, response: aiohttp.ClientResponse, body: bytes) -> SourceError:
    """What an answer of 400 and above means."""
    status, said = response.status, _said(body) or response.reason or "no reason given"
    if status == 401:
        hint = "the token or certificate has expired or was revoked"
        return Refused(status, f"may not {verb} {resource}: the API server does not accept our credentials (401): {hint}")
    if status == 403:
        return Refused(status, f"may not {verb} {resource} (403, look at RBAC and admission policies): {said}")
    if status == 429 or status >= 500:
        return Troubled(
            status, f"cannot {verb} {resource}: the API server is in trouble ({status}): {said}", _retry_after(response)
        )
    return Refused(status, f"cannot {verb} {resource} ({status}): {said}")


def _said(body: bytes) -> str:
    """The message of a Status, or the beginning of whatever it is."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, LookupError, TypeError):
        message = body[:LONGEST_MESSAGE].decode(errors="replace")
    return _one_line(message)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None


def _reason(error: BaseException) -> str:
    """What the system said, without the names of classes and the addresses that libraries add."""
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "the connection broke off"
    inner = getattr(error, "os_error", error)
    number = getattr(inner, "errno", None)
    if isinstance(number, int) and number > 0 and not isinstance(inner, ssl.SSLError | socket.gaierror):
        return os.strerror(number)
    if isinstance(inner, ConnectionError):  # asyncio's, without a number: the other end went while TLS began, or while we wrote
        return "the connection broke off"
    return _one_line(getattr(inner, "strerror", None) or inner) or type(error).__name__


def _one_line(said: object) -> str:
    text = " ".join(str(said).split())
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 1]}…"
