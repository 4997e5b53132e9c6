"""What stands in the tables and texts of the page: columns, rows and sentences, from views and statuses. Pure.

Rows are plain data with an ``id``. A cell that is None is not known, and says so. What the browser does to show a value is one of
the functions of :mod:`controller.dashboard.look`; what comes from the cluster is only ever a value.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from controller.dashboard.picture import MARKS
from controller.dashboard.view import MOST_LINKED, MeshView, State
from controller.summary import HANDSHAKE_AGES

Row = dict[str, Any]


def _column(field: str, title: str, width: int, formatter: str | None = None, **options: Any) -> Row:
    column: Row = {"field": field, "headerName": title, "width": width, **options}
    if formatter is not None:
        column |= {":valueFormatter": f"cell => wgpy.{formatter}(cell.value)", "type": "rightAligned"}
    return column


_STATE = {":valueFormatter": "cell => cell.data.label", ":cellClass": "cell => 'state-' + cell.value"}

NODE_COLUMNS = (
    _column("id", "Node", 190, pinned="left"),
    _column("state", "State", 150, sort="desc", **_STATE),
    _column("why", "Why", 260, flex=1, minWidth=160, tooltipField="why"),
    _column("encrypted", "Encrypted", 105, "known"),
    _column("clear", "In clear", 95, "known"),
    _column("refused", "Refused", 95, "known"),
    _column("silent", "No answer", 105, "known"),
    _column("rx_rate", "Received", 110, "rate"),
    _column("tx_rate", "Sent", 110, "rate"),
    _column("oldest", "Oldest handshake", 145, "age"),
    _column("leaks", "Leaks", 100, "known"),
    _column("warnings", "Warnings", 100, "known"),
    _column("address", "Address", 150),
)
PEER_COLUMNS = (
    _column("peer", "Peer", 190, pinned="left"),
    _column("family", "Family", 85),
    _column("state", "Traffic", 140, sort="desc", **_STATE),
    _column("why", "Why", 200, tooltipField="why"),
    _column("endpoint", "Endpoint", 190),
    _column("pods", "Pods behind it", 300, tooltipField="pods"),
    _column("ranges", "Ranges behind it", 180, tooltipField="ranges"),
    _column("age", "Handshake", 110, "age"),
    _column("rx_rate", "Received", 110, "rate"),
    _column("tx_rate", "Sent", 110, "rate"),
    _column("rx_bytes", "Received in all", 130, "size"),
    _column("tx_bytes", "Sent in all", 110, "size"),
    _column("key", "Public key", 380),
)


def node_rows(view: MeshView, now: float) -> list[Row]:
    """The table of the nodes. What is not known is None."""
    rows = []
    for node in view.nodes:
        is_known = node.state not in (State.NO_AGENT, State.RESTS)
        counts = ("encrypted", "clear", "refused", "silent", "rx_rate", "tx_rate")
        rows.append(
            {
                "id": node.name,
                "state": node.state.severity,
                "label": f"{MARKS[node.state]} {node.state.value}",
                "why": node.why,
                **{name: round(getattr(node, name)) if is_known else None for name in counts},
                "oldest": round(now - node.oldest_handshake) if node.oldest_handshake is not None else None,
                "leaks": node.leaks,
                "warnings": node.warnings if node.state is not State.NO_AGENT else None,
                "address": node.address,
            }
        )
    return rows


_TRAFFIC = {"encrypted": State.ENCRYPTED, "clear": State.CLEAR, "refused": State.REFUSED}


def peer_rows(
    status: Mapping[str, Any], before: Mapping[str, Any] | None, pods: Mapping[str, Sequence[tuple[str, str]]]
) -> list[Row]:
    """The table of a node's peers, from its whole status, the one ``before`` (for rates) and the pods by node."""
    known = {} if before is None else {(each["family"], peer["name"]): peer for each, peer in _peers(before)}
    seconds = status["at"] - before["at"] if before is not None else 0.0
    return [
        _peer_row(family["family"], peer, known.get((family["family"], peer["name"])), seconds, status["at"], pods)
        for family, peer in _peers(status)
    ]


def _peers(status: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(family, peer) for family in status["families"] if family["rest"] is None for peer in family["peers"]]


def _peer_row(
    family: int,
    peer: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    seconds: float,
    now: float,
    pods: Mapping[str, Sequence[tuple[str, str]]],
) -> Row:
    state = State.SILENT if peer["is_silent"] else _TRAFFIC[peer["traffic"]]
    behind = [f"{address} {name}" for address, name in pods.get(peer["name"], ()) if (":" in address) == (family == 6)]
    rates = {
        f"{way}_rate": round(max(peer[f"{way}_bytes"] - before[f"{way}_bytes"], 0) / seconds)
        if before is not None and seconds > 0
        else None
        for way in ("rx", "tx")
    }
    return {
        "id": f"{family} {peer['name']}",
        "peer": peer["name"],
        "family": f"IPv{family}",
        "state": state.severity,
        "label": f"{MARKS[state]} {state.value}",
        "why": peer["why"],
        "endpoint": (peer["endpoint"] or "") + (" (roamed)" if peer["has_roamed"] else ""),
        "age": round(now - peer["last_handshake"]) if peer["last_handshake"] is not None else None,
        "rx_bytes": peer["rx_bytes"],
        "tx_bytes": peer["tx_bytes"],
        **rates,
        "ranges": ", ".join(peer["ranges"]),
        "pods": ", ".join(behind),
        "key": peer["public_key"] or "",
    }


# Sentences ----------------------------------------------------------------------------------------------------------


def ages() -> list[tuple[str, str]]:
    """The labels of the bars, and the class of those that are late."""
    bounds = [(f"up to {bound} s", "") for bound in HANDSHAKE_AGES]
    return [*bounds, (f"over {HANDSHAKE_AGES[-1]} s (idle)", "late"), ("never", "late")]


def notice(view: MeshView, is_listed: bool, failure: str | None) -> tuple[str, str] | None:
    """What there is to say instead of a mesh, or above it: a heading and a text."""
    if failure is not None:
        head = "The cluster is out of reach" + ("; it is shown as it was last" if view.nodes else "")
        return head, failure
    if not is_listed:
        return "Waiting for the cluster", "The nodes are shown as soon as the cluster has said which there are."
    if not view.nodes:
        return "No nodes yet", "The cluster has no node. One that joins shows here by itself."
    if not view.totals.answering:
        why = next((node.why for node in view.nodes if node.why), "")
        return "No agent answers", f"{why}. Agents answer when they are started with --status-api (see docs/dashboard.md)."
    return None


def caption(view: MeshView) -> str:
    if view.left_out:
        return f"{view.left_out} more links are not as they ought to be than are drawn."
    if len(view.nodes) > MOST_LINKED:
        return "Drawn are the links that are not as they ought to be. Choose a node to see all of its own."
    return ""


def facts(status: Mapping[str, Any]) -> list[str]:
    """What is said of a node above its peers."""
    strict = "strict: what cannot be encrypted is refused" if status["is_strict"] else "not strict"
    found = [f"wgpy {status['version']}", strict]
    for family in status["families"]:
        if family["rest"] is not None:
            found.append(f"IPv{family['family']}: not in the mesh: {family['rest']}")
        else:
            mtu = f"MTU {family['mtu']}" if family["mtu"] else "no MTU"
            key = family["public_key"] or "no key"
            found.append(f"IPv{family['family']}: {family['interface'] or 'no interface'}, {mtu}, key {key}")
    return found


def told_line(entry: Mapping[str, Any]) -> str:
    """One entry of the history: when, what, and what belongs to it, as far as that is short."""
    fields = (f"{name} {value}" for name, value in entry.items() if name not in ("time", "kind") and isinstance(value, str | int))
    return f"{entry['time']}  {entry['kind']}  {', '.join(fields)}"
