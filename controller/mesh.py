"""What makes a mesh one of Calico's, of Flannel's, of Cilium's: the interface, which one small module each fills in (``meshes``).

The agent knows no annotation by name. It reads the kinds of objects a mesh names, has the mesh turn them into a
:class:`~controller.model.Cluster`, and writes the annotations the mesh gives it for a public key. All of it is pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from controller.model import Family
from controller.observe import Observation
from controller.source import Manifest, Objects


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object. The first of ``api_versions`` that a cluster serves is read; a cluster may serve none of them.

    ``plural`` is its name in paths (``ipamblocks``). ``required`` are the fields, besides apiVersion, kind and metadata.name,
    without which an object says nothing: one that lacks them is malformed. All kinds are cluster-wide.
    """

    name: str
    plural: str
    api_versions: tuple[str, ...]
    required: tuple[tuple[str, ...], ...] = ()


class Mesh(Protocol):
    """How one mesh is read and written."""

    name: str
    """As on the command line: ``calico``."""

    kinds: Mapping[str, Kind]
    """The kinds that :meth:`observe` looks at, by name. ``Node`` is always one of them."""

    announcing_kind: str
    """The kind whose object, named as the node, carries the node's public key: ``Node``, mostly."""

    def trim(self, manifest: Manifest) -> Manifest:
        """What :meth:`observe` and the agent look at in an object, and nothing else: two versions of an object that differ
        only in what does not concern us (labels, conditions, images) come out equal. Never raises."""
        ...

    def observe(self, objects: Objects, node_name: str) -> Observation:
        """The cluster as this node has to see it. Never raises."""
        ...

    def announcement(self, family: Family, public_key: bytes, objects: Objects, node_name: str) -> Mapping[str, str | None]:
        """The annotations of the announcing object that say: this is my key."""
        ...

    def withdrawal(self, family: Family, objects: Objects, node_name: str) -> Mapping[str, str | None]:
        """The annotations that take the key back (None removes one); empty where there is nothing to take back."""
        ...
