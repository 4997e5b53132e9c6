"""Asking an API server for its clock and our rights."""

import asyncio
import json
import time
from email.utils import formatdate
from pathlib import Path

from aiohttp import web

from controller.doctor.server import REVIEWS, ask, rights
from tests.controller.kube.scripted import Scripted


async def asked(tmp_path: Path, server: Scripted) -> tuple[float | None, tuple[str, ...]]:
    await server.start()
    try:
        return await asyncio.to_thread(ask, server.kubeconfig(tmp_path), None, "n1")
    finally:
        await server.stop()


async def test_clock_and_rights(tmp_path: Path) -> None:
    server = Scripted()

    async def version(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, headers={"Date": formatdate(time.time() + 3600, usegmt=True)})

    async def review(request: web.Request) -> web.StreamResponse:
        attributes = (await request.json())["spec"]["resourceAttributes"]
        return web.json_response({"status": {"allowed": attributes["resource"] != "events"}})

    server.on("/version", version)
    server.on(REVIEWS, review)

    lead, denied = await asked(tmp_path, server)

    assert lead is not None and 3590 < lead < 3610
    assert denied == ("create events",)
    assert server.count(REVIEWS) == len(rights("n1"))


async def test_one_that_does_not_answer_well_says_nothing(tmp_path: Path) -> None:
    server = Scripted()

    async def refused(request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "no"}, status=403)

    server.on("/version", refused)

    assert await asked(tmp_path, server) == (None, ())


def test_rights_are_about_this_node() -> None:
    assert rights("n1")["patch nodes/status"] == {"verb": "patch", "resource": "nodes", "subresource": "status", "name": "n1"}
    assert json.dumps(rights("n1"))
