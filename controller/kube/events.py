"""What becomes of what the agent tells: a new Event, one more in a series, or nothing. Pure: ``now`` is an argument.

An Event (``events.k8s.io/v1``) is created once. When the same is told again, its series is counted up, at most once a minute, by
all that was told in between. An agent that has much to say says ten things, and then one in half a minute: etcd has to keep them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from controller.source import Event

CONTROLLER = "wgpy.io/agent"
NAMESPACE = "default"
"""Where Events about what has no namespace, such as Nodes, have to be."""

SERIES_SECONDS = 60.0
SERIES_LIFETIME_SECONDS = 3000.0
"""The API server keeps an Event for an hour after it was last written: after so long without a word a new one is made."""

BURST = 10
SECONDS_PER_EVENT = 30.0
NOTE_BYTES = 1024
REMEMBERED = 100
"""Series, at most."""


@dataclass(slots=True)
class Series:
    """An Event that has been created, under ``name``; how often it was told, and when that was last written."""

    name: str
    written: float
    count: int = 1


class Write(NamedTuple):
    """What to do: create the Event ``name`` if it has been told once, else set its series to that."""

    name: str
    told: int


class Events:
    """What has been told so far."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, Event], Series] = {}
        self._tokens = float(BURST)
        self._filled = float("-inf")

    def tell(self, node: str, event: Event, name: str, now: float) -> Write | None:
        """What to write now, if anything. ``name`` is free to be used for a new Event."""
        series = self._series.get((node, event))
        if series is not None and now - series.written < SERIES_LIFETIME_SECONDS:
            series.count += 1
            if now - series.written < SERIES_SECONDS:
                return None
            series.written = now
            return Write(series.name, series.count)
        if not self._take_token(now):
            return None
        while len(self._series) >= REMEMBERED:
            del self._series[next(iter(self._series))]
        self._series.pop((node, event), None)
        self._series[node, event] = Series(name, now)
        return Write(name, 1)

    def forget(self, node: str, event: Event) -> None:
        """It could not be written, or is no longer there: the next time, make a new one."""
        self._series.pop((node, event), None)

    def _take_token(self, now: float) -> bool:
        earned = (now - self._filled) / SECONDS_PER_EVENT
        self._tokens, self._filled = min(self._tokens + max(earned, 0.0), float(BURST)), now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def manifest(node: str, event: Event, name: str, time: datetime) -> Mapping[str, Any]:
    """The Event as it is created. ``time`` is in UTC."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "eventTime": micro_time(time),
        "type": "Warning" if event.is_warning else "Normal",
        "reason": event.reason,
        "action": event.reason,
        "note": cut(event.message),
        # The kubelet, too, gives the Node's name for its uid: that is how `kubectl describe node` finds it.
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "reportingController": CONTROLLER,
        "reportingInstance": node[:128],
    }


def series(count: int, time: datetime) -> Mapping[str, Any]:
    """The merge patch that says that it has been told ``count`` times by now."""
    return {"series": {"count": count, "lastObservedTime": micro_time(time)}}


def micro_time(time: datetime) -> str:
    """As Kubernetes writes it."""
    return f"{time:%Y-%m-%dT%H:%M:%S.%f}Z"


def cut(message: str) -> str:
    """As much of it as the API server takes."""
    data = message.encode()
    if len(data) <= NOTE_BYTES:
        return message
    return data[: NOTE_BYTES - 3].decode(errors="ignore") + "…"
