"""Who may read the dashboard, and what its page may load: between the network and the page, for requests and WebSockets alike.

* *On a loopback address* everybody on this machine may read. But so could every web page that is open in a browser here: by
  a name that it has resolve to 127.0.0.1, or by a WebSocket, which browsers open across origins. So the Host has to be a loopback
  one, and an Origin, if there is any, has to be our own.
* *Elsewhere* there is a token besides, asked for once by a form. What the browser keeps then is no token: a cookie made of it
  (HMAC with a key that lasts as long as this process), for this site only and out of reach of scripts. With another token in
  the file it is worth nothing any more.

A content security policy keeps the page from loading or telling anything to any other origin. It allows inline scripts and
``eval``: Vue compiles its templates in the browser.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable
from html import escape
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.status_api import StatusApiError

COOKIE = "wgpy_dashboard"
LOGIN = "/login"
WRONG_SECONDS = 1.0
"""How long whoever gives a wrong token waits for the answer."""

MOST_FORM = 4096
"""Bytes of a form that are read."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",  # with none, browsers send the form with the Origin "null"
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Gate:
    """Lets through to ``app`` what may pass. ``host`` is the address that is listened on, and ``token`` gives the token that
    has to be known (None: none has)."""

    def __init__(self, app: ASGIApp, host: str, token: Callable[[], bytes] | None) -> None:
        self._app = app
        self._names = None if token is not None else LOOPBACK_NAMES | {host}
        self._token = token
        self._key = secrets.token_bytes(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._refusal(headers) or await self._login(scope, headers, receive)
        if answer is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await answer(scope, receive, _with_headers(send))

    def _refusal(self, headers: Headers) -> Response | None:
        """What is said to who comes from elsewhere, None to others."""
        host = headers.get("host", "")
        if self._names is not None and _name(host) not in self._names:
            return PlainTextResponse("this is only for who comes by the address it listens on\n", 403)
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host:
            return PlainTextResponse("this is not for other sites\n", 403)
        return None

    async def _login(self, scope: Scope, headers: Headers, receive: Receive) -> Response | None:
        """What is said to who has not shown the token yet, None to others."""
        if self._token is None:
            return None
        try:
            expected = self._token()
        except StatusApiError:
            return PlainTextResponse("the file with the dashboard's token cannot be read\n", 503)
        if hmac.compare_digest(_cookie(headers), self._pass(expected)):
            return None
        if scope["type"] == "http" and scope["path"] == LOGIN and scope["method"] == "POST":
            return await self._asked(Request(scope, receive), expected)
        return HTMLResponse(form(), 401, {"Cache-Control": "no-store"})

    async def _asked(self, request: Request, expected: bytes) -> Response:
        """The answer to the form."""
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > MOST_FORM:
            return PlainTextResponse("that is no form\n", 413)
        try:
            async with request.form(max_files=0, max_fields=1) as given:
                token = str(given.get("token", "")).strip().encode()
        except (HTTPException, MultiPartException):
            return PlainTextResponse("that is no form\n", 400)
        if not hmac.compare_digest(token, expected):
            await asyncio.sleep(WRONG_SECONDS)
            return HTMLResponse(form("That is not the token."), 401, {"Cache-Control": "no-store"})
        answer = RedirectResponse("/", 303)
        is_secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, self._pass(expected), httponly=True, samesite="strict", secure=is_secure)
        return answer

    def _pass(self, token: bytes) -> str:
        return hmac.new(self._key, token, hashlib.sha256).hexdigest()


def _name(host: str) -> str:
    """Of ``localhost:9591``, ``[::1]:9591``: without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str:
    """Of ``http://localhost:9591``: without the scheme; empty if it is no origin."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _cookie(headers: Headers) -> str:
    """What the browser keeps of us, in ASCII; empty if that is nothing."""
    try:
        kept = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return kept.value if kept is not None and kept.value.isascii() else ""


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sending


_FORM = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>wgpy dashboard: token</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0; display: grid; place-items: center; min-height: 100vh;
       background: light-dark(#f2f5f8, #0e141b); color: light-dark(#1b2430, #e8edf4); }}
main {{ padding: 2rem; max-width: 26rem; border-radius: 12px; background: light-dark(#fff, #161d26); }}
h1 {{ font-size: 1.25rem; margin: 0 0 1rem; }}
label {{ display: block; font-weight: 600; }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .6rem .75rem; border-radius: 8px; margin-top: .5rem;
       border: 1px solid light-dark(#78828e, #8a96a3); background: transparent; color: inherit; }}
button {{ background: #1d5fbf; color: #fff; border-color: #1d5fbf; margin-top: 1rem; cursor: pointer; }}
:focus-visible {{ outline: 3px solid light-dark(#1d5fbf, #79b0ff); outline-offset: 2px; }}
.wrong {{ color: light-dark(#b3261e, #ff8f87); font-weight: 600; }}
</style>
</head>
<body>
<main>
<h1>The mesh is behind a token</h1>
{wrong}
<form method="post" action="{login}">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button type="submit">Show the mesh</button>
</form>
<p>It stands in the file that <code>wgpy dashboard</code> was given with <code>--token</code>.</p>
</main>
</body>
</html>
"""


def form(wrong: str = "") -> str:
    """The page that asks for the token."""
    return _FORM.format(login=LOGIN, wrong=f'<p class="wrong" role="alert">{escape(wrong)}</p>' if wrong else "")
