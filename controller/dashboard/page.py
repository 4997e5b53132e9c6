"""The page: what is in it, and how it keeps up. One :class:`Page` for each browser that looks at it, all of one gatherer.

A page looks at the gatherer twice a second. Whatever has changed in kind (a node came, a link broke) shows at once; counters,
which change all the time, every COUNTERS_SECONDS. Only what differs from what the browser has is sent: rows one by one, the
picture when it is another. Tables draw only the rows that are in sight, and the picture is a canvas: so the work does not
follow the size of the mesh.

Everything the picture says stands in the table as well, which is what keyboards and screen readers use.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import background_tasks, ui
from nicegui.elements.mixins.text_element import TextElement
from nicegui.events import GenericEventArguments

from controller.dashboard import look
from controller.dashboard.gather import Gatherer
from controller.dashboard.picture import DARK, LIGHT, MARKS, Palette, mesh_options, throughput_options
from controller.dashboard.tables import (
    NODE_COLUMNS,
    PEER_COLUMNS,
    Row,
    ages,
    caption,
    facts,
    node_rows,
    notice,
    peer_rows,
    told_line,
)
from controller.dashboard.view import MeshView, State, mesh_view, names, rate, spoken
from controller.status_api import StatusApiError

LOOK_SECONDS = 0.5
COUNTERS_SECONDS = 2.0
MOST_WARNINGS = 50
TALLEST = 12
"""Rows of a table before it scrolls."""

ROW_PIXELS, HEAD_PIXELS = 38, 52


class Words(TextElement):
    """An element of any kind with text in it, which is never read as HTML."""

    def __init__(self, tag: str, text: str = "", classes: str = "") -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)


class Table:
    """An AG Grid whose rows go by their ``id``. :meth:`show` sends what has changed and no more. If it ``is_choice``, the browser
    tells of each row that is chosen, by a click or by Enter (``chosen``)."""

    def __init__(self, columns: Sequence[Row], label: str, is_choice: bool = False) -> None:
        self._rows: dict[str, Row] = {}
        options: Row = {
            "columnDefs": list(columns),
            "rowData": [],
            "defaultColDef": {"sortable": True, "resizable": True, "suppressMovable": True},
            "rowHeight": ROW_PIXELS,
            "animateRows": False,
            "enableBrowserTooltips": True,
            ":getRowId": "row => row.data.id",
            "ensureDomOrder": True,
            "overlayNoRowsTemplate": "<span>Nothing to show</span>",
            "suppressColumnVirtualisation": True,
        }
        if is_choice:
            options |= {
                "rowSelection": {"mode": "singleRow", "checkboxes": False, "enableClickSelection": True},
                ":onCellKeyDown": "cell => { if (cell.event.key === 'Enter') cell.node.setSelected(true, true); }",
                ":onRowSelected": "row => { if (row.node.isSelected()) emitEvent('chosen', row.data.id); }",
            }
        # Whatever is changed on the grid's own element makes it anew, without its rows: so its height is that of a frame.
        with ui.element("div") as self.frame:
            self.grid = ui.aggrid(options, auto_size_columns=False).props(f'aria-label="{label}" role="region"')
            self.grid.style("height: 100%")
        self._fit(0)

    def show(self, rows: Sequence[Row]) -> None:
        now = {row["id"]: row for row in rows}
        changes = {
            "add": [row for key, row in now.items() if key not in self._rows],
            "update": [row for key, row in now.items() if key in self._rows and row != self._rows[key]],
            "remove": [{"id": key} for key in self._rows if key not in now],
        }
        if any(changes.values()):
            self.grid.run_grid_method("applyTransaction", changes)
        if len(now) != len(self._rows):
            self._fit(len(now))
        self._rows = now

    def _fit(self, count: int) -> None:
        self.frame.style(f"height: {HEAD_PIXELS + ROW_PIXELS * max(2, min(count, TALLEST))}px")


_TILES = (
    ("nodes", "nodes"),
    ("encrypted", "peers encrypted"),
    ("clear", "peers in clear"),
    ("refused", "peers refused"),
    ("silent", "peers silent"),
    ("leaks", "packets leaked"),
    ("warnings", "warnings"),
    ("rate", "sent in all"),
)


def _argument(event: GenericEventArguments) -> Any:
    """The one thing that the browser has sent."""
    return event.args[0] if isinstance(event.args, list) else event.args


def _say(words: TextElement, text: str) -> None:
    if words.text != text:
        words.text = text


class Tile:
    """One number and what it is."""

    def __init__(self, label: str) -> None:
        with ui.element("li").classes("tile") as self._box:
            self._value = Words("span", "–", "value")
            Words("span", label, "label")

    def show(self, value: str, kind: str = "") -> None:
        if self._value.text != value:
            self._value.text = value
        self._box.classes(remove="bad warned", add=kind)


class Page:
    """What one browser sees."""

    def __init__(self, gatherer: Gatherer) -> None:
        self._gatherer = gatherer
        self._palette: Palette = LIGHT
        self._selected: str | None = None
        self._seen: tuple[Any, ...] = ()
        self._counted_at = 0.0
        self._picture: Row = {}
        self._warned: tuple[Any, ...] | None = None
        self._details: Mapping[str, Any] | None = None
        self._told: Sequence[Any] | None = None

    def build(self) -> None:
        ui.add_head_html(look.head())
        with ui.element("a").classes("skip").props('href="#nodes"'):
            ui.label("Skip to the table of nodes")
        with ui.element("header").classes("top"):
            Words("h1", f"wgpy · {self._gatherer.mesh_name} mesh")
            self._status = Words("p", "Waiting for the cluster").props('role="status"')
        with ui.element("div").classes("body"):
            self._build_notices()
            with (
                ui.element("div").classes("wide") as self._tiles_box,
                ui.element("ul").classes("tiles").props('aria-label="Totals"'),
            ):
                self._tiles = {name: Tile(label) for name, label in _TILES}
            self._build_charts()
            self._build_tables()
        ui.on("scheme", self._take_scheme)
        ui.on("chosen", lambda event: self.select(_argument(event)))
        ui.timer(LOOK_SECONDS, self._look)
        ui.timer(COUNTERS_SECONDS, self._look_closer)

    # What there is

    def _build_notices(self) -> None:
        with ui.element("section").classes("card wide alert").props('role="alert"') as self._alert:
            self._alert_head = Words("h2")
            self._alert_text = Words("p")
        with ui.element("section").classes("card wide empty") as self._empty:
            self._empty_head = Words("h2", "Waiting for the cluster")
            self._empty_text = Words("p", "The nodes are shown as soon as the cluster has said which there are.", "note")
        self._alert.visible = False

    def _build_charts(self) -> None:
        with ui.element("section").classes("card").props('aria-labelledby="mesh-head"') as self._mesh_card:
            Words("h2", "The mesh").props('id="mesh-head"')
            # The label stands on a frame of its own: to change it on the chart would send all of the chart again.
            with ui.element("div").props('role="img"') as self._chart_frame:
                self._chart = ui.echart(mesh_options(MeshView(), LIGHT)).classes("picture")
            # NiceGUI's own on_point_click fails at points that have no value, as nodes have none.
            self._chart.on("componentClick", self._clicked, ["dataType", "name"])
            with ui.element("ul").classes("legend").props('aria-label="What the marks mean"'):
                for state in State:
                    with ui.element("li"):
                        Words("span", MARKS[state], f"state-{state.severity}").props('aria-hidden="true"')
                        Words("span", f" {state.value}")
            self._caption = Words("p", "", "note")
        with ui.element("div").classes("stack") as self._side:
            with ui.element("section").classes("card").props('aria-labelledby="flow-head"'):
                self._flow_head = Words("h2", "Throughput").props('id="flow-head"')
                with ui.element("div").props('role="img"') as self._flow_frame:
                    self._flow = ui.echart(throughput_options((), LIGHT)).classes("throughput")
            with ui.element("section").classes("card").props('aria-labelledby="ages-head"'):
                Words("h2", "Latest handshakes").props('id="ages-head"')
                self._bars = []
                with ui.element("ul").classes("bars"):
                    for label, kind in ages():
                        with ui.element("li"):
                            Words("span", label)
                            count = Words("span", "0", "count")
                            bar = ui.element("span").classes(f"bar {kind}").props('aria-hidden="true"')
                            self._bars.append((count, bar))
            with ui.element("section").classes("card").props('aria-labelledby="warnings-head"'):
                Words("h2", "Warnings").props('id="warnings-head"')
                self._warnings = ui.element("ul").classes("plain scrolls").props('tabindex="0" aria-labelledby="warnings-head"')

    def _build_tables(self) -> None:
        with ui.element("section").classes("card wide").props('aria-labelledby="nodes"') as self._nodes_card:
            with ui.element("div").classes("heading"):
                Words("h2", "Nodes").props('id="nodes" tabindex="-1"')
                filter_input = ui.element("input").classes("filter")
                filter_input.props('type="search" placeholder="Filter ( / )" aria-label="Filter the nodes"')
                filter_input.on("input", self._filter, js_handler="event => emit(event.target.value)")
            self._nodes = Table(NODE_COLUMNS, "Nodes", is_choice=True)
            Words("p", "In the table: arrow keys move, Enter shows a node, Escape closes it, / goes to the filter.", "note")
        with ui.element("section").classes("card wide").props('aria-labelledby="node-head"') as self._node_card:
            with ui.element("div").classes("heading"):
                self._node_head = Words("h2").props('id="node-head" tabindex="-1"')
                close = ui.element("button").classes("close").props('type="button"').on("click", lambda: self.select(None))
                with close:
                    ui.label("Close")
            self._facts = ui.element("ul").classes("facts")
            self._peers = Table(PEER_COLUMNS, "Peers")
            Words("h3", "What happened there")
            self._history = ui.element("ul").classes("plain scrolls").props('tabindex="0" aria-label="What happened there"')
        self._node_card.visible = False

    # What happens

    def _take_scheme(self, event: GenericEventArguments) -> None:
        self._palette = DARK if _argument(event) else LIGHT
        self._seen = ()
        self._look()

    def _filter(self, event: GenericEventArguments) -> None:
        self._nodes.grid.run_grid_method("setGridOption", "quickFilterText", _argument(event))

    def _clicked(self, event: GenericEventArguments) -> None:
        if event.args.get("dataType") == "node":
            self.select(event.args["name"])

    def select(self, name: str | None) -> None:
        """Look at a node closely, or at none."""
        if name == self._selected:
            return
        self._selected, self._details, self._told = name, None, None
        self._node_card.visible = name is not None
        self._peers.show([])
        self._facts.clear()
        self._history.clear()
        if name is None:
            self._nodes.grid.run_grid_method("deselectAll")
            ui.run_javascript('document.getElementById("nodes")?.focus()')
        else:
            self._node_head.text = name
            self._nodes.grid.run_row_method(name, "setSelected", True, True)
            ui.run_javascript('setTimeout(() => document.getElementById("node-head")?.focus(), 50)')
        self._seen = ()
        self._look()
        background_tasks.create(self._look_closer(), name=f"look at {name}")

    # Keeping up

    def _look(self) -> None:
        gatherer, now = self._gatherer, time.time()
        seen = (gatherer.version, gatherer.is_listed, gatherer.source_failure, self._selected, self._palette is DARK)
        is_news = seen != self._seen
        if not is_news and now < self._counted_at + COUNTERS_SECONDS:
            return
        self._seen, self._counted_at = seen, now
        view = mesh_view(gatherer.sightings, gatherer.mesh_name, self._selected)
        if self._selected is not None and all(node.name != self._selected for node in view.nodes):
            self.select(None)  # it has left, and this looks again
            return
        self._show_notices(view)
        self._show_totals(view)
        self._show_flow()
        self._nodes.show(node_rows(view, now))
        if is_news:
            self._show_picture(view)
            self._show_warnings(view)

    def _show_notices(self, view: MeshView) -> None:
        said = notice(view, self._gatherer.is_listed, self._gatherer.source_failure)
        is_empty = not view.nodes
        self._empty.visible = is_empty
        self._alert.visible = said is not None and not is_empty
        for each in (self._tiles_box, self._mesh_card, self._side, self._nodes_card):
            each.visible = not is_empty
        if said is not None:
            head, text = (self._empty_head, self._empty_text) if is_empty else (self._alert_head, self._alert_text)
            _say(head, said[0])
            _say(text, said[1])
        totals = view.totals
        _say(
            self._status,
            f"{totals.answering} of {totals.nodes} nodes have an agent that answers" if view.nodes else "No nodes yet",
        )

    def _show_totals(self, view: MeshView) -> None:
        totals = view.totals
        tiles = self._tiles
        tiles["nodes"].show(str(totals.nodes))
        tiles["encrypted"].show(str(totals.encrypted))
        tiles["clear"].show(str(totals.clear), "bad" if totals.clear else "")
        tiles["refused"].show(str(totals.refused), "warned" if totals.refused else "")
        tiles["silent"].show(str(totals.silent), "warned" if totals.silent else "")
        tiles["leaks"].show("not known" if totals.leaks is None else str(totals.leaks), "bad" if totals.leaks else "")
        tiles["warnings"].show(str(len(view.warnings)), "warned" if view.warnings else "")
        tiles["rate"].show(rate(totals.tx_rate))
        most = max(totals.ages, default=0)
        for (count, bar), value in zip(self._bars, totals.ages, strict=False):
            _say(count, str(value))
            bar.style(f"width: {100 * value / most if most else 0:.1f}%")

    def _show_flow(self) -> None:
        name = self._selected
        points = self._gatherer.points if name is None else self._gatherer.points_of(name)
        _say(self._flow_head, "Throughput of all nodes, Mb/s" if name is None else f"Throughput of {name}, Mb/s")
        self._flow.run_chart_method("setOption", throughput_options(points, self._palette))
        last = points[-1] if points else (0.0, 0.0, 0.0)
        self._flow_frame.props["aria-label"] = f"Throughput over time; now {rate(last[1])} received and {rate(last[2])} sent"

    def _show_picture(self, view: MeshView) -> None:
        picture = mesh_options(view, self._palette, self._selected)
        if picture != self._picture:
            self._picture = picture
            self._chart.run_chart_method("setOption", picture)
            self._chart_frame.props["aria-label"] = spoken(view)
            _say(self._caption, caption(view))

    def _show_warnings(self, view: MeshView) -> None:
        if view.warnings == self._warned:
            return
        self._warned = view.warnings
        self._warnings.clear()
        with self._warnings:
            for warning in view.warnings[:MOST_WARNINGS]:
                with ui.element("li"):
                    Words("strong", f"{warning.reason}: {warning.subject} ")
                    Words("span", f"{warning.message} ")
                    Words("span", f"(said by {names(warning.nodes)})", "note")
            if not view.warnings:
                Words("li", "None. Agents name what is wrong here, and how to mend it.", "note")
            if len(view.warnings) > MOST_WARNINGS:
                Words("li", f"and {len(view.warnings) - MOST_WARNINGS} more", "note")

    async def _look_closer(self) -> None:
        """At the node that is selected."""
        name = self._selected
        if name is None:
            return
        try:
            status, told = await self._gatherer.details(name)
        except StatusApiError as error:
            if name == self._selected and self._details is None:
                self._facts.clear()
                with self._facts:
                    Words("li", f"What it does is not known: {error}")
            return
        if name == self._selected:
            self._peers.show(peer_rows(status, self._details, self._gatherer.pods))
            if self._details is None:
                self._show_facts(status)
            self._details = status
            self._show_history(told)

    def _show_facts(self, status: Mapping[str, Any]) -> None:
        self._facts.clear()
        with self._facts:
            for line in facts(status):
                Words("li", line)

    def _show_history(self, told: Sequence[Mapping[str, Any]]) -> None:
        if told == self._told:
            return
        self._told = told
        self._history.clear()
        with self._history:
            for line in map(told_line, told):
                Words("li", line)
            if not told:
                Words("li", "Nothing is recorded yet.", "note")
