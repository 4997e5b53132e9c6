"""The page without a browser: what it sends, and what it shows where there is nothing to show. tests/web has the browser."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nicegui import Client
from nicegui.page import page

from controller.dashboard.gather import Gatherer, PodsToo, Reach
from controller.dashboard.page import Page, Table
from controller.dashboard.tables import NODE_COLUMNS
from controller.directory import DirectorySource


@contextmanager
def somewhere() -> Iterator[None]:
    """Where elements may be made."""
    client = Client(page("/test"), request=None)
    with client:
        yield
    client.delete()


def sent_by(table: Table, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    sent: list[Any] = []
    monkeypatch.setattr(table.grid, "run_grid_method", lambda name, *arguments: sent.append((name, *arguments)))
    return sent


async def test_only_what_differs_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with somewhere():
        table = Table(NODE_COLUMNS, "Nodes")
        sent = sent_by(table, monkeypatch)
        one, other = {"id": "a", "clear": 0}, {"id": "b", "clear": 0}

        table.show([one, other])
        table.show([dict(one), dict(other)])
        table.show([one, {"id": "b", "clear": 1}, {"id": "c"}])
        table.show([one])

        assert sent == [
            ("applyTransaction", {"add": [one, other], "update": [], "remove": []}),
            ("applyTransaction", {"add": [{"id": "c"}], "update": [{"id": "b", "clear": 1}], "remove": []}),
            ("applyTransaction", {"add": [], "update": [], "remove": [{"id": "b"}, {"id": "c"}]}),
        ]


async def test_a_table_grows_with_its_rows_until_it_scrolls(monkeypatch: pytest.MonkeyPatch) -> None:
    with somewhere():
        table = Table(NODE_COLUMNS, "Nodes")
        sent_by(table, monkeypatch)
        heights = []
        for count in (0, 5, 12, 500):
            table.show([{"id": str(number)} for number in range(count)])
            heights.append(int(table.frame.style["height"].removesuffix("px")))

        assert heights[0] < heights[1] < heights[2] == heights[3]


@pytest.fixture
def gatherer(tmp_path: Path) -> Gatherer:
    token = tmp_path / "token"
    token.write_text("a token that is long enough")
    mesh = PodsToo()
    return Gatherer(lambda: DirectorySource(tmp_path, mesh), mesh, Reach.make(1, token, None, None))


async def test_a_page_without_a_mesh_says_what_it_waits_for(gatherer: Gatherer) -> None:
    with somewhere():
        made = Page(gatherer)
        made.build()
        made._look()

        assert made._empty.visible and not made._nodes_card.visible and not made._alert.visible
        gatherer.is_listed = True
        made._look()
        assert made._empty_head.text == "No nodes yet"
