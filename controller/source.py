"""Where the cluster's objects come from.

A source hands over *states*, not events: all objects as they are now, and then, whenever something has changed, all objects
as they are by then. Bursts collapse, nothing can be missed, and losing a watch is just another list.

Objects are what the Kubernetes API serves, as plain dicts that nobody may change. Only the kinds of the mesh
(:mod:`controller.mesh`) are handed over, each trimmed to what the mesh looks at, and each has at least a kind and a name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Manifest = Mapping[str, Any]


class Ref(NamedTuple):
    """Which object: kinds are unique among those we read, and all of them are cluster-wide."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


Objects = Mapping[Ref, Manifest]


class Event(NamedTuple):
    """What an operator finds under ``kubectl describe node``. ``reason`` is one CamelCase word."""

    reason: str
    message: str
    is_warning: bool


class Health(NamedTuple):
    """How a source is. ``heard_at`` (seconds since 1970) is when it last said anything; ``failure`` is why it is not in sync now,
    in one line. ``lists`` and ``errors`` count from the start."""

    is_synced: bool
    heard_at: float | None = None
    failure: str | None = None
    lists: int = 0
    errors: int = 0


class SourceError(Exception):
    """The source cannot be read or written. The message is one line: what is wrong, where, what to do."""


class SourceUnavailable(SourceError):
    """Nobody answers just now. What is known stays as it is, and it is worth trying again."""


class Source(Protocol):
    """List, then changes; and the little that a node writes."""

    name: str
    """What and where it is, for a person: ``directory /srv/cluster``."""

    async def list(self) -> Objects:
        """All objects as they are now. Raises SourceError, also for an object that is malformed from the start."""
        ...

    async def changed(self) -> Objects:
        """All objects, as soon as they differ from those handed over last; the first time, as soon as ``list`` would give them.
        Never raises for a malformed object: its last good state stays, and the log says so."""
        ...

    async def annotate(self, ref: Ref, annotations: Mapping[str, str | None]) -> None:
        """Set annotations of an object (None removes one), on top of whatever others have written meanwhile. SourceError if
        there is no such object or it cannot be written."""
        ...

    async def tell(self, node: str, event: "Event") -> None:
        """Make an Event on the Node, where a source has such a thing. The same one told again is counted, not repeated.
        Raises SourceError."""
        ...

    async def merge_status(self, node: str, patch: Manifest) -> None:
        """Apply a strategic merge patch to a Node's status, where a source has such a thing. Raises SourceError."""
        ...

    def health(self) -> Health:
        """How it is just now; costs nothing."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...

    def locate(self, ref: Ref, path: Sequence[str | int]) -> str:
        """Where a person mends the field at ``path`` of an object: ``nodes/a.yaml:12``, or just the object's name."""
        ...
