"""An API server that says what it is told to say: for faults that a real one cannot be brought to."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Scripted:
    """Answers to requests by path, each used once, but the last of a path for ever. ``asked`` has every request."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str, Mapping[str, str]]] = []
        self.tokens: list[str] = []
        self.bodies: list[Any] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    def on(self, path: str, *answers: Answer) -> None:
        self.answers[path] = list(answers)

    async def start(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{rest:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def kubeconfig(self, path: Path, token: str = "secret-token") -> Path:
        """A kubeconfig for it, with a file for the token beside it."""
        (path / "token").write_text(token)
        config = {
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"tokenFile": str(path / "token")}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (path / "kubeconfig").write_text(yaml.safe_dump(config))
        return path / "kubeconfig"

    def methods(self, path: str) -> list[str]:
        """What was asked of a path, in order. Between paths there is none: watches go on beside everything else."""
        return [method for method, asked, _ in self.asked if asked == path]

    def count(self, path: str) -> int:
        return len(self.methods(path))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path, dict(request.query)))
        self.tokens.append(request.headers.get("Authorization", ""))
        if request.can_read_body:
            self.bodies.append(await request.json())
        answers = self.answers.get(request.path)
        if not answers:
            return await says(404, "the server could not find the requested resource")(request)
        return await (answers.pop(0) if len(answers) > 1 else answers[0])(request)


def says(status: int, message: str, **headers: str) -> Answer:
    """A Status."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = {"kind": "Status", "code": status, "message": message}
        return web.json_response(body, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


def gives(body: Any) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    return answer


def sends(*events: Any, then: str = "ends") -> Answer:
    """A watch with these events (bytes go out as they are). ``then`` it ends, hangs, or is cut."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for event in events:
            await response.write(event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n")
        if then == "hangs":
            await asyncio.sleep(60)
        if then == "cut" and request.transport is not None:
            request.transport.abort()
        return response

    return answer


async def hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


def event(what: str, name: str, version: int, **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "resourceVersion": str(version), "annotations": fields.pop("annotations", {})}
    return {"type": what, "object": {"apiVersion": "v1", "kind": "Node", "metadata": metadata, **fields}}


def end_of_list(version: int) -> dict[str, Any]:
    annotations = {"k8s.io/initial-events-end": "true"}
    return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version), "annotations": annotations}}}


def error(code: int, message: str) -> dict[str, Any]:
    return {"type": "ERROR", "object": {"kind": "Status", "code": code, "message": message}}
