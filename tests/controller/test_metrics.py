"""The agent's series, and what its probes wait for."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controller.findings import Finding
from controller.metrics import pages
from controller.model import Family
from controller.status import (
    AgentStatus,
    Direction,
    FamilyStatus,
    Leak,
    LeakStatus,
    PeerStatus,
    SourceStatus,
    Traffic,
)

NOW = 1_700_000_000.0
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
SERIES = re.compile(r"^\| `(wgpy_agent_\w+)(?:{([\w,]+)})?`", re.MULTILINE)

STATUS = AgentStatus(
    at=NOW,
    node="n1",
    mesh="calico",
    version="1.2",
    source=SourceStatus("kubernetes", is_synced=True, heard_at=NOW - 3, lists=2, errors=5),
    is_strict=True,
    started_at=NOW - 100,
    passes=7,
    failures=1,
    passed_at=NOW - 1,
    pass_seconds=0.25,
    families=(
        FamilyStatus(
            Family.IPV4,
            public_key="K",
            announced="K",
            interface="wireguard.caliu",
            interface_address="10.0.1.9",
            mtu=1440,
            has_data_plane=True,
            refused_inbound=3,
            refused_outbound=4,
            peers=(
                PeerStatus("n2", Traffic.ENCRYPTED, last_handshake=NOW - 10),
                PeerStatus("n3", Traffic.ENCRYPTED, last_handshake=NOW - 400, is_silent=True),
                PeerStatus("n4", Traffic.ENCRYPTED, last_handshake=NOW - 30),
                PeerStatus("n5", Traffic.REFUSED, "has no public key"),
            ),
        ),
        FamilyStatus(Family.IPV6, rest="not enabled"),
    ),
    findings=(
        Finding("DuplicateKey", "n8", "x"),
        Finding("DuplicateKey", "n9", "x"),
        Finding("MTUTooLarge", "pods", "x"),
        Finding("AsWished", "n7", "x", is_warning=False),
    ),
    leaks=LeakStatus(
        ("eth0", "eth1"),
        unread=9,
        leaks=(
            Leak(Family.IPV4, "n2", Direction.INBOUND, 3, NOW),
            Leak(Family.IPV4, "n3", Direction.INBOUND, 4, NOW),
            Leak(Family.IPV6, "n3", Direction.OUTBOUND, 5, NOW),
        ),
    ),
)


async def ask(path: str, status: AgentStatus | None, enough: float = 0.5) -> tuple[int, str]:
    async def current() -> AgentStatus | None:
        return status

    answer = await pages(current, enough)[path]()
    return answer.status.value, answer.body.decode()


async def scraped(status: AgentStatus | None) -> dict[tuple[str, ...], float]:
    """Samples by name and values of labels, in the order of the labels' names."""
    _, text = await ask("/metrics", status)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_every_series_and_its_value() -> None:
    found = await scraped(STATUS)

    (build,) = [key for key in found if key[0] == "wgpy_agent_build_info"]
    assert build[1:3] == ("calico", "n1") and build[4] == "1.2" and found.pop(build) == 1
    assert found == {
        ("wgpy_agent_start_time_seconds",): NOW - 100,
        ("wgpy_agent_strict",): 1,
        ("wgpy_agent_passes_total",): 7,
        ("wgpy_agent_failures_total",): 1,
        ("wgpy_agent_last_success_seconds",): NOW - 1,
        ("wgpy_agent_last_pass_seconds",): 0.25,
        ("wgpy_agent_ready",): 1,
        ("wgpy_agent_leak_detector_interfaces",): 2,
        ("wgpy_agent_leak_detector_unread_packets_total",): 9,
        ("wgpy_agent_leaked_packets_total", "inbound", "IPv4"): 7,
        ("wgpy_agent_leaked_packets_total", "outbound", "IPv4"): 0,
        ("wgpy_agent_leaked_packets_total", "inbound", "IPv6"): 0,
        ("wgpy_agent_leaked_packets_total", "outbound", "IPv6"): 5,
        ("wgpy_agent_source_synced", "kubernetes"): 1,
        ("wgpy_agent_source_heard_seconds", "kubernetes"): NOW - 3,
        ("wgpy_agent_source_lists_total", "kubernetes"): 2,
        ("wgpy_agent_source_errors_total", "kubernetes"): 5,
        ("wgpy_agent_family_enabled", "IPv4"): 1,
        ("wgpy_agent_family_enabled", "IPv6"): 0,
        ("wgpy_agent_family_failing", "IPv4"): 0,
        ("wgpy_agent_family_failing", "IPv6"): 0,
        ("wgpy_agent_data_plane_up", "IPv4"): 1,
        ("wgpy_agent_data_plane_up", "IPv6"): 0,
        ("wgpy_agent_key_published", "IPv4"): 1,
        ("wgpy_agent_key_published", "IPv6"): 0,
        ("wgpy_agent_key_contested", "IPv4"): 0,
        ("wgpy_agent_key_contested", "IPv6"): 0,
        ("wgpy_agent_interface_address", "IPv4"): 1,
        ("wgpy_agent_interface_address", "IPv6"): 0,
        ("wgpy_agent_interface_mtu_bytes", "IPv4"): 1440,
        ("wgpy_agent_interface_mtu_bytes", "IPv6"): 0,
        ("wgpy_agent_peers", "IPv4", "encrypted"): 3,
        ("wgpy_agent_peers", "IPv4", "clear"): 0,
        ("wgpy_agent_peers", "IPv4", "refused"): 1,
        ("wgpy_agent_peers", "IPv6", "encrypted"): 0,
        ("wgpy_agent_peers", "IPv6", "clear"): 0,
        ("wgpy_agent_peers", "IPv6", "refused"): 0,
        ("wgpy_agent_silent_peers", "IPv4"): 1,
        ("wgpy_agent_silent_peers", "IPv6"): 0,
        ("wgpy_agent_handshake_age_max_seconds", "IPv4"): 400,
        ("wgpy_agent_handshake_age_max_seconds", "IPv6"): 0,
        ("wgpy_agent_refused_packets_total", "inbound", "IPv4"): 3,
        ("wgpy_agent_refused_packets_total", "outbound", "IPv4"): 4,
        ("wgpy_agent_refused_packets_total", "inbound", "IPv6"): 0,
        ("wgpy_agent_refused_packets_total", "outbound", "IPv6"): 0,
        ("wgpy_agent_findings", "DuplicateKey"): 2,
        ("wgpy_agent_findings", "MTUTooLarge"): 1,
    }


async def test_scraping_twice_gives_the_same() -> None:
    assert await scraped(STATUS) == await scraped(STATUS)


async def test_without_a_leak_detector_the_series_are_there_all_the_same() -> None:
    found = await scraped(replace(STATUS, leaks=None))

    assert found["wgpy_agent_leak_detector_interfaces",] == 0
    assert sum(value for key, value in found.items() if "leaked" in key[0]) == 0
    assert len(found) == len(await scraped(STATUS))


async def test_before_there_is_a_status_a_scrape_is_empty() -> None:
    assert await ask("/metrics", None) == (200, "")


async def test_the_page_about_metrics_names_every_series_with_its_labels() -> None:
    _, text = await ask("/metrics", STATUS)
    written = {name: set(filter(None, labels.split(","))) for name, labels in SERIES.findall(DOCS.read_text())}

    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {sample.name: set(sample.labels) for sample in samples} == written


@pytest.mark.parametrize("path", ["/healthz", "/startupz", "/readyz"])
async def test_a_healthy_agent_passes_every_probe(path: str) -> None:
    assert await ask(path, STATUS) == (200, "ok\n")


async def test_before_the_first_pass_it_is_alive_but_neither_started_nor_ready() -> None:
    assert (await ask("/healthz", None))[0] == 200
    assert await ask("/startupz", None) == (503, "the first pass is not over\n")
    assert await ask("/readyz", None) == (503, "the first pass is not over\n")


async def test_without_an_api_server_it_is_alive_started_and_ready() -> None:
    away = replace(STATUS, source=SourceStatus("kubernetes", failure="connection refused"))

    assert [(await ask(path, away))[0] for path in ("/healthz", "/startupz", "/readyz")] == [200, 200, 200]


async def test_what_is_lost_later_makes_it_unready_and_nothing_else() -> None:
    (ipv4, ipv6) = STATUS.families
    unpublished = replace(STATUS, families=(replace(ipv4, announced=None), ipv6))

    assert [(await ask(path, unpublished))[0] for path in ("/healthz", "/startupz", "/readyz")] == [200, 200, 503]
    assert (await ask("/readyz", STATUS, enough=0.7))[0] == 503
