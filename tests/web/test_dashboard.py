"""The dashboard in a real browser."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.findings import Finding
from controller.model import Family
from controller.status import Direction, Leak, LeakStatus, PeerStatus, Traffic
from tests.promises import Promises
from tests.web.browser import AXE, SECONDS, Dashboard
from tests.web.mesh import FakeMesh, name

pytestmark = [pytest.mark.web, pytest.mark.slow]

only_of_make_web = pytest.mark.long
"""What `make test` leaves to `make web`: it has a short part of these tests."""

Show = Callable[..., Dashboard]

GRID = '[aria-label="Nodes"]'
STUTTER_MILLISECONDS = 100
"""From so long on a frame that is late is seen as a jolt."""


def tile(page: Any, label: str) -> str:
    return str(page.locator(".tile", has_text=label).locator(".value").inner_text())


def row(page: Any, node: str) -> Any:
    """The middle part of a node's row: all but the pinned first column."""
    return page.locator(f'{GRID} .ag-center-cols-container [row-id="{node}"]')


def rows(page: Any) -> set[str]:
    """The nodes in the table, as far as they are in sight."""
    found = page.locator(f"{GRID} .ag-center-cols-container [row-id]").evaluate_all(
        "all => all.map(one => one.getAttribute('row-id'))"
    )
    return set(found)


def until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def ready(page: Any, text: str) -> None:
    page.get_by_text(text).first.wait_for()


# What it shows


def test_the_whole_mesh_is_there(mesh: FakeMesh, show: Show) -> None:
    mesh.spoil()
    mesh.agents[5].leaks = LeakStatus(
        ("eth0",), leaks=(Leak(Family.IPV4, name(6), Direction.OUTBOUND, 3, mesh.began, "10.0.0.1 > 10.0.1.1"),)
    )
    page, watched = show(mesh).open()
    ready(page, "6 of 6 nodes have an agent that answers")

    until(lambda: tile(page, "peers encrypted") == "28", "all peers are counted")
    counts = {"nodes": "6", "in clear": "1", "refused": "1", "silent": "1", "leaked": "3", "warnings": "2"}
    until(lambda: {label: tile(page, label) for label in counts} == counts, "all else is counted")
    for said in ("in clear", "has no public key"):
        row(page, name(1)).get_by_text(said).first.wait_for()
    for said in ("MtuTooLarge", "10.0.0.1 > 10.0.1.1"):
        ready(page, said)
    picture = page.locator('[role="img"]').first
    for said in ("6 nodes", "1 links in clear", "1 links refused"):
        until(lambda said=said: said in picture.get_attribute("aria-label"), f"the picture says: {said}")  # type: ignore[misc]
    until(lambda: tile(page, "sent in all") == "34.0 Mb/s", "throughput is what the agents count: 2 × (1..5, 1) Mb/s")
    assert not watched.errors


@only_of_make_web
def test_a_node_shows_its_peers_and_what_is_behind_them(mesh: FakeMesh, show: Show) -> None:
    mesh.spoil()
    page, _ = show(mesh).open()
    ready(page, "6 of 6")
    page.locator(f'{GRID} [row-id="{name(2)}"]').first.click()

    page.get_by_role("heading", name=name(2), exact=True).wait_for()
    peers = page.locator('[aria-label="Peers"]')
    peers.get_by_text("10.100.3.5 shop/web-3-5").wait_for()
    text = peers.inner_text()
    assert "127.77.0.4:51820" in text and "10.100.3.0/26" in text and "encrypted" in text
    assert "agent started" in page.inner_text('[aria-label="What happened there"]')
    assert "strict: what cannot be encrypted is refused" in page.inner_text(".facts")
    assert page.get_by_text("Throughput of node-2").count() == 1


@only_of_make_web
def test_the_picture_can_be_clicked(mesh: FakeMesh, show: Show) -> None:
    page, _ = show(mesh).open()
    ready(page, "6 of 6")
    until(lambda: "6 nodes" in (page.locator('[role="img"]').first.get_attribute("aria-label") or ""), "the picture is drawn")
    time.sleep(0.5)
    # Where ECharts has drawn the first node.
    place = page.evaluate(
        """async () => {
            const {echarts} = await import("nicegui-echart");
            const box = document.querySelector(".picture"), rect = box.getBoundingClientRect();
            const chart = echarts.getInstanceByDom(box);
            const [x, y] = chart.getModel().getSeriesByIndex(0).getData().getItemLayout(0);
            const [left, top] = chart.convertToPixel({seriesIndex: 0}, [x, y]);
            return [rect.left + left, rect.top + top];
        }"""
    )
    page.mouse.click(*place)

    page.get_by_role("heading", name=name(1), exact=True).wait_for()


# Live


def test_a_node_that_joins_shows_within_two_seconds(mesh: FakeMesh, show: Show, promises: Promises) -> None:
    page, watched = show(mesh).open()
    ready(page, "6 of 6")
    began = time.monotonic()
    mesh.add(7)
    row(page, name(7)).wait_for()
    page.get_by_text("7 of 7 nodes").wait_for()
    promises.judge("a node joins to the page that shows it", time.monotonic() - began, 2.0)
    assert rows(page) == {name(number) for number in range(1, 8)}, "and all others are still there"
    mesh.remove(7)
    page.get_by_text("6 of 6 nodes").wait_for()
    row(page, name(7)).wait_for(state="detached")
    assert rows(page) == {name(number) for number in range(1, 7)} and not watched.errors


@only_of_make_web
def test_a_node_that_leaves_is_no_longer_looked_at(mesh: FakeMesh, show: Show) -> None:
    page, watched = show(mesh).open()
    ready(page, "6 of 6")
    page.locator(f'{GRID} [row-id="{name(2)}"]').first.click()
    page.get_by_role("heading", name=name(2), exact=True).wait_for()
    mesh.remove(2)

    page.get_by_role("heading", name=name(2), exact=True).wait_for(state="hidden")
    page.get_by_text("5 of 5 nodes").wait_for()
    assert not watched.errors


@only_of_make_web
def test_what_goes_wrong_and_right_again_shows_without_a_reload(mesh: FakeMesh, show: Show) -> None:
    page, _ = show(mesh).open()
    ready(page, "6 of 6")
    mesh.agents[2].odd[name(3)] = PeerStatus(name(3), Traffic.CLEAR, "has no public key")
    mesh.settle()
    until(lambda: tile(page, "in clear") == "1", "a peer in clear shows", 3)
    mesh.agents[2].odd.clear()
    mesh.settle()
    until(lambda: tile(page, "in clear") == "0", "it is over", 3)

    mesh.stop_agent(4)
    until(lambda: "agent lost" in row(page, name(4)).inner_text(), "an agent is lost")
    page.get_by_text("5 of 6 nodes").wait_for()
    mesh.start_agent(4)
    page.get_by_text("6 of 6 nodes").wait_for()


FRAMES = """() => {
    window.gaps = []; window.tasks = [];
    let last = performance.now();
    const frame = now => { window.gaps.push(now - last); last = now; requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
    new PerformanceObserver(list => { for (const entry of list.getEntries()) window.tasks.push(entry.duration); })
        .observe({entryTypes: ["longtask"]});
}"""

CHANGES = """() => new Promise(done => {
    let changes = 0;
    const observer = new MutationObserver(list => { changes += list.length; });
    observer.observe(document.body, {subtree: true, childList: true, characterData: true});
    setTimeout(() => done(changes), 8000);
})"""


def stutter(page: Any) -> tuple[bool, str]:
    """Whether frames were late in the next seconds, in which the page is to be live; and how late."""
    page.evaluate("() => { window.gaps = []; window.tasks = []; }")
    assert page.evaluate(CHANGES) > 20, "nothing was live meanwhile"
    gaps, tasks = sorted(page.evaluate("gaps")), page.evaluate("tasks")
    late = [gap for gap in gaps if gap > STUTTER_MILLISECONDS]
    median, most = gaps[len(gaps) // 2], gaps[len(gaps) * 99 // 100]
    figures = f"frames: median {median:.0f} ms, 99 % {most:.0f} ms, longest {gaps[-1]:.0f} ms; long tasks: {tasks}"
    return len(late) > 2 or sum(late) > 1000, figures


@only_of_make_web
def test_500_nodes_do_not_stutter(make_mesh: Callable[[int], FakeMesh], show: Show) -> None:
    mesh = make_mesh(500)
    mesh.spoil()
    page, watched = show(mesh).open()
    page.get_by_text("500 of 500 nodes").wait_for()
    time.sleep(1)
    page.evaluate(FRAMES)
    for _ in range(3):  # a machine that is busy with something else stutters by itself
        late, seen = stutter(page)
        print(seen)
        if not late:
            break
    assert not late, seen
    drawn = page.locator(f'{GRID} .ag-center-cols-container [role="row"]').count()
    assert drawn < 60, f"{drawn} rows are drawn, though some 12 are in sight"

    began = time.monotonic()
    mesh.add(501)
    page.get_by_text("of 501 nodes").wait_for()
    took = time.monotonic() - began
    print(f"joined after {took:.2f} s")
    assert took < 2, f"it took {took:.2f} s"
    page.get_by_text("501 of 501 nodes").wait_for()
    assert not watched.strays and not watched.errors


# Nothing leaves, nothing gets in


def test_no_request_leaves_the_origin(mesh: FakeMesh, show: Show) -> None:
    page, watched = show(mesh).open()
    ready(page, "6 of 6")
    page.locator(f'{GRID} [row-id="{name(2)}"]').first.click()
    page.get_by_role("heading", name=name(2), exact=True).wait_for()
    page.emulate_media(color_scheme="dark")
    time.sleep(1)

    assert len(watched.requests) > 10 and any(url.startswith("ws:") for url in watched.requests)
    assert watched.strays == []
    # And could not, whatever the page did.
    blocked = page.evaluate(
        """async () => {
            const blocked = new Promise(done => {
                document.addEventListener("securitypolicyviolation", event => done(event.blockedURI));
            });
            fetch("http://192.0.2.1:1/").catch(() => {});
            return await blocked;
        }"""
    )
    assert blocked.startswith("http://192.0.2.1:1")


@only_of_make_web
def test_what_the_cluster_says_is_never_html(mesh: FakeMesh, show: Show) -> None:
    evil = "<img src=x onerror=window.hacked=1>{{7*7}}${window.hacked=1}"
    mesh.agents[1].findings = (Finding("Evil", evil, evil),)
    mesh.agents[1].odd[name(2)] = PeerStatus(name(2), Traffic.CLEAR, evil, endpoint=evil)
    mesh.settle()
    page, _ = show(mesh).open()
    ready(page, "6 of 6")
    page.locator(f'{GRID} [row-id="{name(1)}"]').first.click()
    page.locator('[aria-label="Peers"]').get_by_text(evil).first.wait_for()
    box = page.locator(".picture").bounding_box()
    for step in range(20):  # over the picture, where something is shown on hovering
        page.mouse.move(box["x"] + box["width"] * step / 20, box["y"] + box["height"] * step / 20)
        time.sleep(0.02)

    assert evil in page.inner_text(".plain") and page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


@only_of_make_web
def test_other_names_and_other_sites_are_turned_away(mesh: FakeMesh, show: Show, chromium: Any) -> None:
    dashboard = show(mesh)
    page, _ = dashboard.open()
    ready(page, "6 of 6")
    answer = page.request.get(dashboard.url, headers={"Host": "evil.example"})
    assert answer.status == 403
    # A page of another origin opens a WebSocket to us, as any page in this browser could.
    other = chromium.new_context()
    try:
        stranger = other.new_page()
        stranger.goto("data:text/html,<title>stranger</title>")
        opened = stranger.evaluate(
            """url => new Promise(done => {
                const socket = new WebSocket(url);
                socket.onopen = () => done(true);
                socket.onerror = () => done(false);
            })""",
            f"ws://{dashboard.origin}/_nicegui_ws/socket.io/?EIO=4&transport=websocket",
        )
    finally:
        other.close()
    assert opened is False


def test_with_a_token_only_who_knows_it_sees_the_mesh(mesh: FakeMesh, show: Show, tmp_path: Path) -> None:
    token = tmp_path / "page-token"
    token.write_text("who reads has to know this\n")
    dashboard = show(mesh, "--token", str(token), host="127.0.0.2")
    page, watched = dashboard.open()

    assert page.locator("text=nodes").count() == 0 and serious(page) == []
    page.get_by_label("Token").fill("something else")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("That is not the token.").wait_for()
    assert page.request.get(f"{dashboard.url}_nicegui/x").status == 401
    page.get_by_label("Token").fill("who reads has to know this")
    page.keyboard.press("Enter")
    ready(page, "6 of 6 nodes")
    assert watched.strays == []
    token.write_text("and now it is another one")
    page.reload()
    page.get_by_label("Token").wait_for()


# For everybody


def serious(page: Any) -> list[str]:
    """What axe-core finds that is serious or critical."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE.read_text() + "; 0")
    found = page.evaluate("axe.run()")
    assert found["passes"], "axe has looked at nothing"
    return [
        f"{violation['id']}: {node['target']}: {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


@only_of_make_web
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(mesh: FakeMesh, show: Show, scheme: str) -> None:
    mesh.spoil()
    mesh.stop_agent(6)
    page, _ = show(mesh).open(color_scheme=scheme)
    ready(page, "5 of 6")
    assert serious(page) == []
    page.locator(f'{GRID} [row-id="{name(2)}"]').first.click()
    page.locator('[aria-label="Peers"]').get_by_text("10.100.3.5 shop/web-3-5").wait_for()
    assert serious(page) == []
    page.set_viewport_size({"width": 420, "height": 900})
    time.sleep(0.5)
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 420, "nothing sticks out of a narrow window"


@only_of_make_web
def test_axe_finds_what_is_planted(mesh: FakeMesh, show: Show) -> None:
    page, _ = show(mesh).open()
    ready(page, "6 of 6")
    page.evaluate("document.querySelector('input.filter').removeAttribute('aria-label');"
                  "document.querySelector('input.filter').removeAttribute('placeholder');"
                  "document.querySelector('.top p').style.color = '#eee'")  # fmt: skip

    assert {line.partition(":")[0] for line in serious(page)} >= {"color-contrast", "label"}


def focused(page: Any) -> str:
    """What has the keyboard: its label, its id or its text."""
    return str(
        page.evaluate(
            """() => {
                const one = document.activeElement;
                const id = /^c[0-9]+$/.test(one.id) ? "" : one.id;  // those are NiceGUI's own
                return one.getAttribute("aria-label") || id || one.textContent.trim() || one.tagName;
            }"""
        )
    )


def test_everything_can_be_reached_with_the_keyboard(mesh: FakeMesh, show: Show) -> None:
    page, _ = show(mesh).open()
    ready(page, "6 of 6")
    row(page, name(6)).wait_for()

    page.keyboard.press("Tab")
    until(lambda: focused(page) == "Skip to the table of nodes", "the first thing is the way past all others")
    page.keyboard.press("Enter")
    until(lambda: focused(page) == "nodes", "the table has the keyboard")

    page.keyboard.press("/")
    until(lambda: focused(page) == "Filter the nodes", "the filter has the keyboard")
    page.keyboard.type("node-4")
    row(page, name(3)).wait_for(state="detached")
    row(page, name(4)).wait_for()

    for _ in range(4):  # past the head of the table into its rows
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.ag-row') !== null"):
            break
        page.keyboard.press("ArrowDown")
        if page.evaluate("document.activeElement.closest('.ag-row') !== null"):
            break
    assert page.evaluate("document.activeElement.closest('.ag-row')?.getAttribute('row-id')") == name(4)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=name(4), exact=True).wait_for()
    until(lambda: focused(page) == "node-head", "the heading of the node has the keyboard")
    page.keyboard.press("Tab")
    until(lambda: focused(page) == "Close", "the next is what closes it")
    page.keyboard.press("Escape")
    page.get_by_role("heading", name=name(4), exact=True).wait_for(state="hidden")
    until(lambda: focused(page) == "nodes", "the keyboard is back at the table")


@only_of_make_web
def test_the_focus_is_seen(mesh: FakeMesh, show: Show) -> None:
    page, _ = show(mesh).open()
    ready(page, "6 of 6")
    page.keyboard.press("Tab")

    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def brightness(page: Any, script: str) -> float:
    """Of a colour as the browser writes it, rgb(…), from 0 to 255."""
    parts = page.evaluate(script).strip("rgba()").split(",")
    return sum(map(float, parts[:3])) / 3


@only_of_make_web
def test_light_and_dark_follow_the_system_at_once(mesh: FakeMesh, show: Show) -> None:
    page, _ = show(mesh).open(color_scheme="light")
    ready(page, "6 of 6")
    scripts = {
        "page": "getComputedStyle(document.body).backgroundColor",
        "card": "getComputedStyle(document.querySelector('.card')).backgroundColor",
        "table": "getComputedStyle(document.querySelector('.ag-root-wrapper')).backgroundColor",
    }
    label = """async () => {
        const {echarts} = await import("nicegui-echart");
        const series = echarts.getInstanceByDom(document.querySelector(".picture")).getOption().series[0];
        return series.label.color;
    }"""
    until(lambda: page.evaluate(label) == "#1b2430", "the picture is light")
    assert all(brightness(page, script) > 200 for script in scripts.values())

    page.emulate_media(color_scheme="dark")

    until(lambda: page.evaluate(label) == "#e8edf4", "the picture is dark")
    assert {key: brightness(page, script) < 60 for key, script in scripts.items()} == dict.fromkeys(scripts, True)


# Where there is nothing to show


@only_of_make_web
def test_an_empty_cluster_says_so_until_a_node_joins(make_mesh: Callable[[int], FakeMesh], show: Show) -> None:
    mesh = make_mesh(0)
    page, _ = show(mesh).open()

    page.get_by_role("heading", name="No nodes yet").wait_for()
    assert page.locator(".tiles").is_hidden() and page.locator(GRID).is_hidden() and serious(page) == []
    mesh.add(1)
    page.get_by_text("1 of 1 nodes").wait_for()
    assert page.locator(GRID).is_visible() and page.locator(".empty").is_hidden()


@only_of_make_web
def test_without_agents_it_says_how_to_have_some(make_mesh: Callable[[int], FakeMesh], show: Show) -> None:
    mesh = make_mesh(0)
    mesh.add(1, with_agent=False)
    page, _ = show(mesh).open()

    alert = page.get_by_role("alert")
    alert.get_by_text("No agent answers").wait_for()
    assert "nobody answers on port" in alert.inner_text() and "--status-api" in alert.inner_text()
    assert "no agent" in row(page, name(1)).inner_text() and "not known" in row(page, name(1)).inner_text()


@only_of_make_web
def test_a_cluster_that_is_gone_leaves_what_was_known(mesh: FakeMesh, show: Show) -> None:
    page, _ = show(mesh).open()
    ready(page, "6 of 6")
    away = mesh.directory.with_name("away")
    mesh.directory.rename(away)

    page.get_by_role("alert").get_by_text("The cluster is out of reach").wait_for()
    assert "6" in tile(page, "nodes") and serious(page) == []
    away.rename(mesh.directory)
    page.get_by_role("alert").wait_for(state="hidden")


@only_of_make_web
def test_a_dashboard_that_has_ended_does_not_look_alive_until_it_is_back(mesh: FakeMesh, show: Show) -> None:
    dashboard = show(mesh)
    page, _ = dashboard.open()
    ready(page, "6 of 6")
    dashboard.stop()

    page.get_by_text("Connection lost").wait_for()
    dashboard.start()
    page.get_by_text("Connection lost").wait_for(state="hidden")
    mesh.add(7)
    ready(page, "7 of 7")


@only_of_make_web
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_it_ends_without_a_word(mesh: FakeMesh, show: Show, number: int, status: int) -> None:
    dashboard = show(mesh)
    page, _ = dashboard.open()
    ready(page, "6 of 6")
    dashboard.process.send_signal(number)

    assert dashboard.process.wait(10) == status
    log = dashboard.log.read_text()
    assert log == f"wgpy dashboard: {dashboard.url.rstrip('/')}\n", log
