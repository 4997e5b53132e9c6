"""What is told of a pass: once, after it has stood for a while, and never at the price of a pass."""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller import reporter as module
from controller.findings import SETTLE_SECONDS, Finding
from controller.history import read
from controller.model import Cluster, Family, Node, NodeNetwork
from controller.reporter import REMIND_SECONDS, Reporter
from controller.source import Event, Health, Manifest, SourceError, SourceUnavailable
from controller.statefiles import StateFiles
from controller.status import Direction, Leak, LeakStatus, Seen
from wgpy.config import DeviceSnapshot

CLUSTER = Cluster(nodes={"n1": Node("n1")})
FINDING = Finding("PodMtuTooLarge", "IPv4", "pods have 1500: restart them")


class Source:
    name = "API server"

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.is_away = False
        self.refusal = ""
        self.patches: list[Manifest] = []

    async def merge_status(self, node: str, patch: Manifest) -> None:
        if self.refusal:
            raise SourceError(self.refusal)
        assert node == "n1"
        self.patches.append(patch["status"]["conditions"][0])

    def health(self) -> Health:
        return Health(not self.is_away, 1.0, "gone" if self.is_away else None, 1, 0)

    async def tell(self, node: str, event: Event) -> None:
        if self.is_away:
            raise SourceUnavailable("gone")
        assert node == "n1"
        self.told.append(event)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def reporter(source: Source, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Reporter:
    """One that waits for the disk, however long that takes: what it has told is on it."""

    async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", at_once)
    made = Reporter(source, "calico", "n1", StateFiles(tmp_path), is_strict=True)  # type: ignore[arg-type]
    made.begin()
    return made


def conclude(reporter: Reporter, *findings: Finding, is_success: bool = True) -> None:
    seen = {Family.IPV4: Seen(at=1.0, rest="not enabled in FelixConfiguration")}
    reporter.conclude(CLUSTER, seen, (), findings, 0.1, is_success)
    reporter.wake()


async def told(reporter: Reporter, source: Source) -> list[Event]:
    """What has been told so far, once there is nothing left to tell."""
    task = asyncio.create_task(reporter.run())
    for _ in range(20):
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return source.told


async def test_a_finding_counts_when_it_has_stood_for_a_while_and_is_told_once(
    reporter: Reporter, source: Source, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    conclude(reporter, FINDING)
    assert reporter.unsettled_seconds == SETTLE_SECONDS
    clock.now += SETTLE_SECONDS - 0.1
    conclude(reporter, FINDING)
    assert not [event for event in await told(reporter, source) if event.reason == FINDING.reason]

    clock.now += 0.2
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            conclude(reporter, FINDING)
    assert [event.message for event in await told(reporter, source) if event.reason == FINDING.reason] == [
        "IPv4: pods have 1500: restart them"
    ]
    assert [record.message for record in caplog.records] == ["IPv4: pods have 1500: restart them"]
    assert reporter.status is not None and reporter.status.findings == (FINDING,)

    clock.now += REMIND_SECONDS + 1
    conclude(reporter, FINDING)
    assert len([event for event in await told(reporter, source) if event.reason == FINDING.reason]) == 2, "Events are forgotten"


async def test_what_is_over_in_a_moment_is_not_told(reporter: Reporter, source: Source, clock: Clock) -> None:
    for _ in range(5):
        conclude(reporter, FINDING)
        clock.now += SETTLE_SECONDS / 2
        conclude(reporter)
        clock.now += SETTLE_SECONDS / 2

    assert not [event for event in await told(reporter, source) if event.reason == FINDING.reason]


async def test_status_and_history_are_on_disk(reporter: Reporter, source: Source, tmp_path: Path, clock: Clock) -> None:
    conclude(reporter)
    clock.now += SETTLE_SECONDS + 1
    conclude(reporter, is_success=False)
    await told(reporter, source)

    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["node"], status["passes"], status["failures"]) == ("n1", 2, 1)
    assert (tmp_path / "status.json").stat().st_mode & 0o777 == 0o600
    kinds = [entry.kind for entry in read(tmp_path)]
    assert kinds[0] == "agent started" and "strict mode on" in kinds


async def test_the_next_agent_does_not_tell_again_what_stood_before(reporter: Reporter, source: Source, tmp_path: Path) -> None:
    conclude(reporter)
    await told(reporter, source)
    before = [entry.kind for entry in read(tmp_path)]

    again = Reporter(source, "calico", "n1", StateFiles(tmp_path), is_strict=True)  # type: ignore[arg-type]
    conclude(again)

    assert [entry.kind for entry in read(tmp_path)] == [*before, "standing", "sample"], "only where all stands"


async def test_there_is_a_sample_every_quarter_of_an_hour_and_a_standing_every_day(
    reporter: Reporter, tmp_path: Path, clock: Clock
) -> None:
    began = clock.now
    for _ in range(1 + 86400 // 90):  # a pass every 90 s, as there is one at least
        conclude(reporter)
        clock.now += 90

    at = {kind: [one.at - began for one in read(tmp_path) if one.kind == kind] for kind in ("sample", "standing")}
    assert at == {"sample": [900.0 * number for number in range(97)], "standing": [0.0, 86400.0]}


ENABLED = Seen(at=1.0, public_key=b"\x01" * 32, interface="wg", snapshot=DeviceSnapshot())
READY = Cluster(nodes={"n1": Node("n1", NodeNetwork(public_key=b"\x01" * 32))})


async def test_the_condition_is_written_when_it_changes_and_now_and_then(
    reporter: Reporter, source: Source, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONDITION_SECONDS", 0.0)
    cases = [(READY, "True"), (READY, None), (CLUSTER, "False"), (CLUSTER, None), (READY, "True")]
    task = asyncio.create_task(reporter.run())
    for cluster, expected in cases:
        before = len(source.patches)
        clock.now += 60
        reporter.conclude(cluster, {Family.IPV4: ENABLED}, (), (), 0.1, is_success=True)
        reporter.wake()
        await asyncio.sleep(0.05)
        assert [patch["status"] for patch in source.patches[before:]] == ([expected] if expected else [])
    assert [patch["lastTransitionTime"][14:16] for patch in source.patches] == ["17", "19", "21"]

    reporter.conclude(READY, {Family.IPV4: replace(ENABLED, rest="not enabled")}, (), (), 0.1, is_success=True)
    reporter.wake()
    await asyncio.sleep(0.05)
    assert source.patches[-1]["$patch"] == "delete"

    monkeypatch.setattr(module, "CONDITION_RENEWAL_SECONDS", 0.02)
    before = len(source.patches)
    reporter.conclude(READY, {Family.IPV4: ENABLED}, (), (), 0.1, is_success=True)
    reporter.wake()
    async with asyncio.timeout(5):
        while len(source.patches) < before + 3:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [patch.get("status") for patch in source.patches[-3:]] == ["True"] * 3, "it is renewed"


async def test_a_condition_that_may_not_be_written_is_said_once_and_tried_again(
    reporter: Reporter, source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CONDITION_SECONDS", 0.0)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    source.refusal = "may not patch nodes/status: 403, RBAC"
    conclude(reporter)
    await told(reporter, source)
    assert caplog.text.count("cannot write the Node's condition: may not patch") == 1

    source.refusal = ""
    await told(reporter, source)
    assert source.patches


async def test_who_leaves_takes_the_condition_back(reporter: Reporter, source: Source, caplog: pytest.LogCaptureFixture) -> None:
    await reporter.take_back()
    assert source.patches == [{"$patch": "delete", "type": "WireGuardReady"}]
    assert [event.reason for event in source.told] == ["WireGuardLeft"]

    source.refusal = "gone"
    await reporter.take_back()
    assert "the Node's condition stays: gone" in caplog.text


async def test_leaks_of_many_peers_are_one_event(reporter: Reporter, source: Source) -> None:
    conclude(reporter)
    before = len(await told(reporter, source))
    leaks = tuple(Leak(Family.IPV4, f"n{number}", Direction.OUTBOUND, 2, 1.0, "a > b, TCP, on eth0") for number in range(2, 9))

    for _ in range(2):
        reporter.conclude(CLUSTER, {}, (), (), 0.1, True, LeakStatus(("eth0",), leaks=leaks))
        reporter.wake()

    (event,) = (await told(reporter, source))[before:]
    assert (event.reason, event.is_warning) == ("WireGuardLeak", True)
    assert "14 packets between pods of this node and of n2, n3, n4, n5, n6 and 2 more" in event.message
    assert "a > b, TCP, on eth0" in event.message


async def test_an_api_server_that_is_away_is_told_later(
    reporter: Reporter, source: Source, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    source.is_away = True
    conclude(reporter, FINDING)
    clock.now += SETTLE_SECONDS + 1
    conclude(reporter, FINDING)
    assert await told(reporter, source) == []

    source.is_away = False
    reporter.wake()
    assert FINDING.reason in [event.reason for event in await told(reporter, source)]
