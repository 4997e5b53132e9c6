"""Requests to a scripted API server: credentials that expire, and every failure in one line that says what to do."""

import asyncio
import contextlib
import datetime
import logging
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from controller.kube.connection import Connection, Refused, Troubled
from controller.source import SourceError, SourceUnavailable
from tests.controller.kube.scripted import Scripted, gives, hangs, says, sends

PATH = "/api/v1/nodes"


@pytest.fixture
async def connection(api: Scripted, tmp_path: Path) -> AsyncIterator[Connection]:
    connection = Connection(api.kubeconfig(tmp_path))
    yield connection
    await connection.close()


async def failure(connection: Connection) -> SourceError:
    """Of a request; its message is one line."""
    with pytest.raises(SourceError) as raised:
        await connection.request("list", "nodes", PATH)
    assert "\n" not in str(raised.value) and "secret-token" not in str(raised.value)
    return raised.value


async def test_an_answer_is_json_and_a_sign_of_life(api: Scripted, connection: Connection) -> None:
    api.on(PATH, gives({"items": []}))
    assert connection.heard_at is None

    assert await connection.request("list", "nodes", PATH, {"limit": "1"}) == {"items": []}

    assert api.asked == [("GET", PATH, {"limit": "1"})]
    assert api.tokens == ["Bearer secret-token"]
    assert connection.heard_at is not None


async def test_a_token_that_has_expired_is_read_again_at_once(api: Scripted, connection: Connection, tmp_path: Path) -> None:
    api.on(PATH, gives(1), says(401, "Unauthorized"), gives(2))
    await connection.request("list", "nodes", PATH)
    (tmp_path / "token").write_text("newer-token")

    assert await connection.request("list", "nodes", PATH) == 2

    assert api.tokens == ["Bearer secret-token", "Bearer secret-token", "Bearer newer-token"]


async def test_a_watch_survives_that_another_request_needs_a_new_token(api: Scripted, connection: Connection) -> None:
    api.on("/watch", sends({"a": 1}, {"a": 2}, then="hangs"))
    api.on(PATH, says(401, "Unauthorized"), gives(2))

    async with connection.open("watch", "nodes", "/watch", {}) as response:
        assert await response.content.readline() == b'{"a": 1}\n'
        assert await connection.request("list", "nodes", PATH) == 2
        assert await response.content.readline() == b'{"a": 2}\n'


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (
            401,
            "may not list nodes: the API server does not accept our credentials (401): "
            "the token or certificate has expired or was revoked",
        ),
        (403, "may not list nodes (403, look at RBAC and admission policies): no, not you"),
        (404, "cannot list nodes (404): no, not you"),
        (422, "cannot list nodes (422): no, not you"),
    ],
)
async def test_a_no_is_a_no(api: Scripted, connection: Connection, status: int, expected: str) -> None:
    api.on(PATH, says(status, "no,\n not you"))

    error = await failure(connection)

    assert isinstance(error, Refused) and error.status == status
    assert str(error) == expected


@pytest.mark.parametrize("status", [429, 500, 503, 504])
async def test_trouble_is_worth_trying_again(api: Scripted, connection: Connection, status: int) -> None:
    api.on(PATH, says(status, "etcd is slow", Retry_After="7"))

    error = await failure(connection)

    assert isinstance(error, Troubled) and error.retry_after == 7
    assert str(error) == f"cannot list nodes: the API server is in trouble ({status}): etcd is slow"


async def test_garbage_is_worth_trying_again(api: Scripted, connection: Connection) -> None:
    api.on(PATH, sends(b"<html>a proxy's idea of an answer"))

    error = await failure(connection)

    assert isinstance(error, SourceUnavailable) and str(error) == "cannot list nodes: the API server's answer is no JSON"


async def test_an_answer_that_breaks_off(api: Scripted, connection: Connection) -> None:
    api.on(PATH, sends(b'{"items": [', then="cut"))

    error = await failure(connection)

    assert isinstance(error, SourceUnavailable) and "the connection broke off" in str(error)


async def test_no_answer(api: Scripted, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.kube.connection.ANSWER_SECONDS", 0.1)
    api.on(PATH, hangs)

    error = await failure(connection)

    assert str(error) == f"cannot list nodes: the API server at {api.url} does not answer in time"
    api.on(PATH, sends(b'{"items": [', then="hangs"))
    assert "does not answer in time" in str(await failure(connection))


async def test_nobody_there(api: Scripted, connection: Connection) -> None:
    await api.stop()

    error = await failure(connection)

    assert isinstance(error, SourceUnavailable)
    assert str(error) == f"cannot list nodes: the API server at {api.url} cannot be reached: Connection refused"


@pytest.mark.parametrize("linger", [0, None], ids=["reset", "closed"])
async def test_an_api_server_that_dies_while_tls_begins(api: Scripted, tmp_path: Path, linger: int | None) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if linger is not None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger))
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        api.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        connection = Connection(api.kubeconfig(tmp_path))
        error = await failure(connection)
        await connection.close()

    said = {"Connection reset by peer", "the connection broke off"}  # the kernel's word, or asyncio's who has forgotten it
    assert str(error) in {f"cannot list nodes: the API server at {api.url} cannot be reached: {each}" for each in said}


async def test_a_body_is_sent_with_its_content_type(api: Scripted, connection: Connection) -> None:
    api.on(PATH, gives({}))

    await connection.request(
        "patch", "nodes", PATH, method="PATCH", body={"a": None}, content_type="application/merge-patch+json"
    )

    assert api.bodies == [{"a": None}]


# Configuration


async def test_no_kubeconfig_is_one_line(tmp_path: Path) -> None:
    error = await failure(Connection(tmp_path / "none"))

    assert str(error) == f"there is no kubeconfig {tmp_path / 'none'}: say with --kubeconfig which one to use"


@pytest.mark.parametrize("text", ["", "[]", "a: [", "clusters: 3", "users: [{name: u, user: {token: secret-token}}]", "\x00"])
async def test_a_kubeconfig_that_is_none_is_one_line_without_its_secrets(tmp_path: Path, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)

    assert str(tmp_path / "kubeconfig") in str(await failure(Connection(tmp_path / "kubeconfig")))


async def test_a_context_that_is_not_there_is_named(api: Scripted, tmp_path: Path) -> None:
    assert "elsewhere" in str(await failure(Connection(api.kubeconfig(tmp_path), "elsewhere")))


async def test_without_a_kubeconfig_it_is_the_one_of_the_environment(
    api: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
    api.on(PATH, gives(1))
    connection = Connection()

    assert connection.origin == str(tmp_path / "kubeconfig")
    assert await connection.request("list", "nodes", PATH) == 1
    await connection.close()


async def test_in_a_pod_it_is_the_pods(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    connection = Connection()
    assert connection.origin == "this cluster"

    assert str(await failure(connection)) == "this cluster: Service token file does not exist."


async def test_a_token_is_not_in_the_log(api: Scripted, connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    api.on(PATH, says(401, "Unauthorized"))

    await failure(connection)

    assert "secret-token" not in caplog.text


async def test_a_connection_whose_other_end_is_gone_is_noticed_by_the_kernel(api: Scripted, connection: Connection) -> None:
    api.on(PATH, sends({}, then="hangs"))

    async with connection.open("watch", "nodes", PATH, {}) as response:
        assert response.connection is not None and response.connection.transport is not None
        made = response.connection.transport.get_extra_info("socket")
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10


async def test_no_socket_outlives_its_connection_also_if_the_other_end_never_says_goodbye(tmp_path: Path) -> None:
    with SilentServer(tmp_path) as server:
        connection = Connection(server.kubeconfig)
        asking = asyncio.create_task(connection.request("list", "nodes", PATH))
        await asyncio.to_thread(server.was_asked.wait, 5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert server.client_port in own_ports(), "TLS waits for the other end"

        await connection.close()

        assert server.client_port not in own_ports()


class SilentServer:
    """TLS, up to the first request. It is not answered, and neither is a goodbye."""

    def __init__(self, directory: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "silent")])
        now = datetime.datetime.now(datetime.UTC)
        unsigned = x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1)
        )
        pem = unsigned.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        (directory / "both.pem").write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(directory / "both.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.was_asked, self._is_over = threading.Event(), threading.Event()
        self.client_port = 0
        self.kubeconfig = directory / "kubeconfig"
        url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self.kubeconfig.write_text(KUBECONFIG.format(url=url))
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        accepted, (_, self.client_port) = self._listener.accept()
        with self._context.wrap_socket(accepted, server_side=True) as secured:
            secured.recv(4096)
            self.was_asked.set()
            self._is_over.wait(10)

    def __enter__(self) -> "SilentServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._listener.close()


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{{name: c, cluster: {{server: "{url}", insecure-skip-tls-verify: true}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{token: secret-token}}}}]
"""


def own_ports() -> set[int]:
    """The local ports of this process's sockets that are not closed."""
    ports = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError, IndexError, TypeError), socket.socket(fileno=os.dup(int(entry.name))) as each:
            ports.add(each.getsockname()[1])
    return ports
