"""Who passes the gate, by requests and by WebSockets."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from controller.dashboard import gate as module
from controller.dashboard.gate import COOKIE, HEADERS, LOGIN, MOST_FORM, Gate
from controller.status_api import StatusApiError

TOKEN = b"a token that is long enough"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRONG_SECONDS", 0.0)


async def page(scope: Any, receive: Any, send: Any) -> None:
    """What is behind the gate."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"behind the gate"})


def local() -> Gate:
    return Gate(page, "127.0.0.1", None)


def guarded(token: Callable[[], bytes] = lambda: TOKEN) -> Gate:
    return Gate(page, "192.0.2.7", token)


class Answer:
    """What came back: a status, or whether a WebSocket was taken."""

    def __init__(self, messages: list[Any]) -> None:
        first = messages[0]
        self.is_taken = first["type"] == "websocket.accept"
        self.status = first.get("status")
        self.headers = {key.decode(): value.decode() for key, value in first.get("headers", ())}
        self.body = b"".join(message.get("body", b"") for message in messages).decode()


async def ask(
    gate: Gate, kind: str = "http", path: str = "/", method: str = "GET", body: bytes = b"", scheme: str = "http", **headers: str
) -> Answer:
    sent: list[Any] = []
    given = {"host": "127.0.0.1:9591", **headers}
    if body and "content-type" not in headers:
        given |= {"content-length": str(len(body)), "content-type": "application/x-www-form-urlencoded"}
    scope = {
        "type": kind,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "method": method,
        "scheme": scheme,
        "server": ("127.0.0.1", 9591),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }
    first = {"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request", "body": body}

    async def receive() -> Any:
        return first

    async def send(message: Any) -> None:
        sent.append(message)

    await gate(scope, receive, send)
    return Answer(sent)


async def log_in(gate: Gate, token: bytes = TOKEN, scheme: str = "http") -> Answer:
    return await ask(gate, path=LOGIN, method="POST", body=b"token=" + quote(token).encode(), scheme=scheme)


def passing(answer: Answer) -> str:
    return str(answer.headers["set-cookie"]).partition(";")[0]


# On a loopback address


@pytest.mark.parametrize("host", ["127.0.0.1:9591", "localhost:9591", "[::1]:9591", "LOCALHOST"])
async def test_who_comes_by_a_loopback_name_may_read(host: str) -> None:
    assert (await ask(local(), host=host)).body == "behind the gate"
    assert (await ask(local(), "websocket", host=host)).is_taken


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9591", "127.0.0.1.evil.example", "", "[", "192.0.2.7:9591"])
async def test_a_name_that_resolves_to_here_is_none_of_ours(host: str) -> None:
    """A page of elsewhere whose name has come to mean 127.0.0.1 (DNS rebinding)."""
    assert (await ask(local(), host=host)).status == 403
    assert not (await ask(local(), "websocket", host=host)).is_taken


@pytest.mark.parametrize("gate", [local, guarded])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://evil.example:9591", "null", "http://127.0.0.1:80", "http://localhost"]
)
async def test_pages_of_elsewhere_open_no_websocket(gate: Callable[[], Gate], origin: str) -> None:
    assert not (await ask(gate(), "websocket", origin=origin)).is_taken
    assert (await ask(gate(), origin=origin)).status == 403


async def test_our_own_page_opens_one() -> None:
    assert (await ask(local(), "websocket", origin="http://127.0.0.1:9591")).is_taken


# Elsewhere


@pytest.mark.parametrize("path", ["/", "/_nicegui/x.js", "/nowhere", LOGIN])
async def test_without_the_token_there_is_only_the_form(path: str) -> None:
    answer = await ask(guarded(), path=path)

    assert answer.status == 401 and "behind the gate" not in answer.body and '<input id="token"' in answer.body
    assert not (await ask(guarded(), "websocket", path=path)).is_taken


async def test_with_the_token_one_gets_a_pass_that_is_not_the_token() -> None:
    gate = guarded()
    answer = await log_in(gate)

    assert answer.status == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie
    assert TOKEN.decode() not in str(answer.headers)
    assert (await ask(gate, cookie=passing(answer))).body == "behind the gate"
    assert (await ask(gate, "websocket", cookie=f"other=1; {passing(answer)}")).is_taken


async def test_over_tls_the_pass_stays_there() -> None:
    assert "secure" in (await log_in(guarded(), scheme="https")).headers["set-cookie"].lower()


@pytest.mark.parametrize("token", [b"", b"wrong", TOKEN[:-1], TOKEN + b"x", "ä".encode() * 20, b"\xff\xfe"])
async def test_a_wrong_token_gets_the_form_again_and_no_pass(token: bytes) -> None:
    answer = await log_in(guarded(), token)

    assert answer.status == 401 and "set-cookie" not in answer.headers and "not the token" in answer.body


@pytest.mark.parametrize(
    "cookie", ["", "x", COOKIE, f"{COOKIE}=", f"{COOKIE}=0", f"{COOKIE}=ä", f"{COOKIE}={TOKEN.decode()}", "=;;\x01"]
)
async def test_a_pass_that_is_none_of_ours_is_worth_nothing(cookie: str) -> None:
    assert (await ask(guarded(), cookie=cookie)).status == 401


async def test_a_pass_ends_with_its_token_and_with_the_process() -> None:
    tokens = [TOKEN]
    gate = guarded(lambda: tokens[0])
    given = passing(await log_in(gate))

    assert (await ask(guarded(), cookie=given)).status == 401, "another process"
    tokens[0] = b"another token that is long enough"
    assert (await ask(gate, cookie=given)).status == 401


async def test_without_a_file_to_compare_with_nobody_passes() -> None:
    def gone() -> bytes:
        raise StatusApiError("cannot read the token in /secret: gone")

    answer = await ask(guarded(gone))

    assert answer.status == 503 and "/secret" not in answer.body
    assert not (await ask(guarded(gone), "websocket")).is_taken


FIELD = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n1\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="token"; filename="a"\r\n\r\n1\r\n'


@pytest.mark.parametrize("body", [FIELD % b"a" + FIELD % b"token" + b"--x--\r\n", FILE + b"--x--\r\n"], ids=["fields", "file"])
async def test_a_form_that_is_another_is_refused_and_nothing_fails(body: bytes) -> None:
    """A failure would be a traceback in the log for whoever asks."""
    kind = {"content-type": "multipart/form-data; boundary=x", "content-length": str(len(body))}

    answer = await ask(guarded(), method="POST", path=LOGIN, body=body, **kind)

    assert answer.status == 400


@pytest.mark.parametrize("gate", [local, guarded])
async def test_an_origin_that_is_none_is_not_ours(gate: Callable[[], Gate]) -> None:
    assert (await ask(gate(), origin="http://[")).status == 403


async def test_a_form_that_is_too_long_is_not_read() -> None:
    assert (await log_in(guarded(), b"x" * MOST_FORM)).status == 413


# For everybody


@pytest.mark.parametrize("gate", [local, guarded])
async def test_every_answer_keeps_the_page_to_its_own_origin(gate: Callable[[], Gate]) -> None:
    answer = await ask(gate())

    assert {name.lower(): value for name, value in HEADERS.items()}.items() <= answer.headers.items()
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["connect-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
    assert "http" not in answer.headers["content-security-policy"]


async def test_what_is_neither_a_request_nor_a_websocket_passes() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await Gate(app, "127.0.0.1", None)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]

    assert seen == ["lifespan"]
