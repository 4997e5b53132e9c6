"""Alerts and the dashboard, judged by Prometheus' own tools, and by a real Prometheus that scrapes a mesh.

The two programs are Debian's, which ``.ci/setup`` puts into .cache/bin. Where they are missing a test is skipped, or fails where
WGPY_REQUIRE_PROMETHEUS is set.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.controller.cluster import pool
from tests.controller.lab import ROOT, SECONDS, WG4, Lab, Node, make_lab, may_make_namespaces

RULES = ROOT / "deploy" / "kustomize" / "components" / "monitoring" / "rules.yaml"
RULE_TESTS = Path(__file__).with_name("rules.test.yaml")
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "wgpy.json").read_text())
METRICS_DOCS = ROOT / "docs" / "metrics.md"

PORTS = {"data plane": 9586, "agent": 9588}


def program(name: str) -> str:
    """A program of Prometheus'. Skips, or fails, where it is missing."""
    found = shutil.which(name, path=f"{ROOT / '.cache' / 'bin'}:{os.environ['PATH']}")
    if found is None:
        reason = f"{name} is not installed (Debian's package prometheus): run make setup"
        if os.environ.get("WGPY_REQUIRE_PROMETHEUS"):
            pytest.fail(f"{reason} (WGPY_REQUIRE_PROMETHEUS asks for it)")
        pytest.skip(reason)
    return found


def promtool(*words: str | Path) -> str:
    done = subprocess.run([program("promtool"), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The alerts as Prometheus itself reads them."""
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(RULES.read_text())["spec"]))
    return path


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["spec"]["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Every query of the dashboard with all nodes chosen, by its panel's title and its own letter."""
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"].replace("$node", ".*").replace("$__rate_interval", "10s").replace("$__range", "1m")
            assert "$" not in text
            found[f"{panel['title']} {target['refId']}"] = text
    return found


def of_ours(expression: str) -> set[str]:
    """The series that an expression asks for."""
    return set(re.findall(r"\b(?:wgpy|wireguard)_\w+", expression))


# By themselves ----------------------------------------------------------------------------------------------------------


def test_promtool_has_nothing_against_the_alerts(rules: Path) -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", rules)


def test_alerts_fire_when_they_ought_to_and_never_on_a_healthy_node(rules: Path) -> None:
    shutil.copy(RULE_TESTS, rules.parent)

    assert "SUCCESS" in promtool("test", "rules", rules.parent / RULE_TESTS.name)


def test_the_tests_of_alerts_can_fail(rules: Path) -> None:
    shutil.copy(RULE_TESTS, rules.parent)
    rules.write_text(rules.read_text().replace("wgpy_agent_leaked_packets_total[10m]", "wgpy_agent_leaked_packets_total[20m]"))

    with pytest.raises(AssertionError, match="WgpyLeak"):
        promtool("test", "rules", rules.parent / RULE_TESTS.name)


def test_every_alert_is_tried() -> None:
    text = RULE_TESTS.read_text()

    assert [alert["alert"] for alert in alerts() if alert["alert"] not in text] == []


def test_every_alert_says_where_what_it_means_and_how_bad_it_is() -> None:
    for alert in alerts():
        assert "$labels.node" in alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
        assert alert["labels"]["severity"] in ("critical", "warning")


def test_the_dashboard_is_what_its_program_writes() -> None:
    done = subprocess.run([sys.executable, GRAFANA / "dashboard.py"], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == (GRAFANA / "wgpy.json").read_text(), (
        "run: python deploy/grafana/dashboard.py > deploy/grafana/wgpy.json"
    )


def test_the_dashboard_has_a_shape_that_grafana_takes() -> None:
    assert DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["uid"] and "id" not in DASHBOARD
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "node"}
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, f"{panel['title']} overlaps"
        taken |= cells
    for panel in panels():
        assert panel["type"] in ("stat", "timeseries", "table")
        assert panel["datasource"]["uid"] == "${datasource}" and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        assert all("$node" in target["expr"] for target in panel["targets"])


def test_alerts_and_the_dashboard_ask_for_nothing_that_is_not_described() -> None:
    described = of_ours(METRICS_DOCS.read_text())

    asked = {name for expression in [*queries().values(), *(alert["expr"] for alert in alerts())] for name in of_ours(expression)}
    assert asked <= described


# With a real mesh -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus in a node's namespace."""

    node: Node

    def get(self, path: str, **parameters: str) -> Any:
        script = (
            "import sys, json, urllib.request as u, urllib.parse as p;"
            "print(u.urlopen('http://127.0.0.1:9090' + sys.argv[1] + '?' + p.urlencode(json.loads(sys.argv[2]))).read().decode())"
        )
        answer = json.loads(self.node.run("/usr/bin/python3", "-c", script, path, json.dumps(parameters)))
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return result

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.get("/api/v1/alerts")["alerts"] if alert["state"] == "firing"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with make_lab(tmp_path, []) as lab:
        yield lab


def configuration(lab: Lab, rules: Path) -> str:
    job = {
        "job_name": "wgpy",
        "static_configs": [
            {"targets": [f"192.0.2.{number}:{port}" for port in PORTS.values()], "labels": {"node": node.name}}
            for number, node in lab.nodes.items()
        ],
    }
    return yaml.safe_dump(
        {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [job],
        }
    )


def started(lab: Lab, rules: Path) -> Prometheus:
    path = lab.path / "prometheus.yml"
    path.write_text(configuration(lab, rules))
    promtool("check", "config", path)
    node = lab.nodes[1]
    words = [program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={lab.path / 'tsdb'}"]
    node.start(*words, "--web.listen-address=127.0.0.1:9090", output=lab.path / "prometheus.log")
    prometheus = Prometheus(node)
    lab.until(lambda: prometheus.query("vector(1)"), "Prometheus answers", seconds=2 * SECONDS)
    return prometheus


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root, /dev/net/tun and iproute2")
def test_every_query_of_the_dashboard_has_data_of_a_mesh_and_a_leak_raises_an_alert(lab: Lab, rules: Path) -> None:
    lab.put(pool("10.42.0.0/16", natOutgoing=True), "pool.yaml")  # a healthy cluster has it
    for number in (1, 2):
        node = lab.add_node(number)
        lab.add_pod(number)
        address = f"192.0.2.{number}"
        node.start(sys.executable, "-m", "wgpy", "run", WG4, "--persist", "--metrics", f"{address}:{PORTS['data plane']}")
        metrics = f"{address}:{PORTS['agent']}"
        node.start_agent("--no-spawn", "--detect-leaks", "--metrics", metrics)
    lab.until_meshed(1, 2)
    one = lab.nodes[1]
    with pinging(f"{lab.prefix}p1", "10.42.2.5"):
        watch(lab, one, started(lab, rules))


@contextmanager
def pinging(pod: str, address: str) -> Iterator[None]:
    """A pod that pings all the time."""
    ping = subprocess.Popen(["ip", "netns", "exec", pod, "ping", "-i0.2", address], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        ping.terminate()
        ping.wait(10)


def watch(lab: Lab, one: Node, prometheus: Prometheus) -> None:
    """Look at all that Prometheus makes of a healthy mesh, and of one that leaks."""
    lab.until(lambda: len(prometheus.query("up == 1")) == 4, "all are scraped")
    lab.until(lambda: prometheus.query("sum(rate(wireguard_bytes_sent[10s])) > 0"), "there are rates")

    empty: set[str] = set()

    def have_data() -> bool:
        """All but a table of what is wrong. A target may have been scraped once when another has been twice."""
        empty.clear()
        empty.update(what for what, expression in queries().items() if not prometheus.query(expression))
        return empty == {"Findings A"}

    try:
        lab.until(have_data, "there is data", seconds=2 * SECONDS)
    except pytest.fail.Exception:
        pytest.fail(f"without data: {empty}")
    for number in (1, 2):
        sent = f'sum(rate(wireguard_bytes_sent{{node="n{number}"}}[10s])) > 0'
        lab.until(lambda sent=sent: prometheus.query(sent), f"n{number} sends")  # type: ignore[misc]
    groups = prometheus.get("/api/v1/rules")["groups"]
    assert [rule["name"] for group in groups for rule in group["rules"]] == [alert["alert"] for alert in alerts()]
    lab.until(
        lambda: all(rule["health"] == "ok" for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]),
        "all are evaluated",
    )
    assert prometheus.firing() == set()

    time.sleep(6)  # until packets in clear count
    one.run("ip", "rule", "add", "from", "all", "lookup", "main", "priority", "50")
    lab.until(lambda: prometheus.firing() == {"WgpyLeak"}, "the alert is raised")
