"""Where the cluster's objects come from.

A source hands over *states*, not events: all objects as they are now, and then, whenever something has changed, all objects
as they are by then. Bursts collapse, nothing can be missed, and losing a watch is just another list.

Objects are what the Kubernetes API serves, as plain dicts that nobody may change. Only the kinds of
:data:`controller.calico.KINDS` are handed over, and each has at least a kind and a name.
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


class SourceError(Exception):
    """The source cannot be read or written. The message is one line: what is wrong, where, what to do."""


class Source(Protocol):
    """List, then changes; and the one thing a node writes."""

    async def list(self) -> Objects:
        """All objects as they are now. Raises SourceError, also for an object that is malformed from the start."""
        ...

    async def changed(self) -> Objects:
        """All objects, as soon as they differ from those handed over last. Never raises for a malformed object: its last
        good state stays, and the log says so."""
        ...

    async def annotate(self, node: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations of a Node (None removes one), on top of whatever others have written meanwhile. SourceError if
        there is no such Node or it cannot be written."""
        ...

    def locate(self, ref: Ref, path: Sequence[str | int]) -> str:
        """Where a person mends the field at ``path`` of an object: ``nodes/a.yaml:12``, or just the object's name."""
        ...
