"""Asks the API server two things: what time it is, and what it allows us. Nothing is changed by asking."""

import asyncio
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from controller.kube.connection import Connection
from controller.source import SourceError

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
SECONDS = 10.0


def ask(kubeconfig: Path | None, context: str | None, node: str) -> tuple[float | None, tuple[str, ...]]:
    """How many seconds its clock is ahead of ours (None: unknown), and the rights that we lack, as ``verb resource``."""
    try:
        return asyncio.run(_ask(Connection(kubeconfig, context), node))
    except (SourceError, TimeoutError):
        return None, ()  # that it cannot be read is found out by reading it


async def _ask(connection: Connection, node: str) -> tuple[float | None, tuple[str, ...]]:
    try:
        async with asyncio.timeout(SECONDS):
            lead = await _lead(connection)
            denied = [name for name, attributes in rights(node).items() if not await _is_allowed(connection, attributes)]
            return lead, tuple(denied)
    finally:
        await connection.close()


async def _lead(connection: Connection) -> float | None:
    async with connection.open("get", "version", "/version", {}) as response:
        date = response.headers.get("Date")
    try:
        return parsedate_to_datetime(date).timestamp() - time.time() if date else None
    except ValueError:
        return None


async def _is_allowed(connection: Connection, attributes: dict[str, str]) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer: Any = await connection.request("create", "selfsubjectaccessreviews", REVIEWS, method="POST", body=review)
    return bool(answer.get("status", {}).get("allowed"))


def rights(node: str) -> dict[str, dict[str, str]]:
    """What the agent of a node needs, in RBAC's words."""
    return {
        "list nodes": {"verb": "list", "resource": "nodes"},
        "patch nodes/status": {"verb": "patch", "resource": "nodes", "subresource": "status", "name": node},
        "create events": {"verb": "create", "group": "events.k8s.io", "resource": "events", "namespace": "default"},
    }
