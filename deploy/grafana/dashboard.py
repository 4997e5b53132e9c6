"""Writes wgpy.json, the dashboard for Grafana 10 and later:  python deploy/grafana/dashboard.py > deploy/grafana/wgpy.json

A dashboard is a list of rows; a row is a title and panels, laid from left to right in the widths they ask for (a row is 24 wide).
Every query is narrowed to the nodes that are chosen ($node), by the label ``node`` that the PodMonitor gives each series
(docs/metrics.md says how to have it without one).
"""

import json
from typing import Any

Panel = dict[str, Any]
Query = tuple[str, str]
"""A PromQL expression, and how Grafana calls what it gives."""

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
NODES = 'node=~"$node"'
GREEN, RED, ORANGE = "green", "red", "orange"


def stat(title: str, expression: str, text: str, *, bad: str | None = None, unit: str = "short", width: int = 3) -> Panel:
    """One number. ``bad``: its colour from 1 on."""
    steps = [{"color": GREEN, "value": None}] + ([{"color": bad, "value": 1}] if bad else [])
    return {
        **_panel("stat", title, text, [(expression, "")], unit, width, 4, is_instant=True),
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"},
        "_defaults": {"thresholds": {"mode": "absolute", "steps": steps}},
    }


def series(title: str, text: str, *queries: Query, unit: str = "short", width: int = 8, stacked: bool = False) -> Panel:
    """Lines over time."""
    custom = {"fillOpacity": 20 if stacked else 5, "showPoints": "never", "stacking": {"mode": "normal" if stacked else "none"}}
    return {
        **_panel("timeseries", title, text, list(queries), unit, width, 8),
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "_defaults": {"custom": custom, "min": 0},
    }


def table(title: str, text: str, expression: str, *labels: str, unit: str = "short", width: int = 12) -> Panel:
    """What there is now, a line each, the greatest value first. Of the labels only these are shown."""
    hidden = {"Time": True} | {name: False for name in labels}
    return {
        **_panel("table", title, text, [(expression, "")], unit, width, 8, is_instant=True),
        "options": {"showHeader": True, "sortBy": [{"displayName": "Value", "desc": True}]},
        "transformations": [
            {"id": "filterFieldsByName", "options": {"include": {"names": [*labels, "Value"]}}},
            {"id": "organize", "options": {"excludeByName": hidden}},
        ],
        "_defaults": {},
    }


def _panel(
    kind: str, title: str, text: str, queries: list[Query], unit: str, width: int, height: int, *, is_instant: bool = False
) -> Panel:
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend or "__auto",
            **(
                {"instant": True, "range": False, "format": "table" if kind == "table" else "time_series"}
                if is_instant
                else {"range": True}
            ),
        }
        for number, (expression, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": SOURCE,
        "targets": targets,
        "gridPos": {"w": width, "h": height},
        "_unit": unit,
    }


RATE = "[$__rate_interval]"

ROWS: list[tuple[str, list[Panel]]] = [
    (
        "At a glance",
        [
            stat("Nodes", f"count(wgpy_agent_build_info{{{NODES}}})", "Nodes whose agent is scraped"),
            stat("Ready", f"sum(wgpy_agent_ready{{{NODES}}})", "Nodes that have their place in the mesh, as /readyz says"),
            stat(
                "Encrypted",
                f'sum(wgpy_agent_peers{{traffic="encrypted", {NODES}}})',
                "Ways from one node to another, or to an external peer, that are encrypted",
            ),
            stat(
                "In clear",
                f'sum(wgpy_agent_peers{{traffic="clear", {NODES}}} * on (instance, family) wgpy_agent_family_enabled)',
                "Ways that are not; `wgpy mesh` says why",
                bad=ORANGE,
            ),
            stat(
                "Refused",
                f'sum(wgpy_agent_peers{{traffic="refused", {NODES}}})',
                "Ways on which nothing is sent, rather than in clear",
                bad=ORANGE,
            ),
            stat(
                "Silent peers",
                f"sum(wgpy_agent_silent_peers{{{NODES}}})",
                "Peers that were sent something and do not answer",
                bad=RED,
            ),
            stat(
                "Leaked packets",
                f"ceil(sum(increase(wgpy_agent_leaked_packets_total{{{NODES}}}[$__range])))",
                "Packets seen in clear on the underlay that ought to have been encrypted, in the time that is shown",
                bad=RED,
            ),
            stat(
                "Findings",
                f"sum(wgpy_agent_findings{{{NODES}}}) or vector(0)",
                "Things found to be wrong in the cluster: see the table below",
                bad=ORANGE,
            ),
        ],
    ),
    (
        "What becomes of packets",
        [
            series(
                "Ways by traffic",
                "From each node to each other",
                (
                    f"sum by (traffic) (wgpy_agent_peers{{{NODES}}} "
                    "* on (instance, family) group_left wgpy_agent_family_enabled)",
                    "{{traffic}}",
                ),
                stacked=True,
            ),
            series(
                "Leaks",
                "Packets seen in clear on the underlay that ought to have been encrypted",
                (f"sum by (node, direction) (rate(wgpy_agent_leaked_packets_total{{{NODES}}}{RATE}))", "{{node}} {{direction}}"),
                unit="pps",
            ),
            series(
                "Turned away by strict mode",
                "Packets that were in clear, or would have been",
                (f"sum by (node, direction) (rate(wgpy_agent_refused_packets_total{{{NODES}}}{RATE}))", "{{node}} {{direction}}"),
                unit="pps",
            ),
        ],
    ),
    (
        "Traffic",
        [
            series(
                "Sent",
                "Bytes of WireGuard messages, by node",
                (f"sum by (node) (rate(wireguard_bytes_sent{{{NODES}}}{RATE}))", "{{node}}"),
                unit="Bps",
            ),
            series(
                "Received",
                "Bytes of WireGuard messages, by node",
                (f"sum by (node) (rate(wireguard_bytes_rcvd{{{NODES}}}{RATE}))", "{{node}}"),
                unit="Bps",
            ),
            series(
                "Busiest peers",
                "Both directions",
                (
                    f"topk(10, sum by (node, peer_endpoint) (rate(wireguard_bytes_sent{{{NODES}}}{RATE}) "
                    f"+ rate(wireguard_bytes_rcvd{{{NODES}}}{RATE})))",
                    "{{node}} - {{peer_endpoint}}",
                ),
                unit="Bps",
            ),
        ],
    ),
    (
        "Sessions",
        [
            series(
                "Peers with a session",
                "The others are idle, or do not answer",
                (f"sum by (node) (wgpy_sessions{{{NODES}}})", "{{node}}"),
                width=6,
            ),
            series(
                "Waiting",
                "Handshakes under way, and packets that wait for them",
                (f"sum by (node) (wgpy_handshakes_under_way{{{NODES}}})", "handshakes {{node}}"),
                (f"sum by (node) (wgpy_staged_packets{{{NODES}}})", "packets {{node}}"),
                width=6,
            ),
            table(
                "Oldest handshakes",
                "Between nodes that have nothing to say to each other the age grows for ever, and nothing is wrong",
                f"topk(20, time() - (wireguard_latest_handshake_seconds{{{NODES}}} > 0))",
                "node",
                "peer_endpoint",
                unit="s",
            ),
            series(
                "Handshakes",
                "By result (docs/metrics.md)",
                (f"sum by (result) (rate(wgpy_handshakes_total{{{NODES}}}{RATE}))", "{{result}}"),
            ),
            series(
                "Rekeys, and messages that wait",
                "Sessions that took the place of one that was still good, and handshake messages in the queue",
                (f"sum by (node) (rate(wgpy_rekeys_total{{{NODES}}}{RATE}))", "rekeys/s {{node}}"),
                (f"sum by (node) (wgpy_handshake_queue{{{NODES}}})", "messages {{node}}"),
            ),
            series(
                "Size of a batch",
                "Bytes a call of the kernel carries: the larger, the less CPU a byte costs",
                (
                    f"sum by (node) (rate(wireguard_bytes_sent{{{NODES}}}{RATE})) "
                    f"/ sum by (node) (rate(wgpy_sends_total{{{NODES}}}{RATE}))",
                    "sent {{node}}",
                ),
                (
                    f"sum by (node) (rate(wireguard_bytes_rcvd{{{NODES}}}{RATE})) "
                    f"/ sum by (node) (rate(wgpy_receives_total{{{NODES}}}{RATE}))",
                    "received {{node}}",
                ),
                unit="bytes",
            ),
        ],
    ),
    (
        "What is thrown away, and what is done without",
        [
            series(
                "Drops by reason",
                "Datagrams and packets (docs/metrics.md)",
                (f"sum by (reason) (rate(wgpy_drops_total{{{NODES}}}{RATE}))", "{{reason}}"),
                unit="pps",
            ),
            series(
                "Fallbacks",
                "They cost speed and nothing else: destinations that take no trains of datagrams, refused trains and sends",
                (f"sum by (node) (wgpy_plain_destinations{{{NODES}}})", "destinations {{node}}"),
                (f"sum by (node) (rate(wgpy_plain_trains_total{{{NODES}}}{RATE}))", "trains/s {{node}}"),
                (f"sum by (node) (rate(wgpy_send_errors_total{{{NODES}}}{RATE}))", "send errors/s {{node}}"),
            ),
            table(
                "The kernel's help",
                "On how many interfaces it is done without",
                f"sum by (node, offload) (1 - wgpy_offload{{{NODES}}})",
                "node",
                "offload",
                width=8,
            ),
        ],
    ),
    (
        "Agents",
        [
            series(
                "Since the last good pass",
                "It is 90 s at most, unless something is wrong",
                (f"time() - wgpy_agent_last_success_seconds{{{NODES}}}", "{{node}}"),
                unit="s",
                width=6,
            ),
            series(
                "Since the source was heard",
                "The age of what the agent goes by",
                (f"time() - wgpy_agent_source_heard_seconds{{{NODES}}}", "{{node}}"),
                unit="s",
                width=6,
            ),
            series(
                "Passes",
                "Times the node was looked at, and how long that took",
                (f"sum by (node) (rate(wgpy_agent_passes_total{{{NODES}}}{RATE}))", "passes/s {{node}}"),
                (f"wgpy_agent_last_pass_seconds{{{NODES}}}", "seconds {{node}}"),
                width=6,
            ),
            series(
                "Errors",
                "Passes that went wrong, and requests to the API server that failed",
                (f"sum by (node) (rate(wgpy_agent_failures_total{{{NODES}}}{RATE}))", "passes {{node}}"),
                (f"sum by (node) (rate(wgpy_agent_source_errors_total{{{NODES}}}{RATE}))", "requests {{node}}"),
                width=6,
            ),
            table(
                "Findings",
                "What is wrong in the cluster; `wgpy doctor` says what to do",
                f"wgpy_agent_findings{{{NODES}}}",
                "node",
                "reason",
            ),
            table(
                "Versions",
                "What runs where",
                f"count by (node, version, python) (wgpy_build_info{{{NODES}}})",
                "node",
                "version",
                "python",
            ),
        ],
    ),
]


def dashboard() -> dict[str, Any]:
    """The whole of it, as Grafana imports it."""
    panels: list[Panel] = []
    top = 0
    for title, row in ROWS:
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}}
        )
        top += 1
        left, height = 0, 0
        for panel in row:
            width = panel["gridPos"]["w"]
            if left + width > WIDTH:
                left, top, height = 0, top + height, 0
            panels.append(_placed(panel, left, top))
            left, height = left + width, max(height, panel["gridPos"]["h"])
        top += height
    return {
        "uid": "wgpy",
        "title": "wgpy: WireGuard mesh",
        "description": "Which traffic between nodes is encrypted, and how data planes and agents are (docs/metrics.md).",
        "tags": ["wireguard", "kubernetes"],
        "schemaVersion": 38,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }


def _placed(panel: Panel, left: int, top: int) -> Panel:
    shown = {name: value for name, value in panel.items() if not name.startswith("_")}
    return {
        **shown,
        "gridPos": {"x": left, "y": top, **panel["gridPos"]},
        "fieldConfig": {"defaults": {"unit": panel["_unit"], **panel["_defaults"]}, "overrides": []},
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1},
        {
            "name": "node",
            "label": "Node",
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": "label_values(wgpy_agent_build_info, node)", "refId": "node"},
            "definition": "label_values(wgpy_agent_build_info, node)",
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        },
    ]


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
