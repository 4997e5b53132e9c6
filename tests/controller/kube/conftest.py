"""A scripted API server for each test."""

from collections.abc import AsyncIterator

import pytest

from tests.controller.kube.scripted import Scripted


@pytest.fixture
async def api() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    await scripted.start()
    yield scripted
    await scripted.stop()
